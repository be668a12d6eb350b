"""Q8_0, Q4 and Q5, F16 and BF16 against ggml's own bytes and the gguf package's values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import dequantize, quantize
from quant.formats import get_format
from tests.support.ggml_reference import IMATRIX_KINDS, KINDS, quantize_chunk, sample_imatrix, sample_rows
from tests.support.k_quant_cases import assert_same_bits, assert_same_blocks

FORMATS = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
SEARCHED = ("q4_0", "q4_1", "q5_0", "q5_1")


def _quantize(values: np.ndarray, fmt: str, imatrix: np.ndarray | None, backend: str, threads: int = 1) -> np.ndarray:
    weights = None if imatrix is None else torch.from_numpy(imatrix)
    return quantize(torch.from_numpy(values), fmt, weights, backend=backend, threads=threads).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_native_bytes_are_ggmls(fmt: str, kind: str, isa: str) -> None:
    # 20 blocks a row, 63 rows: neither fills the last vector of any instruction set.
    values = sample_rows(kind, 63, 640, seed=1)
    assert_same_blocks(_quantize(values, fmt, None, "native"), quantize_chunk(values, fmt), fmt)
    for weights in IMATRIX_KINDS:
        imatrix = sample_imatrix(640, 2, weights)
        assert_same_blocks(_quantize(values, fmt, imatrix, "native"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_torch_bytes_are_ggmls(fmt: str, one_thread: None) -> None:
    values = np.concatenate([sample_rows(kind, 12, 320, seed=3) for kind in KINDS])
    for weights in (None, *IMATRIX_KINDS):
        imatrix = None if weights is None else sample_imatrix(320, 4, weights)
        assert_same_blocks(_quantize(values, fmt, imatrix, "torch"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (17, 32), (1, 4096), (5, 2560), (2, 70_016)])
@pytest.mark.parametrize("fmt", FORMATS)
def test_any_number_of_blocks(fmt: str, shape: tuple[int, int], isa: str) -> None:
    values, imatrix = sample_rows("normal", *shape, seed=5), sample_imatrix(shape[1])
    for weights in (None, imatrix):
        found = _quantize(values, fmt, weights, "native", threads=3)
        assert_same_blocks(found, quantize_chunk(values, fmt, weights), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_narrow_sources(fmt: str, backend: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.from_numpy(sample_rows("heavy", 9, 352)).to(dtype)
        expected = quantize_chunk(values.to(torch.float32).numpy(), fmt)
        assert_same_blocks(quantize(values, fmt, backend=backend).numpy(), expected, fmt)


@pytest.mark.parametrize("fmt", ("q8_0", *SEARCHED))
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=32), weight=st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_finite_block(fmt: str, bits: list[int], weight: int) -> None:
    raw = np.array([bits], dtype=np.uint32)
    values = np.where(raw & 0x7F800000 == 0x7F800000, raw & 0x807FFFFF, raw).astype(np.uint32).view(np.float32)
    importance = np.uint32(weight if weight & 0x7F800000 != 0x7F800000 else weight & 0x7FFFFF).view(np.float32)
    imatrix = np.full(32, importance, dtype=np.float32)
    for weights in (None, imatrix):
        expected = quantize_chunk(values, fmt, weights)
        assert_same_blocks(_quantize(values, fmt, weights, "auto"), expected, fmt)


def test_halves_round_away_from_zero_in_q8_0(backend: str) -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, :5] = [127.0, 0.5, -0.5, 2.5, -2.5]  # the factor is exactly 1
    blocks = _quantize(values, "q8_0", None, backend)
    assert blocks[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 3, -3]


def test_halves_round_to_even_in_f16_and_bf16(backend: str) -> None:
    values = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 65520.0 - 2**-8], dtype=torch.float32)
    f16 = quantize(values, "f16", backend=backend).view(torch.float16).tolist()
    assert f16 == [1.0, 1 + 2**-9, 0.0, 2**-23, 65504.0]
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8], dtype=torch.float32)
    assert quantize(values, "bf16", backend=backend).view(torch.bfloat16).tolist() == [1.0, 1 + 2**-6]


def _gguf_values(blocks: np.ndarray, fmt: str) -> np.ndarray:
    gguf = pytest.importorskip("gguf")
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(get_format(fmt).ggml_type))


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_bytes_are_dequantized_as_in_gguf(fmt: str, isa: str, one_thread: None) -> None:
    form = get_format(fmt)
    blocks = np.random.default_rng(7).integers(0, 256, (65, form.row_bytes(352)), dtype=np.uint8)
    expected = _gguf_values(blocks, fmt)
    for which in ("native", "torch"):
        assert_same_bits(dequantize(torch.from_numpy(blocks), fmt, backend=which).numpy(), expected)


@pytest.mark.parametrize("fmt", FORMATS)
def test_decoding_to_narrow_types_rounds_float32(fmt: str, backend: str) -> None:
    blocks = torch.from_numpy(quantize_chunk(sample_rows("heavy", 9, 352), fmt))
    values = dequantize(blocks, fmt, backend="torch")
    for dtype in (torch.float16, torch.bfloat16):
        found = dequantize(blocks, fmt, dtype=dtype, backend=backend)
        assert found.dtype == dtype
        assert torch.equal(found, values.to(dtype))


@pytest.mark.parametrize("fmt", ("q8_0", *SEARCHED))
def test_weights_lower_the_weighted_error(fmt: str) -> None:
    values, imatrix = sample_rows("normal", 64, 1024), sample_imatrix(1024)
    tensor, weights = torch.from_numpy(values), torch.from_numpy(imatrix)

    def error(blocks: torch.Tensor) -> float:
        return float((weights * (dequantize(blocks, fmt) - tensor) ** 2).sum())

    plain, searched = quantize(tensor, fmt), quantize(tensor, fmt, weights)
    if fmt == "q8_0":  # ggml has no search there
        assert torch.equal(plain, searched)
    else:
        assert error(searched) < error(plain)
