"""GGUF files put together byte by byte, valid or damaged, without this program's writer."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)


def string(text: str | bytes) -> bytes:
    """A GGUF string: its length, then its bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, type_id: int, value: bytes) -> bytes:
    """A key-value pair with the value's bytes as they are."""
    return string(key) + struct.pack("<I", type_id) + value


def u32(key: str, value: int) -> bytes:
    """A pair of type u32."""
    return pair(key, U32, struct.pack("<I", value))


def text(key: str, value: str | bytes) -> bytes:
    """A pair of type string."""
    return pair(key, STR, string(value))


def array(key: str, element: int, count: int, body: bytes) -> bytes:
    """A pair of type array, with any count."""
    return pair(key, ARR, struct.pack("<IQ", element, count) + body)


def tensor(
    name: str | bytes, dims: tuple[int, ...], type_id: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """A tensor table entry, dims in the file's order (the row first)."""
    n = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, type_id, offset)


@dataclass
class Raw:
    """A GGUF file in pieces; ``n_pairs`` and ``n_tensors`` override the true counts."""

    pairs: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_pairs: int | None = None
    n_tensors: int | None = None

    def build(self) -> bytes:
        """The file's bytes."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        head += b"".join(self.pairs) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data
