"""GGUF files made once of checkpoint directories that were used as models; knows nothing of how they are made or used.

``JAMBA_HOME/converted/HASH.gguf``, the hash being of the checkpoint's files: a changed checkpoint makes a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from jambacli import ui
from jambacli.errors import JambaError
from jambacli.files import jamba_home


def converted(folder: Path) -> Path:
    """The GGUF made of the checkpoint in ``folder``, in its own precision: made now, or before from the same files.

    Raises JambaError for a directory that is no checkpoint, and where ``JAMBA_HOME`` cannot be written to.
    """
    from jambacli.convert.to_gguf import convert

    files = [folder / "config.json", *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("tokenizer*"))]
    facts = [f"{p.resolve()}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files if p.is_file()]
    name = hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    path = _folder() / f"{name}.gguf"
    if not path.exists():
        if facts:
            _make_folder()
            ui.note(f"converting {folder} once, to {path}")
        # Another process may be at the same: whichever is last replaces a file by its equal.
        convert(folder, path, name=folder.resolve().name, force=True, progress=ui.progress)
    return path


def converted_bytes() -> int:
    """Bytes of all of them."""
    total = 0
    for path in _files():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def remove_converted() -> int:
    """Remove them all; returns the bytes that came free. JambaError where the folder cannot be written to."""
    before = converted_bytes()
    try:
        for path in _files():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise JambaError(f"cannot remove {error.filename}: {error.strerror}") from error
    return before - converted_bytes()


def _folder() -> Path:
    return jamba_home() / "converted"


def _make_folder() -> None:
    try:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise JambaError(
            f"cannot write to {_folder()}: {error.strerror or error}; set JAMBA_HOME to a folder that can be written to, "
            "or use jamba convert"
        ) from error


def _files() -> list[Path]:
    return [p for p in _folder().glob("*.gguf") if not p.name.startswith(".")]
