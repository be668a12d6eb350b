"""Reports as files, with facts to ask for."""

from __future__ import annotations

from tests.support.pdf_files import pdf_of

FACT = "Report 12 on herons: Leila Haddad counted 42 herons at Lake Tuz on Sunday."


def thirty_pages() -> bytes:
    """A PDF of 30 pages with one report, on page 12, below the middle."""
    pages = [[(f"The sky was clear. The wind was cold on page {n}.", 72.0, 700.0)] for n in range(1, 31)]
    pages[11].append((FACT, 72.0, 300.0))
    return pdf_of(pages)
