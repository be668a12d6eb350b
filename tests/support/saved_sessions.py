"""Saved sessions without a model behind them."""

from __future__ import annotations

import os
import time

from jambacli.session import session_file


def saved(name: str, *messages: str, parent: str | None = None, **fields: object) -> session_file.SavedSession:
    """Write a session of these messages, in turn of the user and the model."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
    now = time.time()
    session = session_file.SavedSession(
        name, "small", "/small.gguf", "f" * 24, "f16", 512, now, now, parent=parent, turns=turns
    )
    for field, value in fields.items():
        setattr(session, field, value)
    session_file.write(session)
    return session


def aged(name: str, seconds: float) -> None:
    """Make a session look that old."""
    then = time.time() - seconds
    os.utime(session_file.session_path(name), (then, then))
