"""The embedded model and the text it is measured on; knows nothing of how they are read.

``tiny-jamba-bf16.gguf`` is trained by examples/train_tiny.py (docs/embedded_model.md), ``heldout.txt`` comes from the same
grammar with names that training never saw.
"""

from __future__ import annotations

from pathlib import Path

from jambacli.errors import JambaError

_FOLDER = Path(__file__).parent


def embedded_model() -> Path:
    """The GGUF file of the demonstration model. JambaError where the installation has lost it."""
    path = _FOLDER / "tiny-jamba-bf16.gguf"
    if not path.is_file():
        raise JambaError(f"{path} is missing; install again, or name a model (jamba pull jamba:3b gets one)")
    return path


def held_out_text() -> str:
    """Documents of reports, questions and answers, a form feed between two."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")
