"""``jamba chat``: a conversation in the terminal, or turn by turn from a pipe."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import settings, ui
from jambacli.commands import options as o
from jambacli.commands.flags import flag
from jambacli.errors import JambaError, UsageError
from jambacli.interrupts import interrupts_stop
from jambacli.startup import importing

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.chat.commands import Chat
    from jambacli.session.session_file import SavedSession
    from jambacli.text.tool_calls import ToolCall


@o.generation_options
def chat(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: the last used.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Start a session with this name, or resume it.")
    ] = None,
    resume_last: Annotated[bool, typer.Option("--continue", help="Resume the last session.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Open a session without changing it.")] = False,
    system: o.System = None,
    overflow: Annotated[
        bool, typer.Option("--overflow", help="When the context is full, drop the oldest turns.")
    ] = False,
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE.py", help="Python functions that the model may call.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: neither about another model nor before dropping messages.")
    ] = False,
    yes_tools: Annotated[bool, typer.Option("--yes-tools", help="Run the calls of --tools without asking.")] = False,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Chat. Every turn is saved, and no process computes the same text twice."""
    if _on_terminal():
        settings.value("theme")  # a wrong one is reported now
    ui.starting(name)
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
        from jambacli.chat.chat_session import short
        from jambacli.chat.commands import Chat

    if resume_last:
        session = _last_session(session)
    saved = _saved(session)
    if name is None and saved is not None:
        name = _own_model(saved)
    model = arguments.load_model(name, _own_template(saved, arguments))
    if model.template is None:
        raise UsageError(
            f"{model.name} has no chat template; continue plain text with it (jamba run --raw), or give --chat-template FILE"
        )
    reread = saved is not None and _reread(saved, model, yes)
    talk = Chat(
        model,
        options=replace(options, read_only=read_only, reread=reread),
        generation=generation,
        name=session,
        overflow=overflow,
        progress=ui.progress,
        tools=functions,
        approve=_announced if yes_tools else _approved,
        load=arguments.load_model,
    )
    if saved is not None and options.system is not None:
        what = short(talk.session.system) if talk.session.system else "none"
        ui.note(f"session {talk.session.name}: the system message is now: {what}")
    run_chat(talk, stats=arguments.stats, keep_history=not arguments.no_store, yes=yes)


def _last_session(name: str | None) -> str:
    """The session that was used last."""
    from jambacli.session import session_file

    if name is not None:
        raise UsageError("--continue resumes the last session; leave it out to resume the one of --session")
    for last in session_file.names():
        return last
    raise UsageError("there is no session to continue yet; `jamba chat` starts one")


def _saved(name: str | None) -> SavedSession | None:
    """The saved session of that name, None if there is none yet."""
    from jambacli.session import session_file

    name = name and session_file.check_name(name)
    return session_file.read(name) if name and session_file.exists(name) else None


def _own_model(saved: SavedSession) -> str:
    """The file of the model that a session was made with."""
    if not Path(saved.model_path).exists():
        raise JambaError(
            f"session {saved.name!r} was made with {saved.model}, whose file {saved.model_path} is gone; "
            f"`jamba chat MODEL --session {saved.name}` goes on with another model"
        )
    ui.note(f"session {saved.name} goes on with {saved.model}")
    return saved.model_path


def _own_template(saved: SavedSession | None, arguments: o.GenerationArguments) -> str | None:
    """The chat template that a saved session was made with, if it is not the model's own and no other is given."""
    if saved is None or saved.chat_template is None or arguments.chat_template is not None:
        return None
    ui.note(f"session {saved.name} goes on with the chat template that it was made with")
    return saved.chat_template


def _reread(saved: SavedSession, model: Jamba, yes: bool) -> bool:
    """Whether the session is to go on with another model than it was made with. Raises JambaError if that is not wanted."""
    from jambacli.session.session_lock import made_with

    if made_with(saved, model) or saved.model_path == str(model.path):  # a changed file is an error of its own
        return False
    differs = f"session {saved.name!r} was made with {saved.model}, not with {model.name}"
    if not yes:
        if not _on_terminal():
            raise JambaError(f"{differs}; --yes goes on with its text, which {model.name} reads again")
        ui.note(f"{differs}. Go on with its text? {model.name} reads it again. [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise JambaError(f"{differs}; leave the model out to go on with its own")
    ui.note(f"session {saved.name} goes on with {model.name}, which reads its text again")
    return True


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


def run_chat(talk: Chat, *, stats: bool, keep_history: bool, first: str | None = None, yes: bool = False) -> None:
    """Chat in the terminal, or turn by turn from a pipe; then close the chat. ``first``: a message that is sent at once.
    ``yes``: drop messages of a saved session without asking; a pipe never asks."""
    try:
        if _on_terminal():
            from jambacli.chat.terminal import talk as talk_in_terminal

            talk_in_terminal(talk, keep_history=keep_history, stats=stats, first=first, option=flag, yes=yes)
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
            if outcome.copied is not None:
                raise UsageError("/copy needs a terminal")
            if outcome.reply is not None:
                with interrupts_stop(chat.stop) as came:
                    for piece in outcome.reply:
                        if not isinstance(piece, Thought):
                            sys.stdout.write(piece)
                            sys.stdout.flush()
                if came.asked:
                    raise KeyboardInterrupt
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
