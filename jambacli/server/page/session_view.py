"""A session's file and its notes -> what the page shows of it: messages, documents, marks, tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jambacli.cache.prefix_store import text_hash
from jambacli.documents.citation_check import check_citations
from jambacli.documents.citations import Cited
from jambacli.documents.pages import DocumentEntry
from jambacli.documents.quotes import marks_of
from jambacli.server.errors import not_found
from jambacli.server.page.library import Library
from jambacli.server.page.notes import Notes, TurnJson, chain_key
from jambacli.server.page.tables import table_of
from jambacli.session.session_file import SavedSession

# What the terminal and this page write after a question for templates without a mode for it.
_SUFFIX = re.compile(
    r"\n\nAfter the (?:answer|JSON), list the IDs of the documents it is based on, like this: .*\Z", re.S
)
_SCHEMA = re.compile(r"\n\nReply in JSON that follows this schema: .*\Z", re.S)
_DOCUMENT = re.compile(r"(?:\A|\n)\n?## Document ID: (\d+)(?:\nTitle: ([^\n]*))?\nText: ")
_END = re.compile(r"\n</documents>.*\Z|\n*\Z", re.S)
#: Characters of a title.
TITLE = 80


@dataclass(frozen=True)
class Numbered:
    """A document as a prompt numbers it, and where it is in the library: ``document`` is None if it is not there."""

    entry: DocumentEntry
    document: str | None
    page: int


def place_of(turns: Sequence[TurnJson], index: int) -> int:
    """The index among all turns of the message ``index``: the system message is none. Raises ApiError when there is none."""
    first = int(bool(turns) and turns[0]["role"] == "system")
    if not 0 <= index < len(turns) - first:
        raise not_found(f"there is no message {index}", "index")
    return index + first


def shown_text(turn: TurnJson, known: Mapping[str, Any]) -> str:
    """A user's message as it was typed."""
    if isinstance(known.get("shown"), str):
        return str(known["shown"])
    return _SCHEMA.sub("", _SUFFIX.sub("", turn["content"]))


def title_of(saved: SavedSession, notes: Notes) -> str:
    """What a session is called: by a person, or else by the first line of its first message."""
    if notes.title:
        return notes.title
    for i, turn in enumerate(saved.turns):
        if turn["role"] == "user":
            known = notes.known(turn, i)
            if isinstance(title := (known.get("task") or {}).get("title"), str):
                return title if len(title) <= TITLE else title[: TITLE - 1].rstrip() + "…"
            text = shown_text(turn, known).lstrip()[: 8 * TITLE]
            line = " ".join(text.partition("\n")[0].split())
            return line if len(line) <= TITLE else line[: TITLE - 1].rstrip() + "…"
    return str((notes.unsent or {}).get("text", ""))[:TITLE]


def documents_of(library: Library, turn: TurnJson, known: Mapping[str, Any]) -> list[str]:
    """The ids of the documents that come before a message, those that the library has."""
    if isinstance(known.get("documents"), list):
        return [str(name) for name in known["documents"] if library.find(str(name)) is not None]
    return list(dict.fromkeys(n.document for n in numbered(library, turn, known) if n.document is not None))


def session_documents(library: Library, saved: SavedSession, notes: Notes) -> list[str]:
    """The ids of all documents in a session."""
    found = [d for i, turn in enumerate(saved.turns) for d in documents_of(library, turn, notes.known(turn, i))]
    return list(dict.fromkeys(found))


def documents_in_parts(library: Library, saved: SavedSession, notes: Notes) -> list[str]:
    """The ids of a session's documents that are larger than the context: of them it has only what their parts said."""
    found: list[str] = []
    for i, turn in enumerate(saved.turns):
        known = notes.known(turn, i)
        if known.get("parts"):
            found += documents_of(library, turn, known)
    return list(dict.fromkeys(found))


def numbered(library: Library, turn: TurnJson, known: Mapping[str, Any]) -> list[Numbered]:
    """The documents before a message, as its prompt numbers them."""
    ids = known.get("documents")
    if isinstance(ids, list) and ids:
        found = []
        for name in ids:
            text = library.find_text(str(name))
            if text is None:
                break  # deleted: the session itself still has its text
            found += [Numbered(entry, str(name), i) for i, entry in enumerate(text.entries, 1)]
        else:
            return found
    pinned = turn.get("pinned")
    block = turn.get("plain") or (pinned[1] if pinned else "")
    return [_looked_up(library, entry) for entry in block_entries(block)]


def _looked_up(library: Library, entry: DocumentEntry) -> Numbered:
    place = library.by_hash(text_hash(entry.text))
    return Numbered(entry, *place) if place is not None else Numbered(entry, None, 0)


def block_entries(block: str) -> list[DocumentEntry]:
    """The documents in the text that a template writes for them; none for a template of another form than Jamba's."""
    heads: list[re.Match[str]] = []
    for match in _DOCUMENT.finditer(block):
        if int(match[1][:9]) == len(heads):  # a text may have such a line itself
            heads.append(match)
    found = []
    for i, head in enumerate(heads):
        text = block[head.end() : heads[i + 1].start() if i + 1 < len(heads) else len(block)]
        if i + 1 == len(heads):
            text = _END.sub("", text, count=1)
        found.append(DocumentEntry(head[2] or "", text, ()))
    return found


def asked_documents(library: Library, saved: SavedSession, notes: Notes, end: int) -> list[Numbered]:
    """The documents that a reply at turn ``end`` cites by number: those that came last before it."""
    for i in range(end - 1, -1, -1):
        turn, known = saved.turns[i], notes.known(saved.turns[i], i)
        # In front of another server the turns have no blocks of documents: they are in the notes alone.
        if turn["role"] == "user" and (turn.get("pinned") or turn.get("plain") or known.get("documents")):
            found = numbered(library, turn, known)
            if found:
                return found
    return []


def split_reply(content: str, json: bool) -> tuple[str, Cited]:
    """A reply without its sections of citations, and these."""
    cited = Cited(json=json)
    return "".join(cited.answer([content])).strip(), cited


def marks_json(answer: str, cited: Cited, documents: Sequence[Numbered]) -> list[dict[str, Any]]:
    """The marks of an answer, as the page has them."""
    entries = [n.entry for n in documents]
    checked = check_citations(answer, cited.cited(entries), entries)
    marks = []
    for mark in marks_of(answer, checked.ids, entries):
        of = documents[mark.entry]
        quote = of.entry.text[mark.place[0] : mark.place[1]] if mark.place is not None else None
        marks.append(
            {
                "start": mark.start,
                "end": mark.end,
                "document": of.document,
                "page": of.page,
                "label": of.entry.title,
                "quote": quote,
                "place": list(mark.place) if mark.place is not None else None,
                "found": quote is not None,
                "by": "words" if checked.replaced or not mark.stated else "model",
            }
        )
    return marks


def messages_of(library: Library, saved: SavedSession, notes: Notes) -> list[dict[str, Any]]:
    """The messages of a session."""
    return [message_of(library, saved, notes, i) for i in range(place_of_first(saved.turns), len(saved.turns))]


def place_of_first(turns: Sequence[TurnJson]) -> int:
    """The index of the first turn that is a message."""
    return int(bool(turns) and turns[0]["role"] == "system")


def message_of(library: Library, saved: SavedSession, notes: Notes, at: int) -> dict[str, Any]:
    """The message that is turn ``at``. Marks that are not in the notes are looked up, and added to them."""
    turn = saved.turns[at]
    known = notes.known(turn, at)
    message: dict[str, Any] = {
        "index": at - place_of_first(saved.turns),
        "role": turn["role"],
        "text": turn["content"],
        "thought": turn.get("thoughts"),
        "documents": [],
        "citations": [],
        "cited": False,
        "stats": known.get("stats"),
        "finish": known.get("finish"),
        "task": known.get("task"),
        "table": None,
        "siblings": siblings_of(saved.turns, notes, at),
        "parts": known.get("parts"),
        "left_out": known.get("left_out") or [],
    }
    if turn["role"] == "user":
        message |= {"text": shown_text(turn, known), "documents": documents_of(library, turn, known)}
    elif turn["role"] == "assistant":
        task = known.get("task") or {}
        text, cited = split_reply(turn["content"], task.get("kind") == "table")
        message |= {"text": text, "cited": cited.has_section}
        if task.get("kind") == "table":
            message["table"] = table_of(text, task.get("columns", ()))
        else:
            if "citations" not in known:
                # What the parts said was numbered, not the documents: their words tell where the answer stands.
                numbers = Cited() if known.get("parts") else cited
                notes.of(turn, at)["citations"] = marks_json(text, numbers, asked_documents(library, saved, notes, at))
            message["citations"] = [_alive(library, mark) for mark in notes.of(turn, at)["citations"]]
    return message


def _alive(library: Library, mark: dict[str, Any]) -> dict[str, Any]:
    """A mark, without a document that was deleted since."""
    name = mark.get("document")
    return mark if name is None or library.find(name) is not None else {**mark, "document": None}


def siblings_of(turns: Sequence[TurnJson], notes: Notes, at: int) -> dict[str, int] | None:
    """Which version of a message is shown, and how many there are; None for one alone."""
    version = notes.versions.get(chain_key(turns[:at]))
    if version is None or version["place"] != at or len(version["tails"]) < 2:
        return None
    return {"at": version["shown"], "count": len(version["tails"])}
