"""Values to blocks: the public ``quantize``; knows nothing of how a format is coded, only who codes it where.

Two implementations give the same bytes: C++ for tensors on the CPU (quant.native) and torch for any device
(quant.legacy, quant.iq4, quant.k_quants), the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from quant import native
from quant.formats import Format, get_format

if TYPE_CHECKING:
    import torch

# [rows, n] float32 and importance [n] or None -> uint8 [rows, row bytes]
TorchEncoder = Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]

PLAIN = ("f32", "f16", "bf16")
LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
IQ4 = ("iq4_nl", "iq4_xs")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
BACKENDS = ("auto", "native", "torch")

# The torch searches hold some tens of temporaries of a chunk's size.
TORCH_CHUNK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 24}


def quantize(
    tensor: torch.Tensor,
    fmt: str,
    imatrix: torch.Tensor | None = None,
    *,
    threads: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The blocks of ``tensor`` in the format called ``fmt``, byte for byte those of ggml's ``ggml_quantize_chunk``.

    Args:
        tensor: float32, float16 or bfloat16 [..., n]; rows run along the last dimension. Any device.
        fmt: a name of ``quant.FORMATS`` that this package encodes, any case (ExpertsInt8 is in quant.experts_int8).
        imatrix: importance of each column, float32 [n]; for a [experts, out, n] tensor also [experts, n].
        threads: CPU threads of the C++ path; every processor by default.
        backend: "native" (C++), "torch", or "auto": C++ where it is built and the tensor is on the CPU.

    Returns:
        uint8 [..., row bytes] on the tensor's device.

    Raises:
        ValueError: a format or row length that does not fit, a NaN or infinity (naming its row), or a bad imatrix.
    """
    import torch

    target = _encodable(fmt)
    source_type = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}.get(tensor.dtype)
    if source_type is None:
        raise ValueError(f"cannot quantize {tensor.dtype}; convert to float32, float16 or bfloat16 first")
    if tensor.dim() == 0:
        raise ValueError("cannot quantize a scalar: blocks run along a row")
    n = tensor.shape[-1]
    row_bytes = target.row_bytes(n)
    use_native = choose_native(backend, tensor, native.can_quantize(target.ggml_type), target)
    weights = _checked_imatrix(imatrix, tensor)

    rows = tensor.detach().contiguous().view(-1, n) if tensor.numel() else tensor.new_empty(0, n)
    out = torch.empty(rows.shape[0], row_bytes, dtype=torch.uint8, device=tensor.device)
    for first, last, column_weights in _stretches(tensor, weights):
        piece, into = rows[first:last], out[first:last]
        try:
            if use_native:
                native.quantize(
                    target.ggml_type,
                    source_type,
                    piece.data_ptr(),
                    piece.shape[0],
                    n,
                    None if column_weights is None else column_weights.data_ptr(),
                    into.data_ptr(),
                    threads,
                )
            else:
                _encode_torch(target, piece, column_weights, into)
        except native.NonFiniteRowError as error:
            raise native.NonFiniteRowError(first + error.row, row_name(first + error.row, tensor.shape)) from None
    return out.view(*tensor.shape[:-1], row_bytes)


def choose_native(backend: str, tensor: torch.Tensor, available: bool, target: Format) -> bool:
    """Whether the C++ path is taken; ValueError where it was asked for and cannot be."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "native" and tensor.device.type != "cpu":
        raise ValueError(f"the native backend works on CPU tensors, not on {tensor.device}")
    if backend == "native" and not available:
        raise ValueError(f"the C++ library is not built or does not code {target.name}")
    return backend != "torch" and available and tensor.device.type == "cpu"


def _encodable(fmt: str) -> Format:
    target = get_format(fmt)
    if target.name not in (*PLAIN, *LEGACY, *IQ4, *K_QUANTS):
        raise ValueError(f"{target.name} is not a format this package quantizes to")
    return target


def _checked_imatrix(imatrix: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor | None:
    """float32 [n] or [experts, n], contiguous, on the tensor's device."""
    import torch

    if imatrix is None:
        return None
    n = tensor.shape[-1]
    allowed = [(n,)] if tensor.dim() != 3 else [(n,), (tensor.shape[0], n)]
    if tuple(imatrix.shape) not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"the imatrix has shape {list(imatrix.shape)}, this tensor needs {wanted}")
    weights = imatrix.detach().to(device=tensor.device, dtype=torch.float32).contiguous()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("the imatrix holds a negative or non-finite weight")
    return weights


def _stretches(tensor: torch.Tensor, weights: torch.Tensor | None) -> Iterator[tuple[int, int, torch.Tensor | None]]:
    """(first row, end row, column weights) of the rows that share one set of weights."""
    rows = tensor.numel() // tensor.shape[-1] if tensor.shape[-1] else 0
    if rows == 0:
        return
    if weights is None or weights.dim() == 1:
        yield 0, rows, weights
        return
    per_expert = tensor.shape[1]
    for expert in range(tensor.shape[0]):
        yield expert * per_expert, (expert + 1) * per_expert, weights[expert]


def _encode_torch(target: Format, rows: torch.Tensor, weights: torch.Tensor | None, out: torch.Tensor) -> None:
    import torch

    encoder = torch_encoder(target)
    chunk = max(1, TORCH_CHUNK_VALUES.get(rows.device.type, 1 << 20) // rows.shape[1])
    for first in range(0, rows.shape[0], chunk):
        values = rows[first : first + chunk].to(torch.float32)
        finite = torch.isfinite(values).all(dim=1)
        if not bool(finite.all()):
            raise native.NonFiniteRowError(first + int((~finite).int().argmax()))
        out[first : first + chunk] = encoder(values, weights)


def torch_encoder(target: Format) -> TorchEncoder:
    """The reference encoder of a format: float32 [rows, n], importance [n] or None -> uint8 [rows, row bytes]."""
    name = target.name
    if name in K_QUANTS:
        from quant.k_quants import encode_k

        return lambda x, weights: encode_k(x, name, weights)
    if name in IQ4:
        from quant import iq4

        return iq4.ENCODERS[name]
    from quant import legacy

    return legacy.ENCODERS[name]


def row_name(row: int, shape: tuple[int, ...]) -> str:
    """``row 7`` of a matrix, ``row [2, 7]`` of a stack of them."""
    if len(shape) <= 2:
        return f"row {row}"
    index = []
    for size in reversed(shape[:-1]):
        index.append(row % size)
        row //= size
    return f"row {index[::-1]}"
