"""The `restricted` Pod Security standard (Kubernetes 1.36, Linux) as a table: what a control forbids.

`violations` is the offline judge of our pods; `mutants` are the pods that judge and API server must refuse.
Two relaxations of the standard are left out: pods in user namespaces and pods for Windows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Template = dict[str, Any]
Container = dict[str, Any]

KINDS_OF_CONTAINER = ("initContainers", "containers", "ephemeralContainers")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"}
VOLUMES |= {"projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_PROFILES = ("RuntimeDefault", "Localhost")
_MISSING = object()


def get(value: Any, path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def put(value: dict[str, Any], path: str, new: Any) -> None:
    """Set the value at a dotted path; `_MISSING` removes it."""
    *parents, last = path.split(".")
    for part in parents:
        value = value.setdefault(part, {})
    if new is _MISSING:
        value.pop(last, None)
    else:
        value[last] = new


Change = tuple[tuple[str, Any], ...]
"""Values to put at paths, all at once."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One control of the standard."""

    name: str
    pod: Callable[[dict[str, Any]], bool] = lambda spec: False
    """Whether a pod's spec breaks it by itself."""
    container: Callable[[dict[str, Any], Container], bool] = lambda spec, container: False
    """Whether a container of it does."""
    template: Callable[[Template], bool] = lambda template: False
    breaks_pod: tuple[Change, ...] = ()
    breaks_container: tuple[Change, ...] = ()
    unlike_api: bool = False
    """True where the API server refuses the mutant before Pod Security sees it."""


def _se_linux(options: Any) -> bool:
    options = options or {}
    return options.get("type", "") not in SELINUX_TYPES or bool(options.get("user") or options.get("role"))


def _handlers(container: Container) -> Iterator[dict[str, Any]]:
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        yield container.get(probe) or {}
    for hook in ("postStart", "preStop"):
        yield get(container, f"lifecycle.{hook}") or {}


def _names_host(container: Container) -> bool:
    return any(get(h, f"{kind}.host") for h in _handlers(container) for kind in ("httpGet", "tcpSocket"))


def _profile(context: Any, kind: str) -> bool:
    """Whether a security context asks for a profile other than the runtime's or the host's own."""
    return get(context, f"{kind}.type") not in (None, *_PROFILES)


def _root(spec: dict[str, Any], container: Container) -> bool:
    own = get(container, "securityContext.runAsNonRoot")
    return (get(spec, "securityContext.runAsNonRoot") if own is None else own) is not True


def _seccomp(spec: dict[str, Any], container: Container) -> bool:
    own = get(container, "securityContext.seccompProfile.type")
    return (get(spec, "securityContext.seccompProfile.type") if own is None else own) not in _PROFILES


def _capabilities(spec: dict[str, Any], container: Container) -> bool:
    found = get(container, "securityContext.capabilities") or {}
    added = set(found.get("add") or ()) - {"NET_BIND_SERVICE"}
    return bool(added) or "ALL" not in (found.get("drop") or ())


def _apparmor_annotation(template: Template) -> bool:
    annotations = get(template, "metadata.annotations") or {}
    values = [v for k, v in annotations.items() if k.startswith(APPARMOR_ANNOTATION)]
    return any(v and v != "runtime/default" and not v.startswith("localhost/") for v in values)


def _volume(source: dict[str, Any]) -> Change:
    return (("volumes", [{"name": "broken", **source}]),)


_CONTEXT = "securityContext"
CONTROLS: tuple[Control, ...] = (
    Control(
        name="host namespaces",
        pod=lambda spec: any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        breaks_pod=((("hostNetwork", True),), (("hostPID", True),), (("hostIPC", True),)),
    ),
    Control(
        name="privileged",
        container=lambda spec, c: get(c, f"{_CONTEXT}.privileged") is True,
        breaks_container=(
            # The API accepts `privileged` only beside privilege escalation.
            ((f"{_CONTEXT}.privileged", True), (f"{_CONTEXT}.allowPrivilegeEscalation", _MISSING)),
        ),
    ),
    Control(
        name="host ports",
        container=lambda spec, c: any(port.get("hostPort") for port in c.get("ports") or ()),
        breaks_container=((("ports", [{"containerPort": 8080, "hostPort": 8080}]),),),
    ),
    Control(
        name="host probes",
        container=lambda spec, c: _names_host(c),
        breaks_container=(
            (("livenessProbe", {"httpGet": {"port": 80, "host": "169.254.169.254"}}),),
            (("lifecycle", {"postStart": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}),),
        ),
    ),
    Control(
        name="AppArmor",
        template=_apparmor_annotation,
        pod=lambda spec: _profile(spec.get(_CONTEXT), "appArmorProfile"),
        container=lambda spec, c: _profile(c.get(_CONTEXT), "appArmorProfile"),
        breaks_pod=(((f"{_CONTEXT}.appArmorProfile", {"type": "Unconfined"}),),),
        breaks_container=(((f"{_CONTEXT}.appArmorProfile", {"type": "Unconfined"}),),),
    ),
    Control(
        name="SELinux",
        pod=lambda spec: _se_linux(get(spec, f"{_CONTEXT}.seLinuxOptions")),
        container=lambda spec, c: _se_linux(get(c, f"{_CONTEXT}.seLinuxOptions")),
        breaks_pod=(((f"{_CONTEXT}.seLinuxOptions", {"type": "spc_t"}),),),
        breaks_container=(
            ((f"{_CONTEXT}.seLinuxOptions", {"type": "spc_t"}),),
            ((f"{_CONTEXT}.seLinuxOptions", {"user": "system_u"}),),
            ((f"{_CONTEXT}.seLinuxOptions", {"role": "system_r"}),),
        ),
    ),
    Control(
        name="/proc mount",
        container=lambda spec, c: get(c, f"{_CONTEXT}.procMount") not in (None, "Default"),
        breaks_container=(((f"{_CONTEXT}.procMount", "Unmasked"),),),
        unlike_api=True,  # it wants hostUsers: false beside it
    ),
    Control(
        name="sysctls",
        pod=lambda spec: any(s["name"] not in SYSCTLS for s in get(spec, f"{_CONTEXT}.sysctls") or ()),
        breaks_pod=(((f"{_CONTEXT}.sysctls", [{"name": "kernel.msgmax", "value": "65536"}]),),),
    ),
    Control(
        name="Windows host process",
        pod=lambda spec: get(spec, f"{_CONTEXT}.windowsOptions.hostProcess") is True,
        container=lambda spec, c: get(c, f"{_CONTEXT}.windowsOptions.hostProcess") is True,
        breaks_pod=(((f"{_CONTEXT}.windowsOptions", {"hostProcess": True}),),),
        breaks_container=(((f"{_CONTEXT}.windowsOptions", {"hostProcess": True}),),),
        unlike_api=True,  # it wants the host's network and every container
    ),
    Control(
        name="volume types",
        pod=lambda spec: any(set(v) - {"name"} - VOLUMES for v in spec.get("volumes") or ()),
        breaks_pod=(
            _volume({"hostPath": {"path": "/"}}),
            _volume({"nfs": {"server": "nfs", "path": "/"}}),
            _volume({"iscsi": {"targetPortal": "10.0.0.1", "iqn": "iqn.2001-04.com.example:disk", "lun": 0}}),
            _volume({"cephfs": {"monitors": ["10.0.0.1:6789"]}}),
            _volume({"rbd": {"monitors": ["10.0.0.1:6789"], "image": "i"}}),
            _volume({"flexVolume": {"driver": "example/lvm"}}),
        ),
    ),
    Control(
        name="privilege escalation",
        container=lambda spec, c: get(c, f"{_CONTEXT}.allowPrivilegeEscalation") is not False,
        breaks_container=(
            ((f"{_CONTEXT}.allowPrivilegeEscalation", True),),
            ((f"{_CONTEXT}.allowPrivilegeEscalation", _MISSING),),
        ),
    ),
    Control(
        name="run as non-root",
        container=_root,
        breaks_pod=(((f"{_CONTEXT}.runAsNonRoot", False),), ((f"{_CONTEXT}.runAsNonRoot", _MISSING),)),
        breaks_container=(((f"{_CONTEXT}.runAsNonRoot", False),),),
    ),
    Control(
        name="user 0",
        pod=lambda spec: get(spec, f"{_CONTEXT}.runAsUser") == 0,
        container=lambda spec, c: get(c, f"{_CONTEXT}.runAsUser") == 0,
        breaks_pod=(((f"{_CONTEXT}.runAsUser", 0),),),
        breaks_container=(((f"{_CONTEXT}.runAsUser", 0),),),
    ),
    Control(
        name="seccomp",
        pod=lambda spec: _profile(spec.get(_CONTEXT), "seccompProfile"),
        container=_seccomp,
        breaks_pod=(
            ((f"{_CONTEXT}.seccompProfile", {"type": "Unconfined"}),),
            ((f"{_CONTEXT}.seccompProfile", _MISSING),),
        ),
        breaks_container=(((f"{_CONTEXT}.seccompProfile", {"type": "Unconfined"}),),),
    ),
    Control(
        name="capabilities",
        container=_capabilities,
        breaks_container=(
            ((f"{_CONTEXT}.capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),),
            ((f"{_CONTEXT}.capabilities", {"drop": ["NET_RAW"]}),),
            ((f"{_CONTEXT}.capabilities", _MISSING),),
        ),
    ),
)


def containers(spec: dict[str, Any]) -> Iterator[tuple[str, Container]]:
    """Yield (kind, container) for every container of a pod's spec."""
    for kind in KINDS_OF_CONTAINER:
        for container in spec.get(kind) or ():
            yield kind, container


def violations(template: Template) -> list[str]:
    """Return `control: where` for everything in a pod (or its template) that `restricted` refuses."""
    spec, found = template["spec"], []
    for control in CONTROLS:
        if control.pod(spec) or control.template(template):
            found.append(f"{control.name}: pod")
        bad = [c["name"] for _, c in containers(spec) if control.container(spec, c)]
        found += [f"{control.name}: container {name}" for name in bad]
    return found


@dataclass(frozen=True)
class Mutant:
    """A pod template with one thing wrong."""

    control: str
    where: str
    template: Template = field(repr=False)
    judged: bool = True
    """False where the API server refuses it for another reason before Pod Security sees it."""


def mutants(template: Template) -> Iterator[Mutant]:
    """Yield the template broken in every way of every control: in its pod, and in each of its containers."""
    for control in CONTROLS:
        for change in control.breaks_pod:
            broken = copy.deepcopy(template)
            _apply(broken["spec"], change)
            yield Mutant(control.name, "pod", broken, judged=not control.unlike_api)
        for index, (kind, container) in enumerate(containers(template["spec"])):
            for change in control.breaks_container:
                broken = copy.deepcopy(template)
                _apply(list(containers(broken["spec"]))[index][1], change)
                once = kind == "initContainers" and container.get("restartPolicy") != "Always"
                judged = not control.unlike_api and not (once and control.name == "host probes")
                yield Mutant(control.name, container["name"], broken, judged=judged)


def _apply(value: dict[str, Any], change: Change) -> None:
    for path, new in change:
        if path == "volumes":
            new = [*(value.get("volumes") or ()), *new]
        put(value, path, new)


def pod_templates(*documents: Iterable[Any] | Any) -> Iterator[tuple[str, Template]]:
    """Yield (path, template) for every pod and pod template anywhere in documents."""
    for document in documents:
        yield from _templates(document, document.get("kind", "?") if isinstance(document, dict) else "?")


def _templates(value: Any, path: str) -> Iterator[tuple[str, Template]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _templates(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        if isinstance(get(value, "spec.containers"), list):
            yield path, value
        for key, inner in value.items():
            yield from _templates(inner, f"{path}.{key}")
