"""Values to blocks: the public ``quantize``, which checks its arguments and picks the implementation.

Two implementations give the same bytes: C++ on host memory (quant.native), and torch on any device (quant.legacy,
quant.iq4, quant.k_quants), which is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast, overload

from quant import native
from quant.backends import uses_native
from quant.formats import FLOATS, IQ4, K_QUANTS, LEGACY, Format, float_format, get_format
from quant.rows import Rows, host_tensor, row_name

if TYPE_CHECKING:
    import numpy as np
    import torch

# [rows, n] float32 and importance [n] or None -> uint8 [rows, row bytes]
TorchQuantizer = Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]

# The torch searches hold some tens of temporaries of a chunk's size.
TORCH_CHUNK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 24}


@overload
def quantize(
    tensor: torch.Tensor,
    fmt: str,
    imatrix: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def quantize(
    tensor: Rows,
    fmt: str,
    imatrix: np.ndarray | None = None,
    *,
    out: Rows,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "cpu",
) -> Rows: ...


def quantize(
    tensor: torch.Tensor | Rows,
    fmt: str,
    imatrix: torch.Tensor | np.ndarray | None = None,
    *,
    out: torch.Tensor | Rows | None = None,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "cpu",
) -> torch.Tensor | Rows:
    """The blocks of ``tensor`` in the format called ``fmt``, byte for byte those of ggml's ``ggml_quantize_chunk``.

    Args:
        tensor: float32, float16 or bfloat16 [..., n] on any device; rows run along the last dimension. Or ``Rows``, which
            may be in any format: blocks are dequantized first, rows that are in ``fmt`` already are copied.
        fmt: a name of ``quant.FORMATS`` that this package can write, any case. "i8" (ExpertsInt8), whose scales lie
            beside the levels, takes ``Rows``; ``quant.experts_int8.quantize`` takes tensors.
        imatrix: importance of each column, float32 [n]; for a [experts, out, n] tensor also [experts, n].
        out: receives the blocks: uint8 [..., row bytes], contiguous, on any device. With ``Rows`` it is required: ``Rows``
            in ``fmt`` of the same count and length. Nothing is copied in between on the C++ path.
        threads: CPU threads of the C++ path; every processor by default.
        backend: "native" (C++), "torch", or "auto": C++ where it is built and the data is in host memory.
        device: the torch device that quantizes ``Rows``; on "cpu" with the C++ library, torch is not imported.

    Returns:
        ``out``, or without it uint8 [..., row bytes] on the tensor's device.

    Raises:
        ValueError: a format, row length or ``out`` that does not fit, a bad imatrix, or a NaN or infinity
            (``native.NonFiniteRowError``, naming the row).
    """
    weights, place = cast("Any", imatrix), cast("Any", out)  # of one kind with ``tensor``: see the overloads
    if isinstance(tensor, Rows):
        return _quantize_rows(tensor, get_format(fmt), weights, place, threads, backend, device)
    return _quantize_tensor(tensor, _writable(fmt), weights, place, threads, backend)


def _writable(fmt: str) -> Format:
    target = get_format(fmt)
    if target.name == "i8":
        raise ValueError("i8 is not a format of blocks: its scales lie beside it; use quant.experts_int8.quantize")
    if not target.writable:
        raise ValueError(f"{target.name} is not a format this package quantizes to")
    return target


# ---- tensors ----


def _quantize_tensor(
    tensor: torch.Tensor,
    target: Format,
    imatrix: torch.Tensor | None,
    out: torch.Tensor | None,
    threads: int | None,
    backend: str,
) -> torch.Tensor:
    import torch

    source = float_format(tensor.dtype)
    if source is None:
        raise ValueError(f"cannot quantize {tensor.dtype}; convert to float32, float16 or bfloat16 first")
    if tensor.dim() == 0:
        raise ValueError("cannot quantize a scalar: blocks run along a row")
    n = tensor.shape[-1]
    shape = (*tensor.shape[:-1], target.row_bytes(n))
    use_native = uses_native(backend, tensor.device, native.can_quantize(target.ggml_type), target)
    weights = _checked_imatrix(imatrix, tensor)
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=tensor.device)
    elif out.dtype != torch.uint8 or tuple(out.shape) != shape or not out.is_contiguous():
        raise ValueError(f"out must be contiguous uint8 {list(shape)}, not {out.dtype} {list(out.shape)}")
    elif use_native and out.device.type != "cpu":
        out.copy_(_quantize_tensor(tensor, target, imatrix, None, threads, backend))
        return out

    rows = tensor.detach().contiguous().view(-1, n) if tensor.numel() else tensor.new_empty(0, n)
    blocks = out.view(rows.shape[0], shape[-1])
    for first, last, column_weights in _rows_by_weights(tensor, weights):
        piece, into = rows[first:last], blocks[first:last]
        try:
            if use_native:
                address = None if column_weights is None else column_weights.data_ptr()
                native.quantize(
                    target.ggml_type,
                    source.ggml_type,
                    piece.data_ptr(),
                    piece.shape[0],
                    n,
                    address,
                    into.data_ptr(),
                    threads,
                )
            else:
                _quantize_torch(target, piece, column_weights, into)
        except native.NonFiniteRowError as error:
            raise native.NonFiniteRowError(first + error.row, row_name(first + error.row, tensor.shape)) from None
    return out


def _checked_imatrix(imatrix: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor | None:
    """float32 [n] or [experts, n], contiguous, on the tensor's device."""
    import torch

    if imatrix is None:
        return None
    n = tensor.shape[-1]
    allowed = [(n,)] if tensor.dim() != 3 else [(n,), (tensor.shape[0], n)]
    if tuple(imatrix.shape) not in allowed:
        needed = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"the imatrix has shape {list(imatrix.shape)}, this tensor needs {needed}")
    weights = imatrix.detach().to(device=tensor.device, dtype=torch.float32).contiguous()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("the imatrix holds a negative or non-finite weight")
    return weights


def _rows_by_weights(
    tensor: torch.Tensor, weights: torch.Tensor | None
) -> Iterator[tuple[int, int, torch.Tensor | None]]:
    """(first row, end row, column weights) of each run of rows with the same column weights."""
    rows = tensor.numel() // tensor.shape[-1] if tensor.shape[-1] else 0
    if rows == 0:
        return
    if weights is None or weights.dim() == 1:
        yield 0, rows, weights
        return
    per_expert = tensor.shape[1]
    for expert in range(tensor.shape[0]):
        yield expert * per_expert, (expert + 1) * per_expert, weights[expert]


def _quantize_torch(target: Format, rows: torch.Tensor, weights: torch.Tensor | None, out: torch.Tensor) -> None:
    import torch

    quantizer = torch_quantizer(target)
    chunk = max(1, TORCH_CHUNK_VALUES.get(rows.device.type, 1 << 20) // rows.shape[1])
    for first in range(0, rows.shape[0], chunk):
        values = rows[first : first + chunk].to(torch.float32)
        finite = torch.isfinite(values).all(dim=1)
        if not bool(finite.all()):
            raise native.NonFiniteRowError(first + int((~finite).int().argmax()))
        out[first : first + chunk] = quantizer(values, weights)


def torch_quantizer(target: Format) -> TorchQuantizer:
    """The reference quantizer of a format: float32 [rows, n], importance [n] or None -> uint8 [rows, row bytes].

    Raises ValueError for a format without one.
    """
    name = target.name
    if name in K_QUANTS:
        from quant.k_quants import quantize_k

        return lambda x, weights: quantize_k(x, name, weights)
    if name in IQ4:
        from quant import iq4

        return iq4.QUANTIZERS[name]
    if name in (*FLOATS, *LEGACY):
        from quant import legacy

        return legacy.QUANTIZERS[name]
    raise ValueError(f"{name} has no quantizer in torch")


# ---- rows in host memory ----


def _quantize_rows(
    rows: Rows,
    target: Format,
    imatrix: np.ndarray | None,
    out: Rows | None,
    threads: int | None,
    backend: str,
    device: str,
) -> Rows:
    if out is None or (out.format, out.n, out.count) != (target, rows.n, rows.count):
        raise ValueError(f"out must be {rows.count} rows of {rows.n} values in {target.name}")
    if (out.scale is not None) != (target.name == "i8"):
        raise ValueError("out.scale belongs to i8, which cannot do without it")
    if rows.format == target and target.name not in FLOATS:
        out.data[:] = rows.data
        if rows.scale is not None and out.scale is not None:
            out.scale[:] = rows.scale
        return out
    if rows.format.name not in FLOATS:
        from quant.dequantize_blocks import dequantize

        rows = Rows(dequantize(rows, threads=threads).reshape(-1).view("uint8"), get_format("f32"), rows.n)
    built = native.library() is not None if target.name == "i8" else native.can_quantize(target.ggml_type)
    if uses_native(backend, device, built, target):
        _quantize_rows_native(rows, imatrix, out, threads)
    else:
        _quantize_rows_torch(rows, imatrix, out, threads, backend, device)
    return out


def _quantize_rows_native(rows: Rows, imatrix: np.ndarray | None, out: Rows, threads: int | None) -> None:
    source, data, n = rows.format.ggml_type, rows.data.ctypes.data, rows.n
    if out.scale is not None:
        native.quantize_rowwise_int8(source, data, rows.count, n, out.data.ctypes.data, out.scale.ctypes.data, threads)
        return
    weights = None if imatrix is None else imatrix.ctypes.data
    native.quantize(out.format.ggml_type, source, data, rows.count, n, weights, out.data.ctypes.data, threads)


def _quantize_rows_torch(
    rows: Rows, imatrix: np.ndarray | None, out: Rows, threads: int | None, backend: str, device: str
) -> None:
    values = rows.tensor().to(device)
    if out.scale is not None:
        from quant import experts_int8

        levels, scale = experts_int8.quantize(values, threads=threads, backend=backend)
        out.data[:] = levels.view(-1).cpu().numpy().view("uint8")
        out.scale[:] = scale.cpu().numpy()
        return
    weights = None if imatrix is None else host_tensor(imatrix).to(device)
    blocks = host_tensor(out.data).view(rows.count, -1)
    _quantize_tensor(values, _writable(out.format.name), weights, blocks, threads, backend)
