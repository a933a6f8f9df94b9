"""The ``dwsep`` command: what all commands share, and the list of them.

Commands import what they need when they run, so that ``dwsep --help`` does not wait for it.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

try:
    import rich  # noqa: F401
    import typer
    from typer.core import TyperGroup
except ImportError as error:
    raise ImportError(
        f"the dwsep command needs typer and rich ({error}); install them with: pip install typer rich", name=error.name
    ) from error

from dwsep.cli.analyze import analyze
from dwsep.cli.bench import bench
from dwsep.cli.demo import demo
from dwsep.cli.doctor import doctor
from dwsep.cli.evaluate import evaluate
from dwsep.cli.predict import predict
from dwsep.cli.separate import separate
from dwsep.cli.train import app as train

_USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)


class _Group(TyperGroup):
    """Turns errors that a user can mend into one line, and an interrupt into the exit code shells expect."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)  # commands say how to go on
            raise typer.Exit(130) from None
        except _USER_ERRORS as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            else:
                print(f"error: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="dwsep",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Depthwise separable convolution as fast as its arithmetic promises.",
)


def _print_version(requested: bool) -> None:
    if requested:
        import dwsep

        print(f"dwsep {dwsep.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DWSEP_DEBUG", help="Show where an error comes from.")
    ] = False,
) -> None:
    del version, debug  # the first acts in its callback, the second is read by _Group


for _command in (demo, evaluate, predict, separate, analyze, doctor):
    app.command()(_command)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the command line and exits: 0 success, 1 a failed check, 2 an error, 130 interrupted."""
    app()


def _one_line(error: BaseException) -> str:
    """The message of an error on one line; a validation error of pydantic names each field and the rule it breaks."""
    fields = getattr(error, "errors", None)
    if callable(fields):
        parts = [
            f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}, got {entry['input']!r}"
            if entry["loc"]
            else entry["msg"].removeprefix("Value error, ")
            for entry in fields()  # type: ignore[attr-defined]
        ]
        return "; ".join(parts)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
