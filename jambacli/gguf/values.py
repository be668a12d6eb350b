"""GGUF's metadata values: encoded to bytes, and read in bulk from a mapped file.

Value types, their sizes and the length-prefixed strings are those of the GGUF specification, versions 2 and 3. A count or
length is compared with the file's size before anything is allocated for it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import BadFileError

if TYPE_CHECKING:
    import numpy as np

STRING = 8
ARRAY = 9

# Scalar types: id -> (name, struct code, numpy dtype).
SCALARS: dict[int, tuple[str, str, str]] = {
    0: ("u8", "<B", "<u1"),
    1: ("i8", "<b", "<i1"),
    2: ("u16", "<H", "<u2"),
    3: ("i16", "<h", "<i2"),
    4: ("u32", "<I", "<u4"),
    5: ("i32", "<i", "<i4"),
    6: ("f32", "<f", "<f4"),
    7: ("bool", "<?", "<u1"),
    10: ("u64", "<Q", "<u8"),
    11: ("i64", "<q", "<i8"),
    12: ("f64", "<d", "<f8"),
}
TYPE_IDS: dict[str, int] = {name: id for id, (name, _, _) in SCALARS.items()} | {"str": STRING}
TYPE_NAMES: dict[int, str] = {id: name for name, id in TYPE_IDS.items()}

# Far above what real files have; a header beyond these limits is damaged or hostile, and not worth parsing.
MAX_KEYS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_STRINGS = 1 << 22

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_READERS = {id: struct.Struct(code) for id, (_, code, _) in SCALARS.items()}


def shown(name: str, limit: int = 80) -> str:
    """``name`` quoted for an error message: control characters escaped, at most ``limit`` characters."""
    return ascii(name if len(name) <= limit else name[: limit - 3] + "...")


class Cursor:
    """A position in a mapped GGUF header; every read is checked against the file's end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.pos = 0

    def bad(self, problem: str) -> BadFileError:
        """The error for a ``problem`` in this file."""
        return BadFileError(self.path, problem)

    def need(self, n: int, what: str) -> None:
        """Raise BadFileError unless ``n`` more bytes are in the file."""
        if n > self.size - self.pos:
            raise self.bad(f"truncated or damaged: {what} runs past the end of the file")

    def u32(self, what: str) -> int:
        """The next four bytes, unsigned."""
        self.need(4, what)
        (value,) = _U32.unpack_from(self.buffer, self.pos)
        self.pos += 4
        return int(value)

    def u64(self, what: str) -> int:
        """The next eight bytes, unsigned."""
        self.need(8, what)
        (value,) = _U64.unpack_from(self.buffer, self.pos)
        self.pos += 8
        return int(value)

    def raw_string(self, what: str, limit: int | None = None) -> bytes:
        """The bytes of a length-prefixed string; BadFileError where they are more than ``limit`` or pass the file's end."""
        n = self.u64(f"the length of {what}")
        if limit is not None and n > limit:
            raise self.bad(f"{what} claims {n} bytes, over the limit of {limit}")
        self.need(n, what)
        value = self.buffer[self.pos : self.pos + n]
        self.pos += n
        return value

    def name(self, what: str) -> str:
        """A length-prefixed key or tensor name: non-empty UTF-8."""
        raw = self.raw_string(what, MAX_KEY_BYTES)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not valid UTF-8: {raw[:40]!a}") from None
        if not text:
            raise self.bad(f"{what} is empty")
        return text


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """The location of a value (``start`` to ``end``) and its type; for arrays also element type and count (else 0 and 1)."""

    type: int
    element: int
    count: int
    start: int
    end: int

    @property
    def type_name(self) -> str:
        """The type as GGUFWriter.add takes it: ``u32``, ``str``, ``arr[f32]``."""
        return f"arr[{TYPE_NAMES[self.element]}]" if self.type == ARRAY else TYPE_NAMES[self.type]


def skip_value(cursor: Cursor, key: str) -> MetadataEntry:
    """Check the value at the cursor (type, counts, lengths, bools), step over it and return its location.

    Raises BadFileError naming ``key``. ``Metadata`` decodes strings on first use.
    """
    what = f"metadata key {shown(key)}"
    type_id = cursor.u32(f"the type of {what}")
    if type_id == ARRAY:
        element = cursor.u32(f"the element type of {what}")
        count = cursor.u64(f"the length of {what}")
        start = cursor.pos
        if element == ARRAY:
            raise cursor.bad(f"{what} is an array of arrays, which GGUF readers do not support")
        if element == STRING:
            _skip_strings(cursor, count, what)
        elif element in SCALARS:
            cursor.need(count * _READERS[element].size, what)
            cursor.pos += count * _READERS[element].size
        else:
            raise cursor.bad(f"{what} has the unknown element type {element}")
    else:
        element, count, start = 0, 1, cursor.pos
        if type_id == STRING:
            n = cursor.u64(f"the length of {what}")
            cursor.need(n, what)
            cursor.pos += n
        elif type_id in SCALARS:
            cursor.need(_READERS[type_id].size, what)
            cursor.pos += _READERS[type_id].size
        else:
            raise cursor.bad(f"{what} has the unknown type {type_id}")
    if 7 in (type_id, element) and cursor.buffer[start : cursor.pos].strip(b"\0\1"):
        raise cursor.bad(f"{what} is a bool that is neither 0 nor 1")
    return MetadataEntry(type_id, element, count, start, cursor.pos)


def _skip_strings(cursor: Cursor, count: int, what: str) -> None:
    if count > MAX_STRINGS:
        raise cursor.bad(f"{what} claims {count} strings, over the limit of {MAX_STRINGS}")
    cursor.need(8 * count, what)
    unpack, buffer, pos = _U64.unpack_from, cursor.buffer, cursor.pos
    try:
        # The hot loop of opening a file: one step per token, with the end checked once afterwards. After an impossible
        # length the next step is outside the buffer, where unpack_from raises.
        for _ in range(count):
            pos += 8 + unpack(buffer, pos)[0]
    except (struct.error, OverflowError, ValueError, IndexError):
        pos = cursor.size + 1
    if pos > cursor.size:
        raise cursor.bad(f"truncated or damaged: a string of {what} runs past the end of the file")
    cursor.pos = pos


class Metadata(Mapping[str, Any]):
    """A file's key-value pairs in file order, each decoded on first use.

    Scalars are int, float, bool or str; numeric arrays are numpy arrays (copies), string arrays list[str]. Bytes that are
    not UTF-8 are decoded with surrogateescape, so that they can be written back unchanged.
    """

    def __init__(self, path: Path, buffer: mmap.mmap, entries: dict[str, MetadataEntry]) -> None:
        self.path = path
        self._buffer = buffer
        self._entries = entries
        self._decoded: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            self._decoded[key] = self._decode(self._entries[key])
        return self._decoded[key]

    def type_name(self, key: str) -> str:
        """The value's type as ``GGUFWriter.add`` takes it: ``u32``, ``str``, ``arr[str]``; KeyError when absent."""
        return self._entries[key].type_name

    def count(self, key: str) -> int:
        """An array's length without decoding it; 1 for a scalar; KeyError when absent."""
        return self._entries[key].count

    def raw(self, key: str) -> bytes:
        """The value's bytes in the file, for an array without element type and count."""
        entry = self._entries[key]
        return self._buffer[entry.start : entry.end]

    def encoded(self, key: str) -> bytes:
        """The value's bytes with its type before them, as in the file and as ``encode_value`` returns."""
        return _type_head(self.type_name(key), self.count(key)) + self.raw(key)

    def _decode(self, entry: MetadataEntry) -> Any:
        if entry.type == STRING:
            return str(self._buffer[entry.start + 8 : entry.end], "utf-8", "surrogateescape")
        if entry.type != ARRAY:
            return _READERS[entry.type].unpack_from(self._buffer, entry.start)[0]
        if entry.element == STRING:
            return self._strings(entry)
        return self._numbers(entry)

    def listed(self, key: str) -> list[Any]:
        """An array's values as a list, without importing numpy; KeyError where it is absent or not an array."""
        entry = self._entries[key]
        if entry.type != ARRAY:
            raise KeyError(key)
        if entry.element == STRING:
            return list(self[key])
        return list(struct.unpack(f"<{entry.count}{SCALARS[entry.element][1][1]}", self.raw(key)))

    def string_at(self, key: str, index: int) -> str:
        """One string of a string array, without decoding the others; KeyError or IndexError where it does not exist."""
        entry = self._entries[key]
        if entry.element != STRING:
            raise KeyError(key)
        if not 0 <= index < entry.count:
            raise IndexError(index)
        pos = entry.start
        for _ in range(index):
            pos += 8 + _U64.unpack_from(self._buffer, pos)[0]
        end = pos + 8 + _U64.unpack_from(self._buffer, pos)[0]
        return self._buffer[pos + 8 : end].decode("utf-8", "surrogateescape")

    def _strings(self, entry: MetadataEntry) -> list[str]:
        raw = self._buffer[entry.start : entry.end]
        try:
            return _split_strings(raw, entry.count, "strict")
        except UnicodeDecodeError:
            return _split_strings(raw, entry.count, "surrogateescape")

    def _numbers(self, entry: MetadataEntry) -> np.ndarray:
        import numpy as np

        values = np.frombuffer(self._buffer[entry.start : entry.end], SCALARS[entry.element][2])
        return values.astype(bool) if entry.element == 7 else values


def _split_strings(raw: bytes, count: int, errors: str) -> list[str]:
    unpack, pos = _U64.unpack_from, 0
    out: list[str] = []
    append = out.append
    for _ in range(count):
        start = pos + 8
        pos = start + unpack(raw, pos)[0]
        append(raw[start:pos].decode("utf-8", errors))
    return out


def encode_value(key: str, value: Any, type_name: str | None = None) -> bytes:
    """A value's bytes in a file, its type before them: ``u32``, ``str``, ``arr[i32]`` ..., or None to infer the type.

    Inferred: bool, str, f32 for floats, u32 for integers that fit (else i32, u64, i64); an array's from its first element,
    integers as i32. Strings are encoded with surrogateescape. ValueError naming ``key`` for a value that does not fit.
    """
    type_name = type_name or _infer_type(key, value)
    array = type_name.startswith("arr[") and type_name.endswith("]")
    element = type_name[4:-1] if array else type_name
    if element not in TYPE_IDS:
        raise ValueError(f"unknown GGUF type {type_name!r} for metadata key {key!r}")
    head = _type_head(type_name, len(value) if array else 1)
    if TYPE_IDS[element] == STRING:
        return head + b"".join(encode_string(text) for text in (value if array else [value]))
    _, code, dtype = SCALARS[TYPE_IDS[element]]
    try:
        if not array:
            return head + struct.pack(code, value)
        if hasattr(value, "dtype"):
            if value.dtype.kind in "iu" and element[0] in "iu":
                value = value.tolist()  # struct raises for a value that does not fit
            else:
                return head + value.astype(dtype).tobytes()
        return head + struct.pack(f"<{len(value)}{code[1]}", *value)
    except (struct.error, OverflowError, TypeError) as error:
        raise ValueError(f"metadata key {key!r} does not fit {type_name}: {error}") from None


def encode_string(text: str) -> bytes:
    """A string's bytes with their length before them, as for keys, tensor names and string values."""
    raw = text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(raw)) + raw


def _type_head(type_name: str, count: int) -> bytes:
    if type_name.startswith("arr["):
        return struct.pack("<IIQ", ARRAY, TYPE_IDS[type_name[4:-1]], count)
    return _U32.pack(TYPE_IDS[type_name])


def _infer_type(key: str, value: Any) -> str:
    if isinstance(value, (bool, str, int, float)):
        return _infer_scalar(value)
    dtype = getattr(value, "dtype", None)
    if dtype is not None and getattr(value, "ndim", 1) == 1:
        kind = "bool" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize * 8}"
        if kind in TYPE_IDS:
            return f"arr[{kind}]"
    if isinstance(value, (list, tuple)) and value:
        element = _infer_scalar(value[0])
        return f"arr[{'i32' if element in ('u32', 'i32') else element}]"
    raise ValueError(f"cannot infer the GGUF type of metadata key {key!r}; state it")


def _infer_scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "str"
    if isinstance(value, float):
        return "f32"
    if not isinstance(value, int):
        raise ValueError(f"no GGUF type holds {value!r}")
    if value >= 0:
        return "u32" if value < 1 << 32 else "u64"
    return "i32" if value >= -(1 << 31) else "i64"
