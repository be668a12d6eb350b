"""The one resolver of model names to places on disk; knows nothing of what is in the files."""

from __future__ import annotations

import os
from pathlib import Path

from jambacli.errors import JambaError


def resolve_model(name: str) -> Path:
    """The .gguf file (any part of a split one) or Hugging Face checkpoint directory that ``name`` means.

    Raises JambaError when it means none.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - unlike Path's, it lets an unknown ~user stand
    if name and _exists(path):
        return path
    if _looks_like_a_path(name):
        raise JambaError(f"{name}: no such file; give the path of a .gguf file or a checkpoint directory")
    raise JambaError(f"unknown model {name[:100]!a}; give the path of a .gguf file or a checkpoint directory")


def is_model_name(text: str) -> bool:
    """Whether ``text`` is meant as a model, not as words: a .gguf path (there or not) or a checkpoint directory."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    return bool(text) and "\n" not in text and (path.suffix == ".gguf" or _exists(path / "config.json"))


def _looks_like_a_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith(("/", "./", "../", "~"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte: no file has that name
        return False
