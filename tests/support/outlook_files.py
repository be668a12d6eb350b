"""Makes compound files and Outlook messages byte by byte, for tests of extraction."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

_SECTOR, _MINI, _CUTOFF = 512, 64, 4096
_END, _FREE, _FAT = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD

#: A storage: streams (bytes) and storages by name.
Tree = dict[str, "bytes | Tree"]


def compound_file(tree: Tree) -> bytes:
    """A compound file of version 3 (MS-CFB)."""
    entries: list[list[object]] = [["Root Entry", 5, None, b""]]  # name, type, children's tree, content
    sides: list[tuple[int, int]] = [(_FREE, _FREE)]
    childs = [_FREE]

    def add(inside: Tree, parent: int) -> None:
        numbers = []
        for name in sorted(inside, key=lambda n: (len(n), n.upper())):
            value = inside[name]
            entries.append(
                [name, 2 if isinstance(value, bytes) else 1, None, value if isinstance(value, bytes) else b""]
            )
            sides.append((_FREE, _FREE))
            childs.append(_FREE)
            numbers.append(len(entries) - 1)
            if not isinstance(value, bytes):
                add(value, numbers[-1])
        childs[parent] = balanced(numbers)

    def balanced(numbers: Sequence[int]) -> int:
        if not numbers:
            return _FREE
        middle = len(numbers) // 2
        sides[numbers[middle]] = balanced(numbers[:middle]), balanced(numbers[middle + 1 :])
        return numbers[middle]

    add(tree, 0)
    sectors: list[bytes] = []
    fat: list[int] = []

    def store(data: bytes) -> int:
        count = -(-len(data) // _SECTOR)
        if not count:
            return _END
        first = len(sectors)
        sectors.extend(data[i * _SECTOR : (i + 1) * _SECTOR].ljust(_SECTOR, b"\x00") for i in range(count))
        fat.extend([*range(first + 1, first + count), _END])
        return first

    mini, mini_fat = bytearray(), list[int]()
    starts = []
    for _, kind, _, content in entries:
        assert isinstance(content, bytes)
        if kind != 2 or not content:
            starts.append(_END)
        elif len(content) >= _CUTOFF:
            starts.append(store(content))
        else:
            count, first = -(-len(content) // _MINI), len(mini) // _MINI
            mini += content.ljust(count * _MINI, b"\x00")
            mini_fat += [*range(first + 1, first + count), _END]
            starts.append(first)
    starts[0] = store(bytes(mini))
    mini_start = store(b"".join(struct.pack("<I", n) for n in mini_fat))
    directory = b""
    for i, (name, kind, _, content) in enumerate(entries):
        encoded = str(name).encode("utf-16-le") + b"\x00\x00"
        assert isinstance(content, bytes)
        size = len(mini) if i == 0 else len(content)
        directory += encoded.ljust(64, b"\x00") + struct.pack("<HBB", len(encoded), kind, 1)
        directory += (
            struct.pack("<III", *sides[i], childs[i]) + bytes(16 + 4 + 16) + struct.pack("<IQ", starts[i], size)
        )
    directory_start = store(directory + bytes(-len(directory) % _SECTOR))
    fat_count = 1
    while fat_count * (_SECTOR // 4) < len(sectors) + fat_count:
        fat_count += 1
    assert fat_count <= 109, "a larger file needs more tables than these helpers write"
    places = list(range(len(sectors), len(sectors) + fat_count))
    fat += [_FAT] * fat_count
    table = b"".join(struct.pack("<I", n) for n in fat).ljust(fat_count * _SECTOR, b"\xff")
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<IIIIIIIII", 0, fat_count, directory_start, 0, _CUTOFF, mini_start,
                          -(-len(mini_fat) * 4 // _SECTOR), _END, 0)  # fmt: skip
    header += b"".join(struct.pack("<I", n) for n in places).ljust(436, b"\xff")
    return header + b"".join(sectors) + table


Value = "str | bytes | int | bool | datetime"


@dataclass
class Outlook:
    """A message. ``properties``: values by identifier; strings in Unicode, or in ``code_page`` if there is one."""

    properties: dict[int, object] = field(default_factory=dict)
    recipients: Sequence[Mapping[int, object]] = ()
    attachments: Sequence[Mapping[int, object]] = ()
    code_page: tuple[str, int] | None = None
    names: Sequence[int] = ()

    def tree(self, header: int = 32) -> Tree:
        """The storage of the message; ``header``: 24 for one within another."""
        values = dict(self.properties)
        if self.code_page is not None:
            values[0x3FFD] = self.code_page[1]
        made = _storage(values, header, self.code_page)
        for i, recipient in enumerate(self.recipients):
            made[f"__recip_version1.0_#{i:08X}"] = _storage(recipient, 8, self.code_page)
        for i, attachment in enumerate(self.attachments):
            made[f"__attach_version1.0_#{i:08X}"] = _storage(attachment, 8, self.code_page)
        if header == 32:
            named = b"".join(struct.pack("<IHH", name, 0, i) for i, name in enumerate(self.names))
            made["__nameid_version1.0"] = {"__substg1.0_00030102": named, "__substg1.0_00020102": b""}
        return made

    def to_bytes(self) -> bytes:
        """The .msg file."""
        return compound_file(self.tree())


def _storage(values: Mapping[int, object], header: int, code_page: tuple[str, int] | None) -> Tree:
    made: Tree = {}
    fixed = b""
    for identifier, value in values.items():
        if isinstance(value, bool):
            kind, data = 0x000B, struct.pack("<Q", value)
        elif isinstance(value, int):
            kind, data = 0x0003, struct.pack("<Q", value)
        elif isinstance(value, datetime):
            ticks = int((value - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10_000_000
            kind, data = 0x0040, struct.pack("<Q", ticks)
        elif isinstance(value, Outlook):
            made[f"__substg1.0_{identifier:04X}000D"] = value.tree(24)
            kind, data = 0x000D, bytes(8)
        elif isinstance(value, dict):
            made[f"__substg1.0_{identifier:04X}000D"] = value
            kind, data = 0x000D, bytes(8)
        else:
            text = isinstance(value, str)
            kind = 0x0102 if not text else 0x001E if code_page else 0x001F
            assert isinstance(value, str | bytes)
            content = value if isinstance(value, bytes) else value.encode(code_page[0] if code_page else "utf-16-le")
            made[f"__substg1.0_{identifier:04X}{kind:04X}"] = content
            data = struct.pack("<Q", len(content))
        fixed += struct.pack("<II", identifier << 16 | kind, 6) + data
    made["__properties_version1.0"] = bytes(header) + fixed
    return made


def packed_rtf(rtf: bytes) -> bytes:
    """RTF as Outlook stores it, compressed with references to what came before (MS-OXRTFCP)."""
    start = (
        rb"{\rtf1\ansi\mac\deff0\deftab720{\fonttbl;}{\f0\fnil \froman \fswiss \fmodern \fscript \fdecor MS Sans SerifSymbol"
        rb"ArialTimes New RomanCourier{\colortbl\red0\green0\blue0"
        + b"\r\n"
        + rb"\par \pard\plain\f0\fs20\b\i\u\tab\tx"
    )
    seen = bytearray(start)
    tokens: list[bytes | int] = []
    at = 0
    while at < len(rtf):
        length = min(17, len(rtf) - at)
        base = max(0, len(seen) - 4000)
        found = -1
        while length >= 3 and (found := seen.find(rtf[at : at + length], base)) < 0:
            length -= 1
        if found < 0 or length < 3:
            tokens.append(rtf[at])
            length = 1
        else:
            tokens.append(struct.pack(">H", (found % 4096) << 4 | length - 2))
        seen += rtf[at : at + length]
        at += length
    tokens.append(struct.pack(">H", (len(seen) % 4096) << 4))
    out = bytearray()
    for i in range(0, len(tokens), 8):
        run = tokens[i : i + 8]
        out.append(sum(1 << n for n, token in enumerate(run) if isinstance(token, bytes)))
        out += b"".join(token if isinstance(token, bytes) else bytes((token,)) for token in run)
    return struct.pack("<II4sI", len(out) + 12, len(rtf), b"LZFu", 0) + bytes(out)
