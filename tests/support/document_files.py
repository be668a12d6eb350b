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
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", raw if raw is not None else _OPEN + body + _CLOSE)
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
