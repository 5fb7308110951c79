"""Options of every command that talks to a cluster, and how one is found. Knows nothing of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nanochat_platform.kube.client import Client

Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", metavar="FILE", help="Cluster access; as kubectl without it.")
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="Context of the kubeconfig; its current one.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace; the context's without it.")
]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="The run; not needed where there is only one.")
]
StageName = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Of this stage alone.")]


def connect(
    kubeconfig: Path | None, context: str | None, namespace: str | None, *, patience_s: float = 10.0
) -> Client:
    """Return a client of the cluster chosen.

    Raises:
        ConfigError: the kubeconfig is wrong.
        UnavailableError: there is none.
    """
    from nanochat_platform.kube.client import Client

    return Client.load(kubeconfig, context, namespace, patience_s=patience_s)


def check_namespace(client: Client) -> None:
    """Return when the client's namespace exists, or when that is not for us to know.

    Raises:
        ConfigError: it does not.
    """
    from nanochat.errors import ConfigError, ForbiddenError
    from nanochat_platform.kube.resources import NAMESPACES

    try:
        found = client.get(NAMESPACES, client.namespace)
    except ForbiddenError:
        return
    if found is None:
        raise ConfigError(
            f"namespace `{client.namespace}` does not exist",
            hint="choose another --namespace; `nanochat list -A` shows all runs",
        )


def one_run(client: Client, run: str | None) -> str:
    """Return the run that is meant: the one named, else the only one in the namespace.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if run is not None:
        return run
    from nanochat.errors import ConfigError
    from nanochat_platform.kube.facts import attempts

    names = sorted({attempt.run for attempt in attempts(client)})
    if len(names) == 1:
        return names[0]
    if not names:
        check_namespace(client)
        raise ConfigError(
            f"namespace `{client.namespace}` has no run",
            hint="start one with `nanochat submit --spec run.yaml`, or choose another --namespace",
        )
    listed = ", ".join(f"`{name}`" for name in names)
    raise ConfigError(
        f"namespace `{client.namespace}` has {len(names)} runs: {listed}", hint="choose one with --run"
    )
