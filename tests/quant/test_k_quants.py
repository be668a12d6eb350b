"""The K-quants against ggml's own bytes and the gguf package's values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quant import dequantize, native, quantize
from quant.formats import get_format
from tests.support.ggml_reference import quantize_chunk
from tests.support.k_quant_cases import (
    ALL_KINDS,
    FORMATS,
    IMATRICES,
    assert_same_bits,
    assert_same_blocks,
    imatrix_of,
    model_like,
    rows_of,
)


def _quantize(values: np.ndarray, fmt: str, imatrix: np.ndarray | None, backend: str, threads: int = 1) -> np.ndarray:
    weights = None if imatrix is None else torch.from_numpy(imatrix)
    return quantize(torch.from_numpy(values), fmt, weights, backend=backend, threads=threads).numpy()


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_native_bytes_are_ggmls(fmt: str, kind: str, isa: str) -> None:
    values = rows_of(kind, 21, 768)  # 63 blocks: the last vector of them is not full in any instruction set
    for weights in IMATRICES:
        imatrix = imatrix_of(weights, 768)
        assert_same_blocks(_quantize(values, fmt, imatrix, "native"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_torch_bytes_are_ggmls(fmt: str, one_thread: None) -> None:
    values = np.concatenate([rows_of(kind, 4, 512, seed=1) for kind in ALL_KINDS])
    for weights in IMATRICES:
        imatrix = imatrix_of(weights, 512)
        assert_same_blocks(_quantize(values, fmt, imatrix, "torch"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("weights", ["none", "uneven"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_million_model_weights(fmt: str, weights: str) -> None:
    values, imatrix = model_like(512, 2048), imatrix_of(weights, 2048)
    assert_same_blocks(_quantize(values, fmt, imatrix, "auto", threads=2), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "uneven"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_many_model_weights(fmt: str, weights: str, isa: str) -> None:
    for seed in range(1, 5):
        values, imatrix = model_like(512, 4096, seed), imatrix_of(weights, 4096, seed)
        assert_same_blocks(_quantize(values, fmt, imatrix, "native", 2), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_torch_bytes_of_many_weights(fmt: str) -> None:
    for weights in ("none", "uneven"):
        values, imatrix = model_like(128, 2048, 7), imatrix_of(weights, 2048)
        assert_same_blocks(_quantize(values, fmt, imatrix, "torch"), quantize_chunk(values, fmt, imatrix), fmt)


@pytest.mark.parametrize("shape", [(1, 256), (3, 256), (1, 16 * 256), (17, 256), (5, 2560)])
@pytest.mark.parametrize("fmt", FORMATS)
def test_any_number_of_blocks(fmt: str, shape: tuple[int, int], isa: str) -> None:
    values, imatrix = model_like(*shape, seed=3), imatrix_of("uneven", shape[1])
    for weights in (None, imatrix):
        assert_same_blocks(
            _quantize(values, fmt, weights, "native", threads=3), quantize_chunk(values, fmt, weights), fmt
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_narrow_sources(fmt: str, backend: str, dtype: torch.dtype, one_thread: None) -> None:
    if backend == "native" and native.library() is None:
        pytest.skip("the C++ library is not built")
    values = torch.from_numpy(rows_of("normal", 4, 512)).to(dtype)
    expected = quantize_chunk(values.to(torch.float32).numpy(), fmt)
    assert_same_blocks(quantize(values, fmt, backend=backend).numpy(), expected, fmt)


def _gguf_values(blocks: np.ndarray, fmt: str) -> np.ndarray:
    gguf = pytest.importorskip("gguf")
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(get_format(fmt).ggml_type))


def _any_bytes(fmt: str, rows: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.integers(0, 256, (rows, get_format(fmt).row_bytes(n)), dtype=np.uint8)


@pytest.mark.parametrize("fmt", FORMATS)
def test_native_values_are_ggufs(fmt: str, isa: str) -> None:
    for blocks in (_any_bytes(fmt, 40, 1024), quantize_chunk(rows_of("mixed_scales", 16, 1024), fmt)):
        found = dequantize(torch.from_numpy(blocks), fmt, backend="native", threads=2)
        assert_same_bits(found.numpy(), _gguf_values(blocks, fmt))


@pytest.mark.parametrize("fmt", FORMATS)
def test_torch_values_are_ggufs(fmt: str, one_thread: None) -> None:
    for blocks in (_any_bytes(fmt, 40, 1024), quantize_chunk(rows_of("mixed_scales", 16, 1024), fmt)):
        found = dequantize(torch.from_numpy(blocks), fmt, backend="torch")
        assert_same_bits(found.numpy(), _gguf_values(blocks, fmt))


@pytest.mark.parametrize("fmt", FORMATS)
def test_bfloat16_values_are_the_rounded_ones(fmt: str, isa: str) -> None:
    blocks = torch.from_numpy(quantize_chunk(model_like(16, 1024), fmt))
    expected = torch.from_numpy(_gguf_values(blocks.numpy(), fmt)).to(torch.bfloat16)
    assert torch.equal(dequantize(blocks, fmt, dtype=torch.bfloat16, backend="native"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", FORMATS)
def test_cuda_bytes_and_values(fmt: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = np.concatenate([rows_of(kind, 8, 512, seed=2) for kind in ALL_KINDS])
    for weights in IMATRICES:
        imatrix = imatrix_of(weights, 512)
        on_device = None if imatrix is None else torch.from_numpy(imatrix).cuda()
        found = quantize(torch.from_numpy(values).cuda(), fmt, on_device)
        assert found.device.type == "cuda"
        assert_same_blocks(found.cpu().numpy(), quantize_chunk(values, fmt, imatrix), fmt)
        assert_same_bits(dequantize(found, fmt).cpu().numpy(), _gguf_values(found.cpu().numpy(), fmt))
