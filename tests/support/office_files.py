"""Makes workbooks and presentations part by part, valid and hostile, for tests of extraction."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

_OOXML, _STRICT = "http://schemas.openxmlformats.org/", "http://purl.oclc.org/ooxml/"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_NAMESPACES = {
    "": f"{_OOXML}spreadsheetml/2006/main",
    "p": f"{_OOXML}presentationml/2006/main",
    "a": f"{_OOXML}drawingml/2006/main",
    "xdr": f"{_OOXML}drawingml/2006/spreadsheetDrawing",
    "c": f"{_OOXML}drawingml/2006/chart",
    "dgm": f"{_OOXML}drawingml/2006/diagram",
    "m": f"{_OOXML}officeDocument/2006/math",
    "r": f"{_OOXML}officeDocument/2006/relationships",
    "mc": f"{_OOXML}markup-compatibility/2006",
    "a14": "http://schemas.microsoft.com/office/drawing/2010/main",
    "p188": "http://schemas.microsoft.com/office/powerpoint/2018/8/main",
}
_STRICT_NAMES = {
    "": f"{_STRICT}spreadsheetml/main",
    "p": f"{_STRICT}presentationml/main",
    "a": f"{_STRICT}drawingml/main",
    "xdr": f"{_STRICT}drawingml/spreadsheetDrawing",
    "r": f"{_STRICT}officeDocument/relationships",
}
_THREADS = 'xmlns="http://schemas.microsoft.com/office/spreadsheetml/2018/threadedcomments"'


def part(xml: str, *, strict: bool = False) -> str:
    """XML with the namespaces declared in its first element."""
    spaces = {**_NAMESPACES, **(_STRICT_NAMES if strict else {})}
    declared = " ".join(f'xmlns{":" if p else ""}{p}="{uri}"' for p, uri in spaces.items())
    if xml.startswith("<ThreadedComments"):
        declared = _THREADS
    name, end, rest = xml[1:].partition(">")
    closed = name.endswith("/")
    return f'<?xml version="1.0" encoding="UTF-8"?><{name.rstrip("/")} {declared}{"/" if closed else ""}{end}{rest}'


def zipped(members: Mapping[str, str | bytes]) -> bytes:
    """An archive of these members, in order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def relations(entries: Mapping[str, tuple[str, str]], *, strict: bool = False) -> str:
    """Relationships by id: kind and target. A target with "://" is outside of the file."""
    kinds = (_STRICT_NAMES if strict else _NAMESPACES)["r"]
    body = ""
    for identifier, (kind, target) in entries.items():
        outside = ' TargetMode="External"' if "://" in target else ""
        body += f'<Relationship Id="{identifier}" Type="{kinds}/{kind}" Target="{target}"{outside}/>'
    return f'<Relationships xmlns="{_PACKAGE}">{body}</Relationships>'


def workbook(
    sheets: Mapping[str, str],
    *,
    states: Mapping[str, str] | None = None,
    strings: str = "",
    formats: tuple[str, ...] = (),
    properties: str = "",
    more: Mapping[str, str] | None = None,
    related: Mapping[str, tuple[str, str]] | None = None,
    strict: bool = False,
) -> bytes:
    """An .xlsx. ``sheets``: what is in each worksheet element, by name; relationships of the first one are ``related``.

    ``formats``: the codes of styles 1, 2, ...; ``strings``: the items of the shared strings; ``more``: further parts, by
    name."""
    states = states or {}
    members: dict[str, str | bytes] = {"[Content_Types].xml": "<Types/>"}
    members["_rels/.rels"] = relations({"r1": ("officeDocument", "xl/workbook.xml")}, strict=strict)
    listed, ids = "", {"s0": ("sharedStrings", "sharedStrings.xml"), "s1": ("styles", "styles.xml")}
    for i, (name, body) in enumerate(sheets.items(), 1):
        state = f' state="{states[name]}"' if name in states else ""
        listed += f'<sheet name="{name}" sheetId="{i}" r:id="w{i}"{state}/>'
        ids[f"w{i}"] = ("worksheet", f"worksheets/sheet{i}.xml")
        members[f"xl/worksheets/sheet{i}.xml"] = part(f"<worksheet>{body}</worksheet>", strict=strict)
    codes = "".join(f'<numFmt numFmtId="{200 + i}" formatCode="{c}"/>' for i, c in enumerate(formats))
    styles = "".join(f'<xf numFmtId="{200 + i}"/>' for i in range(len(formats)))
    members["xl/styles.xml"] = part(
        f'<styleSheet><numFmts>{codes}</numFmts><cellStyleXfs><xf numFmtId="9"/></cellStyleXfs>'
        f'<cellXfs><xf numFmtId="0"/>{styles}</cellXfs></styleSheet>',
        strict=strict,
    )
    members["xl/sharedStrings.xml"] = part(f"<sst>{strings}</sst>", strict=strict)
    members["xl/workbook.xml"] = part(f"<workbook>{properties}<sheets>{listed}</sheets></workbook>", strict=strict)
    members["xl/_rels/workbook.xml.rels"] = relations(ids, strict=strict)
    if related:
        members["xl/worksheets/_rels/sheet1.xml.rels"] = relations(related, strict=strict)
    for name, xml in (more or {}).items():
        members[f"xl/{name}"] = xml if "/_rels/" in name else part(xml, strict=strict)
    return zipped(members)


def rows(*lines: list[object], start: int = 1) -> str:
    """Sheet data of values: numbers as they are, a text as an inline string, None for no cell."""
    out = ""
    for number, line in enumerate(lines, start):
        cells = ""
        for column, value in enumerate(line):
            place = f'r="{chr(65 + column)}{number}"'
            if isinstance(value, str) and value.startswith("<"):
                cells += value
            elif isinstance(value, str):
                cells += f'<c {place} t="inlineStr"><is><t>{value}</t></is></c>'
            elif value is not None:
                cells += f"<c {place}><v>{value}</v></c>"
        out += f'<row r="{number}">{cells}</row>'
    return f"<sheetData>{out}</sheetData>"


def presentation(
    slides: list[str],
    *,
    order: list[int] | None = None,
    hidden: frozenset[int] = frozenset(),
    related: Mapping[int, Mapping[str, tuple[str, str]]] | None = None,
    more: Mapping[str, str] | None = None,
    layout: str = "",
    master: str = "",
    strict: bool = False,
) -> bytes:
    """A .pptx. ``slides``: the shapes of each; ``order``: of the presentation, as numbers from 1; ``related``:
    relationships of slides by number; ``more``: further parts below ppt/, by name."""
    members: dict[str, str | bytes] = {"[Content_Types].xml": "<Types/>"}
    members["_rels/.rels"] = relations({"r1": ("officeDocument", "ppt/presentation.xml")}, strict=strict)
    order = order or list(range(1, len(slides) + 1))
    listed = "".join(f'<p:sldId id="{255 + n}" r:id="s{n}"/>' for n in order)
    members["ppt/presentation.xml"] = part(
        f"<p:presentation><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>", strict=strict
    )
    members["ppt/_rels/presentation.xml.rels"] = relations(
        {f"s{n}": ("slide", f"slides/slide{n}.xml") for n in range(1, len(slides) + 1)}, strict=strict
    )
    for n, shapes in enumerate(slides, 1):
        shown = ' show="0"' if n in hidden else ""
        members[f"ppt/slides/slide{n}.xml"] = part(
            f"<p:sld{shown}><p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/>{shapes}</p:spTree></p:cSld></p:sld>",
            strict=strict,
        )
        found = {"l1": ("slideLayout", "../slideLayouts/slideLayout1.xml"), **((related or {}).get(n) or {})}
        members[f"ppt/slides/_rels/slide{n}.xml.rels"] = relations(found, strict=strict)
    for kind, name, shapes in (("sldLayout", "slideLayout", layout), ("sldMaster", "slideMaster", master)):
        tree = f"<p:{kind}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:{kind}>"
        members[f"ppt/{name}s/{name}1.xml"] = part(tree, strict=strict)
    members["ppt/slideLayouts/_rels/slideLayout1.xml.rels"] = relations(
        {"m1": ("slideMaster", "../slideMasters/slideMaster1.xml")}, strict=strict
    )
    for name, xml in (more or {}).items():
        members[f"ppt/{name}"] = xml if "/_rels/" in name else part(xml, strict=strict)
    return zipped(members)


def shape(
    *paragraphs: str,
    at: tuple[int, int, int, int] | None = None,
    holder: str | None = None,
    index: str = "",
    hidden: bool = False,
) -> str:
    """A shape with a text: its paragraphs, each a text or XML. ``at``: x, y, width, height; ``holder``: a placeholder's
    type."""
    inside = "".join(p if p.startswith("<a:p") else f"<a:p><a:r><a:t>{p}</a:t></a:r></a:p>" for p in paragraphs)
    place = ""
    if at is not None:
        place = f'<a:xfrm><a:off x="{at[0]}" y="{at[1]}"/><a:ext cx="{at[2]}" cy="{at[3]}"/></a:xfrm>'
    numbered = f' idx="{index}"' if index else ""
    kind = f'<p:ph type="{holder}"{numbered}/>' if holder else ""
    off = ' hidden="1"' if hidden else ""
    return (
        f'<p:sp><p:nvSpPr><p:cNvPr id="2" name="s"{off}/><p:cNvSpPr/><p:nvPr>{kind}</p:nvPr></p:nvSpPr>'
        f"<p:spPr>{place}</p:spPr><p:txBody><a:bodyPr/>{inside}</p:txBody></p:sp>"
    )


_ODF = {
    **{
        name: f"urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"
        for name in ["office", "text", "table", "style", "chart"]
    },
    "presentation": "urn:oasis:names:tc:opendocument:xmlns:presentation:1.0",
    "draw": "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0",
    "svg": "urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0",
    "xlink": "http://www.w3.org/1999/xlink",
    "dc": "http://purl.org/dc/elements/1.1/",
}


def open_document(kind: str, body: str, styles: str = "", more: Mapping[str, str] | None = None) -> bytes:
    """An OpenDocument file. ``kind``: "spreadsheet" or "presentation"; ``more``: further parts, whose first element is
    given."""
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _ODF.items())

    def content(inner: str) -> str:
        return f'<?xml version="1.0"?><office:document-content {declared}>{inner}</office:document-content>'

    members: dict[str, str | bytes] = {"mimetype": f"application/vnd.oasis.opendocument.{kind}"}
    members["content.xml"] = content(
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body>"
    )
    for name, xml in (more or {}).items():
        members[name] = content(xml) if name.endswith(".xml") and not name.startswith("META-INF") else xml
    return zipped(members)


def record(kind: int, body: bytes = b"") -> bytes:
    """A record of a binary workbook (BIFF 12)."""
    first = bytes([kind]) if kind < 0x80 else bytes([kind & 0x7F | 0x80, kind >> 7])
    size, length = len(body), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return first + length + bytes([size]) + body


def wide(text: str) -> bytes:
    """A string of a binary workbook."""
    return struct.pack("<I", len(text)) + text.encode("utf-16-le")


def binary_workbook(
    sheets: Mapping[str, bytes], *, hidden: frozenset[str] = frozenset(), codes: tuple[str, ...] = ()
) -> bytes:
    """An .xlsb. ``sheets``: the records of the rows of each, by name; ``codes``: the formats of styles 1, 2 ..."""
    members: dict[str, str | bytes] = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="bin" ContentType="application/vnd.ms-excel.sheet.binary.macroEnabled.main"/>'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>',
        "_rels/.rels": relations({"r1": ("officeDocument", "xl/workbook.bin")}),
    }
    listed = b""
    ids = {"s1": ("styles", "styles.bin")}
    for i, (name, body) in enumerate(sheets.items(), 1):
        ids[f"w{i}"] = ("worksheet", f"worksheets/sheet{i}.bin")
        listed += record(156, struct.pack("<II", int(name in hidden), i) + wide(f"w{i}") + wide(name))
        dimension = record(148, struct.pack("<4I", 0, 9, 0, 9))
        data = record(129) + dimension + record(145) + body + record(146) + record(130)
        members[f"xl/worksheets/sheet{i}.bin"] = data
    members["xl/workbook.bin"] = (
        record(131)
        + record(153, struct.pack("<II", 0, 0) + wide(""))
        + record(143)
        + listed
        + record(144)
        + record(132)
    )
    formats = b"".join(record(44, struct.pack("<H", 200 + i) + wide(c)) for i, c in enumerate(codes))
    style = "<HHHHHBBBBH"
    used = [0, *(200 + i for i in range(len(codes)))]
    xfs = b"".join(record(47, struct.pack(style, 0, n, 0, 0, 0, 0, 0, 0, 0, 0)) for n in used)
    members["xl/styles.bin"] = (
        record(278)
        + record(615, struct.pack("<I", len(codes)))
        + formats
        + record(616)
        + record(617, struct.pack("<I", len(used)))
        + xfs
        + record(618)
        + record(279)
    )
    members["xl/_rels/workbook.bin.rels"] = relations(ids)
    return zipped(members)


def binary_row(number: int, *cells: tuple[int, int, object], hidden: bool = False) -> bytes:
    """A row of a binary workbook: columns, styles and values. An int is an error's code."""
    out = record(0, struct.pack("<IIHBBBI", number, 0, 300, 0, 0x10 if hidden else 0, 0, 0))
    for column, style, value in cells:
        head = struct.pack("<II", column, style)
        if isinstance(value, bool):
            out += record(4, head + bytes([value]))
        elif isinstance(value, float):
            out += record(5, head + struct.pack("<d", value))
        elif isinstance(value, int):
            out += record(3, head + bytes([value]))
        else:
            out += record(6, head + wide(str(value)))
    return out


def converted(path: Path, kind: str) -> Path:
    """The file as LibreOffice converts it. Skips where it is not installed."""
    office = shutil.which("soffice")
    if office is None:
        pytest.skip("LibreOffice (soffice) is not installed")
    profile = path.parent / "profile"
    command = [office, f"-env:UserInstallation={profile.as_uri()}", "--headless", "--convert-to", kind]
    subprocess.run(
        [*command, "--outdir", str(path.parent / "out"), str(path)], check=True, capture_output=True, timeout=300
    )
    return path.parent / "out" / f"{path.stem}.{kind.partition(':')[0]}"
