"""Inputs and comparisons that the K-quant tests share."""

from __future__ import annotations

import numpy as np

from quant.formats import get_format
from tests.support.ggml_reference import KINDS, sample_imatrix, sample_rows

FORMATS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
MORE_KINDS = ("far_overflow", "steep", "two_values", "nearly_constant", "any_exponent")
ALL_KINDS = (*KINDS, *MORE_KINDS)
IMATRICES = ("none", "uneven", "gaps", "extreme")


def rows_of(kind: str, rows: int, n: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, n] of one of ALL_KINDS: the common ones, and those that reach the searches' rare branches."""
    if kind in KINDS:
        return sample_rows(kind, rows, n, seed)
    rng = np.random.default_rng([seed, 1000 + MORE_KINDS.index(kind)])
    normal = rng.standard_normal((rows, n))
    if kind == "far_overflow":  # squares, sums and half-precision scales overflow
        values = normal * 10.0 ** rng.uniform(18, 37.5, (rows, 1))
    elif kind == "steep":  # one side, most values crowded at an end: a line's base may pass all of them
        values = -(np.abs(normal) ** rng.uniform(0.1, 8, (rows, 1)))
    elif kind == "two_values":
        values = np.where(rng.random((rows, n)) < 0.06, normal[:, :1], normal[:, 1:2])
    elif kind == "nearly_constant":
        values = (1 + normal * 10.0 ** rng.uniform(-8, -2, (rows, 1))) * rng.choice([-1.0, 1.0], (rows, 1))
    elif kind == "any_exponent":
        values = normal * 10.0 ** rng.uniform(-45, 37, (rows, n))
    else:
        raise ValueError(kind)
    return np.clip(values, -3.3e38, 3.3e38).astype(np.float32)


def imatrix_of(kind: str, n: int, seed: int = 0) -> np.ndarray | None:
    """float32 [n] of one of IMATRICES, or None for "none"."""
    if kind == "none":
        return None
    rng = np.random.default_rng([seed, 2000])
    weights = sample_imatrix(n, seed)
    if kind == "gaps":  # columns, and whole sub-blocks, of no importance
        weights[rng.random(n) < 0.3] = 0
        weights[40:100] = 0
    elif kind == "extreme":
        weights = (10.0 ** rng.uniform(-38, 37, n)).astype(np.float32)
    return weights


def model_like(rows: int, n: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, n] of Gaussian weights as a bfloat16 checkpoint holds them."""
    values = np.random.default_rng([seed, 3000]).standard_normal((rows, n), dtype=np.float32) * np.float32(0.02)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def assert_same_blocks(found: np.ndarray, expected: np.ndarray, fmt: str) -> None:
    """Equality of uint8 [rows, row bytes], naming the first block and bytes that differ."""
    size = get_format(fmt).block_bytes
    differs = (found != expected).reshape(-1, size)
    if differs.any():
        block = int(differs.any(axis=1).argmax())
        at = np.flatnonzero(differs[block])
        raise AssertionError(
            f"{int(differs.any(axis=1).sum())} of {len(differs)} {fmt} blocks differ; in block {block} bytes {at[:8]}: "
            f"{found.reshape(-1, size)[block, at[:8]]}, ggml has {expected.reshape(-1, size)[block, at[:8]]}"
        )


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equality of float32 bits, NaNs of any payload being one value."""
    assert found.dtype == expected.dtype == np.float32
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), f"{int((~same).sum())} of {same.size} values differ"
