"""A quantized matrix as a tensor of its values: what is stored for it, and the run of rows that a panel needs.

A Layout is one way to store a matrix. ``open`` reads the small parts (scales, zero points), and the Rows that it returns
give the values of any rows, so that a matrix of any size is dequantized in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from jambacli.convert.hf_checkpoint import DTYPE_BYTES, Checkpoint, ComputedTensor, StoredTensor
from jambacli.errors import BadFileError

if TYPE_CHECKING:
    import torch

VALUES_AT_ONCE = 1 << 20  # dequantized in one step; a step needs some 30 bytes of memory per value
FLOATS = ("F16", "BF16", "F32", "F64")
FP8_DTYPES = ("F8_E4M3", "F8_E5M2")


class Rows(Protocol):
    """An opened matrix."""

    def values(self, first: int, count: int) -> torch.Tensor:
        """Rows ``first`` to ``first + count`` as [count, width] of a float dtype."""
        ...


class Layout(Protocol):
    """How a matrix is stored. ``how`` says it in a few words: "int4, groups of 128"."""

    @property
    def how(self) -> str: ...

    def open(self, checkpoint: Checkpoint) -> Rows:
        """Read and check the small parts. Raises BadFileError, naming the tensor and its file."""
        ...


@dataclass
class Opened:
    """The matrix that was read last, with its small parts in memory; one per checkpoint."""

    name: str = ""
    rows: Rows | None = None


@dataclass(frozen=True)
class DequantizedTensor(ComputedTensor):
    """The values of a quantized tensor, as ``dtype`` (F16, BF16 or F32: what its quantizer's library gives).

    ``shape`` is [rows, width], or [experts, rows, width] for a stack of experts. ``parts`` are the stored tensors.
    """

    layout: Layout
    parts: tuple[StoredTensor, ...]
    opened: Opened = field(compare=False, repr=False)

    def fill(self, checkpoint: Checkpoint, start: int, view: memoryview) -> None:
        import torch

        if self.opened.name != self.name or self.opened.rows is None:
            self.opened.rows = None  # one matrix at a time is in memory
            self.opened.rows, self.opened.name = self.layout.open(checkpoint), self.name
        rows, dtype = self.opened.rows, torch_dtype(self.dtype)
        row_bytes = self.shape[-1] * DTYPE_BYTES[self.dtype]
        at_once = max(1, VALUES_AT_ONCE // self.shape[-1])
        done = 0
        while done < view.nbytes:
            first, skipped = divmod(start + done, row_bytes)
            count = min(at_once, -(-(skipped + view.nbytes - done) // row_bytes))
            values = rows.values(first, count).to(dtype).contiguous().view(torch.uint8).reshape(-1)[skipped:]
            size = min(values.numel(), view.nbytes - done)
            torch.frombuffer(view, dtype=torch.uint8, count=size, offset=done).copy_(values[:size])
            done += size


def dequantized(
    name: str,
    weight: StoredTensor,
    shape: tuple[int, ...],
    dtype: str,
    layout: Layout,
    parts: list[StoredTensor],
    opened: Opened,
) -> DequantizedTensor:
    """A DequantizedTensor of ``shape``; F64 scales give F32."""
    dtype = "F32" if dtype not in FLOATS or dtype == "F64" else dtype
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    return DequantizedTensor(name, dtype, shape, weight.path, 0, nbytes, layout, tuple(parts), opened)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype."""
    import torch

    names: Mapping[str, Any] = {
        "F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
        "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.uint8,
    }  # fmt: skip
    return names[name]


def load(checkpoint: Checkpoint, tensor: StoredTensor, first: int = 0, count: int | None = None) -> torch.Tensor:
    """Rows ``first`` to ``first + count`` of a stored tensor (all by default), each along its last dimension: [rows, width].

    An F8_E8M0 tensor is its bytes.
    """
    import torch

    width = tensor.shape[-1] if tensor.shape else 1
    row_bytes = width * DTYPE_BYTES[tensor.dtype]
    rows = math.prod(tensor.shape[:-1]) - first if count is None else count
    data = bytearray(rows * row_bytes)
    if not data:
        return torch.empty((rows, width), dtype=torch_dtype(tensor.dtype))
    checkpoint.read_into(tensor, first * row_bytes, data)
    return torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)).view(rows, width)


def load_scale(checkpoint: Checkpoint, tensor: StoredTensor) -> torch.Tensor:
    """A tensor of scales as float32 in one dimension; BadFileError for one that is not finite.

    U8 and F8_E8M0 are powers of two: the exponent plus 127.
    """
    import torch

    stored = load(checkpoint, tensor).reshape(-1)
    scale = torch.exp2(stored.float() - 127) if stored.dtype == torch.uint8 else stored.float()
    if not bool(torch.isfinite(scale).all()) or (stored.dtype == torch.uint8 and bool((stored == 255).any())):
        raise wrong(tensor, "has a scale that is not finite")
    return scale


def wrong(tensor: StoredTensor, problem: str) -> BadFileError:
    """The error for a stored tensor, with its file."""
    return BadFileError(tensor.path, f"tensor {tensor.name} {problem}")


def require_dtype(tensor: StoredTensor, *dtypes: str) -> None:
    """Raise BadFileError unless ``tensor`` has one of ``dtypes``."""
    if tensor.dtype not in dtypes:
        raise wrong(tensor, f"is stored as {tensor.dtype}, not as {' or '.join(dtypes)}")


def require_shape(tensor: StoredTensor, *shapes: tuple[int, ...]) -> None:
    """Raise BadFileError unless ``tensor`` has one of ``shapes``."""
    if tensor.shape not in shapes:
        raise wrong(tensor, f"is {list(tensor.shape)}, but the quantized weights require {list(shapes[0])}")
