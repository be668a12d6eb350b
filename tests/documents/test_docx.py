"""Word documents read as Word shows them with all changes accepted, and what is left out is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract import formula
from jambacli.documents.extract.numerals import shown
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.document_files import paragraph, word_package


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


class Reader:
    """Reads a document of a body and further parts."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder, self.sandbox = folder, sandbox

    def document(self, body: str, parts: dict[str, str] | None = None, **options: object) -> Document:
        path = self.folder / "d.docx"
        path.write_bytes(word_package(body, parts, **options))  # type: ignore[arg-type]
        return read_file(path, self.sandbox)

    def __call__(self, body: str, parts: dict[str, str] | None = None, **options: object) -> str:
        return self.document(body, parts, **options).text


@pytest.fixture
def read(tmp_path: Path, sandbox: Sandbox) -> Reader:
    return Reader(tmp_path, sandbox)


def run(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*content: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(content)}</w:p>"


def numbered(text: str, level: int = 0, number: int = 1, properties: str = "") -> str:
    listed = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
    return p(run(text), properties=listed + properties)


def level(index: int, kind: str, text: str, more: str = "") -> str:
    start = "" if "<w:start " in more else '<w:start w:val="1"/>'
    return f'<w:lvl w:ilvl="{index}">{start}<w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/>{more}</w:lvl>'


def numbering(*levels: str, instances: str = "", more: str = "") -> dict[str, str]:
    first = '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
    abstract = f'<w:abstractNum w:abstractNumId="0">{more}{"".join(levels)}</w:abstractNum>'
    return {"numbering.xml": f"<w:numbering>{abstract}{first}{instances}</w:numbering>"}


def cell(*paragraphs: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{''.join(paragraphs)}</w:tc>"


def table(*rows: str) -> str:
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in rows)}</w:tbl>"


def box(*texts: str) -> str:
    inside = f"<w:txbxContent>{''.join(map(paragraph, texts))}</w:txbxContent>"
    choice = f"<w:drawing><wps:txbx>{inside}</wps:txbx></w:drawing>"
    fallback = f"<w:pict><v:textbox>{inside}</v:textbox></w:pict>"
    return (
        f'<w:r><mc:AlternateContent><mc:Choice Requires="wps">{choice}</mc:Choice>'
        f"<mc:Fallback>{fallback}</mc:Fallback></mc:AlternateContent></w:r>"
    )


def test_the_main_part_may_have_any_name_and_namespaces_be_strict(read: Reader) -> None:
    body, comment = paragraph("Herons.") + p('<w:r><w:commentReference w:id="0"/></w:r>'), paragraph("Why?")
    parts = {"comments.xml": f'<w:comments><w:comment w:id="0">{comment}</w:comment></w:comments>'}
    for main in ("word/document2.xml", "doc/Main Part.xml", "d.xml"):
        for strict in (False, True):
            assert read(body, parts, main=main, strict=strict) == "Herons.\n[Comment: Why?]"


@pytest.mark.parametrize("name", ["a.docm", "a.dotx", "a.dotm", "a.bin"])
def test_templates_and_documents_with_macros_are_word_documents(tmp_path: Path, sandbox: Sandbox, name: str) -> None:
    kind = "application/vnd.ms-word.document.macroEnabled.main+xml"
    path = tmp_path / name
    path.write_bytes(word_package(paragraph("Herons."), main="word/main.xml", content_type=kind))
    assert read_file(path, sandbox).text == "Herons."


def test_tracked_changes_read_as_accepted(read: Reader) -> None:
    mark = "<w:rPr><w:{} w:id='9'/></w:rPr>"
    body = p(run("Rent: "), f"<w:del>{run('900').replace('w:t', 'w:delText')}</w:del>", f"<w:ins>{run('950')}</w:ins>")
    body += p(f"<w:moveFrom>{run('Moved.')}</w:moveFrom>", properties=mark.format("moveFrom"))
    body += p(run("Stays."))
    body += p(f"<w:moveTo>{run('Moved.')}</w:moveTo>", properties=mark.format("ins"))
    body += p(run("One sentence "), properties=mark.format("del")) + p(run("in two paragraphs."))
    body += p(f"<w:del>{run('x')}<w:r><w:tab/><w:sym w:font='Symbol' w:char='F061'/></w:r></w:del>", run("End."))
    row = "<w:trPr><w:del w:id='3'/></w:trPr>" + cell(p(f"<w:del>{run('gone')}</w:del>"))
    body += table(row, cell(paragraph("kept")) + cell(paragraph("gone too"), properties="<w:cellDel w:id='1'/>"))
    body += p("<w:ins>" + run("Bold.", "<w:rPrChange><w:rPr><w:vanish/></w:rPr></w:rPrChange>") + "</w:ins>")
    document = read.document(body)
    lines = ["Rent: 950", "Stays.", "Moved.", "One sentence in two paragraphs.", "End.", "kept", "Bold."]
    assert document.text.split("\n") == lines
    assert "tracked deletions were left out" in document.remarks[0]


def test_a_deleted_paragraph_does_not_count(read: Reader) -> None:
    mark = "<w:rPr><w:del w:id='9'/></w:rPr>"
    parts = numbering(level(0, "decimal", "%1."))
    gone = (
        numbered("x", properties=mark).replace("<w:r>", "<w:del><w:r>").replace("</w:r></w:p>", "</w:r></w:del></w:p>")
    )
    assert read(numbered("one") + gone + numbered("two"), parts) == "1. one\n2. two"


def test_numbers_of_all_levels_restart_and_continue(read: Reader) -> None:
    levels = [
        level(0, "upperRoman", "Article %1"),
        level(1, "decimal", "%1.%2", "<w:isLgl/>"),
        level(2, "lowerLetter", "(%3)"),
        level(3, "lowerRoman", "%4)", '<w:suff w:val="nothing"/>'),
        level(4, "decimalZero", "%5", '<w:lvlRestart w:val="0"/>'),
        level(5, "ordinal", "%6", '<w:lvlRestart w:val="1"/>'),
    ]
    shape = [(0, "Article I"), (1, "1.1"), (2, "(a)"), (2, "(b)"), (3, "i)"), (4, "01"), (5, "1st"), (0, "Article II"),
             (1, "2.1"),
             (1, "2.2"), (4, "02"), (5, "1st"), (1, "2.3"), (5, "2nd"), (2, "(a)"), (3, "i)"), (3, "ii)")]  # fmt: skip
    body = "".join(numbered(f"t{i}", depth) for i, (depth, _) in enumerate(shape))
    wanted = [f"{label}{'' if depth == 3 else ' '}t{i}" for i, (depth, label) in enumerate(shape)]
    assert read(body, numbering(*levels)).split("\n") == wanted


def test_lists_share_numbers_unless_they_start_again(read: Reader) -> None:
    again = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="{}"/></w:lvlOverride>'
    num = '<w:num w:numId="{}"><w:abstractNumId w:val="0"/>{}</w:num>'
    own = '<w:lvlOverride w:ilvl="0">' + level(0, "upperLetter", "%1:", '<w:start w:val="3"/>') + "</w:lvlOverride>"
    instances = num.format(2, "") + num.format(3, again.format(7)) + num.format(4, again.format(1) + own)
    body = "".join(numbered("x", 0, n) for n in (1, 1, 2, 3, 3, 1, 4, 4, 0, 99))
    wanted = ["1. x", "2. x", "3. x", "7. x", "8. x", "9. x", "A: x", "B: x", "x", "x"]
    assert read(body, numbering(level(0, "decimal", "%1."), instances=instances)).split("\n") == wanted


def test_styles_number_their_paragraphs(read: Reader) -> None:
    def style(key: str, inside: str) -> str:
        return f'<w:style w:type="paragraph" w:styleId="{key}">{inside}</w:style>'

    number = '<w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr>'
    second = '<w:pPr><w:numPr><w:ilvl w:val="1"/></w:numPr></w:pPr>'
    styles = style("H1", number) + style("H2", '<w:basedOn w:val="H1"/>' + second) + style("Clause", number)
    styles += style("Loop", '<w:basedOn w:val="Loop"/>')
    levels = [level(0, "decimal", "%1", '<w:pStyle w:val="H1"/>'), level(1, "decimal", "%1.%2")]
    levels += [level(2, "lowerLetter", "(%3)", '<w:pStyle w:val="Clause"/>')]
    off = '<w:numPr><w:numId w:val="0"/></w:numPr>'
    body = "".join(
        p(run(k), properties=f'<w:pStyle w:val="{k}"/>') for k in ("H1", "H2", "Clause", "Clause", "H2", "Loop")
    )
    body += p(run("plain"), properties=f'<w:pStyle w:val="H1"/>{off}')
    text = read(body, {**numbering(*levels), "styles.xml": f"<w:styles>{styles}</w:styles>"})
    assert text.split("\n") == ["1 H1", "1.1 H2", "(a) Clause", "(b) Clause", "1.2 H2", "Loop", "plain"]


def test_bullets_and_numbers_in_cells(read: Reader) -> None:
    fonts = '<w:rPr><w:rFonts w:ascii="Wingdings"/></w:rPr>'
    levels = (level(0, "bullet", "\uf0b7"), level(1, "bullet", "o"), level(2, "bullet", "\uf0a8", fonts))
    decimal = '<w:abstractNum w:abstractNumId="1">' + level(0, "decimal", "%1)") + "</w:abstractNum>"
    parts = numbering(*levels, instances='<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>')
    parts["numbering.xml"] = parts["numbering.xml"].replace("<w:num ", decimal + "<w:num ", 1)
    body = numbered("a") + numbered("b", 1) + numbered("c", 2)
    body += table(cell(numbered("x", 0, 2)) + cell(numbered("y", 0, 2), numbered("z", 0, 2)))
    assert read(body, parts).split("\n") == ["- a", "  - b", "☐ c", "1) x | 2) y 3) z"]


@pytest.mark.parametrize(
    ("kind", "number", "text"),
    [
        ("lowerLetter", 27, "aa"), ("upperLetter", 53, "AAA"), ("upperRoman", 1994, "MCMXCIV"), ("ordinal", 112, "112th"),
        ("cardinalText", 42, "Forty-two"), ("ordinalText", 30, "Thirtieth"), ("ordinalText", 21, "Twenty-first"),
        ("decimalEnclosedCircle", 3, "③"), ("chineseCounting", 21, "二十一"), ("russianLower", 2, "б"), ("chicago", 6, "††"),
        ("numberInDash", 4, "- 4 -"), ("unheardOf", 9, "9"),
    ],
)  # fmt: skip
def test_formats_of_numbers(kind: str, number: int, text: str) -> None:
    assert shown(number, kind) == text


def test_text_boxes_are_lines_of_their_own_once(read: Reader) -> None:
    assert read(p(run("Before."), box("One", "Two"), run("After."))) == "Before.\nOne\nTwo\nAfter."
    assert read(p(run("The rent "), box("Box"), run("is 900."))) == "The rent is 900.\nBox"
    assert read(p(box("Box"), run("Text."))) == "Box\nText."
    cells = cell(p(run("Name"), box("One", "Two"))) + cell(paragraph("Ada"))
    assert read(table(cells, cell(paragraph("x")) + cell(paragraph("y")))) == "Name | Ada\nOne\nTwo\nx | y"
    only = "<w:r><mc:AlternateContent><mc:Fallback><w:t>old</w:t></mc:Fallback></mc:AlternateContent></w:r>"
    empty = only.replace("<mc:Fallback>", '<mc:Choice Requires="x"/><mc:Fallback>')
    assert read(p(only)) == "old" and read(p(empty)) == "old"


def test_a_table_in_a_text_box_and_a_box_in_a_box(read: Reader) -> None:
    inner = table(cell(paragraph("a")) + cell(paragraph("b")))
    nested = f"<w:r><w:txbxContent>{inner}{p(run('out'), box('in'))}</w:txbxContent></w:r>"
    assert read(p(run("T."), nested)) == "T.\na | b\nout\nin"


def test_formulas_are_text(read: Reader) -> None:
    def r(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    fraction = f"<m:f><m:num>{r('a+b')}</m:num><m:den>{r('2')}</m:den></m:f>"
    power = f"<m:sSup><m:e>{r('x')}</m:e><m:sup>{r('n-1')}</m:sup></m:sSup>"
    root = f"<m:rad><m:radPr><m:degHide m:val='1'/></m:radPr><m:deg/><m:e>{r('x')}</m:e></m:rad>"
    limits = f"<m:sub>{r('i=1')}</m:sub><m:sup>{r('n')}</m:sup><m:e>{r('i')}</m:e>"
    total = f"<m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr>{limits}</m:nary>"
    bracket = (
        f"<m:d><m:dPr><m:begChr m:val='['/><m:endChr m:val=']'/></m:dPr><m:e>{r('0')}</m:e><m:e>{r('1')}</m:e></m:d>"
    )
    cases = [
        (r("f=0.05x+12"), "f = 0.05x + 12"),
        (r("y=") + fraction, "y = (a + b)/2"),
        (power, "x^(n - 1)"),
        (root, "√(x)"),
        (total, "∑_(i = 1)^n i"),
        (bracket, "[0 | 1]"),
        (r("-x=-1"), "-x = -1"),
        (f"<m:func><m:fName>{r('sin')}</m:fName><m:e>{r('x')}</m:e></m:func>", "sin x"),
        ("<m:r><m:rPr><m:nor/></m:rPr><m:t>non-linear</m:t></m:r>", "non-linear"),
    ]
    for xml, text in cases:
        assert read(p(run("Is "), f"<m:oMath>{xml}</m:oMath>", run("."))) == f"Is {text}."
        assert read(p(f"<m:oMathPara><m:oMath>{xml}</m:oMath></m:oMathPara>"), strict=True) == text
    assert formula.element("m", [("mr", "a, b"), ("mr", "c, d")]) == "a, b; c, d"


def test_forms_show_what_was_chosen(read: Reader) -> None:
    def field(code: str, data: str, result: str = "") -> str:
        end = f'<w:r><w:fldChar w:fldCharType="separate"/></w:r>{result}<w:r><w:fldChar w:fldCharType="end"/></w:r>'
        begin = f'<w:r><w:fldChar w:fldCharType="begin"><w:ffData>{data}</w:ffData></w:fldChar></w:r>'
        return f"{begin}<w:r><w:instrText> {code} </w:instrText></w:r>{end}"

    def control(properties: str, content: str = "") -> str:
        return f"<w:sdt><w:sdtPr>{properties}</w:sdtPr><w:sdtContent>{content}</w:sdtContent></w:sdt>"

    def checkbox(state: str) -> str:
        return field("FORMCHECKBOX", f"<w:checkBox>{state}</w:checkBox>")

    entries = '<w:listEntry w:val="red"/><w:listEntry w:val="green"/>'
    items = '<w:listItem w:displayText="Blue" w:value="b"/>'
    cases = [
        (checkbox("<w:default w:val='1'/>"), "☒"),
        (checkbox("<w:default w:val='1'/><w:checked w:val='0'/>"), "☐"),
        (checkbox("<w:checked/>"), "☒"),
        (field("FORMDROPDOWN", f'<w:ddList><w:result w:val="1"/>{entries}</w:ddList>'), "green"),
        (field("FORMDROPDOWN", f"<w:ddList>{entries}</w:ddList>"), "red"),
        (field("FORMTEXT", "<w:textInput/>", run("Ada")), "Ada"),
        (control('<w14:checkbox><w14:checked w14:val="0"/></w14:checkbox>', run("☐")), "☐"),
        (control('<w14:checkbox><w14:checked w14:val="1"/></w14:checkbox>'), "☒"),
        (control(f'<w:dropDownList w:lastValue="b">{items}</w:dropDownList>', run("Blue")), "Blue"),
        (control(f'<w:dropDownList w:lastValue="b">{items}</w:dropDownList>'), "Blue"),
        (control('<w:date w:fullDate="2026-05-03T00:00:00Z"/>'), "2026-05-03"),
    ]
    for xml, text in cases:
        assert read(p(run("Is "), xml, run("."))) == f"Is {text}."


def test_fields_show_results_not_codes(read: Reader) -> None:
    def char(kind: str) -> str:
        return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

    inner = (
        char("begin") + "<w:r><w:instrText>MERGEFIELD x</w:instrText></w:r>" + char("separate") + run("5") + char("end")
    )
    outer = (
        char("begin")
        + "<w:r><w:instrText>IF </w:instrText></w:r>"
        + inner
        + char("separate")
        + run("five")
        + char("end")
    )
    assert read(p(run("It is "), outer, run("."))) == "It is five."
    assert read(p('<w:fldSimple w:instr="DATE">' + run("3 May") + "</w:fldSimple>")) == "3 May"
    assert read(p(char("begin"), run("no field at all"))) == "no field at all"
    listnum = char("begin") + "<w:r><w:instrText>LISTNUM</w:instrText></w:r>" + char("end")
    document = read.document(p(listnum, run("Text.")))
    assert document.text == "Text." and "1 automatic number was left out" in document.remarks[0]


def test_headers_footers_comments_and_notes(read: Reader) -> None:
    def header(text: str, tag: str = "hdr") -> str:
        return f"<w:{tag}>{paragraph(text)}</w:{tag}>"

    first = '<w:headerReference w:type="default" r:id="rheader1"/><w:headerReference w:type="first" r:id="rheader2"/>'
    again = '<w:headerReference w:type="default" r:id="rheader3"/><w:footerReference w:type="default" r:id="rfooter1"/>'
    old = '<w:sectPrChange><w:sectPr><w:headerReference w:type="default" r:id="rheader2"/></w:sectPr></w:sectPrChange>'
    reference = '<w:r><w:{0} w:id="1"/></w:r>'
    body = p(run("One"), reference.format("commentReference"), run("."), reference.format("footnoteReference"))
    body += (
        p(run("Two."), properties=f"<w:sectPr>{first}{old}</w:sectPr>")
        + p(run("Three."))
        + f"<w:sectPr>{again}</w:sectPr>"
    )
    parts = {
        "header1.xml": header("Contract 1"),
        "header2.xml": header("never shown"),
        "header3.xml": header("Contract 1"),
    }
    parts["footer1.xml"] = header("Draft", "ftr")
    comment = f'<w:comment w:id="1" w:author="Bo">{paragraph("Right?")}{paragraph("Ask.")}</w:comment>'
    parts["comments.xml"] = f'<w:comments>{comment}<w:comment w:id="2">{paragraph("Lost.")}</w:comment></w:comments>'
    parts["footnotes.xml"] = (
        f'<w:footnotes><w:footnote w:id="1">{p(run("See "), box("box"))}</w:footnote></w:footnotes>'
    )
    wanted = (
        "Header: Contract 1\nOne [Comment by Bo: Right? Ask.]. [See box]\nTwo.\nThree.\nFooter: Draft\n[Comment: Lost.]"
    )
    assert read(body, parts) == wanted
    shown_first = body.replace("<w:sectPr><w:headerReference", "<w:sectPr><w:titlePg/><w:headerReference", 1)
    assert read(shown_first, parts).startswith("Header: never shown\nHeader: Contract 1\nOne")


def test_hidden_text_is_left_out_and_said(read: Reader) -> None:
    styles = '<w:style w:type="character" w:styleId="Hid"><w:rPr><w:vanish/></w:rPr></w:style>'
    body = p(run("Seen."), run(" IGNORE ALL", "<w:vanish/>"), run(" also", '<w:rStyle w:val="Hid"/>'))
    body += p(run("gone entirely", "<w:vanish/>"), properties="<w:rPr><w:vanish/></w:rPr>")
    body += p(run("shown", '<w:vanish w:val="0"/>'))
    body += p(run("Heading."), properties="<w:rPr><w:vanish/><w:specVanish/></w:rPr>") + p(run("Text."))
    document = read.document(body, {"styles.xml": f"<w:styles>{styles}</w:styles>"})
    assert document.text == "Seen.\nshown\nHeading. Text."
    assert "5 hidden words were left out" in document.remarks[0]


def test_symbols_tabs_breaks_and_shifted_text(read: Reader) -> None:
    def sym(font: str, code: str) -> str:
        return f'<w:r><w:sym w:font="{font}" w:char="{code}"/></w:r>'

    assert (
        read(p(sym("Wingdings", "F0FE"), sym("Symbol", "F061"), sym("Symbol", "F0B3"), sym("MS Gothic", "2612")))
        == "☑α≥☒"
    )
    assert read(p(run("\uf0b7 a \uf0a3 b", '<w:rFonts w:ascii="Symbol"/>'))) == "• α ≤ β"
    assert "1 symbol was read as U+FFFD" in read.document(p(sym("Odd", "F0AA"), run("x"))).remarks[0]
    stops = '<w:tabs><w:tab w:val="left" w:pos="10"/></w:tabs>'
    assert read(p(run("a"), "<w:r><w:tab/><w:br/><w:softHyphen/></w:r>", run("b"), properties=stops)) == "a\t\nb"
    up, down = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'
    assert read(p(run("x"), run("2", up), run(" H"), run("2", down), run("O 1"), run("st", up))) == "x² H₂O 1st"
    struck = "<w:strike/>"
    assert (
        read(p(run("Rent: "), run("9", struck), run("00 ", struck), run("950", '<w:strike w:val="0"/>')))
        == "Rent: ~~900~~ 950"
    )
    ruby = f"<w:r><w:ruby><w:rt>{run('かんじ')}</w:rt><w:rubyBase>{run('漢字')}</w:rubyBase></w:ruby></w:r>"
    assert read(p(ruby)) == "漢字(かんじ)"


def test_nested_tables_and_merged_cells_keep_the_columns(read: Reader) -> None:
    inner = table(cell(paragraph("a")) + cell(paragraph("b")), cell(paragraph("c")) + cell(paragraph("d")))
    assert read(table(cell(paragraph("L")) + cell(inner, p()) + cell(paragraph("R")))) == "L | a b; c d | R"
    wide = cell(paragraph("Total"), properties='<w:gridSpan w:val="2"/>') + cell(paragraph("9"))
    below = cell(p(), properties="<w:vMerge/>") + cell(paragraph("x")) + cell(paragraph("y"))
    assert read(table(wide, below)) == "Total |  | 9\n | x | y"
    assert read(table(cell(paragraph("One box,"), paragraph("two lines.")))) == "One box,\ntwo lines."


def test_pictures_objects_and_embedded_files_are_said(read: Reader) -> None:
    picture = '<w:drawing><wp:docPr descr="A heron"/><pic:pic/></w:drawing>'
    body = p(run("See"), f"<w:r>{picture}</w:r>") + p("<w:r><w:object><o:OLEObject/></w:object></w:r>")
    document = read.document(body + '<w:altChunk r:id="rafchunk"/>', {"afchunk.html": "<p>text"})
    assert document.text == "See [A heron]"
    for what in ("1 picture was", "1 embedded object was", "1 embedded document was"):
        assert any(what in remark for remark in document.remarks)


def test_charts_and_smartart_are_lines(read: Reader) -> None:
    def values(tag: str, *texts: str) -> str:
        return f"<c:{tag}><c:v>{'</c:v><c:v>'.join(texts)}</c:v></c:{tag}>"

    series = f"<c:ser>{values('tx', 'Rent')}{values('cat', 'May', 'June')}{values('val', '900', '950')}</c:ser>"
    chart = f"<c:chartSpace><c:title><a:t>Costs</a:t></c:title>{series}</c:chartSpace>"
    data = "<dgm:dataModel><dgm:pt><a:t>Plan</a:t></dgm:pt><dgm:pt type='pres'><a:t>x</a:t></dgm:pt></dgm:dataModel>"
    body = p('<w:r><w:drawing><c:chart r:id="rchart1"/></w:drawing></w:r>')
    body += p('<w:r><w:drawing><dgm:relIds r:dm="rdata1"/></w:drawing></w:r>')
    assert read(body, {"chart1.xml": chart, "data1.xml": data}) == "[Chart: Costs]\nRent: May: 900, June: 950\nPlan"


def test_pages_are_not_counted_twice_where_word_wrote_both_breaks(read: Reader) -> None:
    hard, soft = '<w:r><w:br w:type="page"/></w:r>', "<w:r><w:lastRenderedPageBreak/></w:r>"
    document = read.document(
        p(run("One."), hard) + p(soft, run("Two.")) + p(soft, run("Three.")) + p(hard) + p(run("Four."))
    )
    assert [(part.first, part.text) for part in document.parts] == [
        (1, "One."),
        (2, "Two."),
        (3, "Three."),
        (4, "Four."),
    ]


HOSTILE = {
    "deep tables": "<w:tbl><w:tr><w:tc>" * 20_000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 20_000,
    "deep boxes": "<w:p><w:r><w:txbxContent>" * 20_000 + paragraph("x") + "</w:txbxContent></w:r></w:p>" * 20_000,
    "deep formula": "<w:p><m:oMath>" + "<m:e>" * 50_000 + "<m:t>x</m:t>" + "</m:e>" * 50_000 + "</m:oMath></w:p>",
    "ends only": "<w:p><w:r><w:fldChar w:fldCharType='end'/><w:fldChar w:fldCharType='separate'/><w:t>x</w:t></w:r></w:p>",
    "stray cell": f"<w:tc>{paragraph('x')}</w:tc>",
    "wide cell": table(cell(paragraph("x"), properties="<w:gridSpan w:val='99999999'/>") + cell(paragraph("y"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_odd_structures_are_read_without_recursion(read: Reader, name: str) -> None:
    assert "x" in read(HOSTILE[name])


def test_notes_that_multiply_are_refused(read: Reader) -> None:
    note = f'<w:footnotes><w:footnote w:id="1">{paragraph("a" * 900)}</w:footnote></w:footnotes>'
    body = p('<w:r><w:footnoteReference w:id="1"/></w:r>' * 80_000)
    with pytest.raises(JambaError, match="more than 64 MB of text"):
        read(body, {"footnotes.xml": note})
