"""The Typer app: one line per subcommand, and the only place where errors become messages and exit codes."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, NoReturn, TextIO

import typer

from jambacli import __version__, ui
from jambacli.commands import common
from jambacli.commands.flags import flag
from jambacli.errors import GpuMemoryError, JambaError
from jambacli.startup import importing, signals_raise

# Click's base class of command-line errors; some versions of typer bring their own copy of click.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# The module and function of every command, and what the list of commands says of it, in at most 42 characters: a narrow
# terminal shows no more. Groups (lora, eval, sessions, cache, config, preset) are apps with commands of their own.
COMMANDS = {
    "pull": ("pull:pull", "Download a model and verify it"),
    "list": ("list_models:list_models", "List the pulled models"),
    "show": ("show:show", "Show what a model is, and its memory"),
    "rm": ("rm:rm", "Remove pulled models"),
    "convert": ("convert:convert", "Convert an HF checkpoint to GGUF"),
    "quantize": ("quantize:quantize", "Quantize a GGUF file"),
    "imatrix": ("imatrix:imatrix", "Collect an importance matrix from texts"),
    "export": ("export:export", "Write an HF checkpoint from a GGUF file"),
    "lora": ("lora:app", "Convert and merge LoRA adapters"),
    "run": ("run:run", "Answer one prompt"),
    "chat": ("chat:chat", "Chat; every turn is saved"),
    "summarize": ("summarize:summarize", "Summarize documents"),
    "ask": ("ask:ask", "Ask about documents"),
    "batch": ("batch:batch", "Answer many requests together"),
    "serve": ("serve:serve", "Answer programs over HTTP"),
    "bench": ("bench:bench", "Measure speed and memory"),
    "eval": ("eval:app", "Measure how good a model is"),
    "sessions": ("sessions:app", "The chats saved on this machine"),
    "cache": ("cache:app", "The prefixes stored on this machine"),
    "config": ("config:app", "Your defaults, and where each is set"),
    "preset": ("preset:app", "System messages and options by name"),
    "completion": ("completion:completion", "Complete words with Tab in your shell"),
}


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The app with the commands of these names; importing only one takes a fraction of the time."""
    app = typer.Typer(
        name="jamba",
        help="Run AI21's Jamba models locally: quantized, with long contexts, and without computing a prefix twice.",
        no_args_is_help=True,
        add_completion=False,  # `jamba completion` knows models and sessions too
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help takes 0.24 s, help in rich panels 0.42 s
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in names:
        place, short_help = COMMANDS[name]
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"jambacli.commands.{module}"), attribute)
        if isinstance(command, typer.Typer):
            for inner in command.registered_commands:
                assert inner.callback is not None
                inner.cls, inner.callback = common.Command, common.with_common_options(inner.callback)
            app.add_typer(command, name=name, short_help=short_help)
        else:
            app.command(name, cls=common.Command, short_help=short_help)(common.with_common_options(command))
    return app


def _called(arguments: Sequence[str]) -> Iterable[str]:
    """The command that a command line begins with; all of them if it begins with something else."""
    words = iter(arguments)
    for word in words:
        if word == "--log":
            next(words, None)
        elif word not in ("-q", "--quiet", "-v", "--verbose", "--debug") and not word.startswith("--log="):
            return [word] if word in COMMANDS else COMMANDS
    return COMMANDS


def _version(value: bool) -> None:
    if value:
        print(f"jamba {__version__}")
        raise typer.Exit


def options(
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    log: common.Log = None,
    debug: common.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options before the subcommand."""
    ui.set_quiet(False)
    ui.show_log(flag)
    common.common(quiet, verbose, log, debug)


def main() -> None:
    """Run the app and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    An error is one line on stderr, with --debug a traceback.
    """
    if sys.argv[1:2] == ["help"]:  # as git and others take it
        sys.argv[1:] = [*sys.argv[2:], "--help"]
    debug = "--debug" in sys.argv
    _ready_streams()
    _ready_environment()
    if not debug:
        warnings.showwarning = _warned
    signals_raise()
    try:
        with importing():
            app = make_app(_called(sys.argv[1:]))
        code = app(prog_name="jamba", standalone_mode=False) or 0
        if code == 130:  # typer's exit code for Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        _fail(_with_help(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        ui.settled()
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        ui.record(logging.ERROR, "the error below:", error)
        if debug:
            raise
        _fail(_explained(error), 1)
    except (JambaError, MemoryError) as error:
        ui.record(logging.DEBUG, "the error below:", error)
        if debug:  # the line with the flags follows
            traceback.print_exception(error)
        _fail(
            error.worded(flag) if isinstance(error, JambaError) else str(error) or "out of memory",
            getattr(error, "exit_code", 1),
        )
    except Exception as error:
        ui.record(logging.ERROR, "the error below:", error)
        if debug:
            raise
        if type(error).__name__ == "OutOfMemoryError":  # torch's, outside of a pass through the model
            _fail(GpuMemoryError().worded(flag), 1)
        _fail(f"internal: {type(error).__name__}: {error}; run again with --debug and report it", 1)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a library's warning in one line, without its file and line number."""
    ui.warn(" ".join(str(message).split()))


def _ready_environment() -> None:
    """Ignore variables that say nothing, and leave where the current directory has been deleted: torch ends the process
    there, without a line."""
    if not (columns := os.environ.get("COLUMNS", "")).isdecimal() or int(columns) < 1:
        os.environ.pop("COLUMNS", None)
    if not os.environ.get("HOME", "?"):  # else files would go to the root of the file system
        del os.environ["HOME"]
    try:
        os.getcwd()  # noqa: PTH109 - only whether there is one
    except FileNotFoundError:
        _fail("the current directory has been deleted; change to another one first (cd)", 1)


def _ready_streams() -> None:
    """Make the standard streams usable: closed ones become /dev/null, any text can be printed, and a failed write to
    standard error (its disk is full, say) is ignored."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Otherwise the next file opened would get this number, and messages would end up in it.
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                setattr(sys, name, open(fd if fd == number else os.devnull, "r" if number == 0 else "w"))  # noqa: PTH123, SIM115
    stderr, buffer = sys.stderr, getattr(sys.stderr, "buffer", None)
    if isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # with PYTHONUNBUFFERED there is no raw file below
        raw = _Lossy(stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), stderr.encoding, stderr.errors, line_buffering=True)
    codecs.register_error("escape", _escaped)
    if not sys.stdout.encoding.lower().startswith("utf") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="escape")


class _Lossy(io.FileIO):
    """A file whose failed writes are ignored."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that an encoding lacks, as in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)), error.end


def _with_help(error: Any) -> str:
    """A command-line error, with the --help command that explains the right usage."""
    context = getattr(error, "ctx", None)  # only a UsageError has one
    if getattr(error, "possibilities", None):
        error.possibilities = [p for p in error.possibilities if p != "--help" and _resembles(p, error.option_name)]
    return f"{error.format_message()} (see {context.command_path} --help)" if context else error.format_message()


def _resembles(option: str, typed: str) -> bool:
    """Whether ``typed`` may be meant for ``option``: closer than through the dashes that all options begin with."""
    known, wrong = option.lstrip("-"), typed.lstrip("-")
    return known.startswith(wrong) or wrong.startswith(known) or SequenceMatcher(None, known, wrong).ratio() > 0.65


def _explained(error: OSError) -> str:
    """An OSError as text, with its file."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename is not None else f"cannot read or write: {what}"


def _fail(text: str, code: int) -> NoReturn:
    text = " ".join(text.split())
    ui.settled()
    ui.record(logging.ERROR, text)
    print(f"error: {ui.harmless(text)}", file=sys.stderr)
    sys.exit(code)
