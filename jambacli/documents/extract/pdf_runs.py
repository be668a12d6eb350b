"""Text of a PDF's page with its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Text in one piece of a line, and its box in points; y grows upwards. ``order``: its place in the file, if known."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    order: int = -1

    @property
    def height(self) -> float:
        return max(self.top - self.bottom, 0.1)
