"""quantize and dequantize as a caller sees them: shapes, devices' paths, errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import quant
from quant import Rows, dequantize, experts_int8, native, quantize
from quant.formats import FORMATS, K_QUANTS, LEGACY, get_format

ALL = [f.name for f in FORMATS.values() if f.writable and f.name != "i8"]


def test_the_package_stands_alone() -> None:
    code = "import sys, quant; assert 'torch' not in sys.modules; assert not any(m.startswith('jambacli') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert quant.quantize is quantize
    assert quant.dequantize is dequantize


@pytest.mark.parametrize("fmt", ALL)
def test_shapes_come_back(fmt: str, backend: str) -> None:
    for shape in ((256,), (3, 512), (2, 3, 256), (2, 1, 2, 256)):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        blocks = quantize(values, fmt.upper(), backend=backend)
        assert blocks.dtype == torch.uint8
        assert blocks.shape == (*shape[:-1], get_format(fmt).row_bytes(shape[-1]))
        assert dequantize(blocks, fmt, backend=backend).shape == shape


@pytest.mark.parametrize("fmt", ALL)
def test_no_rows_is_no_error(fmt: str, backend: str) -> None:
    blocks = quantize(torch.empty(4, 0, 256), fmt, backend=backend)
    assert blocks.shape == (4, 0, get_format(fmt).row_bytes(256))
    assert dequantize(blocks, fmt, backend=backend).shape == (4, 0, 256)


def test_strided_tensors_are_read_as_they_look(backend: str) -> None:
    values = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(values.t(), "q5_0", backend=backend), quantize(values.t().contiguous(), "q5_0"))


@pytest.mark.parametrize("fmt", ["q8_0", "q4_k"])
def test_threads_change_nothing(fmt: str) -> None:
    values = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))
    one = quantize(values, fmt, threads=1)
    for threads in (2, 5, 300):
        assert torch.equal(quantize(values, fmt, threads=threads), one)
    assert torch.equal(dequantize(one, fmt, threads=1), dequantize(one, fmt, threads=7))


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "iq4_nl", "q4_k"])
def test_each_expert_takes_its_own_importance(fmt: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 512, generator=generator)
    importance = torch.rand(3, 512, generator=generator) ** 8
    together = quantize(values, fmt, importance, backend=backend)
    for expert in range(3):
        assert torch.equal(together[expert], quantize(values[expert], fmt, importance[expert], backend=backend))


@pytest.mark.parametrize("fmt", ["f16", "q8_0", "iq4_xs", "q6_k"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_named(fmt: str, dtype: torch.dtype, bad: float, backend: str) -> None:
    values = torch.zeros(4, 150, 256, dtype=dtype)
    values[2, 131, 255] = bad
    values[3, 7, 0] = bad
    for importance in (None, torch.ones(4, 256)):
        with pytest.raises(ValueError, match=r"^row \[2, 131\] holds a NaN or an infinity$"):
            quantize(values, fmt, importance, backend=backend, threads=2)
    with pytest.raises(ValueError, match=r"^row 131 holds a NaN or an infinity$"):
        quantize(values[2], fmt, backend=backend)


def test_what_does_not_fit_is_said_in_one_line(backend: str) -> None:
    values = torch.zeros(2, 160)
    for call, text in (
        (
            lambda: quantize(values, "q4_k", backend=backend),
            r"a row of 160 values is not a multiple of q4_k's block of 256",
        ),
        (lambda: quantize(values, "q9", backend=backend), r"unknown format 'q9'; known: f32, f16"),
        (lambda: quantize(values, "iq2_xxs", backend=backend), r"iq2_xxs is not a format this package quantizes to"),
        (lambda: quantize(values, "i8", backend=backend), r"i8 is not a format of blocks"),
        (lambda: quantize(values.double(), "q8_0", backend=backend), r"cannot quantize torch.float64"),
        (lambda: quantize(torch.tensor(1.0), "q8_0", backend=backend), r"cannot quantize a scalar"),
        (lambda: quantize(values, "q8_0", backend="cuda"), r"unknown backend 'cuda'; known: auto, native, torch"),
        (lambda: dequantize(torch.zeros(33, dtype=torch.uint8), "q8_0", backend=backend), r"a row of 33 bytes is no"),
        (lambda: dequantize(torch.zeros(34), "q8_0", backend=backend), r"blocks are uint8 .* not torch.float32"),
        (
            lambda: dequantize(torch.zeros(34, dtype=torch.uint8), "q8_0", dtype=torch.int8, backend=backend),
            r"cannot dequantize to torch.int8",
        ),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_imatrix_of_another_shape_or_kind_is_refused(backend: str) -> None:
    values = torch.zeros(2, 3, 256)
    good = torch.ones(256)
    for bad, text in (
        (torch.ones(255), r"the imatrix has shape \[255\], this tensor needs \[256\] or \[2, 256\]"),
        (torch.ones(3, 256), r"the imatrix has shape \[3, 256\]"),
        (good * float("nan"), "negative or non-finite"),
        (good * float("inf"), "negative or non-finite"),
        (-good, "negative or non-finite"),
    ):
        with pytest.raises(ValueError, match=text):
            quantize(values, "q4_0", bad, backend=backend)
    with pytest.raises(ValueError, match=r"this tensor needs \[256\]$"):
        quantize(values[0], "q4_0", torch.ones(3, 256), backend=backend)


def test_the_native_layer_refuses_by_itself() -> None:
    """What the file-level code relies on when it hands addresses to C++ directly."""
    if native.library() is None:
        pytest.skip("the C++ library is not built")
    values, blocks = torch.zeros(2, 64), torch.zeros(2, 68, dtype=torch.uint8)
    q8_0 = FORMATS["q8_0"].ggml_type
    native.quantize(q8_0, 0, values.data_ptr(), 2, 64, None, blocks.data_ptr())
    with pytest.raises(ValueError, match="whole blocks"):
        native.quantize(q8_0, 0, values.data_ptr(), 2, 63, None, blocks.data_ptr())
    with pytest.raises(ValueError, match="this format has no"):
        native.quantize(16, 0, values.data_ptr(), 2, 64, None, blocks.data_ptr())
    with pytest.raises(ValueError, match="this format has no"):
        native.dequantize(q8_0, 8, blocks.data_ptr(), 2, 64, values.data_ptr())
    importance = -torch.ones(64)
    with pytest.raises(ValueError, match="negative or non-finite"):
        native.quantize(q8_0, 0, values.data_ptr(), 2, 64, importance.data_ptr(), blocks.data_ptr())
    values[1, 63] = float("nan")
    with pytest.raises(native.NonFiniteRowError) as caught:
        native.quantize(q8_0, 0, values.data_ptr(), 2, 64, None, blocks.data_ptr())
    assert caught.value.row == 1


def test_flushing_subnormals_in_the_process_changes_no_bytes() -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 1e-37
    expected = {fmt: quantize(values, fmt) for fmt in ("q8_0", "q4_1", "q4_k", "iq4_xs")}
    if native.library() is None or not torch.set_flush_denormal(True):
        pytest.skip("needs the C++ library and a processor that can flush subnormals")
    try:
        for fmt, blocks in expected.items():
            assert torch.equal(quantize(values, fmt), blocks)
    finally:
        torch.set_flush_denormal(False)


def test_formats_known_by_name_alone_are_dequantized_through_gguf() -> None:
    gguf = pytest.importorskip("gguf")
    blocks = torch.randint(0, 255, (3, get_format("iq3_s").row_bytes(512)), generator=torch.Generator().manual_seed(0))
    blocks = blocks.to(torch.uint8)
    blocks[:, 1::110] = 0x20  # small positive factors
    with pytest.warns(UserWarning, match="iq3_s is dequantized by the gguf package"):
        found = dequantize(blocks, "iq3_s")
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.IQ3_S)
    assert torch.equal(found, torch.from_numpy(expected))


@pytest.mark.parametrize("fmt", ALL)
def test_out_receives_the_blocks(fmt: str, backend: str) -> None:
    values = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(1))
    expected = quantize(values, fmt, backend=backend)
    out = torch.empty_like(expected)
    assert quantize(values, fmt, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    array = np.zeros(tuple(expected.shape), np.uint8)
    quantize(values, fmt, out=torch.from_numpy(array), backend=backend)
    assert np.array_equal(array, expected.numpy())
    for bad in (torch.empty(2, 3, 7, dtype=torch.uint8), expected.float(), torch.stack([expected] * 2, -1)[..., 0]):
        with pytest.raises(ValueError, match="out must be contiguous uint8"):
            quantize(values, fmt, out=bad, backend=backend)


def as_rows(values: torch.Tensor, fmt: str) -> Rows:
    """A [rows, n] tensor of floats, quantized to ``fmt``, as ``Rows``."""
    if fmt == "i8":
        levels, scale = experts_int8.quantize(values)
        return Rows(levels.view(torch.uint8).view(-1).numpy(), FORMATS[fmt], values.shape[-1], scale.numpy())
    return Rows(quantize(values, fmt).view(-1).numpy(), FORMATS[fmt], values.shape[-1])


def empty_rows(count: int, n: int, fmt: str) -> Rows:
    scale = np.zeros(count, np.float32) if fmt == "i8" else None
    return Rows(np.zeros(count * FORMATS[fmt].row_bytes(n), np.uint8), FORMATS[fmt], n, scale)


@pytest.mark.parametrize("source", ["f32", "f16", "bf16", "q8_0", "q4_k", "i8"])
@pytest.mark.parametrize("target", ["f16", "q8_0", "q4_k", "i8"])
def test_rows_become_what_tensors_of_their_values_become(source: str, target: str, backend: str) -> None:
    values = torch.randn(5, 512, generator=torch.Generator().manual_seed(2))
    rows = as_rows(values, source)
    found = quantize(rows, target, out=empty_rows(5, 512, target), backend=backend)
    expected = rows if source == target else as_rows(torch.from_numpy(dequantize(rows)), target)
    assert np.array_equal(found.data, expected.data)
    if target == "i8":
        assert np.array_equal(found.scale, expected.scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("fmt", [*ALL, "i8"])
def test_rows_are_dequantized_like_tensors(fmt: str) -> None:
    values = torch.randn(5, 512, generator=torch.Generator().manual_seed(3))
    rows = as_rows(values, fmt)
    found = dequantize(rows)
    if fmt == "i8":
        expected = experts_int8.dequantize(*experts_int8.quantize(values))
    else:
        expected = dequantize(quantize(values, fmt), fmt)
    assert np.array_equal(found, expected.numpy())


def test_rows_take_an_imatrix_and_name_a_bad_row(backend: str) -> None:
    generator = torch.Generator().manual_seed(4)
    values, importance = torch.randn(5, 512, generator=generator), torch.rand(512, generator=generator)
    rows = as_rows(values, "f32")
    found = quantize(rows, "q4_k", importance.numpy(), out=empty_rows(5, 512, "q4_k"), backend=backend)
    assert np.array_equal(found.data, quantize(values, "q4_k", importance).view(-1).numpy())
    values[3, 1] = float("nan")
    bad = Rows(values.view(torch.uint8).view(-1).numpy(), FORMATS["f32"], 512)
    for target in ("q8_0", "i8"):
        with pytest.raises(native.NonFiniteRowError) as caught:
            quantize(bad, target, out=empty_rows(5, 512, target), backend=backend)
        assert caught.value.row == 3
    with pytest.raises(ValueError, match="out must be 5 rows of 512 values in q8_0"):
        quantize(rows, "q8_0", out=empty_rows(4, 512, "q8_0"), backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", [*LEGACY, *K_QUANTS, "i8"])
def test_a_gpu_quantizes_rows_to_the_same_bytes(fmt: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = torch.randn(64, 512, generator=torch.Generator().manual_seed(5))
    expected = as_rows(values, fmt)
    found = quantize(as_rows(values, "f32"), fmt, out=empty_rows(64, 512, fmt), device="cuda")
    assert np.array_equal(found.data, expected.data)
    if fmt == "i8":
        assert np.array_equal(found.scale, expected.scale)  # type: ignore[arg-type]
