"""A question while its reply is not there yet: where it stands among the messages, how it is shown, and how it is kept."""

from __future__ import annotations

from typing import Any

from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask
from jambacli.session.session_file import SavedSession


def first_index(saved: SavedSession, ask: Ask) -> int:
    """The index of the first message that a reply replaces or adds."""
    return reply_index(saved, ask) - (ask.kind != "regenerate")


def reply_index(saved: SavedSession, ask: Ask) -> int:
    """The index of the reply among the messages."""
    first = view.place_of_first(saved.turns)
    if ask.kind == "edit":
        return (ask.at or 0) + 1 - first
    if ask.kind == "regenerate":
        return max((i for i, turn in enumerate(saved.turns) if turn["role"] == "user"), default=first) + 1 - first
    return len(saved.turns) + 1 - first


def pending_message(saved: SavedSession, ask: Ask) -> dict[str, Any]:
    """A person's message as it is shown before it is part of the session."""
    return {
        "index": first_index(saved, ask),
        "role": "user",
        "text": ask.shown,
        "thought": None,
        "documents": list(ask.documents),
        "citations": [],
        "cited": False,
        "stats": None,
        "finish": None,
        "task": ask.task,
        "table": None,
        "siblings": None,
        "parts": None,
        "left_out": [],
    }


def unsent_question(saved: SavedSession, ask: Ask) -> dict[str, Any]:
    """What is to be asked again when no reply comes."""
    more = {"index": first_index(saved, ask)} if ask.kind == "edit" else {}
    return {
        "kind": ask.kind,
        "text": ask.shown,
        "documents": list(ask.documents),
        "task": ask.task,
        "message": "",
        **more,
    }
