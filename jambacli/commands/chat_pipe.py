"""A chat in a pipe: every line of standard input is a message or a command."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from jambacli import ui
from jambacli.commands.flags import flag
from jambacli.commands.reply import figures_of_reply, write_json
from jambacli.errors import JambaError, UsageError
from jambacli.interrupts import interrupts_stop

if TYPE_CHECKING:
    from jambacli.chat.chat_session import Outcome
    from jambacli.chat.commands import Chat


def chat_in_a_pipe(
    chat: Chat, stats: bool, first: str | None = None, *, as_json: bool = False, json_stream: bool = False
) -> None:
    """Handle every line; replies go to stdout, the rest to stderr. ``first``: a message before all lines.

    ``as_json``: an object a line for every input: ``text`` and figures of a reply, ``lines`` of a command, or ``error``.
    ``json_stream``: the pieces of a reply too, before an object with ``done`` and its figures.
    """
    failed: JambaError | None = None
    for text in itertools.chain([] if first is None else [None], _lines()):
        try:
            outcome = chat.handle(text) if text is not None else chat.say(first or "")
            if outcome.copied is not None:
                raise UsageError("/copy needs a terminal")
            if as_json or json_stream:
                _show_json(chat, outcome, json_stream)
            else:
                _show(chat, outcome)
            if stats and outcome.reply is not None:
                s = chat.session.stats
                ui.note(
                    f"stats: prompt {s.prompt_tokens} reused {s.reused_tokens} prefilled {s.prefilled_tokens} "
                    f"generated {s.generated_tokens} first_token {s.first_token_seconds:.3f} s finish {s.finish}"
                )
            if outcome.leave:
                break
        except JambaError as error:  # the next line is still handled; the exit code reports the failure
            failed = error
            said = " ".join(error.worded(flag).split())
            if as_json or json_stream:
                write_json({"error": said})
            print(f"error: {said}", file=sys.stderr, flush=True)
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _show(chat: Chat, outcome: Outcome) -> None:
    for shown in outcome.lines:
        ui.note(shown)
    if outcome.reply is None:
        return
    for piece in _pieces(chat, outcome.reply):
        if not isinstance(piece, _thought()):
            sys.stdout.write(piece)
            sys.stdout.flush()
    places = chat.attachments.places
    sys.stdout.write("\n" + ("\nSources:\n" + "".join(f"- {p}\n" for p in places) if places else ""))
    sys.stdout.flush()
    if chat.attachments.remark:
        ui.note(chat.attachments.remark)


def _show_json(chat: Chat, outcome: Outcome, stream: bool) -> None:
    if outcome.reply is None:
        if outcome.lines:
            write_json({"lines": outcome.lines})
        return
    said: list[str] = []
    for piece in _pieces(chat, outcome.reply):
        thought = isinstance(piece, _thought())
        if stream:
            write_json({"thought" if thought else "text": str(piece)})
        if not thought:
            said.append(piece)
    row: dict[str, Any] = {"done": True} if stream else {"text": "".join(said)}
    row |= {"session": chat.session.name, "model": chat.model.name}
    if places := chat.attachments.places:
        row["citations"] = places
    write_json({**row, **figures_of_reply(chat.model, chat.session)})


def _pieces(chat: Chat, reply: Iterator[str]) -> Iterator[str]:
    """The pieces of a reply. Raises KeyboardInterrupt at its end if a Ctrl-C ended it."""
    with interrupts_stop(chat.stop) as came:
        yield from reply
    if came.asked:
        raise KeyboardInterrupt


def _thought() -> type[str]:
    from jambacli.engine.generate import Thought

    return Thought


def _lines() -> Iterator[str]:
    """The lines of standard input, as they come. Raises JambaError at the first one that is not UTF-8 text."""
    for number, data in enumerate(sys.stdin.buffer, 1):
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise JambaError(f"standard input is not UTF-8 text (line {number}); convert it first") from error
        if "\0" in line:
            raise JambaError(f"standard input is not text (line {number} holds NUL characters); convert it first")
        yield line.rstrip("\r\n")
