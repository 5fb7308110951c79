"""A local Ray with Serve on loopback, driven by one JSON line a command; ends when its stdin does.

A process of its own, because Serve reads its environment when it is imported. Run by `ray_cluster`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema


def in_replicas(function):
    """Run `function(actor)` inside every replica; returns the results."""
    names = ray.util.list_named_actors(all_namespaces=True)
    found = [name for name in names if name["name"].startswith("SERVE_REPLICA::")]
    actors = [ray.get_actor(name["name"], namespace=name["namespace"]) for name in found]
    return ray.get([actor.__ray_call__.remote(function) for actor in actors])


def deploy(user_config, **options):
    """Apply the configuration that KubeRay would send, and return at once."""
    chat = {"name": "Chat", "user_config": user_config, **options}
    application = {"name": "chat", "import_path": "nanochat_platform.ray_serve:app", "deployments": [chat]}
    config = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(config, _blocking=False)


def delete():
    """Take the application down in the background."""
    serve.delete("chat", _blocking=False)


def replicas():
    """Return the process id and the own port of each replica."""
    return in_replicas(lambda actor: (os.getpid(), actor._replica_impl._http_port))


def hang():
    """Let the engine of every replica hang in its next step, as a kernel that never returns would."""

    def stop(actor):
        import threading

        chat = actor._replica_impl._user_callable_wrapper._callable
        chat._replica._live.context.engine.step = threading.Event().wait

    in_replicas(stop)


def slow():
    """Let the engine of every replica wait before each step, until `go`."""

    def brake(actor):
        import threading

        chat = actor._replica_impl._user_callable_wrapper._callable
        engine = chat._replica._live.context.engine
        step, chat.gate = engine.step, threading.Event()

        def slowed():
            chat.gate.wait(0.1)
            return step()

        engine.step = slowed

    in_replicas(brake)


def go():
    """Let the engines that `slow` braked go on at their own speed."""
    in_replicas(lambda actor: actor._replica_impl._user_callable_wrapper._callable.gate.set())


def models():
    """Return how many models each replica's memory holds."""

    def count(_):
        import gc

        from nanochat.gpt import GPT

        gc.unfreeze()  # frozen objects are not listed
        return sum(isinstance(thing, GPT) for thing in gc.get_objects())

    return in_replicas(count)


def memory():
    """Return the proportional set size of this process and all that it started, in bytes."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    total, left = 0, [os.getpid()]
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += (
                sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) << 10
            )
    return total


def status():
    """Return Serve's view of the application: its status and what it says about it."""
    found = serve.status().applications.get("chat")
    return None if found is None else [found.status, found.message]


def main():
    """Serve commands `{"do": name, ...arguments}` until stdin ends."""
    options = json.loads(sys.argv[1])
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=options["temp"])
    serve.start(http_options={"host": "127.0.0.1", "port": options["port"]})
    print(json.dumps("ready"), file=sys.__stdout__, flush=True)
    commands = {f.__name__: f for f in (deploy, delete, replicas, hang, slow, go, models, memory, status)}
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps(commands[arguments.pop("do")](**arguments)), file=sys.__stdout__, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
