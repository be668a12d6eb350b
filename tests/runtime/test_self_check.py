"""When a model is loaded on a GPU, a kernel that is wrong there is replaced by a slower way, and the answers stay right."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from jambacli.errors import JambaError
from jambacli.gpu_check.models import relative_error
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.placement import Placement
from jambacli.runtime.loader import build
from tests.support.log_lines import log_lines
from tests.support.triton_model import SMALL, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton import conv, dequant, gemm, gemv, norm, scan
from jambacli.runtime.cuda import self_check

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = JambaConfig.from_hf(SMALL)
TENSORS = tiny_tensors(CONFIG, "legacy")


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_TOKENS", 3)
    monkeypatch.setattr(self_check, "_ROWS", 16)
    monkeypatch.setattr(self_check, "_SCAN_TOKENS", 9)


def loaded() -> Any:
    from jambacli.runtime.cuda.load import put_on_gpu

    plan = Placement(0, 0, 0, 0, frozenset(), CONFIG.n_moe_layers)
    model = put_on_gpu(CONFIG, TENSORS.__getitem__, DEVICE, plan, dtype=torch.float32)
    return self_check.checked(model, TENSORS.__getitem__)


def answers_rightly(model: Any) -> bool:
    cpu = build(CONFIG, TENSORS.__getitem__, ops=reference_ops())
    on_cpu, on_gpu = cpu.new_state(8), model.new_state(8)
    for ids in (torch.tensor([5, 6, 7]), torch.tensor([8])):
        expected, got = cpu.forward(ids, on_cpu), model.forward(ids, on_gpu)
        assert expected is not None
        if relative_error(got.cpu(), expected) > 1e-3:
            return False
    return True


@pytest.mark.slow
def test_right_kernels_are_all_used() -> None:
    with log_lines() as lines:
        model = loaded()
    assert model.kernels.without == set()
    assert model.decoder is not None
    assert not any("wrong" in line for line in lines)


def wrong(plain: Any) -> Any:
    def compute(*a: Any, **k: Any) -> Any:
        return plain(*a, **k).mul_(1.2)

    return compute


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (gemm, "gemm", "gemm"),
        (scan, "selective_scan", "scan"),
        (norm, "rms_norm", "norm"),
        (conv, "causal_conv", "convolution"),
    ],
)
def test_a_wrong_kernel_is_replaced(module: Any, function: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, function, wrong(getattr(module, function)))
    with log_lines() as lines:
        model = loaded()
    assert name in model.kernels.without
    assert any(f"'{name}' is wrong on this GPU (relative error" in line for line in lines)
    assert answers_rightly(model)


def test_without_the_product_of_one_row_tokens_go_through_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def miscompiled(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("ptxas died\nof something")

    monkeypatch.setattr(gemv, "gemv", miscompiled)
    with log_lines() as lines:
        model = loaded()
    assert model.decoder is None
    assert any("'gemv' is wrong on this GPU (ptxas died)" in line for line in lines)
    assert answers_rightly(model)


@pytest.mark.slow
def test_a_wrong_decode_step_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scan.scan_step
    monkeypatch.setattr(scan, "scan_step", lambda *a: (plain(*a), a[-1].mul_(1.5)))
    with log_lines() as lines:
        model = loaded()
    assert model.decoder is None
    assert any("decode step are wrong on this GPU" in line for line in lines)
    assert answers_rightly(model)


def test_weights_that_are_read_wrongly_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequant, "dequantize", wrong(dequant.dequantize))
    with pytest.raises(JambaError, match=r"does not read .* weights correctly"):
        loaded()


def test_too_little_memory_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gemv, "gemv", full)
    with pytest.raises(torch.OutOfMemoryError):
        loaded()
