"""The C++ quantizers and dequantizers through ctypes, over plain addresses.

Importing this loads nothing. ``library()`` finds the shared library that the package's build made; without one, it
returns None and the callers use torch. ``quantize`` and ``dequantize`` take addresses of contiguous memory that the caller
keeps alive. Formats and types are GGML type ids. The environment variable JAMBA_CPU_ISA lowers the instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from quant.native.shared_library import SharedLibrary, load

ABI_VERSION = 5


class NonFiniteRowError(ValueError):
    """The input has a NaN or an infinity; ``row`` is the first row that does."""

    def __init__(self, row: int, name: str | None = None) -> None:
        super().__init__(f"{name or f'row {row}'} holds a NaN or an infinity")
        self.row = row


@functools.cache
def library() -> SharedLibrary | None:
    """The loaded library, or None where it was not built (or from other sources, with a warning)."""
    lib = load(Path(__file__).parent, "_quant", "quant_abi_version", ABI_VERSION)
    if lib is not None:
        address, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        for name, arguments in {
            "quant_quantize_rows": [i32, i32, address, i64, i64, address, address, i32],
            "quant_quantize_int8_rows": [i32, address, i64, i64, address, address, i32],
            "quant_dequantize_rows": [i32, i32, address, i64, i64, address, i32],
            "quant_search_rows": [i32, address, i64, i64, address, address, i32],
            "quant_solve_block": [
                *(i32, address, i64, i64, i64, address, address, address, i64),
                *(i32, address, i64, address, i64, i32),
            ],
        }.items():
            getattr(lib.functions, name).argtypes = arguments
            getattr(lib.functions, name).restype = i64
    return lib


def default_threads() -> int:
    """The processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def can_quantize(ggml_type: int) -> bool:
    """Whether the library is built and quantizes to this GGML type."""
    lib = library()
    return lib is not None and bool(lib.functions.quant_supports(ggml_type) & 1)


def can_dequantize(ggml_type: int) -> bool:
    """Whether the library is built and dequantizes this GGML type."""
    lib = library()
    return lib is not None and bool(lib.functions.quant_supports(ggml_type) & 2)


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
    lib = _library()
    _check(
        lib,
        lib.functions.quant_quantize_rows(
            ggml_type, src_type, src, rows, n, imatrix, dst, threads or default_threads()
        ),
    )


def dequantize(
    ggml_type: int, dst_type: int, src: int, rows: int, n: int, dst: int, threads: int | None = None
) -> None:
    """Dequantize ``rows`` rows of blocks at ``src`` into ``n`` values each, of type ``dst_type`` (0, 1, 30), at ``dst``."""
    lib = _library()
    _check(
        lib,
        lib.functions.quant_dequantize_rows(ggml_type, dst_type, src, rows, n, dst, threads or default_threads()),
    )


def quantize_rowwise_int8(
    src_type: int, src: int, rows: int, n: int, levels: int, scale: int, threads: int | None = None
) -> None:
    """ExpertsInt8: rows of ``n`` values at ``src`` to int8 [rows, n] at ``levels`` and float32 [rows] at ``scale``.

    ``src_type`` and the errors are those of ``quantize``.
    """
    lib = _library()
    _check(
        lib,
        lib.functions.quant_quantize_int8_rows(src_type, src, rows, n, levels, scale, threads or default_threads()),
    )


def can_refine(ggml_type: int) -> bool:
    """Whether the library is built and refines blocks of this GGML type."""
    lib = library()
    return lib is not None and bool(lib.functions.quant_can_refine(ggml_type))


def search_rows(
    ggml_type: int, x: int, rows: int, n: int, weights: int, blocks: int, threads: int | None = None
) -> None:
    """Improve the blocks [rows, row bytes] at ``blocks``, in place, for the error weighted with float32 [n] at ``weights``.

    ``x`` is the address of the values, float32 [rows, n]. The errors are those of ``quantize``.
    """
    lib = _library()
    _check(lib, lib.functions.quant_search_rows(ggml_type, x, rows, n, weights, blocks, threads or default_threads()))


def solve_block(
    ggml_type: int,
    x: tuple[int, int],
    shape: tuple[int, int],
    S: int,
    R: int | None,
    gradient: tuple[int | None, int],
    rounds: int,
    blocks: tuple[int, int],
    values: tuple[int | None, int],
    threads: int | None = None,
) -> None:
    """``quant_solve_block`` of refine_rows.cpp: arrays are (address, distance between rows), ``shape`` is (rows, columns)."""
    lib = _library()
    run = lib.functions.quant_solve_block
    _check(lib, run(ggml_type, *x, *shape, S, R, *gradient, rounds, *blocks, *values, threads or default_threads()))


def _library() -> SharedLibrary:
    lib = library()
    if lib is None:
        raise ValueError("the C++ library is not built")
    return lib


def _check(lib: SharedLibrary, result: int) -> None:
    if result > 0:
        raise NonFiniteRowError(result - 1)
    lib.check(result)
