"""A cache of GGUF files converted from HF checkpoint directories that were run as models.

They are stored as ``JAMBA_HOME/converted/HASH.gguf``. HASH covers the paths, sizes and times of the checkpoint's files, so a
changed checkpoint is converted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path

from jambacli.errors import JambaError
from jambacli.files import jamba_home, private_folder
from jambacli.progress import Progress, no_progress

logger = logging.getLogger(__name__)
# Changes when the same checkpoint becomes another file.
_RULES = "2"


def converted_gguf(folder: Path, progress: Progress = no_progress) -> Path:
    """The GGUF of the HF checkpoint in ``folder``, in the checkpoint's own precision; converted on first use.

    Raises JambaError when ``folder`` is not a checkpoint, or ``JAMBA_HOME`` cannot be written.
    """
    from jambacli.convert.to_gguf import convert

    patterns = ("*.json", "*.safetensors", "*.jinja", "tokenizer*")
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    facts = [f"{p.resolve()}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files if p.is_file()]
    name = hashlib.sha256("\n".join([_RULES, *facts]).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    path = _folder() / f"{name}.gguf"
    if not path.exists():
        if facts:
            private_folder(_folder(), "convert a checkpoint")
            logger.info("converting %s once, to %s", folder, path)
        # Another process may convert the same checkpoint: the one that finishes last replaces the file by an equal one.
        convert(folder, path, name=folder.resolve().name, force=True, progress=progress)
    return path


def converted_bytes() -> int:
    """The size of all converted files."""
    total = 0
    for path in _files():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def remove_converted() -> int:
    """Remove all converted files and return the number of bytes freed. Raises JambaError when one cannot be removed."""
    before = converted_bytes()
    try:
        for path in _files():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise JambaError(f"cannot remove {error.filename}: {error.strerror}") from error
    return before - converted_bytes()


def _folder() -> Path:
    return jamba_home() / "converted"


def _files() -> list[Path]:
    return [p for p in _folder().glob("*.gguf") if not p.name.startswith(".")]
