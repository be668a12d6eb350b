"""Archives of a million entries: counted, not read into objects, whatever their directory claims."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import read_file
from jambacli.errors import JambaError
from jambacli.session.export import import_session

COUNT = 1_000_000
KINDS = ("docx", "xlsx", "xlsb", "pptx", "odt", "ods", "odp", "epub", "zip")
_FIRST = {"epub": b"mimetype", "odt": b"mimetype", "ods": b"mimetype", "odp": b"mimetype", "zip": b"session.json"}


def million_entries(path: Path, first: bytes, claimed: int) -> Path:
    """An archive with ``COUNT`` entries in its directory and one file, which claims to have ``claimed``."""
    local = struct.pack("<4sHHHHHLLLHH", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, len(first), 0) + first
    entry = struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(first), 0, 0, 0, 0, 0, 0)
    size = COUNT * len(entry + first)
    end = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, claimed, claimed, size, len(local))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + size, 1)
    last = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.write(local)
        for _ in range(COUNT // 10_000):
            file.write((entry + first) * 10_000)
        file.write(end + locator + last)
    return path


@pytest.mark.parametrize("claimed", [COUNT, 1, 1 << 62])
def test_a_million_entries_are_refused(tmp_path: Path, claimed: int) -> None:
    for kind in KINDS:
        path = million_entries(tmp_path / f"many.{kind}", _FIRST.get(kind, b"[Content_Types].xml"), claimed)
        tracemalloc.start()
        try:
            with pytest.raises(JambaError, match="holds more than 20,000 files") as refused:
                if kind == "zip":
                    import_session(path, "many")
                else:
                    with Sandbox() as sandbox:
                        read_file(path, sandbox)
            assert path.name in str(refused.value) and "\n" not in str(refused.value)
            assert tracemalloc.get_traced_memory()[1] < 50 << 20
        finally:
            tracemalloc.stop()
        path.unlink()
