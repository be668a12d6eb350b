"""OpenDocument texts are read as LibreOffice shows them with all changes accepted, and what is left out is said."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.written_files import ODT, odf_part, odt_bytes, zip_bytes


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


Read = Callable[..., Document]


@pytest.fixture(params=[False, True], ids=["package", "flat"])
def read(request: pytest.FixtureRequest, tmp_path: Path, sandbox: Sandbox) -> Read:
    def one(body: str, **options: object) -> Document:
        path = tmp_path / ("d.fodt" if request.param else "d.odt")
        path.write_bytes(odt_bytes(body, flat=request.param, **options))  # type: ignore[arg-type]
        return read_file(path, sandbox)

    return one


def p(text: str, style: str = "Standard") -> str:
    return f'<text:p text:style-name="{style}">{text}</text:p>'


def h(text: str, level: int = 1, more: str = "") -> str:
    return f'<text:h text:outline-level="{level}" {more}>{text}</text:h>'


def items(*content: str, style: str = "L1", more: str = "") -> str:
    named = f'text:style-name="{style}"' if style else ""
    return f"<text:list {named} {more}>{''.join(f'<text:list-item>{c}</text:list-item>' for c in content)}</text:list>"


def number(level: int, kind: str, suffix: str = ".", more: str = "") -> str:
    return f'<text:list-level-style-number text:level="{level}" style:num-format="{kind}" style:num-suffix="{suffix}" {more}/>'


def styled(name: str, family: str, properties: str, more: str = "") -> str:
    kind = "paragraph" if "break" in properties else "text"
    inner = f"<style:{kind}-properties {properties}/>" if properties else ""
    return f'<style:style style:name="{name}" style:family="{family}" {more}>{inner}</style:style>'


LISTS = (
    '<text:list-style style:name="L1">'
    + number(1, "1")
    + number(2, "1", "", 'text:display-levels="2"')
    + number(3, "a", ")", 'style:num-prefix="("')
    + number(4, "i", ".", 'loext:num-list-format="§ %4%/%1%"')
    + '</text:list-style><text:list-style style:name="B">'
    '<text:list-level-style-bullet text:level="1" text:bullet-char="•"/>'
    '<text:list-level-style-bullet text:level="2" text:bullet-char="☐"/></text:list-style>'
)


def test_white_space_tabs_and_breaks(read: Read) -> None:
    body = p(
        '  a\n  b<text:s/> c<text:s text:c="3"/>d<text:tab/>e <text:line-break/> f\xad<text:span> g </text:span> h'
    )
    assert read(body).text == "a b  c   d\te \n f g h"
    assert len(read(p('x<text:s text:c="999999999"/>y')).text) == 1002


def test_numbers_of_all_levels(read: Read) -> None:
    deep = items(p("c") + p("not numbered"), p("d"), style="")
    middle = items(p("b") + deep, p("e") + deep, style="")
    body = items(p("A") + middle, p("B") + items(p("f"), style=""), p("") + p("x"))
    wanted = [
        "1. A",
        "1.1 b",
        "(a) c",
        "not numbered",
        "(b) d",
        "1.2 e",
        "(a) c",
        "not numbered",
        "(b) d",
        "2. B",
        "2.1 f",
    ]
    document = read(body, automatic=LISTS)
    assert document.text.split("\n")[:11] == wanted and document.text.endswith("x")
    assert read(items(items(items(items(p("z"), style=""), style=""), style="")), automatic=LISTS).text == "§ i/1 z"


def test_lists_continue_restart_and_start(read: Read) -> None:
    body = items(p("a"), p("b"), more='xml:id="one"') + p("between") + items(p("c"), more='text:continue-list="one"')
    body += items(p("d")) + items(p("e"), more='text:continue-numbering="true"')
    body += '<text:list text:style-name="L1"><text:list-header><text:p>title</text:p></text:list-header>'
    body += '<text:list-item text:start-value="7"><text:p>f</text:p></text:list-item></text:list>'
    body += items(p("-") + items(p("b1"), style="") + items(p("b2"), style="B"), style="B")
    lines = ["1. a", "2. b", "between", "3. c", "1. d", "2. e", "title", "7. f", "- -", "☐ b1", "☐ b2"]
    assert read(body, automatic=LISTS).text.split("\n") == lines


def test_a_list_takes_its_style_from_its_paragraphs(read: Read) -> None:
    automatic = LISTS + styled("P", "paragraph", "", 'style:parent-style-name="Q"')
    styles = '<style:style style:name="Q" style:family="paragraph" style:list-style-name="L1"/>'
    assert read(items(p("a", "P"), p("b", "P"), style=""), automatic=automatic, styles=styles).text == "1. a\n2. b"


@pytest.mark.parametrize(
    ("kind", "more", "third"),
    [("A", "", "C"), ("I", "", "III"), ("a", 'text:start-value="26"', "ab"),
     ("a", 'text:start-value="26" style:num-letter-sync="true"', "bb"),
     ("①, ②, ③, ...", "", "③"), ("一, 二, 三, ...", "", "三"), ("1st", "", "3rd")],
)  # fmt: skip
def test_formats_of_numbers(read: Read, kind: str, more: str, third: str) -> None:
    automatic = f'<text:list-style style:name="L1">{number(1, kind, ")", more)}</text:list-style>'
    assert read(items(p("a"), p("b"), p("c")), automatic=automatic).text.split("\n")[2] == f"{third}) c"


def test_headings_have_the_numbers_of_the_outline(read: Read) -> None:
    level = '<text:outline-level-style text:level="{}" style:num-format="{}" {}/>'
    outline = (
        "<text:outline-style>"
        + level.format(1, "I", 'style:num-prefix="Article "')
        + level.format(2, "1", 'text:display-levels="2"')
    )
    styles = outline + level.format(3, "", "") + "</text:outline-style>"
    body = (
        h("Parties") + h("Buyer", 2) + h("Seller", 2) + h("plain", 3) + h("Unnumbered", 1, 'text:is-list-header="true"')
    )
    body += h("Price") + h("Due", 2) + h("Again", 1, 'text:restart-numbering="true" text:start-value="9"')
    lines = [
        "Article I Parties",
        "I.1 Buyer",
        "I.2 Seller",
        "plain",
        "Unnumbered",
        "Article II Price",
        "II.1 Due",
        "Article IX Again",
    ]
    assert read(body, styles=styles).text.split("\n") == lines
    assert read(items(h("In a list")), styles=styles, automatic=LISTS).text == "1. In a list"
    assert read(h("<text:number>3.1</text:number>Stated")).text == "3.1 Stated"


def cell(text: str, more: str = "") -> str:
    return f"<table:table-cell {more}>{text}</table:table-cell>"


def table(*rows: str, more: str = "") -> str:
    return f"<table:table>{more}{''.join(f'<table:table-row>{row}</table:table-row>' for row in rows)}</table:table>"


def test_tables_are_rows_with_bars(read: Read) -> None:
    head = "<table:table-header-rows><table:table-row>" + cell(p("Item")) + cell(p("Price") + p("EUR")) + cell("")
    head += "</table:table-row></table:table-header-rows>"
    covered = "<table:covered-table-cell><text:p>under</text:p></table:covered-table-cell>"
    wide = cell(p("wide"), 'table:number-columns-spanned="2"') + covered + cell(p("x"), 'table:number-rows-spanned="2"')
    inner = cell(table(cell(p("a")) + cell(p("b")), cell(p("c")) + cell(p("d")))) + cell(items(p("one"), p("two")))
    body = p("Before") + table(wide, cell(p("y")) + cell(p("z")) + covered, inner, more=head) + p("After")
    document = read(body, automatic=LISTS)
    lines = ["Before", "Item | Price EUR | ", "wide |  | x", "y | z", "a b; c d | 1. one 2. two", "After"]
    assert document.text.split("\n") == lines and "2 hidden words" in document.remarks[0]


def test_repeated_cells_and_rows_are_bounded(read: Read) -> None:
    row = '<table:table-row table:number-rows-repeated="{}">{}</table:table-row>'
    cells = cell(p("v"), 'table:number-columns-repeated="3"') + cell("", 'table:number-columns-repeated="16000"')
    document = read(
        f"<table:table>{row.format(2, cells)}{row.format(1048576, cell(p('r')))}{row.format(999999, cell(''))}</table:table>"
    )
    lines = document.text.split("\n")
    assert lines[0].startswith("v | v | v | ") and lines[0] == lines[1] and lines[2:] == ["r"] * 200
    assert "1,048,376 repeated rows were left out" in document.remarks[0]


def test_changes_are_accepted(read: Read) -> None:
    region = '<text:changed-region xml:id="c{}">{}</text:changed-region>'
    info = "<office:change-info><dc:creator>Bo</dc:creator><text:p>because</text:p></office:change-info>"
    changes = region.format(1, f"<text:deletion>{info}{p('900')}</text:deletion>")
    changes += region.format(2, f"<text:insertion>{info}</text:insertion>")
    body = f"<text:tracked-changes>{changes}</text:tracked-changes>"
    body += p('Rent <text:change text:change-id="c1"/><text:change-start text:change-id="c2"/>950<text:change-end/>.')
    document = read(body)
    assert document.text == "Rent 950." and "1 tracked deletion was left out" in document.remarks[0]


def test_notes_and_comments_stand_where_they_point(read: Read) -> None:
    note = '<text:note text:note-class="{}"><text:note-citation>1</text:note-citation>'
    note += "<text:note-body>{}</text:note-body></text:note>"
    comment = (
        "<office:annotation><dc:creator>Ada</dc:creator><dc:date>2026-01-01</dc:date>"
        + p("Why?")
        + "</office:annotation>"
    )
    body = p(
        f"One{note.format('footnote', p('A') + p('note.'))} two{comment} three{note.format('endnote', p('End.'))}."
    )
    assert read(body).text == "One [A note.] two [Comment by Ada: Why?] three [End.]."


def test_headers_and_footers_once(read: Read) -> None:
    page = '<style:master-page style:name="{}" {}>{}</style:master-page>'
    side = "<style:{0}>{1}</style:{0}>"
    first = side.format("header", p("Contract <text:page-number>1</text:page-number>")) + side.format(
        "footer", p("Draft")
    )
    first += (
        side.format("header-first", p("Cover"))
        + '<style:header-left style:display="false"><text:p>off</text:p></style:header-left>'
    )
    masters = page.format("Standard", "", first) + page.format(
        "Annex", "", side.format("header", p("Annex")) + side.format("footer", p("Draft"))
    )
    automatic = '<style:style style:name="A" style:family="paragraph" style:master-page-name="Annex"/>'
    body = p("one") + p("two") + p("three", "A") + p("four")
    lines = ["Header: Contract 1", "Header: Cover", "one", "two", "Footer: Draft", "Header: Annex", "three", "four"]
    assert read(body, masters=masters, automatic=automatic).text.split("\n") == lines


def test_hidden_text_is_left_out_and_said(read: Read) -> None:
    automatic = styled("H", "text", 'text:display="none"') + styled("HP", "paragraph", 'text:display="none"')
    automatic += styled("Sub", "text", "", 'style:parent-style-name="H"') + styled(
        "V", "text", 'text:display="true"', 'style:parent-style-name="H"'
    )
    body = p('a<text:span text:style-name="H"> secret</text:span> <text:span text:style-name="Sub">x</text:span>b')
    body += p('<text:span text:style-name="V">shown</text:span>') + p("hidden paragraph", "HP")
    body += '<text:section text:display="none">' + p("in a section") + table(cell(p("t"))) + "</text:section>"
    body += '<text:section text:display="condition" text:is-hidden="false">' + p("kept") + "</text:section>"
    body += p('c<text:hidden-text text:is-hidden="true" text:string-value="two words">two words</text:hidden-text>')
    body += p('gone <text:hidden-paragraph text:is-hidden="true"/>too')
    body += p('v<text:variable-set text:display="none">7</text:variable-set>')
    document = read(body, automatic=automatic)
    assert document.text == "a b\nshown\nkept\nc\nv"
    assert "13 hidden words were left out" in document.remarks[0]


def test_text_boxes_and_shapes_are_lines_of_their_own(read: Read) -> None:
    box = "<draw:frame><draw:text-box>{}</draw:text-box></draw:frame>"
    body = p(f"One. {box.format(p('In the box.') + p('Second.'))}Two.") + box.format(p("On the page."))
    body += p("Mid<draw:custom-shape>" + p("shape") + "<draw:enhanced-geometry/></draw:custom-shape>dle") + table(
        cell(p("x" + box.format(p("late")))) + cell(p("y"))
    )
    assert read(body).text.split("\n") == [
        "One.",
        "In the box.",
        "Second.",
        "Two.",
        "On the page.",
        "Middle",
        "shape",
        "x | y",
        "late",
    ]


def test_pictures_and_objects(read: Read) -> None:
    picture = '<draw:frame><draw:image xlink:href="{}"><office:binary-data>AAAA</office:binary-data></draw:image>'
    picture += "{}</draw:frame>"
    body = p(
        "a"
        + picture.format("http://example.com/x.png", "<svg:title>T</svg:title><svg:desc>A heron</svg:desc>")
        + "b"
        + picture.format("Pictures/1.png", "")
    )
    body += p('<draw:frame><draw:object-ole xlink:href="./Object 9"/><draw:image xlink:href="x"/></draw:frame>c')
    document = read(body)
    assert document.text == "a [A heron] b\nc"
    assert [r.partition(": ")[2] for r in document.remarks] == [
        "2 pictures were left out; text in them is not read", "1 embedded object was left out"]  # fmt: skip


MATH = (
    "<math:math><math:semantics><math:mrow><math:mfrac><math:mrow><math:mi>a</math:mi><math:mo>+</math:mo><math:mi>b</math:mi>"
    "</math:mrow><math:mn>2</math:mn></math:mfrac></math:mrow>"
    "<math:annotation>{a+b} over 2</math:annotation></math:semantics></math:math>"
)


def test_formulas_and_charts_in_the_package(tmp_path: Path, sandbox: Sandbox) -> None:
    frame = '<draw:frame><draw:object xlink:href="./Object {}"/><draw:image xlink:href="r"/>'
    frame += "<svg:desc>formula</svg:desc></draw:frame>"
    chart = (
        "<office:document-content><office:body><office:chart><chart:chart><chart:title>"
        + p("Herons")
        + "</chart:title>"
    )
    chart += (
        table(cell("") + cell(p("2024")), cell(p("north")) + cell(p("42")))
        + "</chart:chart></office:chart></office:body></office:document-content>"
    )
    loop = (
        "<office:document-content><office:body><office:text>"
        + p('<draw:frame><draw:object xlink:href="."/></draw:frame>loop')
        + "</office:text></office:body></office:document-content>"
    )
    parts: dict[str, str | bytes] = {
        "Object 1/content.xml": odf_part(MATH.replace("<math:math>", "<math:math>", 1)),
        "Object 2/content.xml": odf_part(chart),
        "Object 3/content.xml": odf_part(loop),
    }
    path = tmp_path / "o.odt"
    body = p(f"f = {frame.format(1)}!") + p(frame.format(2)) + p(frame.format(3)) + p(frame.format("../../etc"))
    path.write_bytes(odt_bytes(body, parts=parts))
    document = read_file(path, sandbox)
    assert document.text.split("\n") == [
        "f = (a + b)/2!",
        "[Chart]",
        "Herons",
        " | 2024",
        "north | 42",
        "loop",
        "[formula]",
    ]
    assert "2 embedded objects were left out" in document.remarks[0]


def test_formulas_in_a_flat_file_and_fields(read: Read) -> None:
    assert read(p(f"<draw:frame><draw:object>{MATH}</draw:object></draw:frame>")).text == "(a + b)/2"
    ruby = "<text:ruby><text:ruby-base>漢字</text:ruby-base><text:ruby-text>かんじ</text:ruby-text></text:ruby>"
    body = p(f"<text:a>link</text:a> <text:date>1 May</text:date> {ruby}<text:script>alert(1)</text:script>")
    index = (
        "<text:table-of-content><text:table-of-content-source><text:index-title-template>No</text:index-title-template>"
    )
    index += (
        "</text:table-of-content-source><text:index-body>"
        + p("Chapter<text:tab/>3")
        + "</text:index-body></text:table-of-content>"
    )
    assert read(body + index).text == "link 1 May 漢字(かんじ)\nChapter\t3"


def test_forms_show_their_values(read: Read) -> None:
    forms = (
        '<office:forms><form:form><form:properties/><form:text xml:id="c1" form:value="old" form:current-value="Ada"/>'
        '<form:checkbox xml:id="c2" form:current-state="checked" form:label="Agree"/>'
        '<form:password xml:id="c4" form:value="pw"/>'
        '<form:listbox xml:id="c3"><form:option form:label="red"/>'
        '<form:option form:label="green" form:current-selected="true"/>'
        "</form:listbox></form:form></office:forms>"
    )
    control = '<draw:control draw:control="{}"/>'
    kind = "vnd.oasis.opendocument.field"
    mark = f'<field:fieldmark field:type="{kind}.FORMCHECKBOX">'
    mark += f'<field:param field:name="{kind}.Checkbox_Checked" field:value="true"/></field:fieldmark>'
    body = (
        forms
        + p(f"Name:{control.format('c1')}")
        + control.format("c2")
        + p(f"{control.format('c3')}{control.format('c4')}")
        + p(mark)
    )
    assert read(body).text == "Name: Ada\n☒ Agree\ngreen\n☒"


def test_raised_and_crossed_out_text_and_symbols(read: Read) -> None:
    automatic = styled("Up", "text", 'style:text-position="super 58%"') + styled(
        "Down", "text", 'style:text-position="-25% 58%"'
    )
    automatic += styled("Out", "text", 'style:text-line-through-style="solid"') + styled(
        "W", "text", 'style:font-name="Wingdings"'
    )
    span = '<text:span text:style-name="{}">{}</text:span>'
    body = p(
        f"x{span.format('Up', '2')} H{span.format('Down', '2')}O {span.format('Out', 'a')}"
        f"{span.format('Out', 'b')} {span.format('W', chr(0xF0FE))}\uf0ff"
    )
    document = read(body, automatic=automatic)
    assert document.text == "x² H₂O ~~ab~~ ☑\ufffd" and "1 symbol" in document.remarks[0]


def test_pages_are_those_of_the_last_saving(read: Read) -> None:
    automatic = styled("B", "paragraph", 'fo:break-before="page"') + styled("E", "paragraph", 'fo:break-after="page"')
    body = (
        p("one", "B")
        + "<text:soft-page-break/>"
        + p("two")
        + p("thr<text:soft-page-break/>ee")
        + p("four", "B")
        + p("end", "E")
        + p("five")
    )
    document = read(body, automatic=automatic)
    assert document.unit == "page"
    assert [(part.first, part.text) for part in document.parts] == [
        (1, "one"),
        (2, "two\nthree"),
        (4, "four\nend"),
        (5, "five"),
    ]
    assert read(p("a") + p("b", "B"), automatic=automatic).unit == "paragraph"


def test_kinds_are_told_by_content(tmp_path: Path, sandbox: Sandbox) -> None:
    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    for name, mime in (("a.ott", f"{ODT}-template"), ("b.odm", f"{ODT}-master"), ("c.bin", ODT), ("d.docx", ODT)):
        assert read_file(written(name, odt_bytes(p("Text."), mime=mime)), sandbox).text == "Text."
    bare = zip_bytes(
        {
            "content.xml": odf_part(
                f"<office:document-content><office:body><office:text>{p('Bare.')}</office:text></office:body></office:document-content>"
            )
        }
    )
    assert read_file(written("e.odt", bare), sandbox).text == "Bare."
    for name, mime, words in (
        ("f.odg", "application/vnd.oasis.opendocument.graphics", "drawing"),
        ("g.odf", "application/vnd.oasis.opendocument.formula", "formula"),
        ("h.odb", "application/vnd.oasis.opendocument.base", "database"),
        ("i.sxw", "application/vnd.sun.xml.writer", "OpenOffice 1"),
    ):
        with pytest.raises(JambaError, match=words) as caught:
            read_file(written(name, odt_bytes(p("x"), mime=mime)), sandbox)
        assert "\n" not in str(caught.value)


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
MANIFEST = '<m:manifest xmlns:m="m"><m:file-entry><m:encryption-data/></m:file-entry></m:manifest>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: odt_bytes(p("&b;"), before=ENTITIES), "entities"),
        (lambda: odt_bytes(p("x"), before='<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'), "entities"),
        (lambda: odt_bytes(p("x"), flat=True, before=ENTITIES), "entities"),
        (lambda: odt_bytes(p("x"), parts={"META-INF/manifest.xml": MANIFEST}), "encrypted"),
        (lambda: odt_bytes(p("x"), parts={"encrypted-package": b"xx"}), "encrypted"),
        (lambda: odt_bytes("<text:section>" * 50_000 + "</text:section>" * 50_000), "within one another"),
        (lambda: odt_bytes(p("x"))[:-200], "damaged"),
        (lambda: odt_bytes(p("x") + "<text:p>"), "damaged"),
        (lambda: odt_bytes("<text:p>" + "a" * (300 << 20) + "</text:p>"), "unpacks to"),
        (lambda: zip_bytes({"mimetype": ODT}), "content.xml is missing"),
        (lambda: odt_bytes(""), "contains no text"),
    ],
    ids=[
        "bomb",
        "external",
        "flat bomb",
        "encrypted",
        "encrypted package",
        "deep",
        "cut",
        "not closed",
        "large",
        "missing",
        "empty",
    ],
)
def test_hostile_and_damaged_files_get_one_line(
    tmp_path: Path, sandbox: Sandbox, data: Callable[[], bytes], words: str
) -> None:
    path = tmp_path / "h.odt"
    path.write_bytes(data())
    with pytest.raises(JambaError, match=words) as caught:
        read_file(path, sandbox)
    assert "\n" not in str(caught.value) and "h.odt" in str(caught.value)


def test_a_document_type_without_entities_is_none_of_them(read: Read) -> None:
    body = p("x")
    assert (
        read(body, before='<!DOCTYPE office:document-content PUBLIC "-//OpenOffice.org//DTD" "office.dtd">').text == "x"
    )


@pytest.mark.parametrize(
    "body",
    [
        "<text:list><text:list-item>" * 3000 + p("x") + "</text:list-item></text:list>" * 3000,
        p("<text:span>" * 5000 + "x" + "</text:span>" * 5000),
        "<table:table><table:table-row><table:table-cell>" * 1500
        + p("x")
        + "</table:table-cell></table:table-row></table:table>" * 1500,
        p("<draw:frame><draw:text-box><text:p>" * 2000 + "x" + "</text:p></draw:text-box></draw:frame>" * 2000),
        p("<text:note><text:note-body><text:p>" * 2000 + "x" + "</text:p></text:note-body></text:note>" * 2000),
        p("<math:mfrac>" * 3000 + "x" + "</math:mfrac>" * 3000),
        "</office:text><office:text>".join([p("x")] * 3),
        "<table:table-cell>" + p("x") + "</table:table-cell><text:list-item>" + p("y") + "</text:list-item>",
    ],
    ids=["lists", "spans", "tables", "boxes", "notes", "formulas", "bodies", "loose"],
)
def test_odd_structures_are_read(tmp_path: Path, sandbox: Sandbox, body: str) -> None:
    path = tmp_path / "o.odt"
    path.write_bytes(odt_bytes(body, automatic=LISTS))
    assert "x" in read_file(path, sandbox).text


def test_damaged_xml_never_crashes_the_reader(tmp_path: Path, sandbox: Sandbox) -> None:
    sample = odt_bytes(
        items(p("a<text:s/>b"))
        + table(cell(p("c")))
        + p("<draw:frame><draw:text-box><text:p>d</text:p></draw:text-box></draw:frame>"),
        automatic=LISTS,
        flat=True,
    )
    random, path = Random(3), tmp_path / "r.fodt"
    for _ in range(100):
        data = bytearray(sample)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(1600, len(data))
            data[at : at + random.randint(0, 8)] = random.choice(
                [b"", b"<", b">", b"</text:p>", b"<text:p>", b"&", b"\xff", b"<table:table-cell>"]
            )
        path.write_bytes(bytes(data))
        try:
            read_file(path, sandbox)
        except JambaError as error:
            assert any(w in str(error) for w in ("damaged OpenDocument", "contains no text")), error


MARKDOWN = "# Über\n\nText[^1] **bold** x^2^.\n\n1. one\n2. two\n    a. sub\n"
MARKDOWN += "\n| A | B |\n|---|---|\n| 1 | 2 |\n\n- point\n\n[^1]: Note.\n"


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not installed")
def test_what_pandoc_writes(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "a.md").write_text(MARKDOWN)
    subprocess.run(["pandoc", "-s", str(tmp_path / "a.md"), "-o", str(tmp_path / "a.odt")], check=True)
    lines = [line for line in read_file(tmp_path / "a.odt", sandbox).text.split("\n") if line and "Footer" not in line]
    assert lines == ["Über", "Text [Note.] bold x².", "1. one", "2. two", "a. sub", "A | B", "1 | 2", "- point"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("soffice") and shutil.which("pandoc")), reason="LibreOffice or pandoc is not installed"
)
@pytest.mark.parametrize("target", ["odt", "fodt", "rtf"])
def test_what_libreoffice_writes(tmp_path: Path, sandbox: Sandbox, target: str) -> None:
    (tmp_path / "a.md").write_text(MARKDOWN)
    subprocess.run(["pandoc", "-s", str(tmp_path / "a.md"), "-o", str(tmp_path / "a.docx")], check=True)
    profile = f"-env:UserInstallation={(tmp_path / 'profile').as_uri()}"
    command = [
        "soffice",
        profile,
        "--headless",
        "--convert-to",
        target,
        "--outdir",
        str(tmp_path),
        str(tmp_path / "a.docx"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    lines = [
        " ".join(line.split()) for line in read_file(tmp_path / f"a.{target}", sandbox).text.split("\n") if line.strip()
    ]
    assert lines == ["Über", "Text [Note.] bold x².", "1. one", "2. two", "a. sub", "A | B", "1 | 2", "- point"]
