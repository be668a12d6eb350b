"""IQ4_NL and IQ4_XS against ggml's own bytes and the gguf package's values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quant import dequantize, quantize
from quant.formats import get_format
from quant.iq4 import GRID
from tests.support.ggml_reference import IMATRIX_KINDS, KINDS, quantize_chunk, sample_imatrix, sample_rows
from tests.support.k_quant_cases import ALL_KINDS, assert_same_bits, assert_same_blocks, model_like, rows_of

FORMATS = ("iq4_nl", "iq4_xs")


def _quantize(values: np.ndarray, fmt: str, imatrix: np.ndarray | None, backend: str, threads: int = 1) -> np.ndarray:
    weights = None if imatrix is None else torch.from_numpy(imatrix)
    return quantize(torch.from_numpy(values), fmt, weights, backend=backend, threads=threads).numpy()


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_native_bytes_are_ggmls(fmt: str, kind: str, isa: str) -> None:
    values = rows_of(kind, 21, 768)
    assert_same_blocks(_quantize(values, fmt, None, "native"), quantize_chunk(values, fmt), fmt)
    for weights in IMATRIX_KINDS:
        imatrix = sample_imatrix(768, 2, weights)
        assert_same_blocks(_quantize(values, fmt, imatrix, "native"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_torch_bytes_are_ggmls(fmt: str, one_thread: None) -> None:
    values = np.concatenate([sample_rows(kind, 4, 512, seed=3) for kind in KINDS])
    for weights in (None, *IMATRIX_KINDS):
        imatrix = None if weights is None else sample_imatrix(512, 4, weights)
        assert_same_blocks(_quantize(values, fmt, imatrix, "torch"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("weights", [None, "uneven"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_million_model_weights(fmt: str, weights: str | None) -> None:
    values = model_like(512, 2048)
    imatrix = None if weights is None else sample_imatrix(2048, 6, weights)
    assert_same_blocks(_quantize(values, fmt, imatrix, "auto", threads=2), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("fmt", FORMATS)
def test_any_number_of_blocks(fmt: str, rows: int, isa: str) -> None:
    n = get_format(fmt).block
    values = sample_rows("heavy", rows, n, seed=5)
    assert_same_blocks(_quantize(values, fmt, None, "native", threads=3), quantize_chunk(values, fmt), fmt)


def test_values_between_two_levels_go_where_ggml_puts_them(backend: str) -> None:
    # All values lie on the grid of a factor of 1, which the search then finds, but one exactly between two levels.
    for low, high in ((-49, -35), (-10, 1), (25, 38)):
        values = np.array([[*GRID, *GRID]], dtype=np.float32)
        values[0, 20] = (low + high) / 2
        blocks = _quantize(values, "iq4_nl", None, backend)
        assert_same_blocks(blocks, quantize_chunk(values, "iq4_nl"), "iq4_nl")


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_bytes_are_dequantized_as_in_gguf(fmt: str, isa: str, one_thread: None) -> None:
    gguf = pytest.importorskip("gguf")
    form = get_format(fmt)
    blocks = np.random.default_rng(7).integers(0, 256, (65, form.row_bytes(768)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(form.ggml_type))
    for which in ("native", "torch"):
        assert_same_bits(dequantize(torch.from_numpy(blocks), fmt, backend=which).numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, "uneven", "sparse"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_many_model_weights(fmt: str, weights: str | None, isa: str) -> None:
    for seed in range(1, 4):
        values = model_like(512, 4096, seed)
        imatrix = None if weights is None else sample_imatrix(4096, seed, weights)
        assert_same_blocks(_quantize(values, fmt, imatrix, "native", 2), quantize_chunk(values, fmt, imatrix), fmt)
