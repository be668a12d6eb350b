"""Makes pictures of pages for tests of recognition: drawn by pdfium, written as PDF, TIFF and other files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from tests.support.document_files import pdf_bytes


def page_images(texts: Sequence[str], dpi: int = 200) -> list[Any]:
    """Grey pictures (PIL) of pages with these texts."""
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf_bytes(texts))
    return [document[i].render(scale=dpi / 72, grayscale=True).to_pil() for i in range(len(texts))]


def scanned_pdf(images: Sequence[Any], texts: Sequence[str] = (), dpi: int = 200) -> bytes:
    """A PDF whose pages are these pictures; ``texts``: what stands on them as text besides, "" for none."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for i, image in enumerate(images):
        data = zlib.compress(image.tobytes(), 1)
        head = b"<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 8 "
        head = head % image.size + b"/Filter /FlateDecode /Length %d >>\nstream\n" % len(data)
        objects.append(head + data + b"\nendstream")
        picture = len(objects)
        width, height = (side * 72 / dpi for side in image.size)
        text = texts[i].encode("latin-1") if i < len(texts) else b""
        stream = b"q %.1f 0 0 %.1f 0 0 cm /Im Do Q" % (width, height)
        stream += b" BT /F1 9 Tf 20 20 Td (%s) Tj ET" % text if text else b""
        objects.append(b"<< /Length %d >>\nstream\n" % len(stream) + stream + b"\nendstream")
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %.1f %.1f] /Contents %d 0 R" % (
            width,
            height,
            len(objects),
        )
        page += b" /Resources << /XObject << /Im %d 0 R >> /Font << /F1 3 0 R >> >> >>" % picture
        objects.append(page)
        kids.append(len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % k for k in kids))
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    offsets = []
    for i, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n" % i + body + b"\nendobj\n")
    at = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, at))
    return out.getvalue()


def tiff_bytes(images: Sequence[Any], dpi: int = 200) -> bytes:
    """An uncompressed TIFF with a page for each grey picture."""
    out = bytearray(b"II*\x00\x00\x00\x00\x00")
    link = 4
    for image in images:
        pixels = len(out)
        out += image.tobytes()
        out += bytes(len(out) % 2)
        resolution = len(out)
        out += struct.pack("<II", dpi, 1)
        out[link : link + 4] = struct.pack("<I", len(out))
        width, height = image.size
        fields = [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, pixels),
            (277, 3, 1),
        ]
        fields += [(278, 4, height), (279, 4, width * height), (282, 5, resolution), (283, 5, resolution), (296, 3, 2)]
        out += struct.pack("<H", len(fields))
        for tag, kind, value in fields:
            out += struct.pack("<HHII", tag, kind, 1, value)
        link = len(out)
        out += bytes(4)
    return bytes(out)
