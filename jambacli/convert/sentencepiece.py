"""Reads the pieces of a SentencePiece tokenizer.model, without the sentencepiece library.

The file is a protobuf ModelProto (google/sentencepiece, src/sentencepiece_model.proto). Only the fields that a vocabulary
needs are read; every length is checked against the remaining bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jambacli.convert.hf_checkpoint import read_bytes
from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf.values import shown

MAX_FILE_BYTES = 32 << 20
MAX_PIECES = 1 << 22
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2
_KINDS = {1: "unigram", 3: "word", 4: "char"}


@dataclass
class SentencePieceModel:
    """A BPE vocabulary: piece i has ``pieces[i]``, ``scores[i]`` and ``types[i]``.

    Types are the proto's, and GGUF's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. An id is -1 where
    the model has no such piece. Pieces that are not UTF-8 are decoded with surrogateescape.
    """

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    add_dummy_prefix: bool = True
    normalizes: bool = False


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Parse ``path``; BadFileError where it is damaged, UnsupportedError where it is not a BPE model."""
    data = read_bytes(path, MAX_FILE_BYTES, "a tokenizer")
    if data.startswith(b"version https://git-lfs"):
        raise BadFileError(path, "this is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    try:
        model = _parse(data, path)
    except (_Damaged, struct.error) as error:
        raise BadFileError(path, f"not a SentencePiece model, or a damaged one: {error}") from None
    return model


class _Damaged(Exception):
    """The protobuf is invalid; the message says where."""


def _parse(data: bytes, path: Path) -> SentencePieceModel:
    model = SentencePieceModel()
    kind = 1
    for number, value in _fields(data, 0, len(data)):
        if number == 1 and isinstance(value, slice):
            _add_piece(model, data, value)
        elif number == 2 and isinstance(value, slice):
            kind = _trainer(model, data, value)
        elif number == 3 and isinstance(value, slice):
            _normalizer(model, data, value)
    if not model.pieces:
        raise BadFileError(path, "not a SentencePiece model: it has no pieces")
    if kind != _BPE:
        raise UnsupportedError(f"{path}: this is a SentencePiece {_KINDS.get(kind, kind)} model; only BPE is supported")
    return model


def _add_piece(model: SentencePieceModel, data: bytes, where: slice) -> None:
    text, score, kind = b"", 0.0, 1
    for number, value in _fields(data, where.start, where.stop):
        if number == 1 and isinstance(value, slice):
            text = data[value]
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise _Damaged(f"piece {len(model.pieces)} has the unknown type {kind}")
    if len(model.pieces) >= MAX_PIECES:
        raise _Damaged(f"more than {MAX_PIECES} pieces")
    model.pieces.append(text.decode("utf-8", "surrogateescape"))
    model.scores.append(score)
    model.types.append(kind)


def _trainer(model: SentencePieceModel, data: bytes, where: slice) -> int:
    """Read the special ids; returns the kind of model (1 unigram, 2 BPE, ...)."""
    kind = 1
    for number, value in _fields(data, where.start, where.stop):
        if not isinstance(value, int):
            continue
        if number == 3:
            kind = value
        elif number == 40:
            model.unk_id = _signed(value)
        elif number == 41:
            model.bos_id = _signed(value)
        elif number == 42:
            model.eos_id = _signed(value)
        elif number == 43:
            model.pad_id = _signed(value)
    return kind


def _normalizer(model: SentencePieceModel, data: bytes, where: slice) -> None:
    for number, value in _fields(data, where.start, where.stop):
        if number == 2 and isinstance(value, slice):
            model.normalizes = value.stop > value.start
        elif number == 3 and isinstance(value, int):
            model.add_dummy_prefix = bool(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int | float | slice]]:
    """The (field number, value) pairs of one message: int for varints, float for fixed32, a slice for bytes."""
    at = start
    while at < stop:
        key, at = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Damaged(f"field number 0 at byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at, stop)
            yield number, value
        elif wire == _BYTES:
            length, at = _varint(data, at, stop)
            if length > stop - at:
                raise _Damaged(f"a field of {shown(str(length))} bytes at byte {at} runs past its end")
            yield number, slice(at, at + length)
            at += length
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
            if size > stop - at:
                raise _Damaged(f"cut off at byte {at}")
            if wire == _FIXED32:
                yield number, struct.unpack_from("<f", data, at)[0]
            at += size
        else:
            raise _Damaged(f"wire type {wire} at byte {at}")


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    if at < stop and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7
    raise _Damaged(f"cut off or endless number at byte {at}")
