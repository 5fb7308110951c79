"""One certificate authority for a cluster, and the key pairs and kubeconfigs of those who speak in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .host import run

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256", "-days", "30")
SETTINGS = "[req]\ndistinguished_name = name\n[name]\n"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates into one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._settings = folder / "openssl.cnf"
        self._settings.write_text(SETTINGS)
        constraints = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
        self.pair = self._make("ca", "/CN=nanochat-test-ca", constraints)

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self.pair.certificate

    def _make(self, name: str, subject: str, extensions: tuple[str, ...], *signed: str) -> Pair:
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        wanted = [word for extension in extensions for word in ("-addext", extension)]
        files = ["-keyout", str(pair.key), "-out", str(pair.certificate), "-config", str(self._settings)]
        run(["openssl", "req", "-x509", *CURVE, "-subj", subject, *wanted, *files, *signed])
        return pair

    def issue(self, name: str, user: str, group: str = "", hosts: tuple[str, ...] = ()) -> Pair:
        """Make `name.crt` and `name.key` for a user of a group; `hosts` are addresses or names it serves."""
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        extensions: tuple[str, ...] = (
            "keyUsage=critical,digitalSignature",
            "extendedKeyUsage=clientAuth,serverAuth",
        )
        if hosts:
            kinds = (f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts)
            extensions += (f"subjectAltName={','.join(kinds)}",)
        signed = ("-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key))
        return self._make(name, subject, extensions, *signed)

    def signing_key(self) -> Pair:
        """Make the RSA pair that signs service-account tokens; `certificate` is the bare public key."""
        pair = Pair(self.folder / "accounts.pub", self.folder / "accounts.key")
        run(["openssl", "genrsa", "-out", pair.key, "2048"])
        run(["openssl", "rsa", "-in", pair.key, "-pubout", "-out", pair.certificate])
        return pair

    def kubeconfig(self, name: str, server: str, user: str, group: str = "") -> Path:
        """Write a kubeconfig with a fresh client certificate and return its path."""
        pair = self.issue(name, user, group)
        credentials = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        cluster = {"server": server, "certificate-authority": str(self.certificate)}
        return write_kubeconfig(self.folder / f"{name}.kubeconfig", cluster, credentials)


def write_kubeconfig(path: Path, cluster: Mapping[str, str], credentials: Mapping[str, str]) -> Path:
    """Write a kubeconfig with one context, in JSON, which is YAML too."""
    context = {"cluster": "test", "user": "test"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": dict(cluster)}],
        "users": [{"name": "test", "user": dict(credentials)}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path
