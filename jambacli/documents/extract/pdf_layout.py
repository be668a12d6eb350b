"""Reading order of a page: runs of text with their boxes -> lines, top to bottom, column after column.

Knows nothing of PDF files. A page is cut into horizontal bands; bands that share a gutter form a group. A group whose columns
are flowing text is read column after column, any other group row by row, with the cells of a row on one line.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

#: Ends a line whose hyphen only divides a word.
HYPHEN = "\ufffe"
# A gutter is at least this wide, in heights of a line.
_GUTTER = 0.75
# So many gutters are tried, and a column that the file writes in one piece has so many lines.
_CUTS, _COLUMN_LINES = 8, 5
# Words of a line of text that flows where the file writes line after line of both columns, as it does a table's rows.
_ROW_WORDS = 3.5
# Between the columns of a table whose rows the order of the file tells.
_CELL_GUTTER = 0.45
# A wider gap within a line separates cells.
_CELL_GAP = 1.4
_DEPTH = 12
# A table's cell has at most this many lines.
_CELL_LINES = 10


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


@dataclass(frozen=True)
class Line:
    """A line of the page: its text and its vertical extent."""

    text: str
    bottom: float
    top: float


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """The lines of a page in reading order."""
    runs = [run for run in runs if run.text.strip()]
    return _region(runs, median(run.height for run in runs), _DEPTH) if runs else []


def joined(lines: Sequence[Line]) -> str:
    """The lines as text; words that a hyphen divides at a line's end are whole again. The hyphen stays before a digit or a
    capital and after a digit."""
    parts: list[str] = []
    for line in lines:
        if parts and parts[-1].endswith(HYPHEN):
            before, after = parts[-1].rstrip(HYPHEN), line.text.lstrip()
            divided = before[-1:].isalpha() and after[:1].isalpha() and not after[:1].isupper()
            parts[-1] = before if divided else before + "-"  # "iodine-131", "non-European" are so written
            parts.append(after)
        else:
            parts += ["\n", line.text] if parts else [line.text]
    return "".join(parts).replace(HYPHEN, "").replace("\u00ad", "")


def _region(runs: Sequence[Run], height: float, depth: int) -> list[Line]:
    if depth == 0:
        return _rows(runs, height)
    lines: list[Line] = []
    for group in _groups(_bands(runs), height):
        members = [run for band in group for run in band]
        if rows := _rows_of_cells(group, members, height):
            for row in rows:
                if isinstance(row, Line):
                    lines.append(row)
                else:
                    lines += _region(row, height, depth - 1)
            continue
        cut = _column_cut(members, height)
        if cut is None:
            lines += _rows(members, height)
        else:
            for side in (
                [r for r in members if r.left + r.right < 2 * cut],
                [r for r in members if r.left + r.right >= 2 * cut],
            ):
                lines += _region(side, height, depth - 1)
    return lines


def _bands(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose vertical extents overlap, transitively; top to bottom. Boxes are shrunk, since lines set tightly touch."""
    bands: list[list[Run]] = []
    low = 0.0
    for run in sorted(runs, key=lambda r: (-r.top, r.left)):
        shrink = run.height * 0.25
        if bands and run.top - shrink > low:
            bands[-1].append(run)
            low = min(low, run.bottom + shrink)
        else:
            bands.append([run])
            low = run.bottom + shrink
    return bands


def _intervals(runs: Sequence[Run], height: float) -> list[tuple[float, float]]:
    """The horizontal extents that the runs cover, merged where less than a gutter is between them."""
    covered: list[tuple[float, float]] = []
    for left, right in sorted((r.left, r.right) for r in runs):
        if covered and left - covered[-1][1] < _GUTTER * height:
            covered[-1] = covered[-1][0], max(covered[-1][1], right)
        else:
            covered.append((left, right))
    return covered


def _merged(a: list[tuple[float, float]], b: list[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    covered: list[tuple[float, float]] = []
    for left, right in sorted([*a, *b]):
        if covered and left - covered[-1][1] < gap:
            covered[-1] = covered[-1][0], max(covered[-1][1], right)
        else:
            covered.append((left, right))
    return covered


def _groups(bands: list[list[Run]], height: float) -> list[list[list[Run]]]:
    """Consecutive bands through which a common gutter runs; every other band is a group with its like."""
    groups: list[list[list[Run]]] = []
    covered: list[tuple[float, float]] = []
    for band in bands:
        own = _intervals(band, height)
        both = _merged(covered, own, _GUTTER * height) if groups else own
        split, was_split = len(own) > 1, len(covered) > 1
        if groups and ((was_split and len(both) > 1) or (not was_split and not split)):
            groups[-1].append(band)
            covered = both
        else:
            first = [band]
            if split and not was_split:
                while groups and groups[-1] and _tops_a_column(groups[-1][-1], first[0], own, height):
                    first.insert(0, groups[-1].pop())
            groups.append(first)
            covered = own
            for above in first[:-1]:
                covered = _merged(covered, _intervals(above, height), _GUTTER * height)
    groups = [group for group in groups if group]
    return [part for group in groups for part in _without_tail(group, height)]


def _tops_a_column(band: list[Run], below: list[Run], columns: list[tuple[float, float]], height: float) -> bool:
    """Whether a band is a line of one of the columns below, which begin at different heights."""
    if min(run.bottom for run in band) - max(run.top for run in below) > 0.3 * height:
        return False
    left, right = min(run.left for run in band), max(run.right for run in band)
    free = [(a[1], b[0]) for a, b in pairwise(columns)]
    return all(right <= end or left >= start for start, end in free) and not any(
        left < a and b < right for a, b in free
    )


def _without_tail(group: list[list[Run]], height: float) -> list[list[list[Run]]]:
    """A group of columns ends at a large gap after which only one of its columns has text, or where the text goes on in a
    column that ended higher up."""
    split = [i for i, band in enumerate(group) if len(_intervals(band, height)) > 1]
    if not split:
        return [group]
    for i in range(split[-1] + 1, len(group)):
        above = min(run.bottom for run in group[i - 1])
        other = i - 1 > split[-1] and not _overlap(group[i - 1], group[i])
        if other or above - max(run.top for run in group[i]) > 0.9 * height:
            return [group[:i], group[i:]]
    return [group]


def _overlap(a: Sequence[Run], b: Sequence[Run]) -> bool:
    return min(r.left for r in a) < max(r.right for r in b) and min(r.left for r in b) < max(r.right for r in a)


def _rows_of_cells(group: list[list[Run]], members: list[Run], height: float) -> list[Line | list[Run]] | None:
    """The rows of a table that has cells of several lines; None if it is none.

    The file writes such a table row by row: all of a row precedes all of the next, both on the page and in the file, which is
    true of no columns of text. A row is a line; one too long for a table is left as its runs.
    """
    columns = _intervals(members, _CELL_GUTTER * height)
    if len(columns) < 2:
        return None
    rows: list[list[Run]] = []
    last = -1
    following = [min((run.order for run in band if run.order >= 0), default=1 << 60) for band in group] + [1 << 60]
    for i in range(len(group) - 1, -1, -1):
        following[i] = min(following[i], following[i + 1])
    for i, band in enumerate(group):
        if rows and following[i] <= last:
            rows[-1] += band
        else:
            rows.append(list(band))
        last = max(last, *(run.order for run in band))
    cells = [[_rows([r for r in row if a <= (r.left + r.right) / 2 <= b], height) for a, b in columns] for row in rows]
    tall = sum(max(map(len, row)) > 1 and sum(map(bool, row)) > 1 for row in cells)
    wide = sum(sum(map(bool, row)) > 1 for row in cells)
    if len(rows) < 2 or tall == 0 or (tall == 1 and (len(rows) < 3 or wide < 2)):
        return None
    out: list[Line | list[Run]] = []
    for row, columns_of in zip(rows, cells, strict=True):
        if max(map(len, columns_of)) > _CELL_LINES:
            out.append(row)
        else:
            texts = [joined(lines).replace("\n", " ") for lines in columns_of if lines]
            out.append(Line("  ".join(texts), min(r.bottom for r in row), max(r.top for r in row)))
    return out


def _column_cut(runs: Sequence[Run], height: float) -> float | None:
    """The middle of the widest gutter between columns of text, or None: text that flows, or that the file writes column after
    column."""
    covered = _intervals(runs, height)
    gaps = sorted(((b[0] - a[1], (a[1] + b[0]) / 2) for a, b in pairwise(covered)), reverse=True)
    for _, cut in gaps[:_CUTS]:
        left = [r for r in runs if r.left + r.right < 2 * cut]
        right = [r for r in runs if r.left + r.right >= 2 * cut]
        strays, turns = _order_of_sides(left, right)
        if strays <= 0.02 * len(runs) and _is_text(left, height) and _is_text(right, height):
            return cut
        words = _ROW_WORDS if turns > 1.5 * min(len(left), len(right)) else 2
        if _flows(left, height, words) and _flows(right, height, words):
            return cut
    return None


def _order_of_sides(left: Sequence[Run], right: Sequence[Run]) -> tuple[int, int]:
    """How many runs of the right side the file writes before it is done with the left, and how often it changes sides."""
    placed = sorted((run.order, side) for side, runs in enumerate((left, right)) for run in runs if run.order >= 0)
    first = sum(not side for _, side in placed)
    return sum(side for _, side in placed[:first]), sum(a[1] != b[1] for a, b in pairwise(placed))


def _is_text(runs: Sequence[Run], height: float) -> bool:
    """Whether a column has lines of words, not numbers or single words of a table that is written column after column."""
    lines = [line.text for line in _rows(runs, height)]
    if len(lines) < _COLUMN_LINES:
        return False
    letters = sum(c.isalpha() for line in lines for c in line)
    return letters >= 10 * len(lines) and sum(len(line.split()) > 1 for line in lines) > 0.5 * len(lines)


def _flows(runs: Sequence[Run], height: float, least: float) -> bool:
    """Whether a column is text that continues from line to line, of ``least`` words or more, not cells of a table."""
    lines = [line.text for line in _rows(runs, height)]
    if len(lines) < 3:
        return False
    words = sum(len(line.split()) for line in lines) / len(lines)
    letters = sum(len(line) for line in lines) / len(lines)
    wide = sum("\u2e80" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for line in lines for c in line)
    if wide > letters * len(lines) / 2:  # Chinese, Japanese and Korean: no spaces, no capitals
        return letters >= 8
    if words < least or letters < 10 or sum(any(c.isdigit() for c in line) for line in lines) > 0.6 * len(lines):
        return False
    starts = [line.lstrip("\"'“‘«(•-– ")[:1] for line in lines[1:]]
    continued = sum(c.islower() or (c.isalpha() and c.upper() == c.lower()) for c in starts) / len(starts)
    return continued >= 0.3 and letters >= 12


def _rows(runs: Sequence[Run], height: float) -> list[Line]:
    """Runs of about the same height on the page as one line, left to right."""
    rows: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: (-(r.top + r.bottom), r.left)):
        for row in rows[-1:-4:-1]:
            first = row[0]
            overlap = min(run.top, first.top) - max(run.bottom, first.bottom)
            if overlap > 0.5 * min(run.height, first.height):
                row.append(run)
                break
        else:
            rows.append([run])
    return [_line(row, height) for row in rows]


def _line(row: list[Run], height: float) -> Line:
    row = _in_reading_order(sorted(row, key=lambda r: r.left))
    parts: list[str] = []
    for before, run in zip([None, *row], row, strict=False):
        text = run.text.strip()
        if before is not None:
            gap = max(run.left - before.right, before.left - run.right)
            apart = gap > 0.12 * height or min(run.order, before.order) < 0  # a form's value is a word of its own
            parts.append("  " if gap > _CELL_GAP * height else " " if apart else "")
            if parts[-2].endswith(HYPHEN):  # within a line the hyphen stays
                parts[-2] = parts[-2].rstrip(HYPHEN) + "-"
        parts.append(text)
    text = "".join(parts)
    return Line(text, min(r.bottom for r in row), max(r.top for r in row))


def _in_reading_order(row: list[Run]) -> list[Run]:
    """The runs of a line, sorted from left to right, as they are read: those of one direction after each other as it says."""
    strong = [Counter(map(unicodedata.bidirectional, run.text[:200])) for run in row]
    rightward = [kinds["L"] for kinds in strong]
    leftward = [kinds["R"] + kinds["AL"] for kinds in strong]
    if not any(leftward):
        return row
    to_left = sum(leftward) >= 0.4 * (sum(leftward) + sum(rightward))
    against = rightward if to_left else leftward
    parts: list[list[Run]] = []
    was = False
    for run, own, all_strong in zip(row, against, map(sum, zip(rightward, leftward, strict=True)), strict=True):
        turned = own > all_strong / 2
        if turned and was:
            parts[-1].append(run)
        else:
            parts.append([run])
        was = turned
    if to_left:
        return [run for part in reversed(parts) for run in part]
    return [run for part in parts for run in reversed(part)]
