"""Addresses for one cluster that meet neither another cluster's nor anything the host routes.

Knows nothing of namespaces or Kubernetes.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .host import HarnessError, cache_root, run

# One /16 a cluster: private space first, then the carriers' shared space for a host inside 10/8.
PREFIXES = (*(f"10.{n}" for n in range(200, 208)), *(f"100.{n}" for n in range(120, 124)))
LOCKS = Path("/run/nanochat-test-cluster")
"""Of the machine, not of a cache: links, addresses and control groups are the machine's too."""


@dataclass(frozen=True)
class Slot:
    """One cluster's share of the machine; its lock falls with the process."""

    number: int
    prefix: str
    lock: IO[str]

    @property
    def host_ip(self) -> str:
        """The host's end of the link: a server bound to it is reachable from pods."""
        return f"{self.prefix}.0.1"

    @property
    def node_ip(self) -> str:
        """The node's address: API server, kubelet and DNS."""
        return f"{self.prefix}.0.2"

    @property
    def link_subnet(self) -> int:
        """The prefix length between host and node."""
        return 30

    @property
    def services(self) -> str:
        """The range of ClusterIPs; its first address is the API's Service."""
        return f"{self.prefix}.64.0/18"

    @property
    def api_service_ip(self) -> str:
        """The ClusterIP of `kubernetes.default`."""
        return f"{self.prefix}.64.1"

    @property
    def pods(self) -> str:
        """The range of pod addresses."""
        return f"{self.prefix}.128.0/24"

    @property
    def host_link(self) -> str:
        """The host's end of the veth pair."""
        return f"nct{self.number}-host"

    @property
    def node_link(self) -> str:
        """The node's end of the veth pair."""
        return f"nct{self.number}-node"

    @property
    def cgroup(self) -> str:
        """The parent of every pod's control group."""
        return f"nanochat-test-{self.number}"

    @property
    def work(self) -> Path:
        """The folder of this cluster's state, logs and container storage."""
        return cache_root() / "clusters" / str(self.number)


def _routed() -> list[ipaddress.IPv4Network]:
    routes = json.loads(run(["ip", "-4", "-json", "route", "show", "table", "all"]).stdout or "[]")
    destinations = {route["dst"] for route in routes} - {"default"}
    return [ipaddress.IPv4Network(text) for text in destinations]


def claim_slot() -> Slot:
    """Return a slot nobody else on this machine holds, with an address range the host does not route yet.

    Raises:
        HarnessError: none is free.
    """
    LOCKS.mkdir(exist_ok=True)
    for number, prefix in enumerate(PREFIXES):
        file = (LOCKS / f"slot-{number}").open("a")
        slot = Slot(number, prefix, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        # The lock is ours, so a link of this name is a dead cluster's; its routes go with it.
        run(["ip", "link", "del", slot.host_link], check=False)
        wanted = ipaddress.IPv4Network(f"{prefix}.0.0/16")
        if not any(wanted.overlaps(network) for network in _routed()):
            return slot
        file.close()
    raise HarnessError(f"no free address range for a cluster: tried {', '.join(PREFIXES)} (each /16)")
