"""List, then watch, and list again where a watch cannot go on: no change is missed for ever.

Knows nothing of what the objects mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat_platform.kube.client import Client, Gone
from nanochat_platform.kube.resources import Object, Resource, meta, name_of
from nanochat_platform.kube.transport import Unreachable


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one object; `tick` (no object) at least once in every window."""

    kind: Literal["set", "gone", "tick"]
    name: str = ""
    object: Object | None = None


def follow(
    client: Client,
    resource: Resource,
    *,
    selector: str = "",
    fields: str = "",
    window_s: Callable[[], float] = lambda: 30.0,
) -> Iterator[Change]:
    """Yield the present objects, a tick, and then every change, for ever.

    A broken, expired or refused watch is answered by a new list, whose differences are yielded as
    changes. An object that went and came back in between shows as one change: compare its uid.

    Args:
        client: the cluster.
        resource: the collection.
        selector: a label selector.
        fields: a field selector.
        window_s: asked before every watch for its length in seconds, and so for the time between ticks.

    Raises:
        NanochatError: the list is refused, or the server stays away for longer than the client's patience.
    """
    known: dict[str, tuple[str, str]] = {}
    while True:
        listed = client.listing(resource, selector=selector, fields=fields)
        yield from _differences(known, listed.get("items") or [])
        version = str(meta(listed, "resourceVersion", ""))
        yield Change("tick")
        try:
            yield from _watch(client, resource, selector, fields, version, window_s, known)
        except (Gone, Unreachable):
            continue


def _differences(known: dict[str, tuple[str, str]], items: list[Object]) -> Iterator[Change]:
    present = {name_of(item): item for item in items}
    for name in [name for name in known if name not in present]:
        del known[name]
        yield Change("gone", name)
    for name, item in present.items():
        stamp = _stamp(item)
        if known.get(name) != stamp:
            known[name] = stamp
            yield Change("set", name, item)


def _watch(
    client: Client,
    resource: Resource,
    selector: str,
    fields: str,
    version: str,
    window_s: Callable[[], float],
    known: dict[str, tuple[str, str]],
) -> Iterator[Change]:
    """Watch window after window from where the last one ended; returns never, raises when it breaks."""
    while True:
        for kind, item in client.watch(
            resource, version, selector=selector, fields=fields, window_s=window_s()
        ):
            version = str(meta(item, "resourceVersion", version))
            name = name_of(item)
            if kind == "DELETED":
                known.pop(name, None)
                yield Change("gone", name, item)
            elif kind in ("ADDED", "MODIFIED"):
                known[name] = _stamp(item)
                yield Change("set", name, item)
        yield Change("tick")


def _stamp(item: Object) -> tuple[str, str]:
    return str(meta(item, "uid", "")), str(meta(item, "resourceVersion", ""))
