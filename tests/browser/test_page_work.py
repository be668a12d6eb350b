"""A day's work with the page: sources that come while something else happens, many at once, with names of all kinds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jambacli.hub.demo import demo_model_path
from tests.support.document_files import docx_bytes, paragraph
from tests.support.page import Page, PageServer, until
from tests.support.reports import FACT
from tests.support.repository import REPO

OTTERS = "Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday."
ROWS = "[aria-labelledby=sources-title] .row"


@pytest.fixture
def herons(tmp_path: Path) -> Path:
    path = tmp_path / "field herons.txt"
    path.write_text(FACT, encoding="utf-8")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "cut off.pdf"
    path.write_bytes(b"%PDF-1.7\nnothing else")
    return path


def test_sources_are_read_before_something_is_asked(page: Page, tmp_path: Path) -> None:
    reeds = tmp_path / "reeds.txt"  # the library has what other tests put in: each name is of one content
    reeds.write_text(FACT + "\nThe sky was clear, and the reeds stood high." * 20, encoding="utf-8")
    page.drop(reeds)
    until(lambda: any("read" in text.split("·")[-1] for text in page.texts(f"{ROWS} .row-facts")), "it is read")
    page.ask("How many herons were counted?")
    assert "42" in page.replies[0]
    figures = page.texts(".figures")[0]
    reused, read = (int(figures.split(f" {what}")[0].split()[-1].replace(",", "")) for what in ("reused", "read"))
    assert reused > 200 and read < 60


def test_a_reload_keeps_what_was_gathered_and_typed(page: Page, herons: Path) -> None:
    page.drop(herons)
    page.ready("field herons.txt")
    page.fill("#composer", "How many herons")
    page.driver.refresh()
    page.ready("field herons.txt")
    assert page.one("#composer").get_attribute("value") == "How many herons"


def test_a_file_that_cannot_be_read_is_left_out_or_taken_away(page: Page, herons: Path, broken: Path) -> None:
    page.drop(herons)
    page.ready("field herons.txt")
    page.ask("How many herons were counted?")
    page.drop(broken)
    page.one(f"{ROWS}.refused", "cut off.pdf")
    page.ask("Where were they?")
    page.one(".note-line", "Left out, since it cannot be read: cut off.pdf.")
    page.gone(f"{ROWS}.refused")
    other = broken.with_name("cut again.pdf")
    other.write_bytes(b"%PDF-1.7\nnothing else either")
    page.drop(other)
    page.one(f"{ROWS}.refused", "cut again.pdf")
    page.click(f"{ROWS}.refused button", "Take cut again.pdf out of the sources")
    page.gone(f"{ROWS}.refused")


def test_a_file_that_comes_while_a_reply_is_written_joins_after_it(
    page: Page, server: PageServer, herons: Path, tmp_path: Path
) -> None:
    otters = tmp_path / "late otters.docx"
    otters.write_bytes(docx_bytes(paragraph(OTTERS)))
    page.drop(herons)
    page.ready("field herons.txt")
    server.hold()
    page.ask("How many herons were counted?", wait=False)
    page.one(".live")
    page.drop(otters)
    page.one(ROWS, "late otters.docx")
    server.go_on()
    page.answered(1)
    page.ready("late otters.docx")
    page.ask("How many otters were seen?")
    assert "7" in page.replies[1]


def test_thirty_files_at_once_with_names_of_all_kinds(page: Page, server: PageServer, tmp_path: Path) -> None:
    names = [
        "Vertrag 📑🖋️.txt",
        "חוזה שכירות.txt",
        "عقد.txt",
        "合同.txt",
        "very-" + "long-" * 40 + "name.txt",
        "a\u202etxt.exe.txt",
    ]
    names += [f"file {n}.txt" for n in range(24)]
    paths = []
    for n, name in enumerate(names):
        paths.append(tmp_path / name)
        paths[-1].write_text(
            f"Report {n} on owls: Ines Vorban counted {n + 2} owls at Cape Drel on Friday.", encoding="utf-8"
        )
    page.drop(*paths)
    until(lambda: len(page.all(ROWS)) == 30 and not page.all(f"{ROWS} .progress.unknown"), "thirty sources")
    shown = page.texts(f"{ROWS} .row-name")
    assert shown[:4] == names[:4] and shown[-1] == "file 23.txt"  # in the order in which they came
    assert not any("\u202e" in name for name in shown)
    wide = """return [document.documentElement, document.body, document.querySelector(".library")]
        .some((e) => e.scrollWidth > e.clientWidth)"""
    assert page.driver.execute_script(wide) is False
    page.one(".suggestions h3", "30 sources are ready")
    # Only one of them is asked.
    page.click(f"{ROWS} button[aria-haspopup]", "More for file 23.txt")
    page.click("[role=menuitem]", "Ask only this one")
    page.ask("How many owls were there?")
    assert page.texts(".question .chip") == ["file 23.txt"]


def test_a_paste_of_300_000_characters(page: Page) -> None:
    text = "The sky was clear and the wind was cold. " * 7500
    page.driver.execute_script(
        """const data = new DataTransfer(); data.setData("text/plain", arguments[0]);
        document.getElementById("composer").dispatchEvent(new ClipboardEvent("paste",
            {clipboardData: data, bubbles: true, cancelable: true}))""",
        text,
    )
    # Larger than the context of the demo model: it says so before anything is read.
    page.one(f"{ROWS} .row-facts", "parts")
    page.one(".suggestions p", "parts one after another")
    page.one(".context", "In parts")


def test_a_conversation_of_the_terminal_goes_on_here_and_there_again(
    page: Page, server: PageServer, herons: Path
) -> None:
    def terminal(*words: str, said: str) -> str:
        command = [sys.executable, "-m", "jambacli", *words, "--temp", "0"]
        environment = {**os.environ, "JAMBA_HOME": str(server.home), "PYTHONPATH": str(REPO)}
        done = subprocess.run(
            command, input=said, env=environment, cwd=REPO, capture_output=True, text=True, timeout=240, check=True
        )
        return done.stdout

    model = str(demo_model_path())
    assert "42" in terminal(
        "chat",
        model,
        "--session",
        "field",
        said="The report says that Leila Haddad counted 42 herons at Lake Tuz. Who counted the herons?\n",
    )
    page.open()
    page.click("[aria-labelledby=conversations-title] .row-main", "The report says that Leila Haddad")
    page.answered(1)
    page.ask("How many herons were there?")
    assert "42" in page.replies[1]
    page.open()  # lets go of it
    assert "Lake Tuz" in terminal("chat", model, "--session", "field", said="Where was Leila Haddad?\n")
    page.open("/#c=field")
    until(lambda: len(page.replies) == 3, "what was said in the terminal")
    assert "Lake Tuz" in page.replies[2]
