"""The formats that are read in torch and not written, against the values of the gguf package and of ggml."""

from __future__ import annotations

import ctypes
import warnings

import gguf
import numpy as np
import pytest
import torch

from jambacli.kernels import reference
from quant import FORMATS, Rows, dequantize
from quant.formats import QTensor
from tests.support.ggml_reference import library


def all_blocks(fmt: str) -> np.ndarray:
    """uint8 [256, 4 blocks]: the first bytes, the factors, go through all values; levels are random."""
    form = FORMATS[fmt]
    blocks = np.random.default_rng(0).integers(0, 256, (256, 4, form.block_bytes), dtype=np.uint8)
    blocks[:, :, 0] = np.arange(256)[:, None]
    if fmt == "nvfp4":
        blocks[:, :, 1:4] = np.arange(256)[::-1, None, None]
    if fmt in ("q1_0", "q2_0"):  # a finite float16
        blocks[:, :, 1] &= 0xBB
    return blocks.reshape(256, -1)


def found(blocks: np.ndarray, fmt: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = dequantize(torch.from_numpy(blocks), fmt).numpy()
        rows = dequantize(Rows(blocks.reshape(-1), FORMATS[fmt], values.shape[1]))
    assert np.array_equal(rows, values)
    return values


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4"])
def test_values_are_those_of_the_gguf_package_and_no_warning_is_given(fmt: str) -> None:
    kind = getattr(gguf.GGMLQuantizationType, fmt.upper(), None)
    if kind is None:
        pytest.skip(f"this version of the gguf package has no {fmt}")
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(all_blocks(fmt), kind)
    assert np.array_equal(found(all_blocks(fmt), fmt), expected)


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4", "q1_0", "q2_0"])
def test_values_are_those_of_ggml(fmt: str) -> None:
    function = getattr(library(), f"dequantize_row_{fmt}", None)
    if function is None:
        pytest.skip(f"this ggml has no {fmt}")
    blocks = all_blocks(fmt)
    values = found(blocks, fmt)
    expected = np.empty_like(values)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(blocks.ctypes.data, expected.ctypes.data, expected.size)
    assert np.array_equal(values, expected)


def test_two_bit_blocks_written_by_hand() -> None:
    d = np.array([0.5], "<f2").tobytes()
    one = np.frombuffer(d + bytes([0b10000001]) + bytes(15), np.uint8)
    assert dequantize(torch.from_numpy(one.copy()), "q1_0").tolist() == [0.5] + [-0.5] * 6 + [0.5] + [-0.5] * 120
    two = np.frombuffer(d + bytes([0b11100100]) + bytes([0b01010101] * 15), np.uint8)
    assert dequantize(torch.from_numpy(two.copy()), "q2_0").tolist() == [-0.5, 0, 0.5, 1.0] + [0.0] * 60


def test_nvfp4_is_multiplied_by_the_factor_of_its_row() -> None:
    blocks = all_blocks("nvfp4")
    scale = np.linspace(0.5, 2, 256, dtype=np.float32)
    expected = found(blocks, "nvfp4") * scale[:, None]
    assert np.array_equal(dequantize(Rows(blocks.reshape(-1), FORMATS["nvfp4"], 256, scale)), expected)
    w = QTensor(
        torch.from_numpy(blocks.reshape(-1)), FORMATS["nvfp4"], (4, 64, 256), torch.from_numpy(scale).view(4, 64)
    )
    assert np.array_equal(reference.dequantize(w).numpy().reshape(256, 256), expected)
    assert np.array_equal(reference.dequantize(reference.expert(w, 2)).numpy(), expected[128:192])
