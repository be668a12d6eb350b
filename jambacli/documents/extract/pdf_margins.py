"""Headers and footers that repeat on most pages of a PDF are kept once, and said."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Iterator

from jambacli.documents.extract.pdf_layout import Line

#: The lines of a page, and its lowest and highest place.
PageOfLines = tuple[list[Line], tuple[float, float]]

# How many pages are looked at before the first is given out, for at most so many seconds.
_SAMPLE, _SECONDS = 24, 8.0
# A header or footer stands in this part of the page, in at most so many lines, and away from the rest by so many line heights.
_MARGIN, _LINES, _APART = 0.13, 3, 0.6


def without_repeats(pages: Iterator[PageOfLines], remarks: list[str]) -> Iterator[list[Line]]:
    """The lines of every page. Of lines in the margins that repeat on most pages, also with a page number that counts on, only
    the first remains; a remark is added about them."""
    sample: list[PageOfLines] = []
    until = time.monotonic() + _SECONDS
    for page in pages:
        sample.append(page)
        if len(sample) == _SAMPLE or time.monotonic() > until:
            break
    repeated = _repeated(sample)
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    for number, (lines, extent) in enumerate(itertools.chain(sample, pages), 1):
        if not repeated:
            yield lines
            continue
        kept = list(lines)
        for line in _margins(lines, extent):
            if key := next((key for key in _keys(line.text, number) if key in repeated), None):
                if key in seen:
                    kept.remove(line)
                    dropped[key] += 1
                seen.add(key)
        yield kept if kept else lines
    if dropped:
        texts = ", ".join(f'"{_shown(key)}"' for key in list(dropped)[:3]) + (", ..." if len(dropped) > 3 else "")
        remarks.append(f"repeated headers and footers are kept once: {texts}")


def _repeated(sample: list[PageOfLines]) -> set[str]:
    """The keys of lines in the margins of most pages, or of most left or most right pages."""
    on: dict[str, list[int]] = {}
    for number, (lines, extent) in enumerate(sample, 1):
        for key in {key for line in _margins(lines, extent) for key in _keys(line.text, number)}:
            on.setdefault(key, []).append(number)
    count = len(sample)
    found = set()
    for key, numbers in on.items():
        odd = sum(n % 2 for n in numbers)
        most = len(numbers) > count / 2 or max(odd, len(numbers) - odd) > 0.75 * count / 2
        if len(numbers) >= 3 and most:
            found.add(key)
    return found


def _margins(lines: list[Line], extent: tuple[float, float]) -> list[Line]:
    """The lines at the top and the bottom of a page that stand apart from its text."""
    low, high = extent
    band = _MARGIN * (high - low)
    placed = [line for line in lines if line.top > line.bottom]
    found: list[Line] = []
    for end in (sorted(placed, key=lambda line: -line.top), sorted(placed, key=lambda line: line.bottom)):
        for i, line in enumerate(end[: _LINES + 1]):
            if i and _apart(end[i - 1], line) >= _APART * (line.top - line.bottom):
                inside = [x for x in end[:i] if x.bottom > high - band or x.top < low + band]
                found += inside if len(inside) == i else []
                break
    return [line for line in found if line.text.strip()] if len(found) < len(placed) else []


def _apart(a: Line, b: Line) -> float:
    return max(a.bottom - b.top, b.bottom - a.top)


def _keys(text: str, number: int) -> list[str]:
    """The text, with each number as it is or as its distance from the page's: "Page 7" of page 5 is also "Page <+2>"."""
    parts = re.split(r"(\d{1,6})", " ".join(text.split()))
    if len(parts) > 9:
        return ["".join(parts)]
    choices = [[p, f"<{int(p) - number:+d}>"] if p.isascii() and p.isdigit() else [p] for p in parts]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _shown(key: str) -> str:
    text = re.sub(r"<[+-]\d+>", "#", key)
    return text if len(text) <= 60 else text[:57] + "..."
