"""Launchers that meet over a real store: three of them in one process, each on a thread of its own."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from fakes_run import wait_until

from nanochat.errors import (
    ConfigError,
    DivergedError,
    NanochatError,
    PeerLostError,
    StorageError,
    TakenError,
    UnavailableError,
)
from nanochat.run.nodes import Nodes
from nanochat.run.single import Limits
from nanochat.settings import Elastic

LIMITS = Limits(gather_s=60.0, peer_s=30.0)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture
def meet(pool):
    """Return a function that returns nodes which have met."""
    made = []

    def meet(count=3, limits=LIMITS, facts=lambda node: {"stage": "base_train"}):
        port = free_port()
        for node in range(count):
            place = Elastic(nodes=count, node_rank=node, host="127.0.0.1", port=port)
            made.append(Nodes(place, facts(node), limits))
        done = [pool.submit(node.gather, lambda: None) for node in made]
        wait(done, timeout=60)
        for each in done:
            each.result(timeout=0)
        return made

    yield meet
    for node in made[::-1]:
        node.close()


def finish(pool, nodes, errors):
    """Let every node settle with its error and leave; returns what each ends with."""

    def one(node, error):
        found = node.settle(error)
        node.leave()
        return found

    done = [pool.submit(one, node, error) for node, error in zip(nodes, errors, strict=True)]
    return [future.result(timeout=60) for future in done]


BUG, LOST = NanochatError("ValueError: oops"), PeerLostError("rank 0 lost the others")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([None, None, None], [None, None, None]),
        ([LOST, LOST, DivergedError("loss is nan")], [(70, "loss is nan")] * 3),
        ([LOST, BUG, LOST], [(1, "ValueError: oops")] * 3),
        ([BUG, LOST, StorageError("no space")], [(201, "no space")] * 3),
        ([StorageError("no export"), None, None], [(201, "no export")] * 3),
        ([None, None, DivergedError("too late")], [None, None, (70, "too late")]),
    ],
    ids=["success", "a reason", "only a bug", "a bug and a reason", "the export", "after the record"],
)
def test_all_nodes_end_with_what_explains_most(pool, meet, errors, expected):
    found = finish(pool, meet(), errors)
    assert [error and (error.exit_code, error.message) for error in found] == expected


def test_a_stop_that_one_is_asked_is_known_to_all(pool, meet):
    nodes = meet()
    nodes[2].stop(signal.SIGTERM)
    wait_until(lambda: all(node.look().stop == signal.SIGTERM for node in nodes[:2]))
    assert finish(pool, nodes, [None, None, None]) == [None, None, None]


def test_a_failure_is_seen_by_all_while_they_work(pool, meet):
    nodes = meet()
    assert nodes[1].settle(DivergedError("loss is nan")).exit_code == 70
    wait_until(lambda: all(nodes[node].look().failed is not None for node in (0, 2)))
    assert {nodes[node].look().failed.message for node in (0, 2)} == {"loss is nan"}
    nodes[1].leave()
    assert [e.exit_code for e in finish(pool, [nodes[0], nodes[2]], [LOST, LOST])] == [70, 70]


def test_a_node_that_falls_silent_is_lost_to_all(pool, meet):
    nodes = meet(limits=Limits(gather_s=60.0, peer_s=2.0))
    nodes[1].close()  # as if its launcher hung: no word, no beat
    wait_until(lambda: all(nodes[node].look().failed is not None for node in (0, 2)))
    assert {nodes[node].look().failed.code for node in (0, 2)} == {137}
    found = finish(pool, [nodes[0], nodes[2]], [LOST, LOST])
    assert [error.exit_code for error in found] == [137, 137]
    assert found[0].message.startswith("node 1 of 3 is gone")


def test_one_node_alone_waits_for_nobody():
    alone = Nodes(Elastic(local_ranks=2), {}, LIMITS)
    alone.gather(lambda: None)
    assert alone.address[0] == "127.0.0.1"
    assert alone.address[1] > 0
    assert alone.settle(BUG) is BUG
    alone.leave()


def test_two_launchers_of_one_number_are_told_so(meet):
    nodes = meet(count=2)
    twin = Nodes(nodes[1].place, {"stage": "base_train"}, LIMITS)
    with pytest.raises(ConfigError, match="two launchers say that they are node 1 of 2"):
        twin.gather(lambda: None)


@pytest.mark.parametrize(
    ("node", "words"),
    [(0, "of 2 nodes, 1 did not come within 0 s"), (1, "node 0 does not answer at 127.0.0.1:")],
)
def test_a_node_that_waits_in_vain_says_for_whom(node, words):
    place = Elastic(nodes=2, node_rank=node, host="127.0.0.1", port=free_port())
    lonely = Nodes(place, {}, Limits(gather_s=0.1))
    with pytest.raises(UnavailableError, match=words):
        lonely.gather(lambda: None)
    lonely.close()


def test_a_port_that_another_process_holds_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TakenError, match=f"port {port} is in use"):
            Nodes(Elastic(nodes=2, host="127.0.0.1", port=port), {}, LIMITS).gather(lambda: None)


def test_what_must_be_the_same_is_compared(meet):
    with pytest.raises(ConfigError, match="has `ranks of a node`"):
        meet(count=2, facts=lambda node: {"ranks of a node": node + 1})
