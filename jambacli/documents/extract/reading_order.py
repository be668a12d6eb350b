"""The order in which boxes of a page are read: rows from top to bottom, columns from left to right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")
# Boxes that overlap by less than a tenth at each end lie beside one another; and how often a page is divided.
_SLACK, _DEPTH = 0.1, 40


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards. The unit does not matter."""

    left: float
    top: float
    right: float
    bottom: float


def in_reading_order(items: list[_T], box_of: Callable[[_T], Box | None]) -> list[_T]:
    """The items in reading order; those without a place come first, in the order given."""
    placed: list[tuple[_T, Box]] = []
    order: list[_T] = []
    for item in items:
        if (box := box_of(item)) is None:
            order.append(item)
        else:
            placed.append((item, box))
    return order + [item for item, _ in _divided(placed, 0)]


def _divided(items: list[tuple[_T, Box]], depth: int) -> list[tuple[_T, Box]]:
    """Divide a page at a gap between rows, else between columns, until there is none."""
    if len(items) < 2:
        return items
    if depth < _DEPTH:
        for start, end in (("top", "bottom"), ("left", "right")):
            groups = _groups(items, start, end)
            if len(groups) > 1:
                return [item for group in groups for item in _divided(group, depth + 1)]
    return sorted(items, key=lambda one: (one[1].top, one[1].left))


def _groups(items: list[tuple[_T, Box]], start: str, end: str) -> list[list[tuple[_T, Box]]]:
    """The items by the stretches of an axis that they cover, in its order."""

    def span(box: Box) -> tuple[float, float]:
        first, last = getattr(box, start), getattr(box, end)
        slack = _SLACK * (last - first)
        return first + slack, last - slack

    groups: list[list[tuple[_T, Box]]] = []
    reached = 0.0
    for item in sorted(items, key=lambda one: span(one[1])[0]):
        first, last = span(item[1])
        if groups and first < reached:
            groups[-1].append(item)
            reached = max(reached, last)
        else:
            groups.append([item])
            reached = max(reached, last) if groups[1:] else last
    return groups
