"""Reports as files, with facts to ask for."""

from __future__ import annotations

import re
from typing import Any

from tests.support.pdf_files import pdf_of

FACT = "Report 12 on herons: Leila Haddad counted 42 herons at Lake Tuz on Sunday."


_REPORT = re.compile(r"Report \d+ on (\w+): ([\w ]+?) (?:counted|saw) (\d+) \w+ at ([\w ]+?) on (\w+)\.")
#: The columns of a table of reports.
COLUMNS = ("Animal", "Number", "Observer", "Place", "Day")


def rows_of(text: str) -> list[dict[str, Any]]:
    """The reports in a text as the rows of a table."""
    found = _REPORT.findall(text)
    return [
        dict(zip(COLUMNS, (animal, int(number), who, place, day), strict=True))
        for animal, who, number, place, day in found
    ]


def thirty_pages() -> bytes:
    """A PDF of 30 pages with one report, on page 12, below the middle."""
    pages = [[(f"The sky was clear. The wind was cold on page {n}.", 72.0, 700.0)] for n in range(1, 31)]
    pages[11].append((FACT, 72.0, 300.0))
    return pdf_of(pages)
