"""The ASGI application: every route, keys, request ids, and OpenAI's error shape for all that goes wrong.

Knows nothing of sockets, signals or model folders: `main` starts it, and so may any other ASGI server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from nanochat.errors import RequestError
from nanochat.serve.bridge import Engine
from nanochat.serve.completions import ChatCompletions, Completions, Context, TextCompletions
from nanochat.serve.http import Message, Receive, Reply, Scope, Send, header, request_id
from nanochat.serve.keys import Keys
from nanochat.serve.limits import Limits
from nanochat.serve.metrics import CONTENT_TYPE, Metrics
from nanochat.serve.page import Page, load_page
from nanochat.serve.prompts import Prompts
from nanochat.serve.refusals import error_object, internal_error, invalid, refusal
from nanochat.serve.serving import Serving

log = logging.getLogger(__name__)

OWNER = "nanochat"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def create_app(
    engine: Engine,
    prompts: Prompts,
    *,
    model_id: str,
    created: int = 0,
    keys: Keys | None = None,
    limits: Limits | None = None,
    aliases: Sequence[str] = (),
    metrics: Metrics | None = None,
    warm: bool = True,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the application; its parts are in `app.state.context`, and nowhere beyond the app's life.

    Args:
        engine: a running `nanochat.engine.engine.Engine`, or a stub with the same face.
        prompts: renders conversations and texts to ids.
        model_id: the one model's name, e.g. `tiny/chat_sft-400`.
        created: when the model was made, seconds since the epoch.
        keys: API keys that `/v1/*` asks for; None: open.
        aliases: further names that clients may call the model; answers carry `model_id`.
        metrics: those of the process, which now show this engine; None: new ones.
        warm: False: not ready until `app.state.context.serving.warm` is set.
    """
    limits = limits or Limits()
    serving = Serving(
        engine,
        capacity=engine.limits.max_running + limits.max_waiting,
        slots=engine.limits.max_running,
        clock=timer,
        stuck_s=limits.stuck_s,
    )
    serving.warm = warm
    if metrics is None:
        metrics = Metrics(engine, serving, model_id)
    else:
        metrics.follow(engine, serving, model_id)
    context = Context(
        engine=engine,
        prompts=prompts,
        model_id=model_id,
        names=frozenset((model_id, *aliases)),
        limits=limits,
        serving=serving,
        metrics=metrics,
        clock=clock,
        timer=timer,
    )
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.context = context
    hot = {CHAT: ChatCompletions(context), TEXT: TextCompletions(context)}
    app.add_middleware(Front, keys=keys, hot=hot, serving=serving)
    _add_routes(app, created)
    _add_error_handlers(app)
    return app


class Front:
    """What every request passes: its id, the key, and the short way to the two hot routes."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys | None, hot: dict[str, Completions], serving: Serving
    ) -> None:
        self._app = app
        self._keys = keys
        self._hot = hot
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        ident = request_id(scope)
        if self._serving.leaving:
            send = _closing(send)
        if not self._allowed(scope, path):
            error = refusal(401, "the API key is missing or wrong", code="invalid_api_key")
            await Reply(send, ident).refuse(error)
            return
        endpoint = self._hot.get(path)
        if endpoint is not None and scope["method"] == "POST":
            await endpoint(scope, receive, Reply(send, ident))
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", ident)]
            await send(message)

        await self._app(scope, receive, send_with_id)

    def _allowed(self, scope: Scope, path: str) -> bool:
        if self._keys is None or not path.startswith("/v1/"):
            return True
        return self._keys.accepts(header(scope, b"authorization"))


def _closing(send: Send) -> Send:
    """Let every answer end its connection: the client's next one reaches a server that stays."""

    async def close(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0] != b"connection"]
            message["headers"] = [*headers, (b"connection", b"close")]
        await send(message)

    return close


def _add_routes(app: FastAPI, created: int) -> None:
    # FastAPI keeps every route's function for ever: what these hold of the model must be what can be let go.
    state = app.state
    context: Context = state.context
    model_id = context.model_id
    models = {
        name: {"id": name, "object": "model", "created": created, "owned_by": OWNER}
        for name in (model_id, *sorted(context.names - {model_id}))
    }
    page: Page = load_page()

    @app.post(CHAT)
    @app.post(TEXT)
    async def completions() -> None:
        """Declared for 405 and the route list; `Front` answers these."""

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(models.values())})

    @app.get("/v1/models/{name:path}")
    async def retrieve(name: str) -> JSONResponse:
        if name not in models:
            raise refusal(
                404,
                f"the model `{name[:80]}` does not exist; this server has `{model_id}`",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(models[name])

    @app.get("/health")
    async def health() -> JSONResponse:
        if waited := state.context.serving.stuck_for():
            raise refusal(503, f"work has waited {waited:.0f} s without an engine step", code="engine_stuck")
        return JSONResponse({"status": "ok", "steps": state.context.engine.ticks})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        serving: Serving = state.context.serving
        if serving.leaving or serving.draining:
            raise refusal(503, "the server is shutting down", code="draining", retry_after_s=1.0)
        if not serving.warm:
            raise refusal(503, "the model is still loading", code="not_ready", retry_after_s=1.0)
        answer = {"status": "ready", "model": model_id}
        if serving.refused is not None:
            answer["refused"] = serving.refused
        return JSONResponse(answer)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.context.metrics.scrape(), media_type=CONTENT_TYPE)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def index() -> Response:
        return Response(page.html, media_type="text/html", headers=page.headers)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        headers = (
            {} if error.retry_after_s is None else {"retry-after": str(max(1, round(error.retry_after_s)))}
        )
        return JSONResponse(error_object(error), status_code=error.status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            refused = refusal(404, f"there is no `{request.url.path[:80]}` here", code="not_found")
        elif error.status_code == 405:
            message = f"`{request.method[:16]}` is not allowed on `{request.url.path[:80]}`"
            refused = refusal(405, message, code="method_not_allowed")
        else:
            refused = refusal(error.status_code, str(error.detail))
        return JSONResponse(error_object(refused), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(error_object(invalid("the request is not valid", None)), status_code=400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_object(internal_error()), status_code=500)
