"""``jamba chat``: a conversation in the terminal, or turn by turn from a pipe."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.commands.flags import flag
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing

if TYPE_CHECKING:
    from jambacli.chat.commands import Chat
    from jambacli.text.tool_calls import ToolCall


@o.generation_options
def chat(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: the last used.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Start a session with this name, or resume it.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Open a session without changing it.")] = False,
    system: o.System = None,
    overflow: Annotated[
        bool, typer.Option("--overflow", help="When the context is full, drop the oldest turns.")
    ] = False,
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE.py", help="Python functions that the model may call.")
    ] = None,
    yes_tools: Annotated[bool, typer.Option("--yes-tools", help="Run the calls of --tools without asking.")] = False,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Chat. Every turn is saved, and no process computes the same text twice."""
    generation, options = arguments.generation(), arguments.session(system)
    if session is not None and arguments.no_store:
        raise UsageError("--session and --no-store exclude each other: a named session is stored on disk")

    generation = replace(generation, schema=arguments.schema(None))
    functions = []
    if tools is not None:
        if not yes_tools and not _on_terminal():
            raise UsageError(
                "--tools asks before each call, which needs a terminal; --yes-tools runs them without asking"
            )
        from jambacli.chat.tool_file import read_tools

        functions = read_tools(tools)

    with importing():
        from jambacli.chat.commands import Chat

    model = arguments.load_model(name, _own_template(session, arguments))
    if model.template is None:
        raise UsageError(
            f"{model.name} has no chat template; continue plain text with it (jamba run --raw), or give --chat-template FILE"
        )
    talk = Chat(
        model,
        options=replace(options, read_only=read_only),
        generation=generation,
        name=session,
        overflow=overflow,
        progress=ui.progress,
        tools=functions,
        approve=_announced if yes_tools else _approved,
    )
    run_chat(talk, stats=arguments.stats, keep_history=not arguments.no_store)


def _own_template(name: str | None, arguments: o.GenerationArguments) -> str | None:
    """The chat template that a saved session was made with, if it is not the model's own and no other is given."""
    if name is None or arguments.chat_template is not None:
        return None
    from jambacli.session import session_file

    name = session_file.check_name(name)
    own = session_file.read(name).chat_template if session_file.exists(name) else None
    if own is not None:
        ui.note(f"session {name} goes on with the chat template that it was made with")
    return own


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _announced(call: ToolCall) -> bool:
    """Say that a function is called."""
    ui.note(f"[calls {_shown(call)}]")
    return True


def _approved(call: ToolCall) -> bool:
    """Ask whether a function may be called."""
    ui.note(f"call {_shown(call)}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _shown(call: ToolCall) -> str:
    return ui.harmless(f"{call.name} {call.arguments}")


def run_chat(talk: Chat, *, stats: bool, keep_history: bool, first: str | None = None) -> None:
    """Chat in the terminal, or turn by turn from a pipe; then close the chat. ``first``: a message that is sent at once."""
    try:
        if _on_terminal():
            from jambacli.chat.terminal import talk as talk_in_terminal

            talk_in_terminal(talk, keep_history=keep_history, stats=stats, first=first, option=flag)
        else:
            _piped(talk, stats, first)
    finally:
        talk.close()


def _piped(chat: Chat, stats: bool, first: str | None) -> None:
    """Handle every line of standard input as a message or a command; replies go to stdout, the rest to stderr."""
    from jambacli.engine.generate import Thought

    failed: JambaError | None = None
    for text in itertools.chain([] if first is None else [None], _piped_lines()):
        try:
            outcome = chat.handle(text) if text is not None else chat.say(first or "")
            for shown in outcome.lines:
                ui.note(shown)
            if outcome.reply is not None:
                for piece in outcome.reply:
                    if not isinstance(piece, Thought):
                        sys.stdout.write(piece)
                        sys.stdout.flush()
                places = chat.attachments.places
                sys.stdout.write("\n" + ("\nSources:\n" + "".join(f"- {p}\n" for p in places) if places else ""))
                sys.stdout.flush()
                if chat.attachments.remark:
                    ui.note(chat.attachments.remark)
                if stats:
                    s = chat.session.stats
                    ui.note(
                        f"stats: prompt {s.prompt_tokens} reused {s.reused_tokens} prefilled {s.prefilled_tokens} "
                        f"generated {s.generated_tokens} first_token {s.first_token_seconds:.3f} s finish {s.finish}"
                    )
            if outcome.leave:
                break
        except JambaError as error:  # the next line is still handled; the exit code reports the failure
            failed = error
            print(f"error: {' '.join(error.worded(flag).split())}", file=sys.stderr, flush=True)
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _piped_lines() -> Iterator[str]:
    """The lines of standard input, as they come. Raises JambaError at the first one that is not UTF-8 text."""
    for number, data in enumerate(sys.stdin.buffer, 1):
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise JambaError(f"standard input is not UTF-8 text (line {number}); convert it first") from error
        if "\0" in line:
            raise JambaError(f"standard input is not text (line {number} holds NUL characters); convert it first")
        yield line.rstrip("\r\n")
