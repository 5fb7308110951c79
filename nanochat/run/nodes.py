"""The launchers of one attempt, one a node: they meet, tell each other how they end, and miss a lost one.

Everything goes through the TCP store of the first node, which torch's ranks use too.
One thread talks to it; what others call looks at memory alone and never waits for
the network. Knows nothing of stages, and of ranks only how many a node has.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from nanochat.errors import ConfigError, NanochatError, PeerLostError, TakenError, UnavailableError
from nanochat.run.single import Limits
from nanochat.settings import Elastic, quiet_import

TALK_S = 0.2
FAREWELL_S = 20.0
"""The first node waits so long for the others to read its last word, before its store goes with it."""
SETTLE_S = 10.0
"""A node whose ranks lost the others waits so long for somebody to say why."""
SILENT_S = 3.0
"""Of silence are enough to wait no longer for a node that was lost or has ended."""
_LOST, _GONE, _UNEXPLAINED, _REASON = range(4)


@dataclass(frozen=True, slots=True)
class End:
    """How the ranks of one node ended, as all nodes see it."""

    code: int
    message: str = ""
    hint: str | None = None
    weight: int = _REASON
    """How much it explains: lost peers least, then a node that is gone, an error without a name, a reason."""
    order: int = 0
    """Position among the ends of all nodes."""

    @classmethod
    def of(cls, error: NanochatError | None) -> End:
        """Return the end that an error means; None is success."""
        if error is None:
            return cls(0)
        weight = _UNEXPLAINED if error.exit_code == 1 else _REASON
        weight = _LOST if isinstance(error, PeerLostError) else weight
        return cls(error.exit_code, error.message[:1000], (error.hint or "")[:300] or None, weight)

    def error(self) -> NanochatError | None:
        """Return what `of` was given, for another node to end with."""
        if self.code == 0:
            return None
        error = NanochatError(self.message, hint=self.hint)
        error.exit_code = self.code
        return error


@dataclass(frozen=True, slots=True)
class News:
    """What a node knows of the others at one moment."""

    stop: int | None = None
    """Signal that some launcher was sent."""
    failed: End | None = None
    """The first end of another node that was no success."""


class Nodes:
    """This launcher among those of all nodes: `gather`, work, `settle`, `leave`.

    The main thread calls these four; `look` and `stop` belong to any thread.
    """

    def __init__(
        self,
        place: Elastic,
        facts: Mapping[str, Any],
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`facts` must be the same on all nodes."""
        self.place = place
        self.first = place.node_rank == 0
        self._others = [node for node in range(place.nodes) if node != place.node_rank]
        self._facts = dict(facts)
        self._limits = limits
        self._clock = clock
        self._store: Any = None
        self._outbox: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._sent: set[str] = set()
        self._thread = threading.Thread(target=self._talk, name="nodes", daemon=True)
        self._here: dict[int, dict[str, Any]] = {}
        self._ends: dict[int, End] = {}
        self._gone: set[int] = set()
        self._stop: int | None = None
        self._news = 0
        self._beats: dict[int, tuple[int, float]] = {}
        self._heard = clock()
        self._broken = self._left = False

    @property
    def store(self) -> Any:
        """The store of the attempt; there after `gather`."""
        return self._store

    @property
    def address(self) -> tuple[str, int]:
        """Where the ranks of this node find the store."""
        return ("127.0.0.1" if self.first else self.place.host, self._store.port)

    # Meeting

    def gather(self, check: Callable[[], None]) -> None:
        """Wait for all nodes; `check` is called often and may raise to give up.

        Raises:
            ConfigError: two nodes have one number, or were asked for different things.
            TakenError: another process listens on the first node's port.
            UnavailableError: some node did not come in time.
            NanochatError: another node ended before all were there; its reason.
        """
        deadline = self._clock() + self._limits.gather_s
        if self._others:
            where = "the other nodes" if self.first else f"node 0 at {self.place.host}:{self.place.port}"
            print(
                f"node {self.place.node_rank} of {self.place.nodes} waits for {where}",
                file=sys.stderr,
                flush=True,
            )
        self._store = self._listen() if self.first else self._connect(check, deadline)
        self._heard = self._clock()
        self._post(f"here/{self.place.node_rank}", json.dumps(self._facts))
        if self._others:
            self._thread.start()
        while waiting := [node for node in self._others if node not in self._here]:
            check()
            failed = self.look().failed
            if failed is not None:
                raise failed.error() or PeerLostError("another node is gone")
            if self._clock() > deadline:
                names = ", ".join(str(node) for node in waiting)
                raise self._missing(f"of {self.place.nodes} nodes, {names} did not come")
            time.sleep(TALK_S / 4)
        for node, facts in sorted(self._here.items()):
            self._compare(node, facts)

    def _listen(self) -> Any:
        try:
            return self._tcp_store("127.0.0.1", self.place.port, is_master=True)
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error):
                raise UnavailableError(f"cannot listen on port {self.place.port}: {error}") from None
            raise TakenError(
                f"port {self.place.port} is in use by another process",
                hint="choose another PET_MASTER_PORT",
            ) from None

    def _connect(self, check: Callable[[], None], deadline: float) -> Any:
        host, port = self.place.host, self.place.port
        while True:
            check()
            try:
                # No signal interrupts torch's own attempts, so it is asked once somebody listens.
                socket.create_connection((host, port), timeout=2.0).close()
                store = self._tcp_store(host, port, is_master=False)
                count = store.add(f"count/{self.place.node_rank}", 1)
                break
            except (OSError, RuntimeError) as error:
                if self._clock() > deadline:
                    raise self._missing(f"node 0 does not answer at {host}:{port} ({error})") from None
            time.sleep(TALK_S)
        if count > 1:
            raise ConfigError(
                f"two launchers say that they are node {self.place.node_rank} of {self.place.nodes}",
                hint="give every node a PET_NODE_RANK of its own",
            )
        return store

    def _tcp_store(self, host: str, port: int, *, is_master: bool) -> Any:
        with quiet_import(TORCH_CPP_LOG_LEVEL="FATAL"):  # what the store would print, we say in a sentence
            from torch.distributed import TCPStore  # type: ignore[attr-defined]
        timeout = timedelta(seconds=self._limits.peer_s)
        return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timeout)

    def _missing(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"{what} within {self._limits.gather_s:.0f} s",
            hint="see whether the pods of all nodes run, and whether a network policy keeps them apart",
        )

    def _compare(self, node: int, facts: Mapping[str, Any]) -> None:
        for name, value in self._facts.items():
            if facts.get(name) != value:
                raise ConfigError(
                    f"node {node} has `{name}` {facts.get(name)!r}, node {self.place.node_rank} {value!r}",
                    hint="start all nodes with the same configuration and as many ranks",
                )

    # Talking: the thread

    def _talk(self) -> None:
        while not self._broken and not self._left:
            try:
                self._exchange()
            except RuntimeError:
                self._broken = True
            time.sleep(TALK_S)

    def _exchange(self) -> None:
        store, now = self._store, self._clock()
        while not self._outbox.empty():
            key, value = self._outbox.get()
            if key.startswith("end/"):
                value = json.dumps(json.loads(value) | {"order": store.add("order", 1)})
            store.set(key, value)
            store.add("news", 1)
            self._sent.add(key)
        store.add(f"beat/{self.place.node_rank}", 1)
        if self.first:
            self._watch(now)
        news = store.add("news", 0)
        if news != self._news:
            self._read()
            self._news = news
        self._heard = self._clock()

    def _watch(self, now: float) -> None:
        """On the first node: say of a node that was silent for too long that it is gone."""
        slept = now - self._heard > 5.0  # then this process cannot say who was silent
        for node in self._here:
            beat = self._store.add(f"beat/{node}", 0)
            if slept or beat != self._beats.get(node, (None, now))[0]:
                self._beats[node] = (beat, now)
            silent = now - self._beats[node][1]
            if silent > self._limits.peer_s and node not in self._gone:
                self._gone.add(node)
                if node not in self._ends:
                    self._post(f"end/{node}", json.dumps(asdict(self._lost(node, silent))))

    def _lost(self, node: int, silent_s: float | None = None) -> End:
        why = "" if silent_s is None else f": its launcher was silent for {silent_s:.0f} s"
        gone = PeerLostError(
            f"node {node} of {self.place.nodes} is gone{why}",
            hint="run the same command again to continue from the last checkpoint",
        )
        return replace(End.of(gone), weight=_GONE)

    def _read(self) -> None:
        if self._stop is None and self._store.check(["stop"]):
            self._stop = int(self._store.get("stop"))
        for node in self._others:
            if node not in self._here and self._store.check([f"here/{node}"]):
                self._here[node] = json.loads(self._store.get(f"here/{node}"))
            if node not in self._ends and self._store.check([f"end/{node}"]):
                self._ends[node] = End(**json.loads(self._store.get(f"end/{node}")))
            if self._store.check([f"bye/{node}"]):
                self._gone.add(node)

    def _post(self, key: str, value: str) -> None:
        self._outbox.put((key, value))

    # For the rest of the launcher

    def look(self) -> News:
        """Return what is known of the other nodes."""
        failed = [end for end in list(self._ends.values()) if end.code != 0]
        if failed:
            return News(self._stop, min(failed, key=lambda end: end.order))
        silent = self._clock() - self._heard
        if not self.first and self._store is not None and 0 not in self._ends:
            if self._broken:
                return News(self._stop, self._lost(0))
            if silent > self._limits.peer_s:
                return News(self._stop, self._lost(0, silent))
        return News(self._stop)

    def stop(self, signum: int) -> None:
        """Tell the others that this launcher was asked to stop."""
        self._post("stop", str(int(signum)))

    def settle(
        self, error: NanochatError | None, *, until: Callable[[], float | None] = lambda: None
    ) -> NanochatError | None:
        """Tell how the ranks here ended; returns what the attempt ended with: maybe another node's reason.

        `until` gives the time on the clock when waiting for others is over, if there is one.
        """
        if self._thread.ident is None:  # they never met
            return error
        mine = End.of(error)
        self._post(f"end/{self.place.node_rank}", json.dumps(asdict(mine)))
        if mine.code == 0:
            return None if self.first else self._verdict(until)
        patience = self._clock() + SETTLE_S
        while mine.weight < _REASON and self._clock() < min(patience, until() or patience):
            silent = self._silent_s()
            if self._broken or all(node in self._ends or silent[node] > SILENT_S for node in self._others):
                break
            if any(end.weight == _REASON and end.code != 0 for end in list(self._ends.values())):
                break
            time.sleep(TALK_S / 4)
        failed = sorted((end for end in self._ends.values() if end.code != 0), key=lambda end: end.order)
        silent = {node: s for node, s in self._silent_s().items() if s > SILENT_S}
        missing = [self._lost(node, silent.get(node)) for node in self._others if node not in self._ends]
        best = max([mine, *failed, *missing], key=lambda end: end.weight)
        return error if best is mine else best.error()

    def _verdict(self, until: Callable[[], float | None]) -> NanochatError | None:
        """The ranks here are done; the stage is when the first node says so."""
        while 0 not in self._ends:
            limit = until()
            if self._broken or self._silent_s()[0] > self._limits.peer_s:
                return self._lost(0).error()
            if limit is not None and self._clock() > limit:
                return self._lost(0).error()
            time.sleep(TALK_S / 4)
        return self._ends[0].error()

    def _silent_s(self) -> dict[int, float]:
        """Return how long each other node was not heard of; only the first node hears of more than one."""
        now = self._clock()
        heard = {0: self._heard}
        if self.first:
            heard = {node: since for node, (_, since) in list(self._beats.items())}
        return {node: now - heard.get(node, now) for node in self._others}

    def leave(self) -> None:
        """Part; the first node waits until the others have read what it said."""
        if self._thread.ident is None:
            return
        limit = self._clock() + FAREWELL_S
        bye = f"bye/{self.place.node_rank}"
        self._post(bye, "")
        while not self._broken and self._clock() < limit:
            silent = self._silent_s()
            if self.first:
                over = all(node in self._gone or silent[node] > SILENT_S for node in self._here)
            else:
                over = bye in self._sent or silent[0] > SILENT_S
            if over:
                break
            time.sleep(TALK_S / 4)
        self.close()

    def close(self) -> None:
        """Stop talking."""
        self._left = True
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)
