"""Sessions on disk: one JSON file each, replaced whole, locked while open; knows nothing of models or of the store.

sessions/NAME.json    the turns, the tokens, and which stored prefixes they were left with
sessions/NAME.lock    held by the process that has it open
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
import os
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from jambacli import ui
from jambacli.cache.prefix_store import Prefix
from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import atomic_write, jamba_home, private_folder

_VERSION = 1
_MAX_FILE = 256 << 20
_LATEST = 253402300799  # the end of the year 9999, in seconds since 1970
_TURN_TEXTS = frozenset(["role", "content", "thoughts", "plain"])
_TURN_FIELDS = _TURN_TEXTS | {"ids", "thought_ids", "pinned", "extra"}


@dataclass
class SavedSession:
    """What a session file holds. ``prompt`` and ``reply`` are token ids; ``turns`` are those of a Conversation."""

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

    @property
    def tokens(self) -> list[int]:
        """Every token of the session so far."""
        return self.prompt + self.reply


def check_name(name: str) -> str:
    """``name``, composed (NFC), if it can name a session: letters, with their marks, and digits of any script, . - _

    At most 64 of them, and 200 bytes, so that the file's name stays below what file systems take; UsageError otherwise.
    """
    composed = unicodedata.normalize("NFC", name)
    # Vowels of Devanagari and Thai, points of Hebrew are marks, which \w leaves out.
    letters = "".join(c for c in composed[1:] if not unicodedata.category(c).startswith("M"))
    sound = re.fullmatch(r"\w[\w.-]*", composed[:1] + letters) and len(composed) <= 64
    if not sound or len(composed.encode()) > 200:
        raise UsageError(
            f"session name {name[:80]!r} is not usable; take up to 64 letters, digits, dots, dashes or underscores"
        )
    return composed


def generated_name() -> str:
    """A name for a session that was given none, and that no session has yet."""
    start, number = time.strftime("chat-%Y%m%d-%H%M%S"), os.getpid() % 10000
    while exists(f"{start}-{number:04d}"):
        number = (number + 1) % 10000
    return f"{start}-{number:04d}"


def sessions_folder() -> Path:
    """``JAMBA_HOME/sessions``, made for the user alone. JambaError where it cannot be."""
    return private_folder(jamba_home() / "sessions", "keep sessions")


def session_path(name: str) -> Path:
    """Where the session of that name is."""
    return sessions_folder() / f"{check_name(name)}.json"


def exists(name: str) -> bool:
    """Whether there is a session of that name."""
    return session_path(name).exists()


def is_generated(name: str) -> bool:
    """Whether a name was made by ``generated_name``."""
    return re.fullmatch(r"chat-\d{8}-\d{6}-\d{4}", name) is not None


def write(saved: SavedSession) -> None:
    """Replace the session's file: the old one or the new one survives a kill or a power cut, nothing between."""
    with atomic_write(session_path(saved.name)) as file:
        file.write(to_json(saved))


def to_json(saved: SavedSession) -> bytes:
    """A session as the bytes of its file."""
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
    return read_file(path)


def not_there(name: str) -> JambaError:
    """The error for a session that does not exist, with the names most like it."""
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return JambaError(f"there is no session {name!r};{hint} `jamba sessions list` shows those there are")


def read_file(path: Path) -> SavedSession:
    """The session in a file. Raises BadFileError naming it when it is damaged or of another version."""
    try:
        if path.stat().st_size > _MAX_FILE:
            raise BadFileError(path, "is too large for a session file")
        value = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, "is damaged (no valid JSON); delete it, or restore a copy") from error
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise BadFileError(path, "is no session file of this program's version")
    try:
        known = {f.name: value[f.name] for f in fields(SavedSession) if f.name in value}
        _check_types(known)
        prefixes = [p for p in map(Prefix.from_json, value["prefixes"]) if p is not None]
        turns = [{**t, **{k: _unpacked(t[k]) for k in ("ids", "thought_ids") if t.get(k)}} for t in value["turns"]]
        known |= {"prompt": _unpacked(value["prompt"]), "reply": _unpacked(value["reply"])}
        return SavedSession(**{**known, "prefixes": prefixes, "turns": turns})
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"is damaged ({error}); delete it, or restore a copy") from error


def _check_types(value: dict[str, Any]) -> None:
    """Raise ValueError naming the first field that is not what it must be; the file may come from anyone."""
    text, number = (str,), (int, float)
    types: dict[str, tuple[type, ...]] = dict.fromkeys(("name", "model", "model_path", "fingerprint", "kv_type"), text)
    types |= {"ctx": (int,), "created": number, "updated": number, "chat": (bool,), "finish": text}
    types |= {"system": (str, type(None)), "parent": (str, type(None)), "random_state": (dict, type(None))}
    types |= dict.fromkeys(("turns", "documents", "prefixes"), (list,))
    wrong = [k for k, wanted in types.items() if k in value and not isinstance(value[k], wanted)]
    if wrong:
        raise ValueError(f"field {wrong[0]!r} is no {types[wrong[0]][0].__name__}")
    for key in ("created", "updated"):
        if key in value and not 0 <= value[key] < _LATEST:
            raise ValueError(f"field {key!r} is no time")
    if value["ctx"] < 1 or not all(isinstance(d, str) for d in value.get("documents", [])):
        raise ValueError("field 'ctx' or 'documents' is out of range")
    for turn in value.get("turns", []):
        if not isinstance(turn, dict) or not turn.keys() <= _TURN_FIELDS:
            raise ValueError("a turn is no turn")
        if "role" not in turn or not all(isinstance(turn.get(k, ""), str) for k in _TURN_TEXTS):
            raise ValueError("a turn has no role, or no text")
        pinned = turn.get("pinned")
        if pinned is not None and not (isinstance(pinned, list) and [type(x) for x in pinned] == [int, str]):
            raise ValueError("a turn's documents are none")
        if not isinstance(turn.get("extra", {}), dict):
            raise ValueError("a turn's extras are none")


def names() -> list[str]:
    """The names of all sessions, most recently used first."""
    files = [p for p in sessions_folder().glob("*.json") if not p.name.startswith(".")]
    return [unicodedata.normalize("NFC", p.stem) for p in sorted(files, key=lambda p: -p.stat().st_mtime)]


def readable() -> Iterator[tuple[str, SavedSession]]:
    """Every session that can be read, most recently used first; of the others it is said why not."""
    for name in names():
        try:
            yield name, read(name)
        except JambaError as error:
            ui.warn(str(error))


def family(name: str) -> list[str]:
    """The sessions that were branched from the same beginning as ``name``, it included, oldest first."""
    known = dict(readable())

    def root(n: str) -> str:
        seen = {n}
        while n in known and known[n].parent and known[n].parent not in seen:
            n = known[n].parent or n
            seen.add(n)
        return n

    return sorted((n for n in known if root(n) == root(name)), key=lambda n: known[n].created)


def remove(name: str) -> None:
    """Delete a session (its prefixes stay in the store until they are evicted). JambaError when open or not there."""
    read_path = session_path(name)
    if not read_path.exists():
        raise not_there(name)
    with opened(name):
        read_path.unlink()


@contextlib.contextmanager
def opened(name: str) -> Iterator[None]:
    """Hold a session for this process alone; JambaError when another one has it."""
    lock = acquire(name)
    try:
        yield
    finally:
        release(name, lock)


def acquire(name: str) -> IO[bytes]:
    """Lock a session for this process until the returned file is closed. JambaError naming the process that has it."""
    path = session_path(name).with_suffix(".lock")
    file = path.open("a+b")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            file.close()
            return acquire(name)  # the session was removed just now, and its lock file with it
    except ImportError:
        return file  # no fcntl on this platform: one process at a time is the user's own care
    except OSError as error:
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise JambaError(
            f"session {name!r} is open in another process ({owner}); close it there, or use --read-only to look at it"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}".encode())
    file.flush()
    return file


def release(name: str, lock: IO[bytes]) -> None:
    """Give a session free; where nothing was saved under its name, no trace of it stays."""
    if not session_path(name).exists():
        session_path(name).with_suffix(".lock").unlink(missing_ok=True)
    lock.close()


def _packed(ids: Sequence[int]) -> str:
    return base64.b64encode(np.asarray(ids, dtype="<i4").tobytes()).decode()


def _unpacked(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4").tolist()
