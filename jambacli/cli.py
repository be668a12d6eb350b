"""The Typer app: one line a subcommand, and the one place where errors become exit codes; knows nothing of what they do."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from jambacli import __version__, ui
from jambacli.commands import (
    ask,
    bench,
    cache,
    chat,
    convert,
    eval,
    list_models,
    pull,
    quantize,
    rm,
    run,
    sessions,
    show,
    summarize,
)
from jambacli.errors import JambaError

# Click's base of every command line error; typer brings its own copy of click or not, by version.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="jamba",
    help="Run AI21's Jamba models locally: quantized, long-context, and never computing a prefix twice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes 0.24 s, rich panels 0.42 s
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("pull")(pull.pull)
app.command("list")(list_models.list_models)
app.command("show")(show.show)
app.command("rm")(rm.rm)
app.command("convert")(convert.convert)
app.command("quantize")(quantize.quantize)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("summarize")(summarize.summarize)
app.command("ask")(ask.ask)
app.command("bench")(bench.bench)
app.add_typer(eval.app, name="eval")
app.add_typer(sessions.app, name="sessions")
app.add_typer(cache.app, name="cache")


def _version(value: bool) -> None:
    if value:
        print(f"jamba {__version__}")
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the subcommand."""
    ui.set_quiet(quiet)


def main() -> None:
    """Run the app and leave with its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    An error is one line on stderr; a traceback only with --debug.
    """
    debug = "--debug" in sys.argv
    _ready_streams()
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            # Leave through the stack, so that temporary files are removed on the way.
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        _fail(_explained(error), 1)
    except (JambaError, MemoryError) as error:
        if debug:
            raise
        _fail(str(error) or "out of memory", error.exit_code if isinstance(error, JambaError) else 1)
    except Exception as error:
        if debug:
            raise
        _fail(f"internal: {type(error).__name__}: {error}; run again with --debug and report it", 1)


def _ready_streams() -> None:
    """Make the standard streams usable whatever the shell did: a closed one leads nowhere, any text can be printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Else the next file that is opened would take the number, and a stray message would end up in it.
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                setattr(sys, name, open(fd if fd == number else os.devnull, "r" if number == 0 else "w"))  # noqa: PTH123, SIM115
    codecs.register_error("escape", _escaped)
    if not sys.stdout.encoding.lower().startswith("utf") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, as JSON writes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)), error.end


def _explained(error: OSError) -> str:
    """What the system said, in words, with the file it was about."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename is not None else f"cannot read or write: {what}"


def _fail(text: str, code: int) -> NoReturn:
    print(f"error: {ui.harmless(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(code)
