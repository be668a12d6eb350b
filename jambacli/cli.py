"""The Typer app: one line a subcommand, and the one place where errors become exit codes; knows nothing of what they do."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn, TextIO

import typer

from jambacli import __version__, ui
from jambacli.commands.options import Quiet
from jambacli.commands.wording import flag
from jambacli.errors import JambaError
from jambacli.startup import importing

# Click's base of every command line error; typer brings its own copy of click or not, by version.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Where each command is. Groups (eval, sessions, cache) are apps of their own, which bring their commands.
COMMANDS = {
    "pull": "pull:pull",
    "list": "list_models:list_models",
    "show": "show:show",
    "rm": "rm:rm",
    "convert": "convert:convert",
    "quantize": "quantize:quantize",
    "run": "run:run",
    "chat": "chat:chat",
    "summarize": "summarize:summarize",
    "ask": "ask:ask",
    "bench": "bench:bench",
    "eval": "eval:app",
    "sessions": "sessions:app",
    "cache": "cache:app",
}


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The app with the commands of these names; one alone is read in a fraction of the time."""
    app = typer.Typer(
        name="jamba",
        help="Run AI21's Jamba models locally: quantized, long-context, and never computing a prefix twice.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help takes 0.24 s, rich panels 0.42 s
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(f"jambacli.commands.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _called(arguments: Sequence[str]) -> Iterable[str]:
    """The one command that a command line names, where it begins with that; all of them where it asks for other things."""
    first = next((word for word in arguments if word not in ("-q", "--quiet", "--debug")), None)
    return [first] if first in COMMANDS else COMMANDS


def _version(value: bool) -> None:
    if value:
        print(f"jamba {__version__}")
        raise typer.Exit


def options(
    quiet: Quiet = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the subcommand."""
    ui.set_quiet(quiet)
    ui.show_log(flag)


def main() -> None:
    """Run the app and leave with its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    An error is one line on stderr; a traceback only with --debug.
    """
    debug = "--debug" in sys.argv
    _ready_streams()
    if not debug:
        warnings.showwarning = _warned
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            # Leave through the stack, so that temporary files are removed on the way.
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        with importing():
            app = make_app(_called(sys.argv[1:]))
        code = app(prog_name="jamba", standalone_mode=False) or 0
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        _fail(_with_help(error), error.exit_code)
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
        _fail(
            error.worded(flag) if isinstance(error, JambaError) else str(error) or "out of memory",
            getattr(error, "exit_code", 1),
        )
    except Exception as error:
        if debug:
            raise
        _fail(f"internal: {type(error).__name__}: {error}; run again with --debug and report it", 1)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A library's warning as one line, without the place in its code that it comes from."""
    ui.warn(" ".join(str(message).split()))


def _ready_streams() -> None:
    """Make the standard streams usable whatever the shell did: a closed one leads nowhere, any text can be printed, and
    what standard error cannot take (its disk is full) costs no more than itself."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Else the next file that is opened would take the number, and a stray message would end up in it.
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                setattr(sys, name, open(fd if fd == number else os.devnull, "r" if number == 0 else "w"))  # noqa: PTH123, SIM115
    stderr, buffer = sys.stderr, getattr(sys.stderr, "buffer", None)
    if isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # no raw file below it: PYTHONUNBUFFERED
        raw = _Lossy(stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), stderr.encoding, stderr.errors, line_buffering=True)
    codecs.register_error("escape", _escaped)
    if not sys.stdout.encoding.lower().startswith("utf") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="escape")


class _Lossy(io.FileIO):
    """A file that takes whatever is written to it, also where the system does not."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, as JSON writes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)), error.end


def _with_help(error: Any) -> str:
    """What is wrong with a command line, and the command that says what would be right."""
    context = getattr(error, "ctx", None)  # only a UsageError knows where it happened
    return f"{error.format_message()} (see {context.command_path} --help)" if context else error.format_message()


def _explained(error: OSError) -> str:
    """What the system said, in words, with the file it was about."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename is not None else f"cannot read or write: {what}"


def _fail(text: str, code: int) -> NoReturn:
    print(f"error: {ui.harmless(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(code)
