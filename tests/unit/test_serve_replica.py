"""A server whose model is replaced: who answers, who finishes where, and what is left of the old model."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from pathlib import Path

import pytest

from nanochat.errors import DataError
from nanochat.serve.limits import Limits
from nanochat.serve.loading import Loaded
from nanochat.serve.replica import Offer, Replica
from nanochat.serve.stub import StubEngine, StubPrompts


def offer(name, *, step_s=0.0, **fields):
    engine = StubEngine(step_s=step_s)
    engine.run_thread()
    loaded = Loaded(id=name, path=Path(name), created=1, engine=engine, prompts=StubPrompts())
    return Offer(loaded=loaded, limits=Limits(**fields), aliases=("chat",))


class Call:
    """One HTTP request to an ASGI application."""

    def __init__(self, app, path, body=None):
        self.status = None
        self.body = b""
        self.asked = asyncio.Event()
        self.first = asyncio.Event()
        self._body = asyncio.Queue()
        self._hold = body is not None
        if body is None:
            self.send_body({})
        self.scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    def send_body(self, fields):
        self._body.put_nowait({"type": "http.request", "body": json.dumps(fields).encode()})

    async def _receive(self):
        self.asked.set()
        return await self._body.get()

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message.get("body", b"")
        if b'"content":"You' in self.body:
            self.first.set()

    async def end(self):
        await self.task
        return self


def get(app, path):
    return Call(app, path).end()


def chat(app, **fields):
    call = Call(app, "/v1/chat/completions", body=True)
    call.send_body({"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields})
    return call


def model_of(call):
    return json.loads(call.body)["model"]


def test_before_the_first_model_everything_is_answered_with_503():
    async def scene():
        replica = Replica()
        assert replica.model_id is None
        call = await get(replica, "/ready")
        assert call.status == 503
        assert json.loads(call.body)["error"]["code"] == "not_ready"
        assert replica.stuck_for() == 0.0
        await replica.close()

    asyncio.run(scene())


def test_streams_finish_on_the_model_they_began_with_and_new_requests_get_the_new_one():
    async def scene():
        replica = Replica()
        await replica.swap(lambda: offer("old", step_s=0.001))
        stream = chat(replica, stream=True, max_tokens=300, ignore_eos=True)
        await stream.first.wait()
        await replica.swap(lambda: offer("new"))
        assert not stream.task.done()
        assert model_of(await chat(replica).end()) == "new"
        await stream.end()
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert stream.body.count(b'"model":"old"') > 300
        assert b'"model":"new"' not in stream.body
        await replica.close()

    asyncio.run(scene())


def test_a_request_whose_body_is_still_coming_when_the_model_changes_is_answered():
    async def scene():
        replica = Replica()
        await replica.swap(lambda: offer("old"))
        slow = Call(replica, "/v1/chat/completions", body=True)
        await slow.asked.wait()
        await replica.swap(lambda: offer("new"))
        slow.send_body({"model": "chat", "messages": [{"role": "user", "content": "hi"}]})
        await slow.end()
        assert (slow.status, model_of(slow)) == (200, "old")
        await replica.close()

    asyncio.run(scene())


def test_a_model_that_cannot_be_made_ready_leaves_the_present_one():
    def broken():
        raise DataError("`model.safetensors` differs")

    async def scene():
        replica = Replica()
        await replica.swap(lambda: offer("old"))
        with pytest.raises(DataError):
            await replica.swap(broken)
        replica.refuse("differs")
        assert model_of(await chat(replica).end()) == "old"
        ready = await get(replica, "/ready")
        assert json.loads(ready.body) == {"status": "ready", "model": "old", "refused": "differs"}
        replica.settle()
        assert "refused" not in json.loads((await get(replica, "/ready")).body)
        await replica.close()

    asyncio.run(scene())


def test_never_more_than_two_models_are_in_memory():
    async def scene():
        replica = Replica()
        made = []

        def make(name):
            made.append(name)
            return offer(name, step_s=0.001)

        await replica.swap(lambda: make("one"))
        stream = chat(replica, stream=True, max_tokens=200, ignore_eos=True)
        await stream.first.wait()
        await replica.swap(lambda: make("two"))
        third = asyncio.create_task(replica.swap(lambda: make("three")))
        await chat(replica, max_tokens=1).end()
        assert made == ["one", "two"]
        await stream.end()
        await third
        assert replica.model_id == "three"
        await replica.close()

    asyncio.run(scene())


def test_the_old_engine_is_freed_though_the_collector_was_frozen():
    async def scene():
        replica = Replica()
        gone = []

        def first():
            made = offer("old")
            made.loaded.engine.itself = made.loaded.engine  # a cycle, as a real engine has
            gone.append(weakref.ref(made.loaded.engine))
            return made

        await replica.swap(first)
        gc.freeze()  # what Ray Serve does after the start
        try:
            kept = await chat(replica).end()  # as a server keeps an idle connection's last request
            await replica.swap(lambda: offer("new"))
            await replica.swap(lambda: offer("newer"))  # waits until the first is gone
            assert gone[0]() is None
            assert kept.status == 200
            assert gc.get_freeze_count() > 0
        finally:
            gc.unfreeze()
        await replica.close()

    asyncio.run(scene())


def test_what_was_counted_survives_the_model_and_the_gauges_follow_the_new_one():
    async def scene():
        replica = Replica()
        await replica.swap(lambda: offer("old"))
        await chat(replica).end()
        await replica.swap(lambda: offer("new"))
        await chat(replica).end()
        replica.refuse("no")
        lines = (await get(replica, "/metrics")).body.decode().splitlines()
        assert 'nanochat_http_requests_total{route="chat",status="200"} 2.0' in lines
        assert 'nanochat_model_swaps_total{outcome="taken"} 1.0' in lines
        assert 'nanochat_model_swaps_total{outcome="refused"} 1.0' in lines
        assert 'vllm:num_requests_running{model_name="new"} 0.0' in lines
        assert not any("old" in line for line in lines)
        await replica.close()

    asyncio.run(scene())


def test_an_engine_that_stands_still_is_stuck_even_when_it_is_the_old_one():
    class Still(StubEngine):
        """Takes work and never steps."""

        def run_thread(self):
            pass

        def close(self):
            pass

    def still():
        loaded = Loaded(id="old", path=Path("old"), created=1, engine=Still(), prompts=StubPrompts())
        return Offer(loaded=loaded, limits=Limits(stuck_s=1e-9), aliases=("chat",))

    async def scene():
        replica = Replica()
        await replica.swap(still)
        assert replica.stuck_for() == 0.0
        waiting = chat(replica)
        while not replica.stuck_for():
            await asyncio.sleep(0)
        await replica.swap(lambda: offer("new"))
        assert replica.stuck_for() > 0.0
        waiting.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting.task
        lines = (await get(replica, "/metrics")).body.decode().splitlines()
        assert 'nanochat_http_requests_total{route="chat",status="499"} 1.0' in lines
        await replica.close()

    asyncio.run(scene())


def test_the_end_of_the_lifespan_ends_what_runs_with_an_error():
    async def scene():
        replica = Replica()
        sent, to_app = asyncio.Queue(), asyncio.Queue()
        life = asyncio.create_task(replica({"type": "lifespan"}, to_app.get, sent.put))
        to_app.put_nowait({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"
        await replica.swap(lambda: offer("old", step_s=0.001))
        stream = chat(replica, stream=True, max_tokens=4000, ignore_eos=True)
        await stream.first.wait()
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await life
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"
        await stream.end()
        assert b'data: {"error":{"message":"the server shut down' in stream.body
        assert b"[DONE]" not in stream.body
        assert (await chat(replica).end()).status == 503

    asyncio.run(scene())
