"""A PDF whose end is cut off: its objects are there, but not the table that says where, and often not the catalog."""

from __future__ import annotations

import re
from pathlib import Path

# Larger files are not repaired.
_MOST = 512 << 20
# A dictionary is at most so long, and so many are looked at.
_NEAR, _TRIES = 200_000, 2_000
_CATALOG = re.compile(rb"(?:^|[\r\n\s])(\d{1,8}) (\d{1,5}) obj\b(?=[^>]{0,2000}?/Type\s*/Catalog\b)")


def with_an_end(path: str) -> bytes | None:
    """The content of a PDF with a new end that names its catalog, made from its tree of pages if need be; None if there is
    neither."""
    file = Path(path)
    if file.stat().st_size > _MOST:
        return None
    data = file.read_bytes()
    if b"%PDF-" not in data[:1024] or re.search(rb"/Encrypt\b", data):
        return None
    if data.rfind(b"trailer") > data.rfind(b"endobj"):  # half an end
        data = data[: data.rfind(b"trailer")]
    if found := list(_CATALOG.finditer(data)):
        number, generation = found[-1][1], found[-1][2]
        return data + b"\nendobj\ntrailer << /Root %s %s R >>\nstartxref\n0\n%%%%EOF\n" % (number, generation)
    if root := _tree_of_pages(data):
        number = b"%d" % (1 + max(int(one) for one in re.findall(rb"(\d{1,8}) \d{1,5} obj\b", data)))
        made = b"\nendobj\n%s 0 obj\n<< /Type /Catalog /Pages %s R >>\nendobj\n" % (number, root)
        return data + made + b"trailer << /Root %s 0 R >>\nstartxref\n0\n%%%%EOF\n" % number
    return None


def _tree_of_pages(data: bytes) -> bytes | None:
    """The number and generation of the root of the tree of pages."""
    at = 0
    for _ in range(_TRIES):
        if (at := data.find(b"/Pages", at)) < 0:
            break
        start = data.rfind(b" obj", max(0, at - _NEAR), at)
        end = data.find(b"endobj", at, at + _NEAR)
        inside = data[start + 4 : end] if 0 <= start < end else b""
        named = re.search(rb"(\d{1,8}) (\d{1,5})$", data[max(0, start - 16) : start])
        if named and b"endobj" not in inside and b"/Parent" not in inside and b"/Kids" in inside:
            return named[0]
        at += 6
    return None
