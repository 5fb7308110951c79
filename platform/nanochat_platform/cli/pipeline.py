"""`nanochat pipeline compile` and `nanochat pipeline run`. Knows nothing of the file's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanochat_platform.cli import options as o

app = typer.Typer(
    help="The speedrun as a Kubeflow pipeline.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,
)

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")]
Image = Annotated[
    str | None, typer.Option("--image", metavar="REF", help="Default image of the training pods.")
]
SubmitImage = Annotated[
    str | None, typer.Option("--submit-image", metavar="REF", help="Default image of the pipeline's steps.")
]
Claim = Annotated[
    str | None,
    typer.Option("--claim", metavar="NAME", help="Default PersistentVolumeClaim of data and runs."),
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Compiled pipeline; without it, it is compiled now."),
]
Local = Annotated[bool, typer.Option("--local", help="Run each step as a process here, without a backend.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Parameters, e.g. preset=tiny depth=4.")
]


@app.command("compile")
def compile_(
    *,
    output: Output = Path("speedrun.yaml"),
    image: Image = None,
    submit_image: SubmitImage = None,
    claim: Claim = None,
    as_json: o.Json = False,
) -> None:
    """Write the pipeline's file; `kfp run create -e speedrun -f FILE NAME=VALUE ...` runs it."""
    from nanochat.files import sha256_file
    from nanochat_platform.pipeline.compile import compile_pipeline

    compile_pipeline(output, image=image, submit_image=submit_image, claim=claim)
    if as_json:
        o.print_json({"file": str(output), "sha256": sha256_file(output)})
    else:
        o.say(f"wrote {output}: `kfp run create -e speedrun -f {output} preset=tiny` runs it")


@app.command("run")
def run(
    arguments: Arguments = None, *, local: Local = False, file: File = None, as_json: o.Json = False
) -> None:
    """Run a compiled pipeline on this machine; finished stages take no time."""
    import tempfile

    from nanochat import settings
    from nanochat.errors import ConfigError
    from nanochat_platform.pipeline import interpret
    from nanochat_platform.pipeline.ir import Pipeline

    if not local:
        raise ConfigError(
            "`nanochat pipeline run` needs --local",
            hint="a backend takes the same file: `kfp run create -e speedrun -f speedrun.yaml preset=tiny`",
        )
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            from nanochat_platform.pipeline.compile import compile_pipeline

            file = Path(folder) / "speedrun.yaml"
            compile_pipeline(file)
        pipeline = Pipeline.load(file)
    result = interpret.run(pipeline, pipeline.arguments(arguments or []), settings.home(), o.say)
    if as_json:
        o.print_json(result.to_json())
    raise typer.Exit(result.exit_code)
