"""ExpertsInt8: the error it promises, the rows it must survive, both implementations."""

from __future__ import annotations

import pytest
import torch

from quant.experts_int8 import dequantize, quantize
from tests.support.ggml_reference import KINDS, sample_rows


@pytest.mark.parametrize("kind", KINDS)
def test_error_within_half_a_step(kind: str, backend: str) -> None:
    weight = torch.from_numpy(sample_rows(kind, 60, 251, seed=1)).view(4, 15, 251)
    levels, scale = quantize(weight, backend=backend)
    assert (levels.dtype, levels.shape, scale.dtype, scale.shape) == (torch.int8, (4, 15, 251), torch.float32, (4, 15))
    assert int(levels.min()) >= -127
    assert (scale > 0).all()
    exact = levels.double() * scale.double().unsqueeze(-1)
    steps = (exact - weight.double()).abs() / scale.double().unsqueeze(-1)
    # The quotient is rounded before its level is: 127 steps of float32 are resolved to 2**-18 of a step.
    assert float(steps.max()) <= 0.5 + 2**-17


def test_the_largest_value_of_a_row_is_level_127(backend: str) -> None:
    weight = torch.from_numpy(sample_rows("heavy", 64, 96))
    levels, scale = quantize(weight, backend=backend)
    assert (levels.abs().amax(dim=1) == 127).all()
    assert torch.equal(scale, weight.abs().amax(dim=1) / torch.tensor(127.0))


def test_halves_round_to_even(backend: str) -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    levels, scale = quantize(weight, backend=backend)
    assert scale.tolist() == [1.0]
    assert levels.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_both_implementations_agree_in_every_instruction_set(dtype: torch.dtype, isa: str, one_thread: None) -> None:
    for kind in KINDS:
        weight = torch.from_numpy(sample_rows(kind, 33, 187, seed=2)).to(dtype)
        weight = torch.where(torch.isfinite(weight), weight, 0)
        levels, scale = quantize(weight, backend="native", threads=3)
        expected_levels, expected_scale = quantize(weight, backend="torch")
        assert torch.equal(levels, expected_levels)
        assert torch.equal(scale, expected_scale)


def test_rows_of_zeros_stay_zeros(backend: str) -> None:
    weight = torch.zeros(2, 3, 40)
    weight[1, 1] = 3.0
    levels, scale = quantize(weight, backend=backend)
    assert torch.equal(dequantize(levels, scale)[0], weight[0])
    assert bool((scale > 0).all())
    torch.testing.assert_close(dequantize(levels, scale), weight)


def test_dequantize_rounds_once_to_the_asked_type(backend: str) -> None:
    weight = torch.from_numpy(sample_rows("normal", 8, 64))
    levels, scale = quantize(weight, backend=backend)
    values = levels.float() * scale.unsqueeze(-1)
    assert torch.equal(dequantize(levels, scale), values)
    assert torch.equal(dequantize(levels, scale, dtype=torch.bfloat16), values.bfloat16())


def test_what_cannot_be_quantized_is_one_line(backend: str) -> None:
    weight = torch.zeros(3, 5, 64)
    weight[1, 4, 63] = float("nan")
    with pytest.raises(ValueError, match=r"^row \[1, 4\] holds a NaN or an infinity$"):
        quantize(weight, backend=backend)
    weight[1, 4, 63] = float("-inf")
    with pytest.raises(ValueError, match=r"^row 4 holds a NaN or an infinity$"):
        quantize(weight[1].to(torch.bfloat16), backend=backend)
    with pytest.raises(ValueError, match=r"cannot quantize torch\.int8"):
        quantize(weight.to(torch.int8), backend=backend)
    with pytest.raises(ValueError, match=r"int8 \[\.\.\., out, in\] with float32"):
        dequantize(torch.zeros(3, 4, dtype=torch.int8), torch.ones(4))


def test_no_rows_is_no_error(backend: str) -> None:
    levels, scale = quantize(torch.empty(16, 0, 64), backend=backend)
    assert levels.shape == (16, 0, 64)
    assert scale.shape == (16, 0)
