"""``jamba chat``: a conversation in the terminal, or turn by turn from a pipe; knows nothing of how it is kept."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing

if TYPE_CHECKING:
    from jambacli.chat.commands import Chat


@o.hushes
@o.generates
def chat(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; left out: the last used.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Begin a session of that name, or go on with it.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Look at a session without changing it.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    overflow: Annotated[bool, typer.Option("--overflow", help="At the context limit, drop the oldest turns.")] = False,
    *,
    given: o.Given,
) -> None:
    """Chat; every turn is kept, and nothing that was read is read again, in this process or another."""
    generation, options = given.generation(), given.session()
    if session is not None and given.no_store:
        raise UsageError("--session and --no-store exclude one another: a named session is kept on disk")

    with importing():
        from jambacli.chat.commands import Chat

    model = given.load_model(name)
    options |= {"system": system} if system else {}
    options |= {"read_only": True} if read_only else {}
    talk = Chat(
        model,
        options=options,
        generation=generation,
        name=session,
        overflow=overflow,
        reading=functools.partial(ui.progress, "Reading", unit="tokens"),
    )
    run_chat(talk, stats=given.stats, keep_history=not given.no_store)


def run_chat(talk: Chat, *, stats: bool, keep_history: bool, first: str | None = None) -> None:
    """Talk in the terminal, or turn by turn from a pipe; closes the chat. ``first``: a message that is said at once."""
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            from jambacli.chat.terminal import talk as talk_in_terminal

            talk_in_terminal(talk, keep_history=keep_history, stats=stats, first=first)
        else:
            _piped(talk, stats, first)
    finally:
        talk.close()


def _piped(chat: Chat, stats: bool, first: str | None) -> None:
    """Every line of standard input is a turn or a command; replies go to stdout, everything else to stderr."""
    from jambacli.engine.generate import Thought

    failed: JambaError | None = None
    for text in itertools.chain([] if first is None else [None], (line.rstrip("\n") for line in sys.stdin)):
        try:
            outcome = chat.handle(text) if text is not None else chat.say(first or "")
            for shown in outcome.lines:
                ui.note(shown)
            if outcome.reply is not None:
                for piece in outcome.reply:
                    if not isinstance(piece, Thought):
                        sys.stdout.write(piece)
                        sys.stdout.flush()
                places = chat.papers.places
                sys.stdout.write("\n" + ("\nSources:\n" + "".join(f"- {p}\n" for p in places) if places else ""))
                sys.stdout.flush()
                if chat.papers.remark:
                    ui.note(chat.papers.remark)
                if stats:
                    s = chat.session.stats
                    ui.note(
                        f"stats: prompt {s.prompt_tokens} reused {s.reused_tokens} prefilled {s.prefilled_tokens} "
                        f"generated {s.generated_tokens} first_token {s.first_token_seconds:.3f} s finish {s.finish}"
                    )
            if outcome.leave:
                break
        except JambaError as error:  # the script goes on; its exit code tells
            failed = error
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    if failed is not None:
        raise typer.Exit(failed.exit_code)
