"""Hostile files of the kinds that are zip archives of XML: bombs, loops, entities, links outside, macros, path tricks.

Each is a function of a folder outside, whose ``secret.txt`` no document may show; links go to it and to the network.
"""

# ruff: noqa: E501

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping

from tests.support.document_files import docx_bytes, paragraph, word_package
from tests.support.office_files import (
    binary_row,
    binary_workbook,
    open_document,
    part,
    presentation,
    record,
    relations,
    rows,
    shape,
    wide,
    workbook,
)
from tests.support.written_files import epub_bytes, odt_bytes, zip_bytes

#: Of a folder outside -> the file.
Make = Callable[[str], bytes]
WORD = "said"
#: A port where nothing listens: a request would fail at once, but would be one.
REMOTE = "http://127.0.0.1:9/x"


def well_formed() -> dict[str, bytes]:
    """A file of each kind that is as it should be, by suffix."""
    cells = binary_row(0, (0, 0, WORD), (1, 0, 1.5))
    return {
        "docx": word_package(paragraph(WORD) + paragraph("second " * 40), {"styles.xml": "<w:styles></w:styles>"}),
        "xlsx": workbook({"A": rows([WORD, 1, 2.5], ["more", None, 3])}),
        "xlsb": binary_workbook({"A": cells}),
        "pptx": presentation([shape(WORD), shape("second")]),
        "ods": open_document("spreadsheet", _ods(f"<table:table-cell><text:p>{WORD}</text:p></table:table-cell>")),
        "odp": open_document("presentation", _odp(f"<text:p>{WORD}</text:p>")),
        "odt": odt_bytes(f"<text:p>{WORD}</text:p><text:p>second</text:p>"),
        "epub": epub_bytes({"a.xhtml": f"<p>{WORD}</p>", "b.xhtml": "<p>second</p>"}, titles={"a.xhtml": "One"}),
    }


#: The part with the text of each kind.
MAIN = {
    "docx": "word/document.xml",
    "xlsx": "xl/worksheets/sheet1.xml",
    "xlsb": "xl/workbook.bin",
    "pptx": "ppt/slides/slide1.xml",
    "ods": "content.xml",
    "odp": "content.xml",
    "odt": "content.xml",
    "epub": "OEBPS/a.xhtml",
}


def _ods(cells: str, row: str = "") -> str:
    return f'<table:table table:name="A"><table:table-row {row}>{cells}</table:table-row></table:table>'


def _odp(text: str) -> str:
    return f'<draw:page draw:name="p"><draw:frame><draw:text-box>{text}</draw:text-box></draw:frame></draw:page>'


def members(data: bytes) -> dict[str, bytes]:
    """The files in an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with(kind: str, change: Mapping[str, str | bytes]) -> bytes:
    return zip_bytes({**members(well_formed()[kind]), **change})


def _edited(kind: str, edit: Callable[[bytes], bytes]) -> bytes:
    """A good file with its main part changed."""
    return _with(kind, {MAIN[kind]: edit(members(well_formed()[kind])[MAIN[kind]])})


def _zeros(kind: str, size: int = 64 << 20) -> bytes:
    """The main part is followed by zeros, by the hundred megabytes."""
    good = members(well_formed()[kind])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in good.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
                if name == MAIN[kind]:
                    for _ in range(size >> 20):
                        file.write(b" " * (1 << 20))
    return out.getvalue()


def _lying(kind: str) -> bytes:
    """The directory claims that the main part is of a few bytes."""
    data = bytearray(_zeros(kind, 8 << 20))
    at = data.rindex(MAIN[kind].encode()) - 46
    data[at + 24 : at + 28] = (900).to_bytes(4, "little")
    return bytes(data)


def _many(kind: str, count: int = 20_500) -> bytes:
    data = well_formed()[kind]
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", data, end + 12)
    more = b"".join(b"PK\x01\x02" + bytes(24) + struct.pack("<H", 6) + bytes(16) + b"%06d" % i for i in range(count))
    held = struct.unpack_from("<H", data, end + 10)[0] + count
    return data[:end] + more + data[end : end + 8] + struct.pack("<HHII", held, held, size + len(more), start) + b"\0\0"


def _prolog(kind: str, declared: str, used: str = "&e;") -> bytes:
    """The main part begins with a document type, and uses its entity in place of the first text."""

    def edit(xml: bytes) -> bytes:
        text = xml.decode()
        text = text.partition("?>")[2] if text.startswith("<?xml") else text
        return (declared + text.replace(WORD, used, 1)).encode()

    return _edited(kind, edit)


def _laughs() -> str:
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    return f'<!DOCTYPE r [<!ENTITY l0 "ha">{levels}<!ENTITY e "&l11;">]>'


def _quadratic() -> str:
    return f'<!DOCTYPE r [<!ENTITY e "{"a" * 100_000}">]>'


def _deep(kind: str, inner: str = "", depth: int = 100_000) -> bytes:
    """Elements within elements around the text."""
    tag = {"docx": "w:sdt", "pptx": "p:grpSp", "epub": "div", "xlsx": "is"}.get(kind, "text:span")
    tag = inner or tag
    return _edited(
        kind,
        lambda xml: xml.replace(
            WORD.encode(), f"<{tag}>".encode() * depth + WORD.encode() + f"</{tag}>".encode() * depth, 1
        ),
    )


def _attribute(kind: str) -> bytes:
    """One attribute of 40 MB, and an element of 100,000 of them."""
    many = " ".join(f'a{i}="x"' for i in range(100_000))
    return _edited(
        kind, lambda xml: xml.replace(WORD.encode(), b"<x y='" + b"a" * (12 << 20) + f"' {many}/>{WORD}".encode(), 1)
    )


def _paths(kind: str) -> bytes:
    """Entries with names that lead outside, devices, links, control characters."""
    out = io.BytesIO(well_formed()[kind])
    names = [
        "../../escaped.txt",
        "/tmp/escaped.txt",
        "C:\\escaped.txt",
        "..\\..\\escaped.txt",
        "CON",
        "a/../../../escaped",
    ]
    with zipfile.ZipFile(out, "a") as archive:
        for name in [*names, "\x1b[31mred", "a\nb", "<script>", "x" * 5000]:
            archive.writestr(name, b"escaped")
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return out.getvalue()


def _encrypted_flag(kind: str) -> bytes:
    data = bytearray(well_formed()[kind])
    at = data.rindex(MAIN[kind].encode()) - 46
    data[at + 8] |= 1
    return bytes(data)


def _method(kind: str) -> bytes:
    """The main part packed by a method that may ask for gigabytes."""
    data = bytearray(well_formed()[kind])
    at = data.rindex(MAIN[kind].encode()) - 46
    data[at + 10 : at + 12] = (14).to_bytes(2, "little")
    return bytes(data)


def _overlapping(kind: str) -> bytes:
    """A directory whose entries all lead to the same packed bytes."""
    data = _zeros(kind, 1 << 20)
    end = data.rindex(b"PK\x05\x06")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    entry = data.rindex(MAIN[kind].encode(), start) - 46
    length = 46 + sum(struct.unpack_from("<HHH", data, entry + 28))
    copies = data[entry : entry + length] * 2000
    tail = bytearray(data[end:])
    count = int.from_bytes(tail[10:12], "little") + 2000
    tail[8:12] = struct.pack("<HH", count, count)
    tail[12:16] = struct.pack("<I", end - start + len(copies))
    return data[:end] + copies + bytes(tail)


_EVERY: dict[str, Callable[[str, str], bytes]] = {
    "zeros": lambda kind, at: _zeros(kind),
    "lying size": lambda kind, at: _lying(kind),
    "many entries": lambda kind, at: _many(kind),
    "paths": lambda kind, at: _paths(kind),
    "encrypted flag": lambda kind, at: _encrypted_flag(kind),
    "lzma": lambda kind, at: _method(kind),
    "overlapping": lambda kind, at: _overlapping(kind),
}
_XML: dict[str, Callable[[str, str], bytes]] = {
    "laughs": lambda kind, at: _prolog(kind, _laughs()),
    "quadratic": lambda kind, at: _prolog(kind, _quadratic(), "&e;" * 20_000),
    "external entity": lambda kind, at: _prolog(kind, f'<!DOCTYPE r [<!ENTITY e SYSTEM "file://{at}/secret.txt">]>'),
    "external dtd": lambda kind, at: _prolog(kind, f'<!DOCTYPE r SYSTEM "{REMOTE}.dtd">', WORD),
    "parameter entity": lambda kind, at: _prolog(kind, f'<!DOCTYPE r [<!ENTITY % p SYSTEM "{REMOTE}"> %p;]>', WORD),
    "deep": lambda kind, at: _deep(kind),
    "attribute": lambda kind, at: _attribute(kind),
    "utf-16": lambda kind, at: _edited(
        kind, lambda xml: "\ufeff".encode("utf-16-le") + xml.decode().replace("UTF-8", "UTF-7").encode("utf-16-le")
    ),
}


def _nested_tables(depth: int = 20_000) -> str:
    return "<w:tbl><w:tr><w:tc>" * depth + paragraph(WORD) + "</w:tc></w:tr></w:tbl>" * depth


def _styles_in_circle() -> bytes:
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="S{i}"><w:basedOn w:val="S{(i + 1) % 3}"/></w:style>' for i in range(3)
    )
    body = f'<w:p><w:pPr><w:pStyle w:val="S0"/></w:pPr><w:r><w:t>{WORD}</w:t></w:r></w:p>' * 1000
    return word_package(body, {"styles.xml": f"<w:styles>{styles}</w:styles>"})


def _numbering(kind: str, start: str, text: str = "%1.") -> bytes:
    level = f'<w:lvl w:ilvl="0"><w:start w:val="{start}"/><w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/></w:lvl>'
    numbers = (
        f'<w:abstractNum w:abstractNumId="0">{level}<w:numStyleLink w:val="S"/></w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
    )
    numbered = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    body = f"<w:p><w:pPr>{numbered}</w:pPr><w:r><w:t>{WORD}</w:t></w:r></w:p>" * 50
    return word_package(body, {"numbering.xml": f"<w:numbering>{numbers}</w:numbering>"})


def _headers(sections: int = 2000, size: int = 2000) -> bytes:
    """Many sections that all show one long header: each of them would read it again."""
    section = (
        '<w:p><w:pPr><w:sectPr><w:headerReference w:type="default" r:id="rheader1"/></w:sectPr></w:pPr>'
        f"<w:r><w:t>{WORD}</w:t></w:r></w:p>"
    )
    head = "".join(paragraph(f"line {i}") for i in range(size))
    return word_package(section * sections, {"header1.xml": f"<w:hdr>{head}</w:hdr>"})


def _notes() -> bytes:
    """A note that refers to itself, referred to ten thousand times."""
    note = '<w:footnote w:id="1"><w:p><w:r><w:t>note</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r></w:p></w:footnote>'
    body = '<w:p><w:r><w:footnoteReference w:id="1"/></w:r></w:p>' * 10_000
    return word_package(paragraph(WORD) + body, {"footnotes.xml": f"<w:footnotes>{note}</w:footnotes>"})


def _large_notes() -> bytes:
    """A note of a megabyte, referred to ten thousand times."""
    note = f'<w:footnote w:id="1">{paragraph("a " * 100_000)}</w:footnote>'
    body = '<w:p><w:r><w:footnoteReference w:id="1"/></w:r></w:p>' * 10_000
    return word_package(paragraph(WORD) + body, {"footnotes.xml": f"<w:footnotes>{note}</w:footnotes>"})


def _docx_links(at: str) -> bytes:
    """An attached template, a linked object and picture, and fields that include files."""
    fields = "".join(
        f'<w:p><w:fldSimple w:instr="{code}"><w:r><w:t>{WORD}</w:t></w:r></w:fldSimple></w:p>'
        for code in (f"INCLUDETEXT {at}/secret.txt", f"INCLUDEPICTURE {REMOTE}", "DDEAUTO c:\\\\cmd.exe /c calc")
    )
    data = members(
        word_package(
            fields + paragraph(WORD), {"settings.xml": '<w:settings><w:attachedTemplate r:id="r1"/></w:settings>'}
        )
    )
    outside = {
        "r1": ("attachedTemplate", f"{REMOTE}.dotm"),
        "r2": ("oleObject", REMOTE),
        "r3": ("image", f"file://{at}/secret.txt"),
    }
    data["word/_rels/settings.xml.rels"] = relations(outside).encode()
    return zip_bytes({**data, "word/vbaProject.bin": b"\xd0\xcf\x11\xe0" * 200})


def _docx_loop() -> bytes:
    """A document whose parts are all itself."""
    kinds = ("styles", "numbering", "footnotes", "endnotes", "comments", "settings", "header", "aFChunk")
    body = '<w:altChunk r:id="r7"/><w:p><w:pPr><w:sectPr><w:headerReference w:type="default" r:id="r6"/></w:sectPr></w:pPr></w:p>'
    data = members(word_package(body + paragraph(WORD)))
    data["word/_rels/document.xml.rels"] = relations(
        {f"r{i}": (kind, "document.xml") for i, kind in enumerate(kinds)}
    ).encode()
    return zip_bytes(data)


def _related(kind: str, target: str) -> bytes:
    """The relationship of the package leads elsewhere."""
    return _with(kind, {"_rels/.rels": relations({"r1": ("officeDocument", target)})})


_DOCX: dict[str, Make] = {
    "tables": lambda at: docx_bytes(_nested_tables()),
    "styles in a circle": lambda at: _styles_in_circle(),
    "letters": lambda at: _numbering("upperLetter", "2147483647"),
    "roman": lambda at: _numbering("upperRoman", "2147483647"),
    "digits": lambda at: _numbering("decimal", "9" * 10_000),
    "label": lambda at: _numbering("decimal", "1", "%1" * 200_000),
    "words": lambda at: _numbering("cardinalText", "999999999999999"),
    "headers": lambda at: _headers(),
    "note of itself": lambda at: _notes(),
    "large note": lambda at: _large_notes(),
    "links": _docx_links,
    "loop": lambda at: _docx_loop(),
    "main outside": lambda at: _related("docx", f"../../../..{at}/secret.txt"),
    "main is rels": lambda at: _related("docx", "_rels/.rels"),
    "nul in relation": lambda at: _related("docx", "word/document.xml%00.txt"),
    "zip in zip": lambda at: _with("docx", {"word/document.xml": well_formed()["docx"]}),
    "chunk of itself": lambda at: word_package(
        '<w:altChunk r:id="rafchunk"/>' * 5000 + paragraph(WORD), {"afchunk.docx": "x"}
    ),
    "million runs": lambda at: docx_bytes("<w:p>" + "<w:r><w:t>a</w:t></w:r>" * 100_000 + "</w:p>"),
    "open fields": lambda at: docx_bytes(
        "<w:p>" + '<w:r><w:fldChar w:fldCharType="begin"/></w:r>' * 50_000 + f"<w:r><w:t>{WORD}</w:t></w:r></w:p>"
    ),
    "spans": lambda at: docx_bytes(
        '<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="2147483647"/></w:tcPr>'
        + paragraph(WORD)
        + "</w:tc></w:tr></w:tbl>"
    ),
}


def _shared(length: int, columns: int, lines: int) -> bytes:
    """One long shared string in many cells."""
    row = "".join('<c t="s"><v>0</v></c>' for _ in range(columns))
    body = "".join(f"<row>{row}</row>" for _ in range(lines))
    return workbook({"A": f"<sheetData>{body}</sheetData>"}, strings=f"<si><t>{'a' * length}</t></si>")


def _cell(place: str) -> str:
    return f'<sheetData><row><c r="{place}" t="inlineStr"><is><t>{WORD}</t></is></c></row></sheetData>'


def _xlsx_links(at: str) -> bytes:
    """Links to other books, to files and to the network, and macros."""
    data = members(
        workbook(
            {"A": rows([WORD, "<c r='B1'><f>WEBSERVICE('" + REMOTE + "')</f><v>1</v></c>"])},
            more={
                "externalLinks/externalLink1.xml": '<externalLink><externalBook r:id="r1"/></externalLink>',
            },
        )
    )
    data["xl/externalLinks/_rels/externalLink1.xml.rels"] = relations(
        {"r1": ("externalLinkPath", f"file://{at}/secret.txt")}
    ).encode()
    return zip_bytes({**data, "xl/vbaProject.bin": b"\xd0\xcf\x11\xe0" * 200})


_XLSX: dict[str, Make] = {
    "shared string": lambda at: _shared(1 << 20, 16_000, 4),
    "shared rows": lambda at: _shared(30_000, 10, 20_000),
    "far cell": lambda at: workbook({"A": _cell("XFD1048576")}),
    "no such cell": lambda at: workbook({"A": _cell("ZZZZZZZZ99999999999999999999")}),
    "merged": lambda at: workbook(
        {"A": rows([WORD]) + "<mergeCells>" + '<mergeCell ref="A1:XFD1048576"/>' * 20_000 + "</mergeCells>"}
    ),
    "columns": lambda at: workbook({"A": '<cols><col min="1" max="2147483647" hidden="1"/></cols>' + rows([WORD])}),
    "format": lambda at: workbook(
        {"A": '<sheetData><row><c s="1"><v>1</v></c></row></sheetData>'}, formats=("0" * 200_000 + "[" * 50_000,)
    ),
    "number": lambda at: workbook({"A": rows([1e308, WORD], [float("inf")])}, formats=("#,##0.00",)),
    "string index": lambda at: workbook(
        {"A": '<sheetData><row><c t="s"><v>99999999999</v></c><c t="s"><v>-1</v></c></row></sheetData>'}
    ),
    "sheet twice": lambda at: _twice("xlsx"),
    "links": _xlsx_links,
    "main outside": lambda at: _related("xlsx", f"../../../..{at}/secret.txt"),
    "name": lambda at: workbook({"&#9;&lt;b&gt;" + "n" * 100_000: rows([WORD])}),
    "conditional": lambda at: workbook({"A": rows([WORD]) + "<x>" * 3000 + "</x>" * 3000}),
    "drawing of itself": lambda at: workbook(
        {"A": rows([WORD]) + '<drawing r:id="d1"/>' * 2000}, related={"d1": ("drawing", "sheet1.xml")}
    ),
    "shared formula": lambda at: workbook({"A": rows([f"<c><f>{'(' * 50_000}</f><v>1</v></c>", WORD])}),
}


def _twice(kind: str) -> bytes:
    """Five thousand sheets or slides that are one part."""
    if kind == "pptx":
        return presentation([shape(WORD * 200)], order=[1] * 5000)
    data = members(workbook({"A": rows([WORD * 200])}))
    listed = "".join(f'<sheet name="s{i}" sheetId="{i}" r:id="w1"/>' for i in range(1, 5001))
    return zip_bytes({**data, "xl/workbook.xml": part(f"<workbook><sheets>{listed}</sheets></workbook>")})


_XLSB: dict[str, Make] = {
    "far cell": lambda at: binary_workbook({"A": binary_row(0xFFFFF, (0x3FFF, 0, WORD)) + binary_row(0, (0, 0, WORD))}),
    "no such row": lambda at: binary_workbook({"A": binary_row(0xFFFFFFFF, (0xFFFFFFFF, 0, WORD))}),
    "string": lambda at: binary_workbook(
        {"A": binary_row(0, (0, 0, WORD)) + record(6, struct.pack("<III", 1, 0, 0xFFFFFFF0) + b"a" * 20)}
    ),
    "length": lambda at: binary_workbook({"A": binary_row(0, (0, 0, WORD)) + b"\x06\xff\xff\xff\x7f"}),
    "relation": lambda at: _with(
        "xlsb", {"xl/_rels/workbook.bin.rels": relations({"w1": ("worksheet", f"../../..{at}/secret.txt")})}
    ),
    "external": lambda at: _with("xlsb", {"xl/_rels/workbook.bin.rels": relations({"w1": ("worksheet", REMOTE)})}),
    "entity": lambda at: _with(
        "xlsb", {"xl/_rels/workbook.bin.rels": _laughs() + relations({"w1": ("worksheet", "&e;")})}
    ),
    "styles": lambda at: _with(
        "xlsb",
        {
            "xl/styles.bin": record(278)
            + record(617, struct.pack("<I", 0xFFFFFFFF))
            + record(44, b"\0\0" + wide("0" * 90_000))
        },
    ),
    "strings": lambda at: _with(
        "xlsb",
        {
            "xl/sharedStrings.bin": record(159, struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF))
            + record(19, b"\0" + wide("x" * 99))
        },
    ),
    "macros": lambda at: _with("xlsb", {"xl/vbaProject.bin": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 64}),
    "endless record": lambda at: _with("xlsb", {"xl/worksheets/sheet1.bin": b"\x80" * 100_000}),
}


def _pptx_links(at: str) -> bytes:
    shapes = f'<p:pic><p:blipFill><a:blip r:link="i1"/></p:blipFill></p:pic>{shape(WORD)}'
    outside = {"i1": ("image", REMOTE), "i2": ("oleObject", f"file://{at}/secret.txt"), "i3": ("slideLayout", REMOTE)}
    return presentation([shapes], related={1: outside})


_PPTX: dict[str, Make] = {
    "slide twice": lambda at: _twice("pptx"),
    "links": _pptx_links,
    "layout of itself": lambda at: presentation(
        [shape(WORD)], related={1: {"l1": ("slideLayout", "slide1.xml"), "n1": ("notesSlide", "slide1.xml")}}
    ),
    "groups": lambda at: presentation(["<p:grpSp>" * 15_000 + shape(WORD) + "</p:grpSp>" * 15_000]),
    "table": lambda at: presentation(
        [
            '<p:graphicFrame><a:graphic><a:graphicData><a:tbl><a:tr><a:tc gridSpan="2147483647" rowSpan="2147483647">'
            f"<a:txBody><a:p><a:r><a:t>{WORD}</a:t></a:r></a:p></a:txBody></a:tc></a:tr></a:tbl></a:graphicData></a:graphic></p:graphicFrame>"
        ]
    ),
    "far shape": lambda at: presentation([shape(WORD, at=(-(10**30), 10**30, 10**40, -1))]),
    "many shapes": lambda at: presentation(
        ["".join(shape("a", at=(i * 37 % 9999, i * 91 % 9999, 90, 90)) for i in range(15_000))]
    ),
    "missing": lambda at: presentation([shape(WORD)], order=[1, 7, 8, 9]),
    "main outside": lambda at: _related("pptx", f"../../../..{at}/secret.txt"),
    "macros": lambda at: _with("pptx", {"ppt/vbaProject.bin": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 64}),
    "chart of itself": lambda at: presentation(
        [
            '<p:graphicFrame><a:graphic><a:graphicData><c:chart r:id="c1"/></a:graphicData></a:graphic></p:graphicFrame>'
            * 3000
            + shape(WORD)
        ],
        related={1: {"c1": ("chart", "slide1.xml")}},
    ),
}


def _p(text: str = WORD) -> str:
    return f"<text:p>{text}</text:p>"


_FAR = 'table:number-columns-repeated="2147483647"'
_DOWN = 'table:number-rows-repeated="2147483647"'
_HREF = 'xlink:type="simple" xlink:show="embed" xlink:actuate="onLoad" xlink:href'
_ODS: dict[str, Make] = {
    "columns": lambda at: open_document("spreadsheet", _ods(f"<table:table-cell {_FAR}>{_p()}</table:table-cell>")),
    "rows": lambda at: open_document("spreadsheet", _ods(f"<table:table-cell>{_p()}</table:table-cell>", _DOWN)),
    "both": lambda at: open_document(
        "spreadsheet", _ods(f"<table:table-cell {_FAR}>{_p()}</table:table-cell>", _DOWN) * 3
    ),
    "digits": lambda at: open_document(
        "spreadsheet", _ods(f'<table:table-cell table:number-columns-repeated="{"9" * 9000}">{_p()}</table:table-cell>')
    ),
    "merged": lambda at: open_document(
        "spreadsheet",
        _ods(
            f'<table:table-cell table:number-columns-spanned="2147483647" table:number-rows-spanned="2147483647">{_p()}</table:table-cell>'
        ),
    ),
    "spaces": lambda at: open_document(
        "spreadsheet",
        _ods(f'<table:table-cell><text:p>{WORD}<text:s text:c="2147483647"/></text:p></table:table-cell>'),
    ),
    "links": lambda at: open_document(
        "spreadsheet",
        f'<table:table table:name="A"><table:table-source {_HREF}="file://{at}/secret.txt"/><table:table-row><table:table-cell>{_p()}</table:table-cell></table:table-row></table:table>',
    ),
    "macros": lambda at: open_document(
        "spreadsheet",
        _ods(f"<table:table-cell>{_p()}</table:table-cell>"),
        more={"Basic/Standard/Module1.xml": "<x>Shell</x>"},
    ),
    "tables": lambda at: open_document(
        "spreadsheet",
        f'<table:table table:name="A"><table:table-row><table:table-cell>{_p()}' * 5000
        + "</table:table-cell></table:table-row></table:table>" * 5000,
    ),
}
_ODP: dict[str, Make] = {
    "frames": lambda at: open_document(
        "presentation", '<draw:page draw:name="p">' + "<draw:g>" * 15_000 + _p() + "</draw:g>" * 15_000 + "</draw:page>"
    ),
    "spaces": lambda at: open_document("presentation", _odp(f'<text:p>{WORD}<text:s text:c="2147483647"/></text:p>')),
    "links": lambda at: open_document(
        "presentation", _odp(f'<draw:image {_HREF}="{REMOTE}"/><draw:object {_HREF}="file://{at}/secret.txt"/>{_p()}')
    ),
    "object of itself": lambda at: open_document("presentation", _odp(f'<draw:object {_HREF}="./"/>{_p()}' * 500)),
    "far": lambda at: open_document(
        "presentation",
        f'<draw:page><draw:frame svg:x="1e400cm" svg:y="nancm" svg:width="{"9" * 5000}cm"><draw:text-box>{_p()}</draw:text-box></draw:frame></draw:page>',
    ),
    "macros": lambda at: open_document("presentation", _odp(_p()), more={"Scripts/python/x.py": "import os"}),
    "table": lambda at: open_document(
        "presentation",
        f"<draw:page><draw:frame><table:table><table:table-row {_DOWN}><table:table-cell {_FAR}>{_p()}</table:table-cell></table:table-row></table:table></draw:frame></draw:page>",
    ),
}


def _odt_lists(form: str, start: str) -> bytes:
    level = f'<text:list-level-style-number text:level="1" style:num-format="{form}" text:start-value="{start}"/>'
    styles = f'<text:list-style style:name="L">{level}</text:list-style>'
    return odt_bytes(
        f'<text:list text:style-name="L">{"<text:list-item>" + _p() + "</text:list-item>"}</text:list>',
        automatic=styles,
    )


_ODT: dict[str, Make] = {
    "spaces": lambda at: odt_bytes(f'<text:p>{WORD}<text:s text:c="2147483647"/></text:p>'),
    "letters": lambda at: _odt_lists("a", "2147483647"),
    "roman": lambda at: _odt_lists("i", "2147483647"),
    "digits": lambda at: _odt_lists("1", "9" * 9000),
    "lists": lambda at: odt_bytes("<text:list><text:list-item>" * 9000 + _p() + "</text:list-item></text:list>" * 9000),
    "styles in a circle": lambda at: odt_bytes(
        f'<text:p text:style-name="A">{WORD}</text:p>' * 1000,
        automatic="".join(
            f'<style:style style:name="{a}" style:family="paragraph" style:parent-style-name="{b}"/>'
            for a, b in ("AB", "BC", "CA")
        ),
    ),
    "columns": lambda at: odt_bytes(
        f"<table:table><table:table-row {_DOWN}><table:table-cell {_FAR}>{_p()}</table:table-cell></table:table-row></table:table>"
    ),
    "tables": lambda at: odt_bytes(
        "<table:table><table:table-row><table:table-cell>" * 6000
        + _p()
        + "</table:table-cell></table:table-row></table:table>" * 6000
    ),
    "links": lambda at: odt_bytes(
        f'<text:section><text:section-source {_HREF}="file://{at}/secret.txt"/></text:section><draw:frame><draw:image {_HREF}="{REMOTE}"/></draw:frame>{_p()}'
    ),
    "object of itself": lambda at: odt_bytes(f'<draw:frame><draw:object {_HREF}="."/></draw:frame>' * 500 + _p()),
    "macros": lambda at: odt_bytes(
        _p(), parts={"Basic/Standard/Module1.xml": "<x>Shell</x>", "Scripts/python/x.py": "import os"}
    ),
    "objects in a circle": lambda at: odt_bytes(
        f'<draw:frame><draw:object {_HREF}="./O1"/></draw:frame>{_p()}',
        parts={
            "O1/content.xml": members(odt_bytes(f'<draw:frame><draw:object {_HREF}="../O1"/></draw:frame>' * 10))[
                "content.xml"
            ]
        },
    ),
    "flat laughs": lambda at: odt_bytes("<text:p>&e;</text:p>", flat=True, before=_laughs()),
    "flat external": lambda at: odt_bytes(
        "<text:p>&e;</text:p>", flat=True, before=f'<!DOCTYPE r [<!ENTITY e SYSTEM "file://{at}/secret.txt">]>'
    ),
}
_EPUB: dict[str, Make] = {
    "spine": lambda at: epub_bytes({"a.xhtml": f"<p>{WORD * 1000}</p>"}, spine=["a.xhtml"] * 100_000),
    "other names": lambda at: epub_bytes(
        {"a.xhtml": f"<p>{'b ' * 100_000}</p>"},
        items="".join(
            f'<item id="i{i}" href="{"./" * (i + 1)}a.xhtml" media-type="application/xhtml+xml"/>' for i in range(1000)
        ),
        refs="".join(f'<itemref idref="i{i}"/>' for i in range(1000)),
    ),
    "cases": lambda at: epub_bytes(
        {"abcdefghij.xhtml": f"<p>{'b ' * 100_000}</p>"},
        items="".join(
            f'<item id="i{i}" href="{_cased(i)}.xhtml" media-type="application/xhtml+xml"/>' for i in range(1000)
        ),
        refs="".join(f'<itemref idref="i{i}"/>' for i in range(1000)),
    ),
    "remote": lambda at: epub_bytes(
        {
            "a.xhtml": f'<p>{WORD}</p><img src="{REMOTE}"/><iframe src="file://{at}/secret.txt"/><script src="{REMOTE}"/>'
        },
        items=f'<item id="r" href="{REMOTE}" media-type="application/xhtml+xml" properties="remote-resources"/>',
        refs='<itemref idref="r"/>',
    ),
    "outside": lambda at: epub_bytes(
        {"a.xhtml": f"<p>{WORD}</p>"},
        items=f'<item id="r" href="../../../../..{at}/secret.txt" media-type="application/xhtml+xml"/><item id="f" href="file://{at}/secret.txt" media-type="text/html"/>',
        refs='<itemref idref="r"/><itemref idref="f"/>',
    ),
    "package outside": lambda at: _with("epub", {"META-INF/container.xml": _container(f"../../../..{at}/secret.txt")}),
    "package of itself": lambda at: _with("epub", {"META-INF/container.xml": _container("META-INF/container.xml")}),
    "titles": lambda at: epub_bytes(
        {"a.xhtml": f"<p>{WORD}</p>"}, titles={f"a.xhtml#{i}": "t" * 5000 for i in range(5000)}
    ),
    "unclosed": lambda at: epub_bytes({"a.xhtml": f"<p>{WORD}</p>".encode() + b"<div><p><b>" * 20_000}),
    "script": lambda at: epub_bytes({"a.xhtml": f"<script>{'x' * 5_000_000}</script><p>{WORD}</p>"}),
}


def _cased(number: int) -> str:
    return "".join(c.upper() if number >> i & 1 else c for i, c in enumerate("abcdefghij"))


def _container(path: str) -> str:
    return (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        f'<rootfile full-path="{path}" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )


_OWN: dict[str, dict[str, Make]] = {
    "docx": _DOCX, "xlsx": _XLSX, "xlsb": _XLSB, "pptx": _PPTX, "ods": _ODS, "odp": _ODP, "odt": _ODT, "epub": _EPUB,
}  # fmt: skip


def packages() -> dict[str, Make]:
    """The files by "kind: what is wrong with them"."""
    found: dict[str, Make] = {}
    for kind, own in _OWN.items():
        for what, every in {**_EVERY, **(_XML if kind != "xlsb" else {})}.items():
            found[f"{kind}: {what}"] = lambda at, every=every, kind=kind: every(kind, at)  # type: ignore[misc]
        found |= {f"{kind}: {what}": make for what, make in own.items()}
    return found
