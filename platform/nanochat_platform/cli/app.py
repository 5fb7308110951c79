"""One typer app, and the end of every command: exit codes and error text.

Knows the names of the commands; what they do is in the modules beside this one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import typer

from nanochat.errors import ConfigError, Interrupted, NanochatError, did_you_mean
from nanochat_platform.cli import bench, cluster, data, doctor, models, pipeline, plan, serve, submit, train

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer names it in a private module
_ClickException: type[Exception] = _UsageError.__bases__[0]


def build() -> typer.Typer:
    """Return the app with all commands."""
    app = typer.Typer(
        name="nanochat",
        help="Train your own chat model from real text, and serve it behind an OpenAI-compatible API.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # importing rich costs a third of the time of `--help`
        pretty_exceptions_enable=False,
        suggest_commands=False,
    )
    app.command("speedrun")(train.speedrun)
    app.command("run")(train.run_stage)
    app.add_typer(data.app, name="data")
    app.command("plan")(plan.plan)
    app.add_typer(pipeline.app, name="pipeline")
    app.command("submit")(submit.submit)
    app.command("resume")(submit.resume)
    app.command("status")(cluster.status)
    app.command("logs")(cluster.logs)
    app.command("explain")(cluster.explain)
    app.command("list")(cluster.list_runs)
    app.command("cancel")(cluster.cancel)
    app.command("doctor")(doctor.doctor)
    app.command("serve")(serve.serve)
    app.command("chat")(serve.chat)
    app.command("checkpoints")(models.checkpoints)
    app.command("export")(models.export)
    app.command("bench")(bench.bench)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Errors are printed to stderr."""
    command = typer.main.get_command(build())
    try:
        code = command.main(list(arguments), prog_name="nanochat", standalone_mode=False)
    except NanochatError as error:
        return _fail(error)
    except PermissionError as error:
        from nanochat.files import no_permission

        return _fail(no_permission(error))
    except KeyboardInterrupt:
        return _fail(Interrupted(2, "stopped by Ctrl-C"))
    except typer.Abort:
        return _fail(Interrupted(2, "stopped"))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left: nothing to say, and nobody to say it to
        return 0
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            return ConfigError.exit_code
        return _fail(usage_error(error))
    return code if isinstance(code, int) else 0


def _fail(error: NanochatError) -> int:
    print(error.render(), file=sys.stderr, flush=True)
    return error.exit_code


def usage_error(error: Exception) -> ConfigError:
    """Return a usage error of the command-line library as one of ours, with the nearest name as the hint."""
    message = str(error.format_message() if hasattr(error, "format_message") else error).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "nanochat"
    hint = f"see `{path} --help`"
    option = getattr(error, "option_name", None)
    if option and context is not None and type(error).__name__ == "NoSuchOption":
        names = [name for param in context.command.params for name in (*param.opts, *param.secondary_opts)]
        known = ["--help", *(name for name in names if name.startswith("--"))]
        return ConfigError(f"`{path}` has no option `{option}`", hint=did_you_mean(option, known))
    commands = getattr(context.command, "commands", None) if context is not None else None
    if commands and message.startswith("No such command"):
        name = message.split("'")[1]
        return ConfigError(f"`{path}` has no command `{name}`", hint=did_you_mean(name, commands))
    extra = re.fullmatch(r"Got unexpected extra argument(?:\(s\))? \((\S+\.ya?ml)\)", message)
    if extra and context is not None and any("--spec" in param.opts for param in context.command.params):
        hint = f"did you mean `--spec {extra[1]}`?"
    return ConfigError(message[:1].lower() + message[1:], hint=hint)
