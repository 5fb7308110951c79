"""Which API server, as whom: a kubeconfig, or the service account of the pod this runs in.

Reads files and the environment; knows nothing of requests. The `kubernetes` package
does the same and costs 1.2 s to import (2026-11), more than `nanochat status` may take in all.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat.errors import ConfigError, ForbiddenError, UnavailableError, did_you_mean
from nanochat.settings import environment

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NO_CLUSTER = "set KUBECONFIG or pass --kubeconfig FILE; inside a pod a service-account token is enough"


@dataclass(slots=True)
class Credentials:
    """A bearer token or a basic pair, where the user is not a client certificate."""

    fixed: str | None = None
    """The whole `Authorization` header."""
    file: Path | None = None
    """A token that others rotate: read again at every request."""
    plugin: Mapping[str, Any] | None = None
    """The `exec` entry of a kubeconfig user."""
    _token: str | None = None
    _expires: float = 0.0

    def header(self, *, refresh: bool = False) -> str | None:
        """Return the `Authorization` header, None for none; `refresh` after the server refused the last.

        Raises:
            ForbiddenError: the token file cannot be read, or the credential plugin fails.
        """
        if self.file is not None:
            try:
                return f"Bearer {self.file.read_text(encoding='ascii').strip()}"
            except OSError as error:
                raise ForbiddenError(f"cannot read the token `{self.file}`: {error.strerror}") from None
        if self.plugin is None:
            return self.fixed
        if refresh or self._token is None or time.time() > self._expires:
            self._token, self._expires = _run_plugin(self.plugin)
        return f"Bearer {self._token}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the API server is and what proves who we are."""

    server: str
    """e.g. `https://10.96.0.1:443`."""
    source: str
    """Where this comes from, for messages: a file and its context, or `the pod's service account`."""
    namespace: str = "default"
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None
    """The name to verify the certificate against, where it is not the host's."""
    proxy: str | None = None
    credentials: Credentials = field(default_factory=Credentials)


def load(
    kubeconfig: str | Path | None = None,
    context: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    account: Path = SERVICE_ACCOUNT,
) -> Access:
    """Return the access that kubectl would use: a file given, KUBECONFIG, ~/.kube/config, or the pod's.

    Raises:
        ConfigError: a file is missing or wrong, or there is no such context.
        UnavailableError: there is no configuration at all.
    """
    env = environment() if env is None else env
    if kubeconfig is not None:
        paths = [Path(kubeconfig)]
        if not paths[0].is_file():
            raise ConfigError(f"kubeconfig `{kubeconfig}` does not exist", hint=_NO_CLUSTER)
    else:
        named = [Path(name) for name in env.get("KUBECONFIG", "").split(os.pathsep) if name]
        paths = [
            path for path in named or [Path(env.get("HOME") or "/", ".kube", "config")] if path.is_file()
        ]
        if named and not paths:
            raise ConfigError(f"KUBECONFIG names `{named[0]}`, which does not exist", hint=_NO_CLUSTER)
    if paths:
        return _from_kubeconfig(paths, context, env)
    return from_pod(env, account)


def from_pod(env: Mapping[str, str] | None = None, account: Path = SERVICE_ACCOUNT) -> Access:
    """Return the access of the pod this runs in.

    Raises:
        UnavailableError: this is not a pod with a token.
    """
    env = environment() if env is None else env
    if not env.get("KUBERNETES_SERVICE_HOST") or not (account / "token").is_file():
        raise UnavailableError("no cluster is configured: there is no kubeconfig", hint=_NO_CLUSTER)
    host, port = env["KUBERNETES_SERVICE_HOST"], env.get("KUBERNETES_SERVICE_PORT", "443")
    name = account / "namespace"
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        source="the pod's service account",
        namespace=name.read_text(encoding="ascii").strip() if name.is_file() else "default",
        tls=_tls(ca=(account / "ca.crt").read_text(encoding="ascii")),
        credentials=Credentials(file=account / "token"),
    )


def _from_kubeconfig(paths: list[Path], context: str | None, env: Mapping[str, str]) -> Access:
    found: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = context
    for path in paths:
        values = _read(path)
        current = current or values.get("current-context") or None
        for kind, known in found.items():
            for entry in values.get(kind) or []:
                known.setdefault(entry["name"], (entry.get(kind[:-1]) or {}, path.parent))
    where = f"`{paths[0]}`"
    if current is None:
        raise ConfigError(f"kubeconfig {where} has no current context", hint="pass --context NAME")
    chosen, _ = _entry(found["contexts"], current, "context", where)
    cluster, cluster_dir = _entry(found["clusters"], str(chosen.get("cluster")), "cluster", where)
    user, user_dir = (
        _entry(found["users"], str(chosen["user"]), "user", where) if chosen.get("user") else ({}, Path())
    )
    if "server" not in cluster:
        raise ConfigError(f"kubeconfig {where}: cluster `{chosen.get('cluster')}` has no server")
    server = str(cluster["server"]).rstrip("/")
    return Access(
        server=server,
        source=f"context `{current}` of {where}",
        namespace=chosen.get("namespace") or "default",
        tls=_user_tls(cluster, cluster_dir, user, user_dir) if server.startswith("https:") else None,
        tls_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url") or _env_proxy(server, env),
        credentials=_credentials(user, user_dir, where),
    )


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        with path.open("rb") as file:
            values = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as error:
        raise ConfigError(f"cannot read kubeconfig `{path}`: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"kubeconfig `{path}` is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"kubeconfig `{path}` is not a mapping")
    return values


def _entry(
    known: Mapping[str, tuple[dict[str, Any], Path]], name: str, kind: str, where: str
) -> tuple[dict[str, Any], Path]:
    if name not in known:
        raise ConfigError(f"kubeconfig {where} has no {kind} `{name}`", hint=did_you_mean(name, known))
    return known[name]


def _text(values: Mapping[str, Any], name: str, folder: Path) -> str | None:
    """Return a PEM given inline (`<name>-data`, base64) or as a file."""
    if values.get(f"{name}-data"):
        return base64.b64decode(str(values[f"{name}-data"])).decode("ascii")
    if not values.get(name):
        return None
    path = folder / str(values[name])
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"kubeconfig names `{path}`: {error.strerror}") from None


def _user_tls(
    cluster: Mapping[str, Any], cluster_dir: Path, user: Mapping[str, Any], user_dir: Path
) -> ssl.SSLContext:
    return _tls(
        ca=_text(cluster, "certificate-authority", cluster_dir),
        certificate=_text(user, "client-certificate", user_dir),
        key=_text(user, "client-key", user_dir),
        verify=not cluster.get("insecure-skip-tls-verify", False),
    )


def _tls(
    *, ca: str | None, certificate: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca)
        # Kubernetes' own authorities often lack what Python >= 3.13 asks for by default.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate and key:
            with _private_file(certificate + "\n" + key) as path:
                context.load_cert_chain(path)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"a certificate of the kubeconfig does not load: {error}") from None
    return context


@contextlib.contextmanager
def _private_file(text: str) -> Iterator[str]:
    """Yield the path of a file with `text`; in memory on Linux, so that a key never reaches a disk."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("key")
        try:
            os.write(fd, text.encode("ascii"))
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        yield file.name


def _credentials(user: Mapping[str, Any], folder: Path, where: str) -> Credentials:
    if user.get("exec"):
        return Credentials(plugin=user["exec"])
    if user.get("tokenFile"):
        return Credentials(file=folder / user["tokenFile"])
    if user.get("token"):
        return Credentials(fixed=f"Bearer {user['token']}")
    if user.get("username"):
        pair = f"{user['username']}:{user.get('password', '')}"
        return Credentials(fixed="Basic " + base64.b64encode(pair.encode()).decode("ascii"))
    if user.get("auth-provider"):
        raise ConfigError(
            f"kubeconfig {where} uses an `auth-provider`, which Kubernetes removed in 1.26",
            hint="configure the user's `exec` credential plugin, as `kubectl` needs it too",
        )
    return Credentials()


def _run_plugin(plugin: Mapping[str, Any]) -> tuple[str, float]:
    """Run a credential plugin (client.authentication.k8s.io); returns the token and when it ends, Unix s."""
    version = plugin.get("apiVersion", "client.authentication.k8s.io/v1")
    request = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    env = {entry["name"]: entry["value"] for entry in plugin.get("env") or []}
    command = [str(plugin["command"]), *(str(arg) for arg in plugin.get("args") or [])]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
            env=environment(**env, KUBERNETES_EXEC_INFO=json.dumps(request)),
        )
        status = json.loads(done.stdout)["status"]
        token = status["token"]
    except FileNotFoundError:
        hint = plugin.get("installHint") or "install it, or choose another context"
        raise ForbiddenError(f"credential plugin `{command[0]}` is not installed", hint=hint) from None
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise ForbiddenError(
            f"credential plugin `{command[0]}` gave no token: {type(error).__name__}",
            hint="run `kubectl get pods` once and log in where it asks to",
        ) from None
    expires = status.get("expirationTimestamp")
    ends = datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp() if expires else float("inf")
    return token, ends - 10.0


def _env_proxy(server: str, env: Mapping[str, str]) -> str | None:
    from urllib.parse import urlsplit

    parts = urlsplit(server)
    proxy = env.get(f"{parts.scheme.upper()}_PROXY") or env.get(f"{parts.scheme}_proxy")
    if not proxy:
        return None
    host = parts.hostname or ""
    never = [
        name.strip().lstrip("*.") for name in (env.get("NO_PROXY") or env.get("no_proxy") or "").split(",")
    ]
    direct = any(name and (host == name or host.endswith(f".{name}")) for name in never)
    return None if direct or env.get("NO_PROXY") == "*" else proxy


def own_identity(env: Mapping[str, str] | None = None) -> tuple[str, str | None, str | None]:
    """Return (run, stage, namespace) of the pipeline step that this process belongs to.

    Raises:
        ConfigError: NANOCHAT_RUN is not set.
    """
    env = environment() if env is None else env
    if not env.get("NANOCHAT_RUN"):
        raise ConfigError(
            "--self: NANOCHAT_RUN is not set", hint="outside a pipeline step, name the run with --run"
        )
    return env["NANOCHAT_RUN"], env.get("NANOCHAT_STAGE") or None, env.get("NANOCHAT_NAMESPACE") or None
