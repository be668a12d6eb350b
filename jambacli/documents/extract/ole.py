"""The names of the streams in an OLE compound file ([MS-CFB]): Office files until 2003, protected newer ones, Outlook messages.

Just enough to tell what a file is, in bounded time, before anything opens it.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

_ENTRY, _MOST_SECTORS = 128, 256


def stream_names(source: Path | bytes) -> frozenset[str]:
    """The names of a file's streams and storages in lower case; fewer where it is damaged or has thousands."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        return frozenset(_names(file))


def _names(file: BinaryIO) -> set[str]:
    header = file.read(512)
    names: set[str] = set()
    if len(header) < 512:
        return names
    shift = min(max(struct.unpack_from("<H", header, 30)[0], 7), 12)
    size = 1 << shift
    tables = struct.unpack_from("<109I", header, 76)
    sector = struct.unpack_from("<I", header, 48)[0]
    seen: set[int] = set()
    while sector < 0xFFFFFFF0 and sector not in seen and len(seen) < _MOST_SECTORS:
        seen.add(sector)
        file.seek((sector + 1) * size)
        data = file.read(size)
        for at in range(0, len(data) - _ENTRY + 1, _ENTRY):
            length = struct.unpack_from("<H", data, at + 64)[0]
            if 2 < length <= 64:
                names.add(data[at : at + length - 2].decode("utf-16-le", "replace").lower())
        table, place = divmod(sector, size // 4)
        if table >= len(tables) or tables[table] >= 0xFFFFFFF0:
            break
        file.seek((tables[table] + 1) * size + 4 * place)
        following = file.read(4)
        sector = struct.unpack("<I", following)[0] if len(following) == 4 else 0xFFFFFFFF
    return names
