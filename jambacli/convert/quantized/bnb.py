"""Matrices as bitsandbytes stores them, dequantized by that library (its CPU build is enough).

int8: rows of integers and ``SCB``, the largest absolute value of each row. nf4 and fp4: two values in a byte, with the
largest absolute value of each block, which may be quantized itself ("nested"), and a JSON text with the sizes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.convert.hf_checkpoint import DTYPE_BYTES, Checkpoint, StoredTensor
from jambacli.convert.quantized.matrices import load, load_scale, wrong
from jambacli.convert.quantized.scheme import missing_bitsandbytes
from jambacli.errors import JambaError, first_line

if TYPE_CHECKING:
    import torch

STATE = ".quant_state.bitsandbytes__"
TYPES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
MAX_STATE_BYTES = 1 << 16


@dataclass(frozen=True)
class Int8:
    """An int8 matrix with ``scale``, float32 [rows]."""

    weight: StoredTensor
    scale: StoredTensor
    how: str = "int8, a scale per channel"

    def open(self, checkpoint: Checkpoint) -> Int8Rows:
        return Int8Rows(self, checkpoint, _library(checkpoint), load_scale(checkpoint, self.scale))


@dataclass(frozen=True)
class Int8Rows:
    """An opened ``Int8``."""

    layout: Int8
    checkpoint: Checkpoint
    library: Any
    scale: torch.Tensor

    def values(self, first: int, count: int) -> torch.Tensor:
        stored = load(self.checkpoint, self.layout.weight, first, count)
        values: torch.Tensor = self.library.int8_vectorwise_dequant(stored, self.scale[first : first + count])
        return values


@dataclass(frozen=True)
class State:
    """The JSON text of a 4-bit tensor. ``dtype`` is safetensors' name of the values' type."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    block: int
    nested_block: int
    nested_offset: float


@dataclass(frozen=True)
class FourBit:
    """A tensor in nf4 or fp4. ``largest`` is each block's largest absolute value, or its index in ``nested_map``."""

    state: State
    weight: StoredTensor
    largest: StoredTensor
    nested_largest: StoredTensor | None = None
    nested_map: StoredTensor | None = None

    @property
    def how(self) -> str:
        return f"{self.state.kind}, blocks of {self.state.block}"

    def open(self, checkpoint: Checkpoint) -> FourBitRows:
        library, state = _library(checkpoint), self.state
        if self.nested_largest is None or self.nested_map is None:
            return FourBitRows(self, checkpoint, library, load_scale(checkpoint, self.largest))
        inner = library.QuantState(
            absmax=load_scale(checkpoint, self.nested_largest),
            code=load_scale(checkpoint, self.nested_map),
            blocksize=state.nested_block,
            dtype=load_scale(checkpoint, self.nested_largest).dtype,
        )
        stored = load(checkpoint, self.largest).reshape(-1)
        return FourBitRows(self, checkpoint, library, library.dequantize_blockwise(stored, inner) + state.nested_offset)


@dataclass(frozen=True)
class FourBitRows:
    """An opened ``FourBit``; ``largest`` is float32 [blocks]."""

    layout: FourBit
    checkpoint: Checkpoint
    library: Any
    largest: torch.Tensor

    def values(self, first: int, count: int) -> torch.Tensor:
        import torch

        state, width = self.layout.state, self.layout.state.shape[-1]
        start, end, total = first * width, (first + count) * width, math.prod(state.shape)
        # Whole blocks around the rows, which need not begin or end with a block. As one row, because the library's CPU
        # kernel (0.50) takes wrong blocks where they do not divide the width (dt_proj of Jamba 3B).
        low, high = start // state.block * state.block, min(-(-end // state.block) * state.block, total)
        octets = bytearray(-(-(high - low) // 2))
        self.checkpoint.read_into(self.layout.weight, low // 2, octets)
        dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
        part = self.library.QuantState(
            absmax=self.largest[low // state.block : -(-high // state.block)].contiguous(),
            shape=torch.Size((1, high - low)),
            blocksize=state.block,
            quant_type=state.kind,
            dtype=dtypes[state.dtype],
        )
        values: torch.Tensor = self.library.dequantize_4bit(torch.frombuffer(octets, dtype=torch.uint8)[:, None], part)
        return values.reshape(-1)[start - low : end - low].view(count, width)


def read_state(checkpoint: Checkpoint, tensor: StoredTensor) -> State:
    """The State in ``tensor`` (U8, JSON); BadFileError where it is damaged."""
    if tensor.dtype != "U8" or tensor.nbytes > MAX_STATE_BYTES:
        raise wrong(tensor, f"is {tensor.dtype} {list(tensor.shape)}, not a short JSON text")
    data = bytearray(tensor.nbytes)
    checkpoint.read_into(tensor, 0, data)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise wrong(tensor, "is not valid JSON") from None
    if not isinstance(values, dict):
        raise wrong(tensor, "is not a JSON object")
    kind, dtype, shape = values.get("quant_type"), values.get("dtype"), values.get("shape")
    if kind not in TYPES or not tensor.name.endswith(STATE + kind):
        raise wrong(tensor, f"names the type {kind!r:.50}")
    if dtype not in _DTYPES:
        raise wrong(tensor, f"names the dtype {dtype!r:.50}")
    if (
        not isinstance(shape, list)
        or len(shape) not in (2, 3)
        or not all(type(n) is int and 0 < n < 1 << 40 for n in shape)
    ):
        raise wrong(tensor, f"names the shape {shape!r:.50}")
    if values.get("blocksize") not in BLOCK_SIZES or type(values["blocksize"]) is not int:
        raise wrong(tensor, f"names the blocksize {values.get('blocksize')!r:.50}")
    nested, offset = values.get("nested_blocksize"), values.get("nested_offset")
    if nested is not None and (type(nested) is not int or not 0 < nested < 1 << 31):
        raise wrong(tensor, f"names the nested_blocksize {nested!r:.50}")
    if nested is not None and (not isinstance(offset, int | float) or not math.isfinite(offset)):
        raise wrong(tensor, f"names the nested_offset {offset!r:.50}")
    return State(kind, _DTYPES[dtype], tuple(shape), values["blocksize"], nested or 0, float(offset or 0))


def check_four_bit(layout: FourBit) -> None:
    """Raise BadFileError, naming the tensor, where the sizes of a 4-bit tensor's parts contradict its State."""
    state, total = layout.state, math.prod(layout.state.shape)
    blocks = -(-total // state.block)
    if layout.weight.nbytes != (nbytes := _padded(-(-total // 2), layout.weight.dtype)):
        raise wrong(
            layout.weight, f"has {layout.weight.nbytes} bytes, but {list(state.shape)} in {state.kind} takes {nbytes}"
        )
    counts = [(layout.largest, blocks, ("U8",) if state.nested_block else ("F32", "F16", "BF16"))]
    if state.nested_block:
        if layout.nested_largest is None or layout.nested_map is None:
            raise wrong(layout.largest, "is quantized, but its nested_absmax or nested_quant_map is missing")
        counts.append((layout.nested_largest, -(-blocks // state.nested_block), ("F32",)))
        counts.append((layout.nested_map, 256, ("F32",)))
    for tensor, count, dtypes in counts:
        if math.prod(tensor.shape) != count or tensor.dtype not in dtypes:
            raise wrong(
                tensor, f"is {tensor.dtype} {list(tensor.shape)}, but {count} of {' or '.join(dtypes)} are required"
            )


def _padded(nbytes: int, dtype: str) -> int:
    """``nbytes`` of packed values as whole elements of the tensor's dtype (bnb_4bit_quant_storage)."""
    size = DTYPE_BYTES[dtype]
    return -(-nbytes // size) * size


def _library(checkpoint: Checkpoint) -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise missing_bitsandbytes(checkpoint.folder) from error
    except Exception as error:
        raise JambaError(f"{checkpoint.folder}: bitsandbytes cannot be imported: {first_line(error)}") from error
    return functional
