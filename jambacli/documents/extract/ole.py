"""The names of the streams in an OLE compound file ([MS-CFB]): Office files until 2003, protected newer ones, Outlook messages.

Just enough to tell what a file is, in bounded time, before anything opens it.
"""

from __future__ import annotations

import io
import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

from jambacli.errors import BadFileError

_ENTRY, _MOST_SECTORS = 128, 256
# Greater numbers stand for no sector.
_SECTORS = 0xFFFFFFFA


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


def check_chains(path: str, name: str) -> None:
    """Raise BadFileError naming ``name`` if the sectors of a file follow one another in a circle: a library that does not look
    reads them until it has no memory. A file that is none, or is cut, passes."""
    with Path(path).open("rb") as file:
        header = file.read(512)
        if len(header) < 512:
            return
        size = 1 << min(max(struct.unpack_from("<H", header, 30)[0], 7), 12)
        most = file.seek(0, io.SEEK_END) // size + 1

        def numbers(sector: int) -> array[int]:
            file.seek((sector + 1) * size)
            found = array("I", file.read(size)[: size // 4 * 4].ljust(size, b"\xff"))
            if sys.byteorder == "big":
                found.byteswap()
            return found

        tables = [n for n in struct.unpack_from("<109I", header, 76) if n < _SECTORS]
        sector = struct.unpack_from("<I", header, 68)[0]
        seen: set[int] = set()
        while sector < _SECTORS:
            if sector in seen or len(tables) > most:
                raise _circle(name)
            seen.add(sector)
            more = numbers(sector)
            tables += [n for n in more[:-1] if n < _SECTORS]
            sector = more[-1]
        if len(tables) > most:
            raise _circle(name)
        following = array("I")
        for table in tables:
            following += numbers(table)
        _refuse_circles(following, name)
        small = array("I")
        sector = struct.unpack_from("<I", header, 60)[0]
        while sector < len(following):
            small += numbers(sector)
            sector = following[sector]
        _refuse_circles(small, name)


def _refuse_circles(following: array[int], name: str) -> None:
    """``following``: for each sector the next one."""
    count = len(following)
    met = array("I", bytes(4 * count))
    for start in range(count):
        at, steps = start, 0
        while at < count and not met[at]:
            met[at] = start + 1
            at = following[at]
            steps += 1
        if steps and at < count and met[at] == start + 1:
            raise _circle(name)


def _circle(name: str) -> BadFileError:
    return BadFileError(name, "is damaged: its parts follow one another in a circle; save it again")
