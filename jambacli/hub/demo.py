"""The demo model: the tiny Jamba that comes with the program, under a name like any other model's."""

from __future__ import annotations

from pathlib import Path

from jambacli.errors import JambaError
from jambacli.hub.aliases import DEMO_NAME, load_table

_PATH = Path(__file__).parents[1] / "data" / "tiny-jamba-bf16.gguf"


def is_demo_model(text: str) -> bool:
    """Whether ``text`` names the demo model. The user's alias table may give that name to another model."""
    return text.strip().lower() == DEMO_NAME and DEMO_NAME not in load_table().names()


def demo_model_path() -> Path:
    """The demo model's GGUF file. Raises JambaError if it is missing from the installation."""
    if not _PATH.is_file():
        raise JambaError(f"{_PATH} is missing; reinstall, or name a model (jamba pull jamba:3b gets one)")
    return _PATH
