"""The model that comes with the program, under a name like any other's; knows nothing of what it is or can do."""

from __future__ import annotations

from pathlib import Path

from jambacli.hub.aliases import load_table

NAME = "jamba:tiny"


def is_in_the_box(text: str) -> bool:
    """Whether ``text`` names the model in the box. The user's own table may give that name to another."""
    return text.strip().lower() == NAME and NAME not in load_table().names()


def path_in_the_box() -> Path:
    """Its GGUF file. JambaError where the installation has lost it."""
    from jambacli.data import embedded_model

    return embedded_model()
