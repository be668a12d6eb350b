"""The C++ quantizers through ctypes, over plain addresses of contiguous memory that the caller keeps alive.

Importing this module loads nothing. ``library()`` loads the shared library that the package's build made, or returns None
where there is none; the callers then use torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from pathlib import Path

ABI_VERSION = 3
ISA_NAMES = ("base", "avx2", "avx512")

_RESULTS = {
    -1: "the C++ library does not implement this format",
    -2: "a row does not divide into whole blocks",
    -3: "the imatrix holds a negative or non-finite weight",
    -4: "out of memory",
}


class NonFiniteRowError(ValueError):
    """The input has a NaN or an infinity; ``row`` is the first row that does."""

    def __init__(self, row: int, name: str | None = None) -> None:
        super().__init__(f"{name or f'row {row}'} holds a NaN or an infinity")
        self.row = row


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None where it was not built or is of another version (with a warning)."""
    folder = Path(__file__).parent
    candidates = [p for p in folder.glob("_quant*") if p.suffix in (".so", ".pyd", ".dylib", ".dll")]
    for path in candidates:
        try:
            lib = ctypes.CDLL(str(path))
        except OSError:
            continue
        if lib.quant_abi_version() != ABI_VERSION:
            warnings.warn(f"{path.name} is of another version; rebuild it (python -m quant.native.build)", stacklevel=2)
            continue
        _declare(lib)
        return lib
    return None


def _declare(lib: ctypes.CDLL) -> None:
    address, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    lib.quant_supports.argtypes = [i32]
    lib.quant_supports.restype = i32
    lib.quant_set_isa.argtypes = [i32]
    lib.quant_set_isa.restype = i32
    lib.quant_encode.argtypes = [i32, i32, address, i64, i64, address, address, i32]
    lib.quant_encode.restype = i64
    lib.quant_encode_rowwise_int8.argtypes = [i32, address, i64, i64, address, address, i32]
    lib.quant_encode_rowwise_int8.restype = i64
    lib.quant_decode.argtypes = [i32, i32, address, i64, i64, address, i32]
    lib.quant_decode.restype = i64


def default_threads() -> int:
    """The processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def can_quantize(ggml_type: int) -> bool:
    """Whether the library is built and quantizes to this GGML type."""
    lib = library()
    return lib is not None and bool(lib.quant_supports(ggml_type) & 1)


def can_dequantize(ggml_type: int) -> bool:
    """Whether the library is built and dequantizes this GGML type."""
    lib = library()
    return lib is not None and bool(lib.quant_supports(ggml_type) & 2)


def set_isa(name: str | None) -> str:
    """Cap the instruction set ("base", "avx2", "avx512"; None lifts the cap); returns the one now in use. For tests.

    JAMBA_QUANT_ISA does the same for a whole process.
    """
    lib = library()
    if lib is None:
        raise RuntimeError("the C++ library is not built")
    return ISA_NAMES[lib.quant_set_isa(-1 if name is None else ISA_NAMES.index(name))]


def quantize(
    ggml_type: int,
    src_type: int,
    src: int,
    rows: int,
    n: int,
    imatrix: int | None,
    dst: int,
    threads: int | None = None,
) -> None:
    """Quantize ``rows`` rows of ``n`` values at address ``src`` into blocks at address ``dst``.

    ``src_type`` is the GGML type of the source: 0 float32, 1 float16, 30 bfloat16. ``imatrix`` is the address of
    float32 [n], or None. Raises NonFiniteRowError, or ValueError for a bad shape, imatrix or type.
    """
    _check(_library().quant_encode(ggml_type, src_type, src, rows, n, imatrix, dst, threads or default_threads()))


def dequantize(
    ggml_type: int, dst_type: int, src: int, rows: int, n: int, dst: int, threads: int | None = None
) -> None:
    """Dequantize ``rows`` rows of blocks at ``src`` into ``n`` values each, of type ``dst_type`` (0, 1, 30), at ``dst``."""
    _check(_library().quant_decode(ggml_type, dst_type, src, rows, n, dst, threads or default_threads()))


def quantize_rowwise_int8(
    src_type: int, src: int, rows: int, n: int, levels: int, scale: int, threads: int | None = None
) -> None:
    """ExpertsInt8: rows of ``n`` values at ``src`` to int8 [rows, n] at ``levels`` and float32 [rows] at ``scale``.

    ``src_type`` and the errors are those of ``quantize``.
    """
    _check(_library().quant_encode_rowwise_int8(src_type, src, rows, n, levels, scale, threads or default_threads()))


def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise ValueError("the C++ library is not built")
    return lib


def _check(result: int) -> None:
    if result > 0:
        raise NonFiniteRowError(result - 1)
    if result == -4:
        raise MemoryError(_RESULTS[result])
    if result < 0:
        raise ValueError(_RESULTS[result])
