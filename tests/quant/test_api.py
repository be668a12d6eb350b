"""quantize and dequantize as a caller sees them: shapes, devices' paths, errors; knows nothing of any format's bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import quant
from quant import dequantize, native, quantize
from quant.formats import FORMATS, get_format
from quant.quantize_blocks import IQ4, K_QUANTS, LEGACY, PLAIN

ALL = (*PLAIN, *LEGACY, *IQ4, *K_QUANTS)


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
            r"a row of 160 values is no multiple of q4_k's block of 256",
        ),
        (lambda: quantize(values, "q9", backend=backend), r"unknown format 'q9'; known: f32, f16"),
        (lambda: quantize(values, "iq2_xxs", backend=backend), r"iq2_xxs is not a format this package quantizes to"),
        (lambda: quantize(values, "i8", backend=backend), r"i8 is not a format"),
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


def test_formats_known_only_by_name_decode_through_gguf() -> None:
    gguf = pytest.importorskip("gguf")
    blocks = torch.randint(0, 255, (3, get_format("iq3_s").row_bytes(512)), generator=torch.Generator().manual_seed(0))
    blocks = blocks.to(torch.uint8)
    blocks[:, 1::110] = 0x20  # small positive factors
    with pytest.warns(UserWarning, match="iq3_s is decoded by the gguf package"):
        found = dequantize(blocks, "iq3_s")
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.IQ3_S)
    assert torch.equal(found, torch.from_numpy(expected))
