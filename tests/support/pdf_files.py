"""Small PDFs with text at places, form fields and annotations."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

#: Text and where it begins: x, y, size.
Placed = tuple[str, float, float] | tuple[str, float, float, float]


def pdf_of(
    pages: Sequence[Iterable[Placed]],
    *,
    annotations: Sequence[str] = (),
    fields: Sequence[str] = (),
    page: str = "",
    turned: str = "",
    catalog: str = "",
    form: str = "",
    drawn: str = "",
) -> bytes:
    """A PDF with the text of each page, in Helvetica at the places and in the order given.

    ``annotations``, ``fields``: dictionaries' insides, on the first page. ``page``: more of every page's dictionary.
    ``drawn``: operators before every page's text, with the font as F1. ``turned``: a matrix for every page's content.
    ``catalog``, ``form``: more of the catalog and of the form's dictionary.
    """
    objects: list[bytes] = [
        b"",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]

    def add(body: str | bytes) -> int:
        objects.append(body if isinstance(body, bytes) else body.encode("latin-1"))
        return len(objects)

    kids = []
    places = [add(f"<< /Type /Annot {inside} >>") for inside in annotations]
    widgets = [add(f"<< /Type /Annot /Subtype /Widget {inside} >>") for inside in fields]
    for i, placed in enumerate(pages):
        stream = (f"q {turned} cm\n" if turned else "q\n") + f"{drawn}\n"
        for text, x, y, *size in placed:
            escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            stream += f"BT /F1 {size[0] if size else 10} Tf 1 0 0 1 {x} {y} Tm ({escaped}) Tj ET\n"
        content = (stream + "Q").encode("latin-1")
        number = add(b"<< /Length %d >>\nstream\n" % len(content) + content + b"\nendstream")
        shown = f" /Annots [{' '.join(f'{n} 0 R' for n in places + widgets)}]" if i == 0 else ""
        kids.append(
            add(
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {number} 0 R{shown} {page}"
                " /Resources << /Font << /F1 3 0 R >> >> >>"
            )
        )
    names = " ".join(f"{n} 0 R" for n in widgets)
    acroform = f"/AcroForm << /Fields [{names}] /DR << /Font << /F1 3 0 R >> >> /DA (/F1 10 Tf 0 g) {form} >>"
    objects[0] = f"<< /Type /Catalog /Pages 2 0 R {acroform if widgets or form else ''} {catalog} >>".encode("latin-1")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{k} 0 R' for k in kids)}] >>".encode()
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    offsets = []
    for i, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n" % i + body + b"\nendobj\n")
    at = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, at))
    return out.getvalue()
