"""Rows whose scales overflowed are found: exactly those that the gguf package dequantizes to infinities or NaNs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quant import quantize
from quant.formats import FORMATS
from quant.overflow import HALVES, overflowed_row

WRITABLE = [f.name for f in FORMATS.values() if f.writable and f.name not in ("i8", "f32")]


@pytest.mark.parametrize("fmt", WRITABLE)
@pytest.mark.parametrize("bad", [0, 3, 6])
def test_the_first_row_too_large_is_found(fmt: str, bad: int) -> None:
    import gguf

    values = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
    values[bad:, 300] = 1e12 * np.where(np.arange(bad, 7) % 2, -1, 1)
    blocks = quantize(torch.from_numpy(values), fmt).numpy()
    kind = gguf.GGMLQuantizationType(FORMATS[fmt].ggml_type)
    with np.errstate(all="ignore"):
        dequantized = gguf.quants.dequantize(blocks, kind)
    broken = ~np.isfinite(dequantized).all(axis=1)
    assert overflowed_row(blocks, fmt) == (int(broken.argmax()) if broken.any() else None)
    # bf16 and powers of two reach as far as float32; a half does not.
    assert broken.any() == (fmt in HALVES)


@pytest.mark.parametrize("fmt", WRITABLE)
def test_ordinary_rows_and_rows_of_zeros_are_fine(fmt: str) -> None:
    values = np.random.default_rng(1).standard_normal((5, 256)).astype(np.float32)
    values[2] = 0
    assert overflowed_row(quantize(torch.from_numpy(values), fmt).numpy(), fmt) is None


def test_float32_rows_are_their_own_scales_and_bytes_have_none() -> None:
    values = np.ones((4, 8), np.float32)
    values[3, 7] = -np.inf
    assert overflowed_row(values.view(np.uint8), "f32") == 3
    assert overflowed_row(np.full((4, 8), 255, np.uint8), "i8") is None
    assert overflowed_row(np.zeros((0, 34), np.uint8), "q8_0") is None
