"""PDFs as their readers see them: order of lines, columns, tables, forms, notes, repeated headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.pdf_files import Placed, pdf_of


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def read(folder: Path, sandbox: Sandbox, data: bytes) -> Document:
    path = folder / "a.pdf"
    path.write_bytes(data)
    return read_file(path, sandbox)


LINES = [f"Line {i} of the page says that it is number {i}." for i in range(1, 21)]
LEFT = [f"the left column goes on in line {word}" for word in ("one", "two", "three", "four", "five", "six", "seven")]
RIGHT = [f"and what the right column says of {word}" for word in ("owls", "herons", "geese", "ducks", "swans")]


def down(lines: list[str], x: float, top: float = 780, step: float = 14) -> list[Placed]:
    return [(line, x, top - step * i) for i, line in enumerate(lines)]


def orders(placed: list[Placed]) -> list[list[Placed]]:
    """The same page written in other orders: as given, backwards, line by line, at random."""
    shuffled = placed[:]
    Random(5).shuffle(shuffled)
    return [placed, placed[::-1], sorted(placed, key=lambda p: (-p[2], p[1])), shuffled]


@pytest.mark.parametrize("order", range(4))
def test_lines_come_from_top_to_bottom(tmp_path: Path, sandbox: Sandbox, order: int) -> None:
    document = read(tmp_path, sandbox, pdf_of([orders(down(LINES, 50))[order]]))
    assert document.text.split("\n") == LINES and not document.remarks


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("shift", [0, 5])
def test_columns_come_one_after_another(tmp_path: Path, sandbox: Sandbox, order: int, shift: float) -> None:
    title, below = "A title over both of the columns of this page", "A last line under both of the columns of it"
    placed: list[Placed] = [(title, 150, 810), *down(LEFT, 50), *down(RIGHT, 310, 780 - shift), (below, 160, 600)]
    document = read(tmp_path, sandbox, pdf_of([orders(placed)[order]]))
    assert document.text.split("\n") == [title, *LEFT, *RIGHT, below]


@pytest.mark.parametrize("order", range(4))
def test_the_cells_of_a_row_are_on_one_line(tmp_path: Path, sandbox: Sandbox, order: int) -> None:
    rows = [["Item", "Qty", "Price"], ["Pump", "2", "900"], ["Long hose", "", "12"], ["Valve", "7", "40"]]
    columns = [
        [(row[c], x, 700.0 - 16 * r) for r, row in enumerate(rows) if row[c]]
        for c, x in enumerate((70.0, 220.0, 350.0))
    ]
    placed: list[Placed] = [
        ("Our offer of the first of May:", 50, 740),
        *(cell for column in columns for cell in column),
    ]
    lines = read(tmp_path, sandbox, pdf_of([orders(placed)[order]])).text.split("\n")
    assert [line.split() for line in lines[1:]] == [" ".join(row).split() for row in rows]


def test_cells_of_several_lines_stay_in_their_row(tmp_path: Path, sandbox: Sandbox) -> None:
    placed: list[Placed] = []
    for i in range(4):
        top = 700 - 60 * i
        placed += [
            (f"{i}.1", 50, top),
            *down([f"the text of clause {i} that goes", "on in a second line", "and ends"], 100, top),
        ]
        placed += down([f"remark {i} on the clause,", "also of two lines"], 400, top)
    lines = read(tmp_path, sandbox, pdf_of([placed])).text.split("\n")
    assert [" ".join(line.split()) for line in lines] == [
        f"{i}.1 the text of clause {i} that goes on in a second line and ends remark {i} on the clause, also of two lines"
        for i in range(4)
    ]


@pytest.mark.parametrize("matrix", ["0 1 -1 0 842 0", "-1 0 0 -1 595 842", "0 -1 1 0 0 595"])
def test_turned_text_is_read_along_its_lines(tmp_path: Path, sandbox: Sandbox, matrix: str) -> None:
    box = "" if matrix.startswith("-1") else "/MediaBox [0 0 842 595]"
    data = pdf_of([down(LEFT, 50, 780) + down(RIGHT, 310, 780)], turned=matrix, page=box)
    assert read(tmp_path, sandbox, data).text.split("\n") == [*LEFT, *RIGHT]
    for degrees in (90, 180, 270):
        data = pdf_of([down(LINES, 50)[::-1]], page=f"/Rotate {degrees}")
        assert read(tmp_path, sandbox, data).text.split("\n") == LINES


def test_a_word_divided_at_the_end_of_a_line_is_whole(tmp_path: Path, sandbox: Sandbox) -> None:
    left = ["the agree-", "ment ends after", "three months in", "all of the cases"]
    data = pdf_of([down(left, 50) + down(RIGHT[:4], 310)])
    assert read(tmp_path, sandbox, data).text.split("\n")[:3] == [
        "the agreement ends after",
        "three months in",
        left[3],
    ]


def text_field(name: str, value: str, box: str, more: str = "") -> str:
    return f"/FT /Tx /T ({name}) /V ({value}) /Rect [{box}] /F 4 /DA (/F1 10 Tf 0 g) {more}"


def button(name: str, box: str, state: str, on: str = "Yes", flags: int = 0) -> str:
    looks = f"/AP << /N << /{on} 3 0 R /Off 3 0 R >> >>"
    return f"/FT /Btn /Ff {flags} /T ({name}) /V /{state} /AS /{state} /Rect [{box}] /F 4 {looks}"


FORM: list[Placed] = [
    ("Application", 50, 780),
    ("Name:", 50, 720),
    ("Insured:", 50, 690),
    ("Colour:", 50, 660),
    ("Gift:", 50, 630),
]
FIELDS = [
    text_field("name", "Ada Byron", "120 712 320 730"),
    button("insured", "120 685 140 705", "Yes"),
    "/FT /Ch /Ff 131072 /T (colour) /V (green) /Opt [(red) (green)] /Rect [120 652 220 670] /F 4 /DA (/F1 10 Tf 0 g)",
    button("gift", "120 625 140 645", "Off"),
]


def test_the_values_of_a_form_stand_at_their_labels(tmp_path: Path, sandbox: Sandbox) -> None:
    document = read(tmp_path, sandbox, pdf_of([FORM], fields=FIELDS))
    lines = [" ".join(line.split()) for line in document.text.split("\n")]
    assert lines == ["Application", "Name: Ada Byron", "Insured: [x]", "Colour: green", "Gift: [ ]"]


def test_a_form_without_any_other_text_has_the_names_of_its_fields(tmp_path: Path, sandbox: Sandbox) -> None:
    fields = [*FIELDS[:3], text_field("notes", r"first line\rsecond line", "50 400 400 500")]
    lines = read(tmp_path, sandbox, pdf_of([[]], fields=fields)).text.split("\n")
    assert lines == ["name: Ada Byron", "insured: [x]", "colour: green", "notes: first line", "second line"]


def test_the_choice_of_radio_buttons_is_named(tmp_path: Path, sandbox: Sandbox) -> None:
    fields = [
        button("way", f"{x} 700 {x + 15} 715", "express", on, 1 << 15) for x, on in ((50, "normal"), (150, "express"))
    ]
    assert "(x) express" in read(tmp_path, sandbox, pdf_of([[]], fields=fields)).text


def test_passwords_and_hidden_values_are_left_out_and_said(tmp_path: Path, sandbox: Sandbox) -> None:
    fields = [
        FIELDS[0],
        text_field("key", "hunter2", "120 500 320 520", f"/Ff {1 << 13}"),
        text_field("ghost", "unseen", "120 400 320 420").replace("/F 4", "/F 2"),
    ]
    document = read(tmp_path, sandbox, pdf_of([FORM], fields=fields))
    assert "hunter2" not in document.text and "unseen" not in document.text
    assert any("1 password" in r for r in document.remarks) and any("1 hidden" in r for r in document.remarks)


def test_notes_on_a_page_are_read(tmp_path: Path, sandbox: Sandbox) -> None:
    annotations = [
        "/Subtype /FreeText /Rect [50 740 300 760] /Contents (Corrected: 950 euros) /DA (0 g)",
        "/Subtype /Text /Rect [300 760 320 780] /Contents (ask the landlord)",
        "/Subtype /Highlight /Rect [50 700 90 712] /QuadPoints [50 712 90 712 50 700 90 700] /Contents (is this so?)",
        "/Subtype /Popup /Rect [300 760 320 780] /Contents (never)",
        "/Subtype /FreeText /F 2 /Rect [50 500 300 520] /Contents (hidden)",
        "/Subtype /Stamp /Rect [50 300 200 340] /Name /NotApproved",
    ]
    document = read(
        tmp_path,
        sandbox,
        pdf_of([[("The rent is 900 euros.", 50, 780), ("The end.", 50, 720)]], annotations=annotations),
    )
    assert document.text.split("\n") == [
        "The rent is 900 euros.",
        "Corrected: 950 euros",
        "The end.",
        "[stamp: Not Approved]",
        "[note: ask the landlord]",
        "[comment on marked text: is this so?]",
    ]
    assert "1 hidden note" in document.remarks[0]


@pytest.mark.parametrize("text", ["Please wait...", "Bitte warten... Ihr Programm zeigt dieses Dokument nicht an."])
@pytest.mark.parametrize("where", ["form", "catalog"])
def test_an_xfa_form_is_refused_with_what_to_do(tmp_path: Path, sandbox: Sandbox, text: str, where: str) -> None:
    rendering = {"form": "/XFA (<xdp/>)", where: "/NeedsRendering true"}
    rendering["form"] = rendering["form"] if where == "catalog" else "/XFA (<xdp/>) /NeedsRendering true"
    with pytest.raises(JambaError, match="is an XFA form, which only Adobe Reader shows; open it there and print it"):
        read(tmp_path, sandbox, pdf_of([[(text, 50, 780)]], **rendering))
    filled = pdf_of([FORM], fields=FIELDS, form="/XFA (<xdp/>)")
    assert "Ada Byron" in read(tmp_path, sandbox, filled).text


def body(i: int, top: float = 740) -> list[Placed]:
    return down([f"Page {i} says {word} of the {i * i} herons." for word in ("this", "that", "more")], 50, top)


def test_headers_and_footers_that_repeat_are_kept_once(tmp_path: Path, sandbox: Sandbox) -> None:
    pages = [[("ACME confidential", 50, 810), *body(i), (f"Page {i + 4} of 40", 250, 30)] for i in range(1, 31)]
    document = read(tmp_path, sandbox, pdf_of(pages))
    assert document.text.count("ACME confidential") == 1 and document.text.count(" of 40") == 1
    assert document.parts[0].text.startswith("ACME confidential\nPage 1 says") and document.parts[0].text.endswith(
        "Page 5 of 40"
    )
    for i, part in enumerate(document.parts, 1):
        assert part.first == i and f"{i * i} herons" in part.text and len(part.text.split("\n")) == (5 if i == 1 else 3)
    assert document.remarks[0].endswith(
        'repeated headers and footers are kept once: "ACME confidential", "Page # of 40"'
    )


def test_what_differs_from_page_to_page_is_no_header(tmp_path: Path, sandbox: Sandbox) -> None:
    pages = [[(f"Invoice {4000 + i * 7}", 50, 810), *body(i), (f"Total {i * 31}", 250, 30)] for i in range(1, 9)]
    document = read(tmp_path, sandbox, pdf_of(pages))
    assert all(len(part.text.split("\n")) == 5 for part in document.parts) and not document.remarks
    pages = [[("A title of its own", 50, 810), *body(i)] for i in range(1, 3)]
    assert read(tmp_path, sandbox, pdf_of(pages)).text.count("A title of its own") == 2
    pages = [[("Repeated text", 50, 760), *body(i, 746)] for i in range(1, 9)]
    assert read(tmp_path, sandbox, pdf_of(pages)).text.count("Repeated text") == 8  # part of the text


def test_left_and_right_pages_have_their_own_headers(tmp_path: Path, sandbox: Sandbox) -> None:
    pages = [[("Title of the book" if i % 2 else "Name of the author", 50, 810), *body(i)] for i in range(1, 13)]
    text = read(tmp_path, sandbox, pdf_of(pages)).text
    assert text.count("Title of the book") == 1 and text.count("Name of the author") == 1


def test_attached_files_are_said(tmp_path: Path, sandbox: Sandbox) -> None:
    names = (
        "/Names << /EmbeddedFiles << /Names [(a.xlsx) << /Type /Filespec /F (a.xlsx) /UF (a.xlsx) /EF << >> >>] >> >>"
    )
    document = read(tmp_path, sandbox, pdf_of([down(LINES, 50)], catalog=names))
    assert "1 attached file not read" in document.remarks[0] and "a.xlsx" in document.remarks[0]


HOSTILE = {
    "many": pdf_of([[("x", (i * 37) % 590, (i * 91) % 840, 3) for i in range(20_000)]]),
    "far": pdf_of([[("far", 1e30, -1e30), ("near", 50, 700), ("huge", 50, 600, 1e9)]]),
    "same": pdf_of([[("word", 50, 700) for _ in range(5_000)]]),
    "stairs": pdf_of([[("step", 5 * i % 580, 830 - 0.1 * i) for i in range(8_000)]]),
    "fields": pdf_of([[("x", 50, 700)]], fields=[text_field("n" * 5000, "v" * 9000, "0 0 1e9 1e9")] * 500),
    "box": pdf_of([[("x", 50, 700)]], fields=[text_field("n", "v", "nan 5 [] 7"), "/FT /Tx", "/FT /Btn /AP 3 0 R"]),
    "self": pdf_of([[("x", 50, 700)]], annotations=["/Subtype /FreeText /Contents 4 0 R /Parent 4 0 R /Rect 4 0 R"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_are_read_or_refused(tmp_path: Path, sandbox: Sandbox, name: str) -> None:
    try:
        assert read(tmp_path, sandbox, HOSTILE[name]).parts
    except JambaError as error:
        assert "\n" not in str(error) and "crashed" not in str(error) and "no progress" not in str(error)
