"""MXFP4, which is read in torch, against the gguf package's values."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import torch

from quant import FORMATS, Rows, dequantize


def all_blocks() -> np.ndarray:
    """uint8 [256, 4 * 17]: every exponent with levels of every value, in rows of 128 values."""
    blocks = np.random.default_rng(0).integers(0, 256, (256, 4, 17), dtype=np.uint8)
    blocks[:, :, 0] = np.arange(256)[:, None]
    return blocks.reshape(256, -1)


def test_values_are_those_of_the_gguf_package_and_no_warning_is_given() -> None:
    blocks = all_blocks()
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dequantize(torch.from_numpy(blocks), "mxfp4")
        rows = dequantize(Rows(blocks.reshape(-1), FORMATS["mxfp4"], 128))
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(rows, expected)
