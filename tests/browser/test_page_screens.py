"""Eight screens, dark and light, on a desktop and on a phone: axe-core finds nothing on any of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.document_files import docx_bytes, paragraph
from tests.support.page import Page, PageServer, axe, browser
from tests.support.reports import FACT, thirty_pages
from tests.support.screens import SCREENS, Shown, filled


@pytest.fixture(scope="session")
def shown(server: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A conversation about two documents, one of a table, and a document that was refused."""
    folder = tmp_path_factory.mktemp("documents")
    pdf, word, broken = folder / "reports.pdf", folder / "otters.docx", folder / "broken.pdf"
    pdf.write_bytes(thirty_pages())
    word.write_bytes(docx_bytes(paragraph("Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday.")))
    broken.write_bytes(b"%PDF-1.7\nnothing else")
    questions = ["How many herons were counted?", "How many otters were seen?"]
    counts = f"{FACT}\nReport 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday."
    return filled(server, [pdf, word, broken], questions, counts)


@pytest.fixture(scope="module", params=["desktop", "phone"])
def width(request: pytest.FixtureRequest) -> tuple[int, int]:
    return {"desktop": (1440, 900), "phone": (390, 844)}[request.param]


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def screen(request: pytest.FixtureRequest, width: tuple[int, int], driver: Any) -> Iterator[Any]:
    with browser(*width, dark=request.param) as made:
        yield made


@pytest.mark.parametrize("name", SCREENS)
def test_axe_finds_nothing(screen: Any, server: PageServer, shown: Shown, name: str) -> None:
    server.go_on()
    page = Page(screen, server.url)
    try:
        SCREENS[name](page, shown, server)
        assert axe(page) == []
    finally:
        server.go_on()
        if page.all(".send.stop"):
            page.click(".send.stop")


def test_the_keyboard_reaches_everything_on_a_page(page: Page, shown: Shown) -> None:
    page.open(f"/#c={shown.session}")
    page.one(".message.assistant .citation")
    seen: set[str] = set()
    page.driver.execute_script("document.activeElement.blur()")
    for _ in range(120):
        page.press("\ue004")  # tab
        seen.add(
            page.driver.execute_script("const e = document.activeElement; return e.ariaLabel || e.id || e.textContent")
        )
    wanted = page.driver.execute_script(
        """return [...document.querySelectorAll("button, input, textarea, summary")].filter((e) => e.checkVisibility()
            && !e.disabled && e.tabIndex >= 0).map((e) => e.ariaLabel || e.id || e.textContent)"""
    )
    assert len(wanted) > 15 and set(wanted) <= seen


def test_shortcuts_are_listed_and_work(page: Page) -> None:
    page.press("\ue00c")
    page.driver.execute_script("document.activeElement.blur()")
    page.press("?")
    page.one("dialog kbd", "N")
    page.press("\ue00c")
    page.gone("dialog")
    page.press("/")
    assert page.driver.execute_script("return document.activeElement.id") == "search"
    page.chord("Comma", ",")
    page.one("dialog h2", "Model and settings")
    page.press("\ue00c")
    page.gone("dialog")
    # The focus goes back to where it was.
    assert page.driver.execute_script("return document.activeElement.id") == "search"


def test_the_theme_follows_the_system_and_the_switch(page: Page) -> None:
    dark = "return getComputedStyle(document.body).backgroundColor"
    before = page.driver.execute_script(dark)
    page.click("button", "Dark")
    after = page.driver.execute_script(dark)
    assert after != before
    page.driver.refresh()
    page.one("#composer")
    assert page.driver.execute_script(dark) == after
    page.click("button", "Light")
    assert page.driver.execute_script(dark) == before
    page.driver.execute_script("localStorage.clear()")
