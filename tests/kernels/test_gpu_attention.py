"""Attention of many tokens on a GPU whose torch lacks fused attention never builds scores of all queries and keys."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from jambacli.kernels import reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton import attention
from tests.support.simulated_gpu import simulated_gpu

HEADS, KV_HEADS, DIM = 4, 2, 32


@pytest.mark.parametrize("fused", ["flash", "efficient", "none"])
@pytest.mark.parametrize("past", [0, 41])
def test_prefill_equals_the_reference_and_keeps_scores_small(
    fused: Literal["flash", "efficient", "none"], past: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = 23
    monkeypatch.setattr(attention, "MASK_VALUES", 1024)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(tokens, HEADS, DIM, generator=generator)
    k, v = (torch.randn(past + tokens, KV_HEADS, DIM, generator=generator).half() for _ in range(2))
    calls: list[dict[str, Any]] = []
    plain = F.scaled_dot_product_attention

    def watched(q: Any, k: Any, v: Any, **options: Any) -> Any:
        calls.append({"q": q.shape, "k": k.shape, **options})
        return plain(q, k, v, **options)

    with simulated_gpu(attention=fused) as gpu:
        monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
        got = attention.prefill(q.to(gpu.device), k.to(gpu.device), v.to(gpu.device), past, torch.float16).cpu()
    expected = reference.attention(q, k, v, past)
    assert (got - expected).abs().max() < 5e-3 * expected.abs().max()
    assert (fused == "flash") == any(c.get("enable_gqa") for c in calls)
    if fused == "flash":
        return
    for call in calls:
        mask = call.get("attn_mask")
        if mask is not None:
            assert mask.numel() <= 1024
        if fused == "none":  # torch then builds the scores of the call
            assert call["q"].numel() // DIM * call["k"][2] <= 1024
    assert len(calls) == {("efficient", 0): 1, ("efficient", 41): 2}.get((fused, past), len(calls))


def test_a_torch_that_cannot_be_asked_has_no_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 2, 3, DIM)
    monkeypatch.delattr(torch.backends.cuda, "SDPAParams")
    assert not attention.flash_attention(x, x, x)
    assert not attention.efficient_attention(x, x, x)


@pytest.mark.parametrize(
    ("capability", "triton", "rows"),
    [((9, 0), (3, 8), 32), ((9, 0), (3, 9), 64), ((10, 0), (3, 9), 32), ((8, 6), (3, 2), 64)],
)
def test_products_on_hopper_are_asynchronous_only_where_the_compiler_keeps_their_operands(
    capability: tuple[int, int], triton: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.kernels.triton import gemm

    monkeypatch.setattr(gemm, "capability", lambda device: capability)
    monkeypatch.setattr(gemm, "triton_version", lambda: triton)
    device = torch.device("cuda")
    assert gemm.block_rows(17, device) == gemm.block_rows(64, device) == rows
    assert gemm.block_rows(16, device) == 16
