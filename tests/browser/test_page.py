"""What people do with the page, in a real browser and with the demo model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.document_files import docx_bytes, paragraph
from tests.support.page import Page, PageServer, until
from tests.support.reports import COLUMNS, FACT, rows_of, thirty_pages

WORD = "Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday."
QUESTION = "How many herons were counted?"
TABLE = f"{FACT} {WORD} Report 3 on owls: Ines Vorban counted 17 owls at Cape Drel on Friday."


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    path = tmp_path / "reports.pdf"
    path.write_bytes(thirty_pages())
    return path


@pytest.fixture
def word(tmp_path: Path) -> Path:
    path = tmp_path / "otters.docx"
    path.write_bytes(docx_bytes(paragraph("The list of the year.") + paragraph(WORD) + paragraph("The end.")))
    return path


def _words_under_boxes(page: Page, path: Path, number: int) -> str:
    """The text of the PDF that lies within the boxes on the screen."""
    import pypdfium2

    boxes = page.driver.execute_script(
        """const sheet = document.querySelector(".sheet").getBoundingClientRect();
        return [...document.querySelectorAll(".sheet .box")].map((box) => { const at = box.getBoundingClientRect();
            return [(at.left - sheet.left) / sheet.width, (at.top - sheet.top) / sheet.height,
                    (at.right - sheet.left) / sheet.width, (at.bottom - sheet.top) / sheet.height]; })"""
    )
    with pypdfium2.PdfDocument(path) as document:
        opened = document[number - 1]
        width, height = opened.get_size()
        text = opened.get_textpage()
        return " ".join(
            text.get_text_bounded(x0 * width - 1, height - y1 * height - 1, x1 * width + 1, height - y0 * height + 1)
            for x0, y0, x1, y1 in boxes
        )


def test_a_citation_opens_the_page_with_a_box_around_the_words(page: Page, pdf: Path, word: Path) -> None:
    page.drop(pdf, word)
    page.ready("reports.pdf", "otters.docx")
    page.ask(QUESTION)
    assert "42" in page.replies[0]

    page.click(".citation", "reports.pdf")
    page.one(".quote.found")
    page.one(".sheet .box")
    assert page.one(".viewer .page-number input").get_attribute("value") == "12"
    until(
        lambda: page.driver.execute_script("return document.querySelector('.sheet img')?.naturalWidth > 100"),
        "the picture",
    )
    assert "42 herons" in _words_under_boxes(page, pdf, 12)
    box, view = page.one(".sheet .box").rect, page.one(".sheet-scroll").rect
    assert view["y"] <= box["y"] <= view["y"] + view["height"]  # it was brought into view

    page.ask("How many otters were seen?")
    assert "7" in page.replies[1]
    page.click(".message:last-child .citation", "otters.docx")
    marked = page.one(".sheet-text mark")
    assert "7 otters" in page.driver.execute_script("return arguments[0].closest('p').textContent", marked)
    figures = page.texts(".figures")[1]
    assert "reused" in figures and re.search(r"[1-9]\d* read", figures)


def test_a_picture_of_a_page_can_be_left_for_its_text_by_the_keyboard(page: Page, pdf: Path) -> None:
    page.drop(pdf)
    page.ready("reports.pdf")
    page.click(".row-main", "reports.pdf")
    page.one(".sheet img")
    page.press("\ue014")  # right
    page.press("\ue014")
    until(lambda: page.one(".viewer .page-number input").get_attribute("value") == "3", "page 3")
    page.chord("KeyO", "o")
    page.one(".sheet-text p", "on page 3")
    page.press("\ue00c")  # escape
    page.gone(".viewer")


def _written_so_far(page: Page, server: PageServer) -> str:
    """Let the engine go step by step until the page shows the beginning of a reply."""

    def shown() -> str:
        server.hold(1)
        return " ".join(page.texts(".live .text"))

    return str(until(shown, "some of the reply"))


def test_a_reload_and_a_second_tab_go_on_where_the_reply_is(page: Page, server: PageServer, pdf: Path) -> None:
    page.drop(pdf)
    page.ready("reports.pdf")
    server.hold()
    page.ask(QUESTION, wait=False)
    seen = _written_so_far(page, server)

    page.driver.refresh()
    assert page.one(".live .text").text.startswith(seen[:3])
    assert page.questions == [QUESTION]
    address, first = page.driver.current_url, page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(address)
    assert page.one(".live .text").text.startswith(seen[:3])
    server.go_on()
    second = page.answered(1)
    page.driver.close()
    page.driver.switch_to.window(first)
    assert page.answered(1) == second
    assert "42" in page.replies[0]


def test_stop_keeps_what_was_written(page: Page, server: PageServer, pdf: Path) -> None:
    page.drop(pdf)
    page.ready("reports.pdf")
    server.hold()
    page.ask(QUESTION, wait=False)
    _written_so_far(page, server)
    page.click(".send.stop")
    server.go_on()
    page.answered(1)
    page.one(".note-line", "Stopped")
    assert page.replies[0]
    page.driver.refresh()
    page.one(".note-line", "Stopped")


def test_edit_versions_regenerate_and_branch(page: Page, pdf: Path) -> None:
    page.drop(pdf)
    page.ready("reports.pdf")
    page.ask("Who counted the herons?")
    page.click("button", "Edit the question")
    page.fill(".editor textarea", QUESTION)
    page.click(".editor .primary")
    page.gone(".editor")
    page.answered(1)
    assert page.questions == [QUESTION] and "42" in page.replies[0]

    page.click("button", "Previous version")
    until(lambda: page.questions == ["Who counted the herons?"], "the first question")
    assert "Haddad" in page.replies[0]
    page.click("button", "Next version")
    until(lambda: page.questions == [QUESTION], "the second question")

    page.click("button", "Regenerate the reply")
    page.one(".message.assistant .siblings", "2 of 2")

    page.click("button", "Branch from here")
    page.one(".notice", "Branched")
    page.ask("Who saw them?")
    assert len(page.replies) == 2
    page.driver.back()
    until(lambda: len(page.replies) == 1, "the first conversation again")


def test_a_summary_and_a_table_by_naming_columns(page: Page, server: PageServer, tmp_path: Path) -> None:
    counts = tmp_path / "counts.txt"
    counts.write_text(TABLE, encoding="utf-8")
    page.drop(counts)
    page.ready("counts.txt")
    page.click(".card", "Summarize")
    page.click("dialog .choice input[value=short]")
    page.click("dialog .choice input[value=bullets]")
    page.click("dialog .primary")
    page.answered(1)
    page.one(".question", "Summary")
    assert page.replies[0]

    # The demo model has learnt no JSON: the rows are dictated, the schema decides whether they may be said.
    rows = rows_of(TABLE)
    server.dictate(rows)
    page.chord("KeyT", "t")
    for i, name in enumerate(COLUMNS, 1):
        if i > 2:
            page.click("dialog .columns > .quiet", "Add a column")
        page.fill("dialog input", name, f"Name of column {i}")
    page.click("dialog select", "Type of column 2")
    page.click("dialog select[aria-label='Type of column 2'] option", "number")
    page.click("dialog .primary")
    page.one(".extracted th", "Number")
    page.answered(2)
    assert page.texts(".extracted th") == list(COLUMNS)
    assert page.texts(".extracted tbody tr") == ["".join(map(str, row.values())) for row in rows]
    page.one(".extracted .row-actions", "3 rows")
    links = page.driver.execute_script(
        """const links = []; const click = HTMLAnchorElement.prototype.click;
        HTMLAnchorElement.prototype.click = function () { links.push(this.href); };
        document.querySelectorAll(".extracted .row-actions button").forEach((button) => button.click());
        HTMLAnchorElement.prototype.click = click; return links"""
    )
    with server.client() as client:
        texts = [client.get(link).raise_for_status().text for link in links]
    lines = [",".join(COLUMNS), *(",".join(map(str, row.values())) for row in rows)]
    assert len(texts) == 3 and texts[0].lstrip("\ufeff").splitlines() == lines
    assert json.loads(texts[1]) == rows
    assert texts[2].splitlines()[2] == "| herons | 42 | Leila Haddad | Lake Tuz | Sunday |"


def test_what_is_deleted_is_gone_from_the_server(page: Page, server: PageServer, pdf: Path) -> None:
    page.drop(pdf)
    page.ready("reports.pdf")
    page.ask("Who counted the herons on page twelve?")
    title = page.one(".head .title").text
    page.click(".head button[aria-haspopup]")
    page.click("[role=menuitem]", "Delete")
    page.click("dialog .primary")
    page.one(".beginning")
    assert not any(title == text for text in page.texts("[aria-labelledby=conversations-title] .row-name"))

    page.click("[aria-labelledby=documents-title] button[aria-haspopup]", "reports.pdf")
    page.click("[role=menuitem]", "Delete")
    page.click("dialog .primary")
    gone = "[aria-labelledby=documents-title] .row-name"
    until(lambda: "reports.pdf" not in page.texts(gone), "the document is gone")
    with server.client() as client:
        left = client.get("/v1/library/documents").json()["documents"]
        assert "reports.pdf" not in [document["name"] for document in left]
        names = [session["title"] for session in client.get("/v1/library/sessions").json()["sessions"]]
    assert title not in names


def test_an_upload_that_cannot_be_read_says_why(page: Page, tmp_path: Path, word: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\nnothing else")
    page.drop(broken, word)
    row = page.one(".row.refused", "broken.pdf")
    assert len(row.find_element("css selector", ".row-facts").text) > 10
    assert page.one("[role=alert]", "broken.pdf")
    page.ready("otters.docx")
    page.ask("How many otters were seen?")
    assert "7" in page.replies[0]


def test_a_server_that_was_killed_is_gone_on_with(page: Page, server: PageServer, word: Path) -> None:
    page.drop(word)
    page.ready("otters.docx")
    page.ask("How many otters were seen?")
    said = page.replies
    server.kill()
    page.one(".banner", "does not answer")
    server.start()
    page.gone(".banner")
    assert page.replies == said
    page.ask("Where were they seen?")
    assert "reused" in page.texts(".figures")[1]
    page.errors()  # connections that were refused meanwhile


def test_a_question_that_a_kill_cut_off_is_offered_again(page: Page, server: PageServer, word: Path) -> None:
    page.drop(word)
    page.ready("otters.docx")
    server.hold()
    page.ask("How many otters were seen?", wait=False)
    page.one(".live")
    server.kill()
    server.go_on()
    server.start()
    page.click(".failed button", "Ask again")
    assert "7" in page.answered(1)
    page.errors()


def test_a_long_paste_becomes_a_source(page: Page) -> None:
    page.driver.execute_script(
        """const data = new DataTransfer(); data.setData("text/plain", arguments[0]);
        document.getElementById("composer").dispatchEvent(new ClipboardEvent("paste",
            {clipboardData: data, bubbles: true, cancelable: true}))""",
        f"{FACT}\n" + "The sky was clear. " * 300,
    )
    page.ready("Pasted text")
    assert page.one("#composer").get_attribute("value") == ""


def test_search_finds_words_within_documents(page: Page, word: Path) -> None:
    page.drop(word)
    page.ready("otters.docx")
    page.press("\ue00c")
    page.click("#search").send_keys("Hedlin")
    found = page.one("[aria-labelledby=found-documents] .row")
    assert "Hedlin" in found.text
    page.press("\ue00c")
    page.one("[aria-labelledby=sources-title]")
