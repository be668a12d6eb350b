"""Presentations read by slide in the order in which they are shown, and what is left out is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract.reading_order import Box, in_reading_order
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.office_files import converted, open_document, part, presentation, relations, shape, zipped

pptx = pytest.importorskip("pptx")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


class Reader:
    """Reads a file of these bytes."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder, self.sandbox = folder, sandbox

    def __call__(self, data: bytes, name: str = "d.pptx") -> Document:
        path = self.folder / name
        path.write_bytes(data)
        return read_file(path, self.sandbox)


@pytest.fixture
def read(tmp_path: Path, sandbox: Sandbox) -> Reader:
    return Reader(tmp_path, sandbox)


def said(document: Document) -> str:
    return " / ".join(document.remarks)


def texts(document: Document) -> list[list[str]]:
    return [p.text.split("\n") for p in document.parts]


@pytest.mark.parametrize("strict", [False, True])
def test_slides_are_in_the_order_in_which_they_are_shown(read: Reader, strict: bool) -> None:
    slides = [shape(f"Slide in file {n}", holder="title") for n in (1, 2, 3)]
    document = read(presentation(slides, order=[3, 1, 2], hidden=frozenset((1,)), strict=strict))
    assert document.unit == "slide"
    assert [(p.first, p.label) for p in document.parts] == [(1, "Slide in file 3"), (3, "Slide in file 2")]
    assert document.title(document.parts[1]).endswith("d.pptx, slide 3 (Slide in file 2)")
    assert "1 hidden slide was left out: 2" in said(document)


def test_the_title_comes_first_then_the_shapes_by_their_places(read: Reader) -> None:
    body = (
        shape("right", at=(600, 200, 300, 300))
        + shape("left, first line", "left, second line", at=(100, 210, 300, 300))
        + shape("below", at=(100, 600, 800, 100))
        + shape("no place")
        + shape("The title", at=(100, 700, 800, 50), holder="title")
        + shape("unseen", at=(0, 0, 10, 10), hidden=True)
    )
    document = read(presentation([body]))
    assert texts(document) == [["The title", "no place", "left, first line", "left, second line", "right", "below"]]
    assert "1 hidden shape was left out" in said(document)


def test_placeholders_without_a_place_have_that_of_their_layout_or_master(read: Reader) -> None:
    layout = shape("Click to edit", at=(500, 300, 300, 100), holder="body", index="2") + shape(
        "x", holder="body", index="3"
    )
    master = shape("Click", at=(0, 500, 900, 100), holder="body", index="1")
    slide = (
        shape("last, by the master", holder="subTitle", index="9")
        + shape("second, by the layout", holder="body", index="2")
        + shape("first", at=(100, 100, 300, 100))
    )
    document = read(presentation([slide], layout=layout, master=master))
    assert texts(document) == [["first", "second, by the layout", "last, by the master"]]


def test_footers_and_layouts_are_read_once_and_numbers_not(read: Reader) -> None:
    slides = [
        shape(f"Slide {n}", holder="title")
        + shape("Herons Ltd.", holder="ftr", index="11")
        + shape(f'<a:p><a:fld type="slidenum"><a:t>{n}</a:t></a:fld></a:p>', holder="sldNum", index="12")
        + shape("1 May 2024", holder="dt", index="10")
        for n in (1, 2)
    ]
    document = read(presentation(slides, layout=shape("CONFIDENTIAL") + shape("Click to edit", holder="title")))
    assert texts(document) == [
        ["Slide 1", "Footer: Herons Ltd.", "Date: 1 May 2024", "Layout: CONFIDENTIAL"],
        ["Slide 2"],
    ]


def test_paragraphs_lists_fields_breaks_and_formulas(read: Reader) -> None:
    number = '<a:pPr{}><a:buAutoNum type="{}"/></a:pPr>'
    run = "<a:r><a:t>{}</a:t></a:r>"

    def listed(kind: str, text: str, level: str = "") -> str:
        return f"<a:p>{number.format(level, kind)}{run.format(text)}</a:p>"

    formula = (
        "<a:p><mc:AlternateContent><mc:Choice Requires='a14'><a14:m><m:oMathPara><m:oMath><m:r><m:t>y=</m:t></m:r>"
        "<m:f><m:num><m:r>"
        "<m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den></m:f></m:oMath></m:oMathPara></a14:m></mc:Choice>"
        "<mc:Fallback><a:r><a:t> </a:t></a:r></mc:Fallback></mc:AlternateContent></a:p>"
    )
    body = shape(
        listed("arabicPeriod", "one"),
        listed("alphaLcParenR", "inner", ' lvl="1"'),
        listed("alphaLcParenR", "inner", ' lvl="1"'),
        listed("arabicPeriod", "two"),
        listed("romanUcPeriod", "new"),
        '<a:p><a:pPr><a:buChar char="•"/></a:pPr><a:r><a:t>point</a:t></a:r></a:p>',
        "<a:p><a:r><a:t>line</a:t></a:r><a:br/><a:r><a:t>break </a:t></a:r>"
        "<a:fld type='datetime1'><a:t>5/1/2024</a:t></a:fld></a:p>",
        formula,
    )
    assert texts(read(presentation([body]))) == [
        ["1. one", "  a) inner", "  b) inner", "2. two", "I. new", "- point", "line", "break 5/1/2024", "y = a/b"]
    ]


def test_tables_charts_diagrams_groups_pictures_and_objects(read: Reader) -> None:
    def frame(inside: str, y: int) -> str:
        return (
            f'<p:graphicFrame><p:nvGraphicFramePr><p:cNvPr id="1" name="f"/><p:nvPr/></p:nvGraphicFramePr>'
            f'<p:xfrm><a:off x="0" y="{y}"/>'
            f'<a:ext cx="500" cy="90"/></p:xfrm><a:graphic><a:graphicData>{inside}</a:graphicData></a:graphic></p:graphicFrame>'
        )

    def cell(text: str, attributes: str = "") -> str:
        return f"<a:tc{attributes}><a:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></a:txBody></a:tc>"

    merged = cell("Both", ' gridSpan="2"') + cell("", ' hMerge="1"') + cell("end")
    table = f"<a:tbl><a:tr>{cell('A')}{cell('B')}{cell('C')}</a:tr><a:tr>{merged}</a:tr></a:tbl>"
    group = (
        '<p:grpSp><p:nvGrpSpPr><p:cNvPr id="5" name="g"/></p:nvGrpSpPr>'
        '<p:grpSpPr><a:xfrm><a:off x="0" y="400"/><a:ext cx="9" cy="9"/>'
        f"</a:xfrm></p:grpSpPr>{shape('in group, right', at=(500, 0, 90, 90))}"
        f"{shape('in group, left', at=(0, 0, 90, 90))}</p:grpSp>"
    )
    picture = (
        '<p:pic><p:nvPicPr><p:cNvPr id="6" name="p"{}/><p:nvPr>{}</p:nvPr></p:nvPicPr><p:spPr><a:xfrm><a:off x="0" y="900"/>'
        '<a:ext cx="9" cy="9"/></a:xfrm></p:spPr></p:pic>'
    )
    slide = (
        frame('<c:chart r:id="c1"/>', 200)
        + frame(table, 100)
        + frame('<dgm:relIds r:dm="d1"/>', 300)
        + group
        + picture.format(' descr="A heron at dawn"', "")
        + picture.format("", "")
        + picture.format("", '<a:videoFile r:link="v1"/>')
        + frame('<p:oleObj progId="Excel.Sheet.12"/>', 990)
    )
    chart = (
        "<c:chartSpace><c:title><c:tx><a:t>Rain</a:t></c:tx></c:title><c:ser><c:tx><c:v>North</c:v></c:tx>"
        "<c:cat><c:v>May</c:v></c:cat>"
        "<c:val><c:v>12</c:v></c:val></c:ser></c:chartSpace>"
    )
    diagram = "<dgm:dataModel><dgm:ptLst>"
    diagram += "<dgm:pt><dgm:t><a:p><a:r><a:t>Plan</a:t></a:r></a:p></dgm:t></dgm:pt></dgm:ptLst></dgm:dataModel>"
    document = read(
        presentation(
            [slide],
            related={1: {"c1": ("chart", "../charts/c.xml"), "d1": ("diagramData", "../diagrams/d.xml"),
                         "v1": ("video", "https://example.org/v.mp4")}},
            more={"charts/c.xml": chart, "diagrams/d.xml": diagram},
        )
    )  # fmt: skip
    assert texts(document) == [
        ["A | B | C", "Both |  | end", "[Chart: Rain]", "North: May: 12", "Plan",
         "in group, left", "in group, right", "[A heron at dawn]"]
    ]  # fmt: skip
    for remark in ("1 picture was left out", "1 video or sound was left out", "1 embedded object was left out"):
        assert remark in said(document)


def test_notes_and_comments(read: Reader) -> None:
    notes = f"<p:notes><p:cSld><p:spTree>{shape('Breathe.', 'Then go on.', holder='body', index='1')}"
    notes += f"{shape('7', holder='sldNum', index='2')}</p:spTree></p:cSld></p:notes>"
    older = "<p:cmLst><p:cm authorId='0'><p:text>Too long?</p:text></p:cm></p:cmLst>"
    newer = (
        "<p188:cmLst><p188:cm><p188:txBody><a:p><a:r><a:t>No.</a:t></a:r></a:p></p188:txBody></p188:cm></p188:cmLst>"
    )
    related = {
        "n1": ("notesSlide", "../notesSlides/n1.xml"),
        "c1": ("comments", "../c1.xml"),
        "c2": ("comments", "../c2.xml"),
    }
    document = read(
        presentation([shape("Title", holder="title")], related={1: related},
                     more={"notesSlides/n1.xml": notes, "c1.xml": older, "c2.xml": newer})
    )  # fmt: skip
    assert texts(document) == [
        ["Title", "", "Notes: Breathe.", "Then go on.", "[Comment: Too long?]", "[Comment: No.]"]
    ]


def test_the_order_of_boxes() -> None:
    grid = {f"{r}{c}": Box(100 * c, 100 * r, 100 * c + 90, 100 * r + 95) for r in range(3) for c in range(3)}
    names = sorted(grid, reverse=True)
    assert in_reading_order(names, lambda n: grid[n]) == sorted(grid)
    columns = {"a": Box(0, 0, 40, 100), "b1": Box(50, 0, 90, 45), "b2": Box(52, 50, 95, 100)}
    assert in_reading_order(["b2", "b1", "a"], lambda n: columns[n]) == ["a", "b1", "b2"]
    same = {n: Box(0, 0, 10, 10) for n in range(200)}
    assert len(in_reading_order(list(same), lambda n: same[n])) == 200


def page(name: str, *shapes: str, attributes: str = "") -> str:
    return f'<draw:page draw:name="{name}"{attributes}>{"".join(shapes)}</draw:page>'


def box(text: str, y: float, role: str = "", x: float = 1.0) -> str:
    kind = f' presentation:class="{role}"' if role else ""
    return (
        f'<draw:frame{kind} svg:x="{x}cm" svg:y="{y}cm" svg:width="5cm" svg:height="2cm"><draw:text-box><text:p>{text}</text:p>'
        "</draw:text-box></draw:frame>"
    )


def test_an_open_document_presentation(read: Reader) -> None:
    styles = (
        '<style:style style:name="hide" style:family="drawing-page">'
        '<style:drawing-page-properties presentation:visibility="hidden"/>'
        '</style:style><style:style style:name="show">'
        '<style:drawing-page-properties presentation:display-footer="true"/></style:style>'
    )
    items = "<text:list><text:list-item><text:p>one</text:p>"
    items += "<text:list><text:list-item><text:p>inner</text:p></text:list-item></text:list>"
    lists = box("x", 6, "outline").replace("<text:p>x</text:p>", f"{items}</text:list-item></text:list>")
    chart = '<draw:frame svg:x="1cm" svg:y="9cm"><draw:object xlink:href="./Object 1"/><draw:image/></draw:frame>'
    picture = '<draw:frame svg:x="1cm" svg:y="11cm"><draw:image/>{}</draw:frame>'
    notes = f"<presentation:notes><draw:page-thumbnail/>{box('Breathe.', 15, 'notes')}</presentation:notes>"
    body = (
        '<presentation:footer-decl presentation:name="f1">Herons Ltd.</presentation:footer-decl>'
        + page("p1", box("right", 3, x=9), box("left", 3), lists, box("The title", 12, "title"), chart,
               picture.format("<svg:desc>A heron</svg:desc>"), picture.format(""), notes,
               "<office:annotation><dc:creator>Ann</dc:creator><text:p>Why?</text:p></office:annotation>",
               attributes=' draw:style-name="show" presentation:use-footer-name="f1" draw:master-page-name="m"')
        + page("p2", box("secret", 3), attributes=' draw:style-name="hide"')
        + page("p3", box("Last", 3, "title"),
               attributes=' draw:style-name="show" presentation:use-footer-name="f1" draw:master-page-name="m"')
    )  # fmt: skip
    table = "<table:table><table:table-row>{}</table:table-row><table:table-row>{}</table:table-row></table:table>"
    cells = [
        "".join(f"<table:table-cell><text:p>{t}</text:p></table:table-cell>" for t in r)
        for r in (["", "North"], ["May", "12"])
    ]
    more = {
        "Object 1/content.xml": "<chart:chart><chart:title><text:p>Rain</text:p></chart:title>"
        f"{table.format(*cells)}</chart:chart>",
        "styles.xml": '<style:master-page style:name="m">'
        f"{box('CONFIDENTIAL', 18)}{box('Click', 2, 'title')}</style:master-page>",
    }
    document = read(open_document("presentation", body, styles, more), "d.odp")
    assert [(p.first, p.label) for p in document.parts] == [(1, "The title"), (3, "Last")]
    assert texts(document) == [
        ["The title", "left", "right", "one", "  inner", "[Chart: Rain]", "North: May: 12", "[A heron]", "Footer: Herons Ltd.",
         "Layout: CONFIDENTIAL", "", "Notes: Breathe.", "[Comment: Why?]"],
        ["Last"],
    ]  # fmt: skip
    assert "1 hidden slide was left out: 2" in said(document) and "1 picture was left out" in said(document)


def test_one_presentation_in_the_formats_of_two_programs(tmp_path: Path, sandbox: Sandbox) -> None:
    from pptx.util import Cm

    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[0])
    first.shapes.title.text, first.placeholders[1].text = "Rainfall in 2024", "A report of the herons"
    second = deck.slides.add_slide(deck.slide_layouts[3])
    second.shapes.title.text = "Two columns"
    second.placeholders[2].text, second.placeholders[1].text = "on the right", "on the left"
    second.notes_slide.notes_text_frame.text = "Speak slowly."
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "A table"
    grid = third.shapes.add_table(2, 2, Cm(2), Cm(5), Cm(10), Cm(3)).table
    for row, column, text in ((0, 0, "Month"), (0, 1, "Rain"), (1, 0, "May"), (1, 1, "12 mm")):
        grid.cell(row, column).text = text
    fourth = deck.slides.add_slide(deck.slide_layouts[5])
    fourth.shapes.title.text = "Not shown"
    fourth._element.set("show", "0")
    path = tmp_path / "rain.pptx"
    deck.save(path)
    wanted = [
        ["Rainfall in 2024", "A report of the herons"],
        ["Two columns", "on the left", "on the right", "", "Notes: Speak slowly."],
        ["A table", "Month | Rain", "May | 12 mm"],
    ]
    for made in (path, converted(path, "odp"), converted(path, "pptx")):
        document = read_file(made, sandbox)
        assert [[line.strip(" -") for line in slide] for slide in texts(document)] == wanted, made.suffix
        assert [p.label for p in document.parts] == ["Rainfall in 2024", "Two columns", "A table"]
        assert "1 hidden slide was left out: 4" in said(document)


HOSTILE = {
    "entities.pptx": (
        zipped({"[Content_Types].xml": "<Types/>", "ppt/presentation.xml": '<!DOCTYPE p [<!ENTITY a "a">]><p>&a;</p>'}),
        "defines XML entities",
    ),
    "none.pptx": (zipped({"ppt/presentation.xml": "<presentation/>"}), "contains no text"),
    "gone.pptx": (
        zipped(
            {
                "ppt/presentation.xml": part(
                    '<p:presentation><p:sldIdLst><p:sldId r:id="s1"/></p:sldIdLst></p:presentation>'
                )
            }
        ),
        "1 slide was not found in the file: 1",
    ),
    "torn.odp": (open_document("presentation", page("a", box("x", 1)))[:-40], "damaged"),
    "locked.pptx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "password"),
    "old.ppt": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "old Office file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_presentations_are_refused_in_one_line(read: Reader, name: str) -> None:
    data, says = HOSTILE[name]
    with pytest.raises(JambaError) as failure:
        read(data, name)
    text = str(failure.value)
    assert says in text and name in text and "\n" not in text and len(text) < 400


def test_relationships_in_a_circle_and_deep_groups_end(read: Reader) -> None:
    related = {1: {"c1": ("chart", "../slides/slide1.xml"), "n1": ("notesSlide", "../slides/slide1.xml")}}
    circle = presentation([shape("x")], related=related, more={
        "slideLayouts/_rels/slideLayout1.xml.rels": relations({"m1": ("slideMaster", "../slideLayouts/slideLayout1.xml")}),
    })  # fmt: skip
    assert read(circle).text.startswith("x")
    deep = "<p:grpSp>" * 3000 + shape("far within") + "</p:grpSp>" * 3000
    assert read(presentation([shape("x") + deep])).text == "x"
