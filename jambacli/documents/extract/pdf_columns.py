"""Columns of a page that a few lines bridge, told by the order in which the file writes the page: down one column, up to the
top of the next.

Where a gutter is free, the boxes alone tell the columns; see pdf_layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jambacli.documents.extract.pdf_runs import Run

# A column has so many lines; the file goes up by more lines than this to begin the next one.
_LINES, _UP = 12, 8
# So many of the lines before it may reach into a column.
_BRIDGES = 0.1


def file_columns(runs: Sequence[Run], height: float) -> list[list[Run]]:
    """The columns from left to right if some line bridges their gutters, else all runs as one. ``height``: of a usual line."""
    whole = [list(runs)]
    placed = [run for run in runs if run.order >= 0]
    if len(placed) < len(runs) or len(runs) < 2 * _LINES:  # the values of a form have no place in the file
        return whole
    columns: list[list[Run]] = []
    low = 0.0
    for run in sorted(placed, key=lambda r: r.order):
        if not columns or run.bottom > low + _UP * height:
            columns.append([])
            low = run.bottom
        columns[-1].append(run)
        low = min(low, run.bottom)
    if len(columns) < 2 or any(len(column) < _LINES for column in columns):
        return whole
    bridged = False
    for i, (column, following) in enumerate(pairwise(columns), 1):
        start = min(run.left for run in following)
        before = [run for each in columns[:i] for run in each]
        bridges = sum(run.right > start for run in before)
        if bridges > _BRIDGES * len(column) or not _beside(column, following):
            return whole
        bridged = bridged or bridges > 0
    return columns if bridged else whole


def _beside(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Whether most of two columns' heights are beside each other."""
    (low, high), (other_low, other_high) = ((min(r.bottom for r in c), max(r.top for r in c)) for c in (a, b))
    return min(high, other_high) - max(low, other_low) > 0.5 * min(high - low, other_high - other_low)
