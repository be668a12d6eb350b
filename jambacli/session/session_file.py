"""Sessions on disk: one JSON file each, replaced as a whole, locked while open.

sessions/NAME.json    the turns, the tokens, and the stored prefixes that hold their state
sessions/NAME.lock    locked by the process that has the session open
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
import logging
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from jambacli.cache.prefix_store import Prefix
from jambacli.errors import BadFileError, JambaError
from jambacli.files import atomic_write
from jambacli.session.lock_file import LockedError, lock_file
from jambacli.session.session_folder import (  # noqa: F401 - what else is known of the files
    check_name,
    exists,
    generated_name,
    history_path,
    is_generated,
    names,
    require_writable,
    session_path,
    sessions_folder,
)
from jambacli.text.template import FENCE_CLOSE, FENCE_OPEN, SENTINEL

logger = logging.getLogger(__name__)

_VERSION = 1
_MAX_FILE = 256 << 20
_MAX_VALUES = 4_000_000
_LATEST = 253402300799  # the end of the year 9999, in seconds since 1970
_TURN_TEXTS = frozenset(["role", "content", "thoughts", "plain"])
_TURN_FIELDS = _TURN_TEXTS | {"ids", "thought_ids", "pinned", "extra"}


@dataclass
class SavedSession:
    """What a session file holds; the field names are its keys. ``prompt`` and ``reply`` are token ids of the last reply,
    ``turns`` those of a Conversation. ``template_hash``: of the chat template, "" if there is none or it is not known;
    ``chat_template``: its text, if it is not the model file's own.
    """

    name: str
    model: str
    model_path: str
    fingerprint: str
    kv_type: str
    ctx: int
    created: float
    updated: float
    system: str | None = None
    parent: str | None = None
    chat: bool = True
    turns: list[dict[str, Any]] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)
    finish: str = ""
    random_state: dict[str, Any] | None = None
    documents: list[str] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)
    precise: bool = True  # files without this field were written when decode was always precise
    template_hash: str = ""
    chat_template: str | None = None

    @property
    def tokens(self) -> list[int]:
        """All tokens of the session so far."""
        return self.prompt + self.reply


def write(saved: SavedSession) -> None:
    """Replace the session's file; a kill or a power cut leaves the old one or the new one."""
    with atomic_write(session_path(saved.name), private=True) as file:
        file.write(to_json(saved))


def to_json(saved: SavedSession) -> bytes:
    """The bytes of a session's file."""
    value = {f.name: getattr(saved, f.name) for f in fields(saved)}
    value |= {"version": _VERSION, "prompt": _packed(saved.prompt), "reply": _packed(saved.reply)}
    value["prefixes"] = [p.to_json() for p in saved.prefixes]
    value["turns"] = [{**t, **{k: _packed(t[k]) for k in ("ids", "thought_ids") if t.get(k)}} for t in saved.turns]
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def read(name: str) -> SavedSession:
    """The session of that name. Raises JambaError when there is none, BadFileError when its file is damaged."""
    path = session_path(name)
    if not path.exists():
        raise not_there(name)
    saved = read_file(path)
    saved.name = check_name(name)  # a file may have been renamed or copied by hand
    return saved


def not_there(name: str) -> JambaError:
    """The error for a session that does not exist, with the most similar names."""
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return JambaError(f"there is no session {name!r};{hint} `jamba sessions list` shows all of them")


def read_file(path: Path) -> SavedSession:
    """The session in a file. Raises BadFileError when it is damaged or of another version."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would never answer
            raise BadFileError(path, "is damaged (not a file); delete it, or restore a copy")
        if info.st_size > _MAX_FILE:
            raise BadFileError(path, "is too large for a session file")
        data = path.read_bytes()
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror}") from error
    return parsed(data, path)


def parsed(data: bytes, path: Path) -> SavedSession:
    """The session in the bytes of a session file; errors name ``path``. Raises BadFileError when they are damaged or of
    another version."""
    if sum(map(data.count, b"[{,")) > _MAX_VALUES:  # each takes up to 100 bytes of memory
        raise BadFileError(path, "is too large for a session file")
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, "is damaged (no valid JSON); delete it, or restore a copy") from error
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise BadFileError(path, "is not a session file of this version of the program")
    try:
        known = {f.name: value[f.name] for f in fields(SavedSession) if f.name in value}
        _check_types(known)
        prefixes = [p for p in map(Prefix.from_json, value["prefixes"]) if p is not None]
        turns = [{**t, **{k: _unpacked(t[k]) for k in ("ids", "thought_ids") if t.get(k)}} for t in value["turns"]]
        known |= {"prompt": _unpacked(value["prompt"]), "reply": _unpacked(value["reply"])}
        return SavedSession(**{**known, "prefixes": prefixes, "turns": turns})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadFileError(path, f"is damaged ({error}); delete it, or restore a copy") from error


def _check_types(value: dict[str, Any]) -> None:
    """Raise ValueError with the first field that has a wrong type or value; the file is not trusted."""
    text, number = (str,), (int, float)
    types: dict[str, tuple[type, ...]] = dict.fromkeys(("name", "model", "model_path", "fingerprint", "kv_type"), text)
    types |= {"ctx": (int,), "created": number, "updated": number, "chat": (bool,), "precise": (bool,)}
    types |= {
        "finish": text,
        "system": (str, type(None)),
        "parent": (str, type(None)),
        "template_hash": text,
        "chat_template": (str, type(None)),
        "random_state": (dict, type(None)),
    }
    types |= dict.fromkeys(("turns", "documents", "prefixes"), (list,))
    wrong = [k for k, kinds in types.items() if k in value and not isinstance(value[k], kinds)]
    if wrong:
        raise ValueError(f"field {wrong[0]!r} is not of type {types[wrong[0]][0].__name__}")
    for key in ("created", "updated"):
        if key in value and not 0 <= value[key] < _LATEST:
            raise ValueError(f"field {key!r} is not a time")
    if value["ctx"] < 1 or not all(isinstance(d, str) for d in value.get("documents", [])):
        raise ValueError("field 'ctx' or 'documents' is out of range")
    for turn in value.get("turns", []):
        if not isinstance(turn, dict) or not turn.keys() <= _TURN_FIELDS:
            raise ValueError("a turn has unknown fields")
        if not {"role", "content"} <= turn.keys() or not all(isinstance(turn.get(k, ""), str) for k in _TURN_TEXTS):
            raise ValueError("a turn has no role or no content, or its text is not a string")
        pinned = turn.get("pinned")
        if pinned is not None and not _is_pinned(pinned):
            raise ValueError("a turn has an invalid 'pinned' field")
        extra = turn.get("extra", {})
        if not isinstance(extra, dict) or extra.keys() & {"role", "content"}:
            raise ValueError("a turn has an invalid 'extra' field")


def _is_pinned(value: Any) -> bool:
    """Whether it is (a number of characters, a text without the marks that a rendering is cut at)."""
    if not isinstance(value, list) or [type(x) for x in value] != [int, str]:
        return False
    return 0 <= value[0] <= _MAX_FILE and not set(value[1]) & {SENTINEL, FENCE_OPEN, FENCE_CLOSE}


def readable() -> Iterator[tuple[str, SavedSession]]:
    """Every readable session, most recently used first; a warning for each of the others."""
    for name in names():
        try:
            yield name, read(name)
        except JambaError as error:
            logger.warning("%s", error)


def family(name: str) -> list[str]:
    """``name`` and the sessions branched from the same origin, oldest first."""
    known = dict(readable())

    def root(n: str) -> str:
        seen = {n}
        while n in known and known[n].parent and known[n].parent not in seen:
            n = known[n].parent or n
            seen.add(n)
        return n

    return sorted((n for n in known if root(n) == root(name)), key=lambda n: known[n].created)


def remove(name: str) -> None:
    """Delete a session; its prefixes stay in the store until evicted. Raises JambaError when it is missing or open."""
    read_path = session_path(name)
    if not read_path.exists():
        raise not_there(name)
    with opened(name):
        read_path.unlink()


@contextlib.contextmanager
def opened(name: str) -> Iterator[None]:
    """Hold the lock of a session. Raises JambaError when another process has it open."""
    lock = acquire(name)
    try:
        yield
    finally:
        release(name, lock)


def acquire(name: str) -> IO[bytes]:
    """Lock a session until the returned file is closed. Raises JambaError with the process that has it open."""
    path = session_path(name).with_suffix(".lock")
    try:
        return lock_file(path)
    except LockedError as error:
        raise JambaError(
            f"session {name!r} is open in another process ({error.owner})",
            remedy="close it there, or use {read_only} to look at it",
        ) from error
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}") from error


def release(name: str, lock: IO[bytes]) -> None:
    """Release the lock of a session; without a saved session the lock file is removed too."""
    if not session_path(name).exists():
        session_path(name).with_suffix(".lock").unlink(missing_ok=True)
    lock.close()


def _packed(ids: Sequence[int]) -> str:
    return base64.b64encode(np.asarray(ids, dtype="<i4").tobytes()).decode()


def _unpacked(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4").tolist()
