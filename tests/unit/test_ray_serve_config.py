"""The Ray Serve deployment without Ray: its configuration, and what a replica does with a change of it."""

from __future__ import annotations

import asyncio
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from nanochat_platform import local, ray_serve
from nanochat_platform.ray_serve import ENVIRONMENT, MAX_ONGOING_REQUESTS, Chat, UserConfig
from pydantic import ValidationError

from nanochat.errors import ConfigError, DataError
from nanochat.serve.limits import Limits
from nanochat.serve.loading import Loaded
from nanochat.serve.replica import Offer
from nanochat.serve.stub import StubEngine, StubPrompts


class Loader:
    """Makes stub models, fails on demand, and can be held."""

    def __init__(self):
        self.loaded = []
        self.hold = None

    def __call__(self, config):
        self.loaded.append(config.model)
        if self.hold is not None:
            self.hold.result(timeout=2)
        if config.model == "r/damaged-1":
            raise DataError("`model.safetensors` differs", hint="copy it again")
        if config.model == "r/fault-1":
            raise MemoryError("no room for it")
        engine = StubEngine()
        engine.run_thread()
        loaded = Loaded(
            id=config.model, path=Path(config.model), created=1, engine=engine, prompts=StubPrompts()
        )
        return Offer(loaded=loaded, limits=config.limits)


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def chat(loader):
    ours = logging.getLogger("nanochat")
    handlers, level = ours.handlers, ours.level
    yield Chat(loader)
    ours.handlers = handlers
    ours.setLevel(level)


async def settled(chat):
    """Wait until the last change was taken or refused."""
    if chat._swapping is not None:
        await chat._swapping


async def ready(chat):
    app, sent = chat.__serve_build_asgi_app__(), []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/ready", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert not any(name == b"x-request-id" for name, _ in sent[0]["headers"])
    return json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modle": "r/chat_sft-7"}, ["unknown field `modle`", "did you mean `model`?"]),
        ({"run": "r", "model": "r/chat_sft-7"}, ["not both"]),
        ({"max_running": 0}, ["max_running"]),
        ({"limits": {"max_wating": 3}}, ["limits.max_wating"]),
        ({"limits": {"max_waiting": MAX_ONGOING_REQUESTS}}, [f"below {MAX_ONGOING_REQUESTS}"]),
        ({"name": ""}, ["name"]),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_field(chat, fields, words):
    with pytest.raises(ConfigError) as raised:
        asyncio.run(chat.reconfigure(fields))
    for word in words:
        assert word in f"{raised.value.message} {raised.value.hint}"


def test_the_configuration_is_closed_and_has_a_schema():
    schema = UserConfig.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"run", "model", "name", "max_running", "api_keys", "limits"}
    with pytest.raises(ValidationError):
        UserConfig(model="a/b-1").model = "c/d-1"


def test_serve_lets_in_more_than_the_server_admits():
    assert UserConfig().max_running + Limits().max_waiting < MAX_ONGOING_REQUESTS / 2


def test_the_default_run_is_that_of_the_command_line():
    assert ray_serve.DEFAULT_RUN == local.DEFAULT_PRESET


def test_every_variable_is_one_that_this_ray_reads():
    folder = Path(find_spec("ray").submodule_search_locations[0])
    sources = ("serve/_private/constants.py", "_common/usage/usage_constants.py")
    text = "".join((folder / source).read_text() for source in sources)
    assert {name for name in ENVIRONMENT if f'"{name}"' not in text} == set()
    assert ENVIRONMENT["RAY_SERVE_ENABLE_HA_PROXY"] == ENVIRONMENT["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"


def test_haproxy_carries_a_stream_for_as_long_as_a_replica_may_drain():
    assert int(ENVIRONMENT["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > ray_serve.GRACE_S
    assert ray_serve.GRACE_S > ray_serve.DRAIN_S


def test_only_the_app_is_built_when_it_is_asked_for():
    with pytest.raises(AttributeError, match="no attribute 'ap'"):
        _ = ray_serve.ap


@pytest.mark.parametrize(("model", "error"), [("r/damaged-1", DataError), ("r/fault-1", MemoryError)])
def test_a_replica_whose_first_model_fails_does_not_start(chat, model, error):
    with pytest.raises(error):
        asyncio.run(chat.reconfigure({"model": model}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "r/damaged-1"}, "`model.safetensors` differs; hint: copy it again"),
        ({"model": "r/fault-1"}, "no room for it"),
        ({"modle": "r/two-2"}, "unknown field `modle`; hint: did you mean `model`?"),
    ],
)
def test_a_later_configuration_that_fails_leaves_the_model_and_is_told(chat, change, words):
    async def scene():
        await chat.reconfigure({"model": "r/one-1"})
        await chat.reconfigure(change)
        await settled(chat)
        told = await ready(chat)
        assert told["model"] == "r/one-1"
        assert words in told["refused"]
        await chat.check_health()
        await chat.reconfigure({"model": "r/one-1"})
        await settled(chat)
        assert await ready(chat) == {"status": "ready", "model": "r/one-1"}
        await chat._replica.close()

    asyncio.run(scene())


def test_the_same_configuration_again_loads_nothing(chat, loader):
    async def scene():
        for _ in range(3):
            await chat.reconfigure({"model": "r/one-1"})
            await settled(chat)
        assert loader.loaded == ["r/one-1"]
        await chat._replica.close()

    asyncio.run(scene())


def test_reconfigure_returns_before_the_new_model_is_loaded_and_the_last_wish_wins(chat, loader):
    from concurrent.futures import Future

    async def scene():
        await chat.reconfigure({"model": "r/one-1"})
        loader.hold = Future()
        for model in ("r/two-2", "r/three-3", "r/four-4"):
            await chat.reconfigure({"model": model})
            await asyncio.sleep(0)
        assert (await ready(chat))["model"] == "r/one-1"
        loader.hold.set_result(None)
        await settled(chat)
        assert (await ready(chat))["model"] == "r/four-4"
        assert loader.loaded == ["r/one-1", "r/two-2", "r/four-4"]
        await chat._replica.close()

    asyncio.run(scene())


def test_the_health_check_raises_when_the_engine_stands_still(chat):
    chat._replica = SimpleNamespace(stuck_for=lambda: 61.0)
    with pytest.raises(RuntimeError, match="61 s without an engine step"):
        asyncio.run(chat.check_health())
