"""Opens the page in Chromium, with the demo model answering, and writes its screens to docs/page/.

    python -m tools.capture_page [SCREEN ...]

Needs Chromium with its driver, selenium and Pillow. Without arguments every screen is written: dark and light, on a desktop
and on a phone.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.document_files import docx_bytes, paragraph
from tests.support.page import Page, PageServer, browser
from tests.support.pdf_files import Placed, pdf_of
from tests.support.screens import SCREENS, Shown, filled

OUT = Path(__file__).parents[1] / "docs" / "page"
#: Those in docs/page.md.
CHOSEN = ("empty", "sources", "reading", "conversation", "citation", "text", "table", "search")
SIZES = {"desktop": (1280, 800, 1.0), "phone": (390, 844, 1.5)}
MOST = 100_000  # bytes of a picture

COUNTS = """Report 1 on herons: Leila Haddad counted 42 herons at Lake Tuz on Sunday.
Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday.
Report 3 on owls: Ines Vorban counted 17 owls at Cape Drel on Friday.
Report 4 on geese: Clara Tasban counted 128 geese at Fort Kem on Friday.
Report 5 on cranes: Hugo Lamin saw 3 cranes at Lake Odra on Saturday.
Report 6 on swans: Rita Belkor counted 64 swans at Lake Tuz on Sunday."""
_FACT = "Report 12 on herons: Leila Haddad counted 42 herons at Lake Tuz on Sunday."
_REMARKS = ("The sky was clear.", "The wind was cold.", "The road was dry.", "The water was high.")


def report() -> bytes:
    """A report of 30 pages about birds, with a fact on page 12."""
    return pdf_of([list(_page(n)) for n in range(1, 31)])


def _page(number: int) -> Iterator[Placed]:
    yield ("Wetland survey 2026", 72.0, 770.0, 9.0)
    yield (f"Page {number}", 490.0, 770.0, 9.0)
    yield (f"{number}  Notes of the day", 72.0, 720.0, 20.0)
    y = 684.0
    # The other pages are short: the demo model reads them all.
    for part in range(4 if number == 12 else 1):
        for line in range(3 if number == 12 else 1):
            yield (
                " ".join(_REMARKS[(number + part + line + i) % 4] for i in range(4 if number == 12 else 2)),
                72.0,
                y,
                11.5,
            )
            y -= 18
        y -= 12
        if number == 12 and part == 1:
            yield (_FACT, 72.0, y, 11.5)
            y -= 30


def _webp(png: bytes) -> bytes:
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in (88, 80, 70, 55):
        out = io.BytesIO()
        picture.save(out, "WEBP", quality=quality, method=6)
        if out.tell() < MOST:
            break
    return out.getvalue()


def capture(names: list[str]) -> None:
    """Write the screens of these names."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pdf, word, scan = (
            folder / "Wetland survey 2026.pdf",
            folder / "Otters of Cape Arda.docx",
            folder / "Scan 0042.pdf",
        )
        pdf.write_bytes(report())
        word.write_bytes(
            docx_bytes(
                paragraph("The otters of Cape Arda")
                + paragraph("The water was high. The road was dry.")
                + paragraph("Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday.")
                + paragraph("The sky was clear. The wind was cold.")
            )
        )
        scan.write_bytes(pdf_of([[]]))
        server = PageServer(folder / "home", "--alias", "jamba:tiny")
        server.start()
        try:
            questions = ["How many herons were counted?", "How many otters were seen?"]
            shown = filled(server, [pdf, word, scan], questions, COUNTS)
            for size, (width, height, density) in SIZES.items():
                for dark in (False, True):
                    with browser(width, height, dark=dark, density=density) as driver:
                        for name in names:
                            _one(
                                Page(driver, server.url),
                                shown,
                                server,
                                name,
                                f"{name}-{size}-{'dark' if dark else 'light'}",
                            )
        finally:
            server.kill()


def _one(page: Page, shown: Shown, server: PageServer, name: str, file: str) -> None:
    SCREENS[name](page, shown, server)
    page.driver.execute_script("return document.fonts.ready")
    # Where the mouse was left nothing is lit up.
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    page.driver.execute_async_script("setTimeout(arguments[0], 400)")
    (OUT / f"{file}.webp").write_bytes(_webp(page.driver.get_screenshot_as_png()))
    server.go_on()
    if name == "reading":
        page.click(".send.stop")
        _cleared(server)


def _cleared(server: PageServer) -> None:
    """Delete the conversation and the document of the screen of a reading, so that the next screens do not show them too."""
    with server.client() as client:
        for document in client.get("/v1/library/documents").json()["documents"]:
            if not document["name"].startswith("Field notes"):
                continue
            for session in client.get("/v1/library/sessions").json()["sessions"]:
                if document["id"] in session["documents"]:
                    client.delete(f"/v1/library/sessions/{session['name']}").raise_for_status()
            client.delete(f"/v1/library/documents/{document['id']}").raise_for_status()


if __name__ == "__main__":
    capture(sys.argv[1:] or list(CHOSEN))
