"""The demo model's file and the text it is measured on, and the grammar both come from.

``tiny-jamba-bf16.gguf`` is trained by examples/train_tiny.py (docs/demo_model.md). ``heldout.txt`` comes from the same grammar
with names that training never saw.
"""

from __future__ import annotations

from pathlib import Path


def held_out_text() -> str:
    """Documents of reports, questions and answers, separated by form feeds."""
    return Path(__file__).with_name("heldout.txt").read_text(encoding="utf-8")


def calibration_text() -> str:
    """Chats, code, a long document and a dozen languages in turn: what an importance matrix is collected on without a text."""
    return Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
