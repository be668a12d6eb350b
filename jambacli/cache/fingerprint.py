"""Identify a model file, so that a stored state is only used with the weights it was computed with.

The fingerprint hashes every part's header (metadata, tensor names, shapes, formats) and samples of each tensor's bytes,
not 31 GB; it is remembered by inode, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError
from jambacli.files import atomic_write, jamba_home

if TYPE_CHECKING:
    from jambacli.gguf.reader import GGUFFile

_SAMPLE = 4096
_SAMPLES = 8


def fingerprint(file: GGUFFile) -> str:
    """24 hexadecimal digits that identify the model and its format."""
    path = jamba_home() / "fingerprints.json"
    known = _read(path)
    key = "|".join(_identity(part) for part in file.paths)
    if key in known:
        return known[key]
    value = _compute(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as out:
            out.write(json.dumps(dict([*list(known.items())[-200:], (key, value)]), indent=0).encode())
    except (JambaError, OSError):
        pass  # then the next start computes it again
    return value


def _identity(part: Path) -> str:
    info = part.stat()
    return f"{part.resolve()}:{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


def _read(path: Path) -> dict[str, str]:
    try:
        values: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    valid = isinstance(values, dict) and all(isinstance(v, str) and len(v) == 24 for v in values.values())
    return values if valid else {}


def _compute(file: GGUFFile) -> str:
    hasher = hashlib.blake2b(digest_size=12)
    for name, info in file.tensors.items():
        hasher.update(f"{name}|{info.shape}|{info.format.name}|{info.nbytes}\n".encode())
        data = file.data(name)
        step = max((len(data) - _SAMPLE) // (_SAMPLES - 1), 1)
        for start in range(0, max(len(data) - _SAMPLE, 0) + 1, step):
            hasher.update(data[start : start + _SAMPLE].tobytes())
    for key in sorted(file.metadata):
        if key.startswith("jamba.") or key in ("general.architecture", "general.file_type"):
            hasher.update(f"{key}={file.metadata[key]}\n".encode())
    return hasher.hexdigest()
