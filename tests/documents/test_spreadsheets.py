"""Workbooks read by sheet as Excel shows them, and what is left out is said."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract.pieces import PART_CHARS
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.office_files import (
    binary_row,
    binary_workbook,
    converted,
    open_document,
    relations,
    rows,
    workbook,
    zipped,
)

openpyxl = pytest.importorskip("openpyxl")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


class Reader:
    """Reads a file of these bytes."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder, self.sandbox = folder, sandbox

    def __call__(self, data: bytes, name: str = "b.xlsx") -> Document:
        path = self.folder / name
        path.write_bytes(data)
        return read_file(path, self.sandbox)


@pytest.fixture
def read(tmp_path: Path, sandbox: Sandbox) -> Reader:
    return Reader(tmp_path, sandbox)


def said(document: Document) -> str:
    return " / ".join(document.remarks)


@pytest.mark.parametrize("strict", [False, True])
def test_kinds_of_values(read: Reader, strict: bool) -> None:
    strings = (
        "<si><t>plain</t></si><si><r><t xml:space='preserve'>rich </t></r><r><rPr><b/></rPr><t>text</t></r></si>"
        "<si><t>東京</t><rPh sb='0' eb='2'><t>トウキョウ</t></rPh></si><si><t>a_x000A_b _x005F_x0041_</t></si>"
    )
    cells = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="C1" t="s"><v>2</v></c></row>'
        '<row r="2"><c r="A2" t="b"><v>1</v></c><c r="B2" t="e"><v>#DIV/0!</v></c>'
        '<c r="C2" t="str"><f>A1</f><v>x&amp;y</v></c></row>'
        '<row r="3"><c r="A3" s="1"><v>0.125</v></c><c r="B3" s="2"><v>-1234.5</v></c>'
        '<c r="C3" t="d"><v>2024-05-01</v></c></row>'
        '<row r="4"><c r="A4" t="inlineStr"><is><r><t>in</t></r><r><t>line</t></r><rPh><t>no</t></rPh></is></c>'
        '<c r="B4" t="s"><v>3</v></c><c r="C4" t="s"><v>99</v></c></row>'
    )
    data = workbook(
        {"Costs": f"<sheetData>{cells}</sheetData>"},
        strings=strings,
        formats=("0.0%", "#,##0.00_);(#,##0.00)"),
        strict=strict,
    )
    document = read(data)
    assert document.unit == "sheet" and document.remarks == ()
    assert document.parts[0].text.split("\n") == [
        "plain | rich text | 東京",
        "TRUE | #DIV/0! | x&y",
        "12.5% | (1,234.50) | 2024-05-01",
        "inline | a b _x0041_",
    ]
    assert document.title(document.parts[0]).endswith("b.xlsx, sheet 1 (Costs)")


def test_dates_count_from_1904_where_the_file_says_so(read: Reader) -> None:
    sheet = rows(['<c r="A1" s="1"><v>43538</v></c>'])
    assert read(workbook({"A": sheet}, formats=("yyyy-mm-dd",))).text == "2019-03-14"
    data = workbook({"A": sheet}, formats=("yyyy-mm-dd",), properties='<workbookPr date1904="1"/>')
    assert read(data).text == "2023-03-15"


def test_hidden_sheets_rows_and_columns_are_left_out_and_said(read: Reader) -> None:
    columns = '<cols><col min="2" max="2" hidden="1"/><col min="5" max="16384" width="0"/></cols>'
    lines = rows(["a", "secret", "c"], ["gone", "gone", "gone"], ["d", "secret", "f", None, "far"])
    lines = lines.replace('<row r="2">', '<row r="2" hidden="1">')
    data = workbook(
        {"Shown": columns + lines, "Lists": rows(["hidden list"]), "Deep": rows(["deeper"])},
        states={"Lists": "hidden", "Deep": "veryHidden"},
    )
    document = read(data)
    assert document.text == "a | c\nd | f"
    assert "2 hidden sheets were left out: Lists, Deep" in said(document)
    assert "1 hidden row was left out (in Shown)" in said(document)
    assert "2 hidden columns were left out (in Shown)" in said(document)


def test_formulas_are_their_values_or_it_is_said(read: Reader) -> None:
    line = ['<c r="A1"><f>B1*2</f><v>84</v></c>', '<c r="B1"><f>SUM(C1:C9)</f></c>',
            '<c r="C1"><f t="shared" si="0"/><v></v></c>',
            '<c r="D1" t="str"><f>IF(1,"")</f><v></v></c>', '<c r="E1"><f>0*1</f><v>0</v></c>']  # fmt: skip
    document = read(workbook({"A": rows(line)}))
    assert document.text == "84 | =SUM(C1:C9) | = (not computed) | 0"
    assert "2 formulas were read instead of their values: no program has computed them yet" in said(document)
    document = read(workbook({"A": rows(line[:1], line[4:])}, properties='<calcPr fullCalcOnLoad="1"/>'))
    assert "1 formula with the value 0 may never have been computed" in said(document)


def test_a_formula_of_ten_megabytes_does_no_harm(read: Reader) -> None:
    formula = "A1+" * 3_500_000
    data = workbook({"A": rows([f'<c r="A1"><f>{formula}1</f></c>', f'<c r="B1"><f>{formula}1</f><v>7</v></c>'])})
    text = read(data).text
    assert text.startswith("=A1+A1+") and text.endswith(" | 7") and len(text) < 300


def test_comments_links_and_merged_cells(read: Reader) -> None:
    sheet = (
        rows(["Item", "Price"], ["Pump", 5], ["Merged", "under", "kept"], ["under", "under"])
        + '<mergeCells><mergeCell ref="A3:B4"/></mergeCells><hyperlinks><hyperlink ref="A2" r:id="h1"/>'
        '<hyperlink ref="B2" location="Other!A1"/></hyperlinks>'
    )
    comments = (
        "<comments><authors><author>Ann</author></authors><commentList>"
        '<comment ref="B2" authorId="0"><text><r><t>Is this</t></r>'
        '<r><t xml:space="preserve"> right?</t></r></text></comment>'
        '<comment ref="D9" authorId="0"><text><t>At an empty cell</t></text></comment>'
        '<comment ref="A1" authorId="0"><text><t>[Threaded comment] older form</t></text></comment></commentList></comments>'
    )
    threads = '<ThreadedComments><threadedComment ref="A1"><text>Why?</text></threadedComment>'
    threads += '<threadedComment ref="A1"><text>Because.</text></threadedComment></ThreadedComments>'
    document = read(
        workbook(
            {"A": sheet},
            related={
                "h1": ("hyperlink", "https://example.org/pump"),
                "c1": ("comments", "../comments1.xml"),
                "t1": ("threadedComment", "../thread1.xml"),
            },
            more={"comments1.xml": comments, "thread1.xml": threads},
        )
    )
    assert document.text.split("\n") == [
        "Item [Comment: Why? / Because.] | Price",
        "Pump (https://example.org/pump) | 5 [Comment: Is this right?]",
        "Merged |  | kept",
        "",
        " |  |  | [Comment: At an empty cell]",
    ]
    assert "3 cells were left out: a merged cell hides them" in said(document)


def test_every_part_of_a_long_sheet_begins_with_its_header(read: Reader) -> None:
    first = [["Report 2024"], ["Name", "City", "Amount"], *([f"Person {i}", "Town", i] for i in range(400))]
    second = [["Year", "Total"], *([2000 + i, i * 10] for i in range(400))]
    sheet = rows(*first, [], *second)
    document = read(workbook({"People": sheet, "Small": rows(["x"])}))
    assert len(document.parts) > 4 and document.parts[-1].label == "Small"
    assert all(len(p.text) < PART_CHARS + 1000 for p in document.parts)
    people = [p for p in document.parts if p.label.startswith("People, rows ")]
    assert people[0].text.startswith("Report 2024\nName | City | Amount\nPerson 0 | Town | 0\n")
    for part in people[1:]:
        begin = int(part.label.split()[-1].split("-")[0])
        assert part.text.startswith("Name | City | Amount\n" if begin < 404 else "Year | Total\n"), part.label
    held = "\n".join(p.text for p in people)
    assert all(held.count(f"Person {i} |") == 1 for i in range(400)) and held.count("2399 | 3990") == 1


def test_columns_without_content_are_left_out_and_the_others_stay_aligned(read: Reader) -> None:
    sheet = (
        '<dimension ref="A1:XFD1048576"/><sheetData><row r="2"><c r="C2"><v>1</v></c><c r="H2"><v>2</v></c></row>'
        '<row r="7"><c r="H7"><v>3</v></c></row><row r="1048576"><c r="XFD1048576"><v>4</v></c></row></sheetData>'
    )
    assert read(workbook({"A": sheet})).text == "1 | 2\n\n | 3\n\n |  | 4"


def test_cells_beyond_any_sheet_and_without_places(read: Reader) -> None:
    many = "<c><v>1</v></c>" * 20_000
    document = read(workbook({"A": f'<sheetData><row>{many}</row><row r="2000000"><c><v>5</v></c></row></sheetData>'}))
    assert document.text.replace("\n", "").count("1") == 16_384
    assert "3,617 cells were left out: they lie outside of any sheet" in said(document)


def test_a_cell_of_several_lines_is_part_of_its_row_unless_it_is_long(read: Reader) -> None:
    long = "\n".join(f"line {i}" for i in range(12))
    document = read(workbook({"A": rows(["a\nb", "c"], [long, "beside"])}))
    assert document.text.split("\n") == ["a b | c", *(f"line {i}" for i in range(12)), "beside"]


def test_values_that_their_format_hides(read: Reader) -> None:
    line = ['<c r="A1" s="1"><v>5</v></c>', '<c r="B1" s="1" t="str"><v>text</v></c>', "shown"]
    document = read(workbook({"A": rows(line)}, formats=(";;;",)))
    assert document.text == "shown" and "2 values were left out: their number format hides them" in said(document)


DRAWING = (
    "<xdr:wsDr><xdr:twoCellAnchor><xdr:from><xdr:col>0</xdr:col><xdr:row>30</xdr:row></xdr:from><xdr:to><xdr:col>3</xdr:col>"
    "<xdr:row>40</xdr:row></xdr:to><xdr:graphicFrame><xdr:nvGraphicFramePr><xdr:cNvPr id='2' name='c'/></xdr:nvGraphicFramePr>"
    '<a:graphic><a:graphicData uri="c"><c:chart r:id="r1"/></a:graphicData></a:graphic></xdr:graphicFrame></xdr:twoCellAnchor>'
    "<xdr:twoCellAnchor><xdr:from><xdr:col>0</xdr:col><xdr:row>5</xdr:row></xdr:from><xdr:sp><xdr:nvSpPr><xdr:cNvPr id='3' "
    "name='b'/></xdr:nvSpPr><xdr:txBody><a:p><a:r><a:t>A text box</a:t></a:r></a:p></xdr:txBody></xdr:sp></xdr:twoCellAnchor>"
    "<xdr:oneCellAnchor><xdr:pic><xdr:nvPicPr><xdr:cNvPr id='4' name='p'/></xdr:nvPicPr></xdr:pic></xdr:oneCellAnchor>"
    "</xdr:wsDr>"
)
CHART = (
    "<c:chartSpace><c:chart><c:title><c:tx><c:rich><a:p><a:r><a:t>Rainfall</a:t></a:r></a:p></c:rich></c:tx></c:title><c:plotArea>"
    "<c:barChart><c:ser><c:tx><c:strRef><c:strCache><c:pt><c:v>North</c:v></c:pt></c:strCache></c:strRef></c:tx><c:cat><c:strRef>"
    "<c:strCache><c:pt><c:v>May</c:v></c:pt><c:pt><c:v>June</c:v></c:pt></c:strCache></c:strRef></c:cat><c:val><c:numRef>"
    "<c:numCache><c:pt><c:v>12</c:v></c:pt><c:pt><c:v>7</c:v></c:pt></c:numCache></c:numRef></c:val></c:ser></c:barChart>"
    "</c:plotArea></c:chart></c:chartSpace>"
)


def test_charts_text_boxes_headers_and_macros(read: Reader) -> None:
    printed = (
        '<headerFooter><oddHeader>&amp;L&amp;"Arial,Bold"&amp;12Confidential &amp;&amp; final&amp;R&amp;D</oddHeader>'
        "<oddFooter>Page &amp;P of &amp;N</oddFooter></headerFooter>"
    )
    data = workbook(
        {"A": rows(["x"]) + printed + '<drawing r:id="d1"/>'},
        related={"d1": ("drawing", "../drawings/drawing1.xml"), "o1": ("oleObject", "../embeddings/o.bin")},
        more={
            "drawings/drawing1.xml": DRAWING,
            "drawings/_rels/drawing1.xml.rels": relations({"r1": ("chart", "../charts/chart1.xml")}),
            "charts/chart1.xml": CHART,
        },
    )
    document = read(data)
    assert document.text.split("\n") == [
        "Header: Confidential & final", "x", "", "A text box", "[Chart: Rainfall]", "North: May: 12, June: 7",
    ]  # fmt: skip
    assert "1 picture was left out" in said(document) and "1 embedded object or form control was left out" in said(
        document
    )


def test_nothing_outside_of_the_file_is_opened(read: Reader, tmp_path: Path) -> None:
    outside = tmp_path / "outside.xml"
    outside.write_text("<comments><comment ref='A1'><text><t>secret</t></text></comment></comments>")
    data = workbook(
        {"A": rows(["x"]) + '<drawing r:id="d1"/>'},
        related={"c1": ("comments", outside.as_uri()), "d1": ("drawing", "../../../../../../../etc/passwd"),
                 "c2": ("comments", f"../../../..{outside}")},
    )  # fmt: skip
    assert read(data).text == "x"


def test_an_empty_workbook_and_a_workbook_of_hidden_sheets(read: Reader) -> None:
    with pytest.raises(JambaError, match="contains no text"):
        read(workbook({"A": "<sheetData/>"}))
    with pytest.raises(JambaError, match=r"contains no text \(1 hidden sheet was left out: Secret"):
        read(workbook({"Secret": rows(["x"])}, states={"Secret": "hidden"}))


BINARY = {
    "Costs": binary_row(0, (0, 0, "Item"), (1, 0, "Share"), (2, 0, "Due"), (3, 0, "Ok"), (4, 0, "Err"))
    + binary_row(1, (0, 0, "Pump"), (1, 1, 0.125), (2, 2, 45000.0), (3, 0, True), (4, 0, 7))
    + binary_row(2, (0, 0, "gone"), hidden=True)
    + binary_row(4, (1, 3, -1234.5), (3, 0, 2.5)),
    "Secret": binary_row(0, (0, 0, "hidden text")),
}


def test_a_binary_workbook(read: Reader) -> None:
    codes = ("0.0%", "dd.mm.yyyy", "#,##0.00;(#,##0.00)")
    document = read(binary_workbook(BINARY, hidden=frozenset(("Secret",)), codes=codes), "b.xlsb")
    assert document.text.split("\n") == [
        "Item | Share | Due | Ok | Err",
        "Pump | 12.5% | 15.03.2023 | TRUE | #DIV/0!",
        "",
        " | (1,234.50) |  | 2.5",
    ]
    assert "1 hidden sheet was left out: Secret" in said(document) and "1 hidden row was left out" in said(document)


def test_a_binary_workbook_of_two_distant_cells_is_refused(read: Reader) -> None:
    far = binary_row(0, (0, 0, 1.0)) + binary_row(1_048_575, (16_383, 0, 2.0))
    with pytest.raises(JambaError, match="1,048,576 rows and 16,384 columns, too large to read"):
        read(binary_workbook({"A": far}), "b.xlsb")


def table(*lines: str, attributes: str = "", before: str = "") -> str:
    return f'<table:table table:name="Costs"{attributes}>{before}{"".join(lines)}</table:table>'


def cell(text: str, attributes: str = "", more: str = "") -> str:
    return f'<table:table-cell office:value-type="string"{attributes}>{more}<text:p>{text}</text:p></table:table-cell>'


def line(*cells: str, attributes: str = "") -> str:
    return f"<table:table-row{attributes}>{''.join(cells)}</table:table-row>"


def test_an_open_document_spreadsheet(read: Reader) -> None:
    empty = '<table:table-cell table:number-columns-repeated="3"/>'
    note = "<office:annotation><dc:creator>Ann</dc:creator><text:p>Why?</text:p></office:annotation>"
    body = table(
        line(cell("a<text:s text:c='2'/>b"), cell("x", ' table:number-columns-repeated="2"'), empty, cell("end")),
        line(cell("hidden"), attributes=' table:visibility="collapse"'),
        line(cell("noted", more=note), '<table:table-cell office:value-type="percentage" office:value="0.075"/>'),
        line('<table:table-cell table:formula="of:=[.A1]*2"/>',
             '<table:covered-table-cell office:value-type="string"><text:p>under</text:p></table:covered-table-cell>'),
        line(cell("<text:a xlink:href='https://example.org/'>site</text:a>"), attributes=' table:number-rows-repeated="2"'),
        line("<table:table-cell/>", attributes=' table:number-rows-repeated="1048000"'),
        before='<table:tracked-changes><table:table-row><table:table-cell><text:p>old</text:p></table:table-cell></table:table-row>'
        "</table:tracked-changes>",
    )  # fmt: skip
    styles = '<style:style style:name="h"><style:table-properties table:display="false"/></style:style>'
    body += table(line(cell("secret")), attributes=' table:style-name="h"').replace("Costs", "Lists")
    document = read(open_document("spreadsheet", body, styles), "b.ods")
    assert document.text.split("\n") == [
        "a b | x | x | end",
        "noted [Comment: Why?] | 7.5%",
        "=[.A1]*2",
        "site (https://example.org/)",
        "site (https://example.org/)",
    ]
    assert "1 hidden sheet was left out: Lists" in said(document) and "1 hidden row was left out (in Costs)" in said(
        document
    )
    assert "1 formula was read instead of its value" in said(document)


def test_a_protected_open_document_is_refused_in_one_line(read: Reader) -> None:
    manifest = {"META-INF/manifest.xml": "<manifest:manifest><manifest:encryption-data/></manifest:manifest>"}
    with pytest.raises(JambaError, match="is protected by a password"):
        read(open_document("spreadsheet", table(line(cell("x"))), more=manifest), "b.ods")


def test_one_workbook_in_the_formats_of_two_programs(tmp_path: Path, sandbox: Sandbox) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Costs"
    sheet.append(["Item", "Price", "Share", "Date", "Time", "Ok", "Code", "Twice", "Hidden"])
    for i in range(1, 7):
        when = datetime.datetime(2024, 2, i, 13, 30)
        sheet.append(
            [f"Item {i}", -1234.5 * i, i / 8, when, datetime.time(7, 5), i % 2 == 0, f"00{i}", f"=B{i + 1}*2", "x"]
        )
        sheet.cell(i + 1, 2).number_format = "#,##0.00_);(#,##0.00)"
        sheet.cell(i + 1, 3).number_format = "0.0%"
        sheet.cell(i + 1, 4).number_format = "dd.mm.yyyy hh:mm"
    sheet["A3"].comment = openpyxl.comments.Comment("Check this", "Ann")
    sheet["A4"].hyperlink = "https://example.org/x"
    sheet["B9"], sheet["C9"], sheet["D9"], sheet["E9"] = "=1/0", 12345.678, "two\nlines", 1.5
    sheet["C9"].number_format, sheet["E9"].number_format = "#,##0.00 [$€-407]", "[h]:mm"
    sheet.merge_cells("A11:C12")
    sheet["A11"] = "Merged"
    sheet.row_dimensions[5].hidden = True
    sheet.column_dimensions["I"].hidden = True
    book.create_sheet("Secret")["A1"] = "hidden text"
    book["Secret"].sheet_state = "hidden"
    path = tmp_path / "costs.xlsx"
    book.save(path)
    wanted = [
        "Item | Price | Share | Date | Time | Ok | Code | Twice",
        "Item 1 | (1,234.50) | 12.5% | 01.02.2024 13:30 | 7:05:00 | FALSE | 001 | -2469",
        "Item 2 [Comment: Check this] | (2,469.00) | 25.0% | 02.02.2024 13:30 | 7:05:00 | TRUE | 002 | -4938",
        "Item 3 (https://example.org/x) | (3,703.50) | 37.5% | 03.02.2024 13:30 | 7:05:00 | FALSE | 003 | -7407",
        "Item 5 | (6,172.50) | 62.5% | 05.02.2024 13:30 | 7:05:00 | FALSE | 005 | -12345",
        "Item 6 | (7,407.00) | 75.0% | 06.02.2024 13:30 | 7:05:00 | TRUE | 006 | -14814",
        "",
        " | #DIV/0! | 12,345.68 € | two lines | 36:00",
        "",
        "Merged",
    ]
    for kind in ("xls", "ods", "xlsx"):
        made = converted(path, kind)
        document = read_file(made, sandbox)
        assert document.text.split("\n") == wanted, kind
        for remark in (
            "1 hidden sheet was left out: Secret",
            "1 hidden row was",
            "1 hidden column was left out (in Costs)",
        ):
            assert remark in said(document), kind


HOSTILE: dict[str, tuple[bytes, str]] = {
    "entities.xlsx": (
        workbook({"A": "<sheetData/>"}, more={"workbook.xml": "<workbook/>"})[:0]
        + zipped({
            "[Content_Types].xml": "<Types/>",
            "xl/workbook.xml": '<!DOCTYPE w [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]><workbook>&b;</workbook>',
        }),
        "defines XML entities",
    ),
    "outside.ods": (
        zipped({
            "mimetype": "application/vnd.oasis.opendocument.spreadsheet",
            "content.xml": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        }),
        "defines XML entities",
    ),
    "empty.xlsb": (zipped({"xl/workbook.bin": b""}), "damaged|no text"),
    "none.xlsx": (zipped({"xl/workbook.xml": "<workbook/>"}), "without sheets"),
    "torn.xlsx": (workbook({"A": rows(["x"])})[:-30], "damaged"),
    "broken.xlsx": (workbook({"A": "<sheetData><row><c></row>"}), "damaged"),
    "old.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "old Office file, or a damaged one"),
    "locked.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "password"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_workbooks_are_refused_in_one_line(read: Reader, name: str) -> None:
    import re

    data, says = HOSTILE[name]
    with pytest.raises(JambaError) as failure:
        read(data, name)
    text = str(failure.value)
    assert re.search(says, text) and name in text and "\n" not in text and len(text) < 400


def test_millions_of_entries_are_counted_before_they_are_read(read: Reader) -> None:
    entry = b"PK\x01\x02" + bytes(24) + b"\x01\0" + bytes(16) + b"a"
    count = 1_500_000
    head = b"PK\x03\x04" + bytes(100)
    end = (
        b"PK\x05\x06"
        + bytes(4)
        + b"\xff\xff\xff\xff"
        + (len(entry) * count).to_bytes(4, "little")
        + len(head).to_bytes(4, "little")
    )
    data = head + entry * count + end + bytes(2)
    with pytest.raises(JambaError, match="holds more than 20,000 files"):
        read(data, "many.xlsx")
    few = (
        head
        + entry * 30_000
        + end[:8]
        + b"\x01\0\x01\0"
        + (len(entry) * 30_000).to_bytes(4, "little")
        + end[16:]
        + bytes(2)
    )
    with pytest.raises(JambaError, match="holds more than 20,000 files"):
        read(few, "lying.docx")


def test_a_sheet_of_gigabytes_is_refused(read: Reader, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in _members(workbook({"A": rows(["x"])})).items():
            if "sheet1" not in name:
                archive.writestr(name, content)
        with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as sheet:
            sheet.write(b"<worksheet><sheetData>")
            for _ in range(1100):
                sheet.write(b" " * (1 << 20))
    with pytest.raises(JambaError, match="a zip bomb, or too long to read"):
        read(path.read_bytes(), "bomb.xlsx")


def _members(data: bytes) -> dict[str, bytes]:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
