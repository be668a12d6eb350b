"""ggml's own quantizer (libggml-python) as the reference of every byte test.

``quantize_chunk`` is one call of ``ggml_quantize_chunk``; ``sample_rows`` makes the rows every format is tested on.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from quant.formats import get_format

KINDS = (
    "normal",
    "heavy",
    "constant",
    "zero",
    "outlier",
    "subnormal",
    "tiny",
    "huge",
    "extreme",
    "negative_zero",
    "ties",
    "one_sided",
    "sparse",
    "mixed_scales",
    "bits",
)

IMATRIX_KINDS = ("uneven", "zeros", "sparse", "ones", "extreme")


@functools.cache
def library() -> ctypes.CDLL:
    """libggml-base, with the one function's types set; skips the test where it is not installed."""
    libggml = pytest.importorskip("libggml", reason="libggml-python (ggml's own quantizers) is not installed")
    folder = Path(libggml.__file__).parent
    found = sorted(p for p in folder.rglob("*ggml-base*") if p.suffix in (".so", ".dylib", ".dll"))
    if not found:
        pytest.skip("libggml-python carries no ggml-base library here")
    lib = _load_apart(found[0])
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def _load_apart(path: Path) -> ctypes.CDLL:
    """The library in a linker namespace of its own: llama_cpp's libggml-base has the same name and must not become it."""
    own_namespace, now = -1, 2  # LM_ID_NEWLM, RTLD_NOW
    dlmopen = getattr(ctypes.CDLL(None), "dlmopen", None) if sys.platform == "linux" else None
    if dlmopen is not None:
        dlmopen.restype = ctypes.c_void_p
        dlmopen.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_int]
        handle = dlmopen(own_namespace, str(path).encode(), now)
        if handle:
            return ctypes.CDLL(str(path), handle=handle)
    return ctypes.CDLL(str(path))


def quantize_chunk(values: np.ndarray, fmt: str, imatrix: np.ndarray | None = None) -> np.ndarray:
    """ggml's bytes of float32 [rows, n], uint8 [rows, row_bytes]; ``imatrix`` is float32 [n] or None."""
    lib = library()
    source = np.ascontiguousarray(values, dtype=np.float32)
    rows, n = source.shape
    row_bytes = get_format(fmt).row_bytes(n)
    out = np.zeros((rows, row_bytes), dtype=np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, dtype=np.float32)
    assert weights is None or weights.shape == (n,)
    written = lib.ggml_quantize_chunk(
        get_format(fmt).ggml_type,
        source.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        n,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.nbytes
    return out


def sample_rows(kind: str, rows: int, n: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, n] of one of KINDS, the same for the same seed."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    normal = rng.standard_normal((rows, n)).astype(np.float32)
    if kind == "normal":
        return normal * np.float32(0.02)
    if kind == "heavy":
        return np.clip(rng.standard_t(1.5, (rows, n)), -1e4, 1e4).astype(np.float32)
    if kind == "constant":
        return np.repeat(rng.standard_normal((rows, 1)).astype(np.float32), n, axis=1)
    if kind == "zero":
        return np.zeros((rows, n), dtype=np.float32)
    if kind == "outlier":
        values = normal * np.float32(1e-3)
        values[np.arange(rows), rng.integers(0, n, rows)] = rng.choice([-50.0, 50.0], rows)
        return values
    if kind == "subnormal":
        return (rng.integers(-5000, 5000, (rows, n)) * np.float64(1.4e-45)).astype(np.float32)
    if kind == "tiny":  # scales that fall among f16's subnormals and below them
        return normal * (10.0 ** rng.uniform(-40, -4, (rows, 1))).astype(np.float32)
    if kind == "huge":
        return normal * (10.0 ** rng.uniform(3, 18, (rows, 1))).astype(np.float32)
    if kind == "extreme":  # squares and differences overflow
        values = np.clip(normal.astype(np.float64) * 10.0 ** rng.uniform(18, 38.4, (rows, 1)), -3.4e38, 3.4e38)
        return values.astype(np.float32)
    if kind == "negative_zero":
        return np.where(
            rng.random((rows, n)) < 0.5, np.float32(-0.0), np.where(rng.random((rows, n)) < 0.9, 0.0, normal)
        ).astype(np.float32)
    if kind == "ties":  # halves of an exact step, so that every rounding rule shows
        step = (2.0 ** rng.integers(-6, 6, (rows, 1))).astype(np.float32)
        return rng.integers(-16, 17, (rows, n)).astype(np.float32) * step * np.float32(0.5)
    if kind == "one_sided":
        return np.abs(normal) * rng.choice([-1.0, 1.0], (rows, 1)).astype(np.float32)
    if kind == "sparse":
        return np.where(rng.random((rows, n)) < 0.05, normal, np.float32(0.0)).astype(np.float32)
    if kind == "mixed_scales":  # every stretch of 32 has a scale of its own
        scale = np.repeat((10.0 ** rng.uniform(-6, 3, (rows, (n + 31) // 32))).astype(np.float32), 32, axis=1)[:, :n]
        return normal * scale
    if kind == "bits":  # any finite float32 at all
        bits = rng.integers(0, 1 << 32, (rows, n), dtype=np.uint32)
        return np.where(bits & 0x7F800000 == 0x7F800000, bits & 0x807FFFFF, bits).astype(np.uint32).view(np.float32)
    raise ValueError(kind)


def sample_imatrix(n: int, seed: int = 0, kind: str = "uneven") -> np.ndarray:
    """float32 [n] of importance: strongly uneven as activations' mean squares are, or an edge case of IMATRIX_KINDS."""
    rng = np.random.default_rng([seed, 77])
    uneven = (rng.standard_normal(n) ** 2 * 10.0 ** rng.uniform(-3, 2, n) + 1e-6).astype(np.float32)
    if kind == "zeros":
        return np.zeros(n, dtype=np.float32)
    if kind == "sparse":
        return np.where(rng.random(n) < 0.2, uneven, np.float32(0.0))
    if kind == "ones":
        return np.ones(n, dtype=np.float32)
    if kind == "extreme":
        return (10.0 ** rng.uniform(-38, 37, n)).astype(np.float32)
    return uneven
