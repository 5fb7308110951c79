"""Namespaces of their own for a cluster: everything in them dies with the tests.

Knows nothing of Kubernetes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .host import HarnessError, cache_root, poll, run
from .network import Slot

HERE = Path(__file__).resolve().parent
NAMESPACES = ("-m", "-u", "-n", "-p")


def children(pid: int) -> list[int]:
    """Return the direct children of a process; none where it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


class Process:
    """A program inside the sandbox."""

    def __init__(self, name: str, nsenter: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.nsenter = nsenter
        """The helper outside that waits for it."""
        (self.pid,) = poll(f"{name} to start", self._child, timeout=10, interval=0.005)

    def _child(self) -> list[int] | None:
        if self.nsenter.poll() is not None:
            raise HarnessError(f"{self.name} ended at once with {self.nsenter.returncode}")
        return children(self.nsenter.pid) or None

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self.nsenter.poll() is None

    def kill(self, sent: signal.Signals) -> None:
        """Send a signal and wait until the program has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, sent)
        self.nsenter.wait(timeout=30)


class Sandbox:
    """Mount, host-name, network and process namespaces with one link to the host.

    `stop` is the death of their init. The same happens when this process dies in any way: init
    reads a pipe that only this process holds open, and a guard outside removes control groups
    and files afterwards.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.state = slot.work / "state"
        self.logs = slot.work / "logs"
        self.processes: dict[str, Process] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self.init = 0

    def start(self) -> None:
        """Make the namespaces and the link.

        Raises:
            HarnessError: the kernel refused; the message holds what the guard printed.
        """
        self._check_place()
        self._prepare_files()
        log = self.logs / "guard.log"
        with log.open("wb") as output:
            self._guard = subprocess.Popen(
                ["/bin/bash", HERE / "guard.sh", self.slot.work, self.slot.host_link, self.slot.cgroup],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        guard = self._guard

        def up() -> int | None:
            if guard.poll() is not None:
                raise HarnessError(f"no namespaces here: {log.read_text().strip()}")
            if not (self.state / "init.up").exists():
                return None
            return children(int((self.state / "unshare.pid").read_text()))[0]

        self.init = poll("the cluster's namespaces", up, timeout=20, interval=0.01)
        self._connect()
        for group in self._cgroup_parents():
            (group / self.slot.cgroup).mkdir(exist_ok=True)

    def _check_place(self) -> None:
        for hidden in ("/run", "/var/lib", "/var/log"):
            if cache_root().resolve().is_relative_to(hidden):
                raise HarnessError(f"the cache may not lie in {hidden}: set XDG_CACHE_HOME elsewhere")

    def _prepare_files(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.rmtree(self.logs, ignore_errors=True)
        for folder in (self.state / "kubelet", self.state / "pod-logs", self.logs):
            folder.mkdir(parents=True)
        (self.slot.work / "containerd").mkdir(exist_ok=True)
        (self.state / "resolv.conf").touch()
        (self.state / "hosts").write_text(f"127.0.0.1 localhost\n{self.slot.node_ip} node1\n")

    @staticmethod
    def _cgroup_parents() -> Iterator[Path]:
        """Yield the root of each control-group hierarchy: one a controller (v1) or the only one (v2)."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, target, kind, *_ = line.split()
            unified = kind == "cgroup2" and target == "/sys/fs/cgroup"
            if unified:
                for controller in ("cpu", "cpuset", "memory", "pids", "io"):
                    with contextlib.suppress(OSError):
                        Path(target, "cgroup.subtree_control").write_text(f"+{controller}")
            if kind == "cgroup" or unified:
                yield Path(target)

    def _connect(self) -> None:
        slot = self.slot
        host, node = slot.host_link, slot.node_link
        run(["ip", "link", "add", host, "type", "veth", "peer", "name", node, "netns", str(self.init)])
        outside = (
            f"addr add {slot.host_ip}/{slot.link_subnet} dev {host}",
            f"link set {host} up",
            f"route add {slot.services} via {slot.node_ip}",
            f"route add {slot.pods} via {slot.node_ip}",
        )
        # The Service range must be routable for kube-proxy's rules to see it; there is no default
        # route, so nothing in here can leave the machine.
        inside = (
            f"addr add {slot.node_ip}/{slot.link_subnet} dev {node}",
            f"link set {node} up",
            f"route add {slot.services} dev {node} src {slot.node_ip}",
        )
        in_net = ["nsenter", "-t", str(self.init), "-n", "ip", "-batch", "-"]
        run(in_net, stdin="\n".join(inside))
        run(["ip", "-batch", "-"], stdin="\n".join(outside))
        sysctls = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
        switch = " ".join(f"/proc/sys/{name}" for name in sysctls)
        script = f'for name in {switch}; do [ ! -e "$name" ] || echo 1 >"$name"; done'
        self.run(["sh", "-c", script])

    def _inside(self, args: Sequence[str | Path]) -> list[str]:
        return ["nsenter", "-t", str(self.init), *NAMESPACES, "--", *map(str, args)]

    def run(
        self, args: Sequence[str | Path], *, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; see `host.run`."""
        return run(self._inside(args), timeout=timeout, check=check)

    def spawn(self, name: str, args: Sequence[str | Path], env: Mapping[str, str]) -> Process:
        """Start a program inside; its output goes to `logs/NAME.log`."""
        with (self.logs / f"{name}.log").open("ab") as log:
            nsenter = subprocess.Popen(
                self._inside(args),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run", **env},
                start_new_session=True,
            )
        self.processes[name] = Process(name, nsenter)
        return self.processes[name]

    def pids(self) -> list[int]:
        """Return every process inside, those of containers too, which have namespaces of their own."""
        mine = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == mine:
                    found.append(int(entry.name))
        for pid in found:
            found += [child for child in children(pid) if child not in found]
        return found

    @property
    def guard_pid(self) -> int | None:
        """The process outside that cleans up, whatever becomes of this one."""
        return self._guard.pid if self._guard else None

    def stop(self) -> None:
        """Kill everything inside and return when nothing of it is left."""
        if self._guard is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.init:
                os.kill(self.init, signal.SIGKILL)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(timeout=60)
        for process in self.processes.values():
            process.nsenter.wait(timeout=10)
        self._guard = None
        self.init = 0
