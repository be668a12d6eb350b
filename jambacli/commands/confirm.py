"""Ask before something is deleted."""

from __future__ import annotations

import typer

from jambacli import ui


def confirm(question: str, otherwise: str) -> None:
    """Ask on a terminal, if there is one. If the answer is not yes, say ``otherwise`` and exit with 1: that is no error."""
    if ui.can_ask() and not ui.asked(question):
        ui.note(otherwise)
        raise typer.Exit(1)
