"""What the page keeps of a session beside its file: a title, options, documents by message, marks, figures, other versions.

A session's file is the terminal's too, so that its fields are not the page's to add. Notes are found by the message's place and
text: after a change in the terminal those of messages that are no longer there are not used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import atomic_write, data_home, private_folder, read_regular
from jambacli.session import session_file

_MAX_FILE = 256 << 20

TurnJson = Mapping[str, Any]


@dataclass
class Notes:
    """The notes of one session.

    ``title``: given by a person. ``options``: of its replies. ``documents``: ids for the next message. ``unsent``: a question
    without a reply. ``messages``: by ``turn_key``. ``versions``: by ``chain_key``, the turns from there on in each version
    (None for the one that the session has) and which one that is. ``shared``: the first tokens, up to the end of its first
    documents, which other sessions about them begin with too.
    """

    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    documents: list[str] = field(default_factory=list)
    unsent: dict[str, Any] | None = None
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared: int = 0

    def of(self, turn: TurnJson, index: int) -> dict[str, Any]:
        """The notes of a message, which may be added to."""
        return self.messages.setdefault(turn_key(turn, index), {})

    def known(self, turn: TurnJson, index: int) -> Mapping[str, Any]:
        """The notes of a message, empty without any."""
        return self.messages.get(turn_key(turn, index), {})

    def without(self, turns: Sequence[TurnJson]) -> None:
        """Forget the notes of messages that neither ``turns`` nor a version has."""
        keys = {turn_key(turn, i) for i, turn in enumerate(turns)}
        for version in self.versions.values():
            for tail in version["tails"]:
                keys |= {turn_key(turn, version["place"] + i) for i, turn in enumerate(tail or ())}
        self.messages = {key: value for key, value in self.messages.items() if key in keys}


def turn_key(turn: TurnJson, index: int) -> str:
    """Names a message by its place in the session's turns and its text."""
    said = json.dumps([turn["role"], turn["content"], turn.get("ids")]).encode("utf-8", "surrogatepass")
    return f"{index}-{sha256(said).hexdigest()[:24]}"


def chain_key(turns: Sequence[TurnJson]) -> str:
    """Names what is before a message: all turns by their texts."""
    said = json.dumps([[turn["role"], turn["content"]] for turn in turns]).encode("utf-8", "surrogatepass")
    return sha256(said).hexdigest()[:32]


class NoteFiles:
    """The notes of all sessions: on the disk, or in memory only."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._memory: dict[str, Notes] = {}

    def read(self, name: str) -> Notes:
        """The notes of a session, empty ones where there are none or they are damaged."""
        if not self._keep:
            return self._memory.get(name) or Notes()
        try:
            path = self._path(name)
            if path.stat().st_size > _MAX_FILE:
                return Notes()
            value = json.loads(read_regular(path).decode("utf-8", "surrogatepass"))
            notes = Notes(**{f.name: value[f.name] for f in fields(Notes) if f.name in value})
        except (OSError, ValueError, TypeError, RecursionError, AttributeError):
            return Notes()
        return notes if _valid(notes) else Notes()

    def write(self, name: str, notes: Notes) -> None:
        """Keep notes. Raises JambaError."""
        if not self._keep:
            self._memory[name] = notes
            return
        with atomic_write(self._path(name), private=True) as file:
            file.write(json.dumps(asdict(notes), ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def version(self, name: str) -> float:
        """A number that changes when the notes do."""
        if not self._keep:
            return float(id(self._memory.get(name)))
        try:
            return self._path(name).stat().st_mtime
        except OSError:
            return 0.0

    def rename(self, name: str, new: str) -> None:
        """Keep the notes under another name."""
        self.write(new, self.read(name))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Forget the notes of a session."""
        self._memory.pop(name, None)
        if self._keep:
            with contextlib.suppress(JambaError, OSError):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        folder = private_folder(data_home() / "library" / "sessions", "keep conversations")
        return folder / f"{session_file.check_name(name)}.json"


def _valid(notes: Notes) -> bool:
    """Whether a file holds what ``Notes`` says: it may be damaged, but is nobody's attack."""
    dicts = (notes.options, notes.messages, notes.versions)
    if not isinstance(notes.title, str) or not all(isinstance(d, dict) for d in dicts):
        return False
    if (
        not isinstance(notes.unsent, dict | None)
        or type(notes.shared) is not int
        or not isinstance(notes.documents, list)
    ):
        return False
    if not all(isinstance(m, dict) for m in notes.messages.values()):
        return False
    return all(
        isinstance(v, dict)
        and isinstance(v.get("tails"), list)
        and type(v.get("shown")) is int
        and type(v.get("place")) is int
        for v in notes.versions.values()
    )
