"""`nanochat doctor`. Knows nothing of what is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat_platform.cli import connect as c
from nanochat_platform.cli import options as o

if TYPE_CHECKING:
    from nanochat_platform.kube.doctor import Question
    from nanochat_platform.spec import RunSpec

Spec = Annotated[Path | None, typer.Option("--spec", metavar="FILE", help="Look with this run in mind.")]
Image = Annotated[str | None, typer.Option("--image", metavar="REF", help="The train image.")]
Probe = Annotated[bool, typer.Option("--probe", help="Make a pod and a job that are removed again.")]
_SIGNS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  ", "unknown": "unknown"}


def doctor(
    *,
    spec: Spec = None,
    image: Image = None,
    probe: Probe = False,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Look a cluster over: API, operators, rights, volume, nodes, image, pipelines; each with its fix."""
    from nanochat_platform.cli.submit import read_spec
    from nanochat_platform.kube import doctor as checks
    from nanochat_platform.kube.doctor_kfp import check_pipelines
    from nanochat_platform.kube.probe import probe as probes

    asked = None if spec is None else read_spec(spec, {"namespace": namespace}, kubeconfig, context)
    question = _question(asked, image)
    client = c.connect(kubeconfig, context, namespace if asked is None else asked.namespace)
    looks: Iterator[checks.Finding] = checks.examine(client, question, [*checks.CHECKS, check_pipelines])
    findings = []
    for finding in chain(looks, probes(client, question) if probe else ()):
        findings.append(finding)
        if not as_json:
            print(f"{_SIGNS[finding.state]}  {finding.check}: {finding.text}", flush=True)
            if finding.fix and finding.state != "ok":
                print(f"         hint: {finding.fix}", flush=True)
    if as_json:
        o.print_json([_json(finding) for finding in findings])
    error = checks.worst(findings, shown=not as_json)
    if error is not None:
        raise error


def _json(finding: Any) -> dict[str, str]:
    return {name: getattr(finding, name) for name in ("check", "state", "text", "fix")}


def _question(spec: RunSpec | None, image: str | None) -> Question:
    from nanochat_platform.kube.doctor import Question

    if spec is None:
        return Question(image=image)
    return Question(
        image=image or spec.image,
        claim=spec.volume.claim,
        nodes=spec.nodes,
        kind=spec.kind,
        gpus=spec.hardware != "cpu",
    )
