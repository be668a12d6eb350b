"""``jamba chat``: a conversation in the terminal, or turn by turn from a pipe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import settings, ui
from jambacli.commands import documents_io
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.chat_pipe import chat_in_a_pipe
from jambacli.commands.flags import flag
from jambacli.commands.load import one_model
from jambacli.errors import JambaError, UsageError
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
    model_name: t.Model = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Start a session with this name, or resume it.")
    ] = None,
    resume_last: Annotated[bool, typer.Option("--continue", help="Resume the last session.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Open a session without changing it.")] = False,
    system: t.System = None,
    overflow: Annotated[
        bool, typer.Option("--overflow", help="When the context is full, drop the oldest turns.")
    ] = False,
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE.py", help="Python functions that the model may call.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Of a chat in a pipe, print one JSON object a line for every input.")
    ] = False,
    json_stream: documents_io.JsonStream = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: neither about another model nor before dropping messages.")
    ] = False,
    yes_tools: Annotated[bool, typer.Option("--yes-tools", help="Run the calls of --tools without asking.")] = False,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Chat. Every turn is saved, and no process computes the same text twice."""
    documents_io.check_json(as_json, json_stream)
    if (as_json or json_stream) and _on_terminal():
        raise UsageError("is for a chat in a pipe", field="json_stream" if json_stream else "json")
    name = one_model(name, model_name)
    check_terminal()
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
    run_chat(
        talk,
        stats=arguments.stats,
        keep_history=not arguments.no_store,
        yes=yes,
        as_json=as_json,
        json_stream=json_stream,
    )


def check_terminal() -> None:
    """Raise UsageError for settings of the terminal that are not valid, before a model is loaded."""
    if _on_terminal():
        for name in ("theme", "pager"):
            settings.value(name)


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


def run_chat(
    talk: Chat,
    *,
    stats: bool,
    keep_history: bool,
    first: str | None = None,
    yes: bool = False,
    as_json: bool = False,
    json_stream: bool = False,
) -> None:
    """Chat in the terminal, or turn by turn from a pipe; then close the chat. ``first``: a message that is sent at once.
    ``yes``: drop messages of a saved session without asking; a pipe never asks. ``as_json``, ``json_stream``: see
    ``chat_in_a_pipe``."""
    try:
        if _on_terminal():
            from jambacli.chat.terminal import talk as talk_in_terminal

            talk_in_terminal(talk, keep_history=keep_history, stats=stats, first=first, option=flag, yes=yes)
        else:
            chat_in_a_pipe(talk, stats, first, as_json=as_json, json_stream=json_stream)
    finally:
        talk.close()
