"""Makes valid and damaged PDFs and Word documents byte by byte, for tests of extraction."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import escape


def pdf_bytes(pages: Sequence[str], *, encrypt: bool = False) -> bytes:
    """A PDF 1.4 with one page for each text, its lines under one another in Helvetica (Latin-1 only)."""
    objects: list[bytes] = []

    def add(body: bytes) -> int:
        objects.append(body)
        return len(objects)

    add(b"<< /Type /Catalog /Pages 2 0 R >>")
    add(b"")  # the page tree, filled in below
    add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for text in pages:
        lines = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in text.split("\n")]
        shown = " ".join(f"({line}) Tj T*" for line in lines) if text else ""
        stream = f"BT /F1 11 Tf 50 780 Td 14 TL {shown} ET".encode("latin-1")
        content = add(b"<< /Length %d >>\nstream\n" % len(stream) + stream + b"\nendstream")
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R" % content
        kids.append(add(page + b" /Resources << /Font << /F1 3 0 R >> >> >>"))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % k for k in kids))
    trailer = b"/Root 1 0 R"
    if encrypt:  # the standard handler with an unknown user password
        key = b"<" + b"5a" * 32 + b">"
        number = add(b"<< /Filter /Standard /V 1 /R 2 /O " + key + b" /U " + key + b" /P -4 >>")
        trailer += b" /Encrypt %d 0 R /ID [<00> <00>]" % number
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    offsets = []
    for i, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n" % i + body + b"\nendobj\n")
    at = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer << /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, at))
    return out.getvalue()


_OPEN = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
)
_CLOSE = "</w:body></w:document>"


def paragraph(text: str, before: str = "") -> str:
    """A paragraph's XML; ``before`` goes into its run, a page break for example."""
    return f"<w:p><w:r>{before}<w:t>{escape(text)}</w:t></w:r></w:p>"


def docx_bytes(body: str, *, raw: bytes | None = None, compress: bool = True) -> bytes:
    """A .docx whose document.xml holds ``body``, or is ``raw``."""
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        # Members without the time of day: the same text is the same file.
        for name, content in (
            ("[Content_Types].xml", "<Types/>"),
            ("word/document.xml", raw if raw is not None else _OPEN + body + _CLOSE),
        ):
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def zip_bomb() -> bytes:
    """A .docx of half a megabyte whose document.xml unpacks to 512 MB."""
    out = io.BytesIO()
    block = b"<w:p><w:r><w:t>" + b"a" * ((1 << 20) - 33) + b"</w:t></w:r></w:p>"
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as member,
    ):
        member.write(_OPEN.encode())
        for _ in range(512):
            member.write(block)
        member.write(_CLOSE.encode())
    return out.getvalue()


def lying_zip_bomb(claimed: int = 1000) -> bytes:
    """The same, but its directory claims that it unpacks to ``claimed`` bytes."""
    data = bytearray(zip_bomb())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = claimed.to_bytes(4, "little")
    return bytes(data)


_NAMESPACES = {
    "w": "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "m": "http://schemas.openxmlformats.org/officeDocument/2006/math",
    "r": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    "mc": "http://schemas.openxmlformats.org/markup-compatibility/2006",
    "w14": "http://schemas.microsoft.com/office/word/2010/wordml",
    "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
    "wp": "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing",
    "a": "http://schemas.openxmlformats.org/drawingml/2006/main",
    "pic": "http://schemas.openxmlformats.org/drawingml/2006/picture",
    "c": "http://schemas.openxmlformats.org/drawingml/2006/chart",
    "dgm": "http://schemas.openxmlformats.org/drawingml/2006/diagram",
    "v": "urn:schemas-microsoft-com:vml",
    "o": "urn:schemas-microsoft-com:office:office",
}
_STRICT = {
    "w": "http://purl.oclc.org/ooxml/wordprocessingml/main",
    "m": "http://purl.oclc.org/ooxml/officeDocument/math",
    "r": "http://purl.oclc.org/ooxml/officeDocument/relationships",
}
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"


def word_package(
    body: str,
    parts: dict[str, str] | None = None,
    *,
    main: str = "word/document.xml",
    strict: bool = False,
    content_type: str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
) -> bytes:
    """A whole .docx package. ``parts``: the XML of further parts beside the main one, by their file names; the kind of each
    relationship is the name without digits and suffix, its id ``r`` and the name without suffix."""
    spaces = {**_NAMESPACES, **(_STRICT if strict else {})}
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())
    kinds = spaces["r"]

    def part(xml: str) -> str:
        name, rest = xml[1:].split(">", 1)
        return f'<?xml version="1.0" encoding="UTF-8"?><{name} {declared}>{rest}'

    folder, _, file = main.rpartition("/")
    folder = f"{folder}/" if folder else ""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        override = f'<Override PartName="/{main}" ContentType="{content_type}"/>'
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{_RELATIONS}">{override}</Types>')
        relation = f'<Relationship Id="r1" Type="{kinds}/officeDocument" Target="/{main}"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{_RELATIONS}">{relation}</Relationships>')
        relations = ""
        for name, xml in (parts or {}).items():
            stem = name.rpartition("/")[2].partition(".")[0]
            kind = {"afchunk": "aFChunk", "data": "diagramData"}.get(
                stem.rstrip("0123456789"), stem.rstrip("0123456789")
            )
            relations += f'<Relationship Id="r{stem}" Type="{kinds}/{kind}" Target="{name}"/>'
            archive.writestr(folder + name, part(xml) if name.endswith(".xml") else xml)
        archive.writestr(
            f"{folder}_rels/{file}.rels", f'<Relationships xmlns="{_RELATIONS}">{relations}</Relationships>'
        )
        archive.writestr(main, part(f"<w:document><w:body>{body}</w:body></w:document>"))
    return out.getvalue()
