"""The demo model's file and the text it is measured on, and the grammar both come from.

``tiny-jamba-bf16.gguf`` is trained by examples/train_tiny.py (docs/demo_model.md). ``heldout.txt`` comes from the same grammar
with names that training never saw. ``calibration/`` holds the texts that an importance matrix is collected on by default.
"""

from __future__ import annotations

from pathlib import Path

#: The classes of the calibration text, in the order in which they take turns.
CALIBRATION_CLASSES = ("chat", "code", "document", "scripts")


def held_out_text() -> str:
    """Documents of reports, questions and answers, separated by form feeds."""
    return Path(__file__).with_name("heldout.txt").read_text(encoding="utf-8")


def calibration_texts() -> dict[str, list[str]]:
    """The built-in calibration texts, written for this program: documents by class, in the order of CALIBRATION_CLASSES.

    chat: conversations, also with tools and system prompts; code: programs, queries, markup, logs and data; document: long
    texts of several kinds; scripts: prose, questions and clauses in thirty languages and fifteen scripts.
    """
    folder = Path(__file__).with_name("calibration")
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8").split("\f") for name in CALIBRATION_CLASSES}


def calibration_text() -> str:
    """The documents of all classes in turn, in a fixed order, so that any run of tens of kilobytes has some of each.

    What an importance matrix is collected on when no text is given.
    """
    by_class = calibration_texts().values()
    # A class with few documents is spread over the whole.
    placed = sorted(
        ((i + 0.5) / len(documents), order, document)
        for order, documents in enumerate(by_class)
        for i, document in enumerate(documents)
    )
    return "\n\n".join(document for _, _, document in placed)
