"""The memory plan: published figures, verdicts at their limits, contexts that fit."""

from __future__ import annotations

import pytest

from jambacli.errors import JambaError
from jambacli.evaluation.synthetic import choices
from jambacli.hardware.devices import Device
from jambacli.model.config import GPU_KV_TYPES, KV_TYPES, JambaConfig
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, gpu_sizes
from jambacli.runtime.cuda.placement import place
from jambacli.runtime.memory_plan import MemoryPlan, memory_plan, prefill_flops, scratch_bytes

MINI = JambaConfig.from_hf({})
MINI_Q4_K_M, MINI_EXPERTS = 31_200_000_000, 27_300_000_000
GB = 10**9


def device(kind: str, total: float, available: float | None = None, flops: float = 5e11) -> Device:
    free = total if available is None else available
    return Device(kind, kind, kind, int(total * GB), int(free * GB), flops, False, "")


def plan(*devices: Device, ctx: int = 262_144, kv_type: str = "f16") -> MemoryPlan:
    return memory_plan(MINI, MINI_Q4_K_M, MINI_EXPERTS, ctx, kv_type, devices)


def test_mini_at_256k_fits_an_a6000_as_published() -> None:
    found = plan(device("cpu", 64), device("cuda", 51.5))
    assert found.kv["f16"] == pytest.approx(4.3e9, rel=0.01)
    assert found.kv["f32"] == 2 * found.kv["bf16"] == 2 * found.kv["f16"]
    assert found.kv["q8_0"] == found.kv["f16"] * 34 // 64
    assert found.kv["q5_1"] == found.kv["f16"] * 24 // 64
    assert found.kv["q4_0"] == found.kv["f16"] * 18 // 64
    assert found.state == pytest.approx(17.4e6, rel=0.01)
    assert found.total == pytest.approx(36e9, rel=0.02)
    assert [fit.verdict for fit in found.fits] == ["fits", "fits"]


def test_the_total_is_the_sum_and_follows_the_kv_type() -> None:
    for kv_type in KV_TYPES:
        found = plan(kv_type=kv_type)
        assert found.total == MINI_Q4_K_M + found.kv[kv_type] + found.state + found.drafts + found.scratch


@pytest.mark.parametrize(
    ("kind", "total", "available", "verdict"),
    [
        ("cpu", 64, 40, "fits"),
        ("cpu", 40, 20, "tight"),
        ("cpu", 24, 20, "from disk"),
        ("cpu", 4, 3, "too big"),
        ("cuda", 48, 47, "fits"),
        ("cuda", 24, 23.5, "experts in RAM"),
        ("cuda", 8, 7.5, "too big"),
    ],
)
def test_verdicts(kind: str, total: float, available: float, verdict: str) -> None:
    devices = [device("cpu", 64)] if kind == "cuda" else []
    fit = plan(*devices, device(kind, total, available)).fits[-1]
    assert fit.verdict == verdict
    assert (fit.spare >= 0) == (verdict == "fits")
    assert (fit.offload > 0) == (verdict == "experts in RAM")
    assert fit.offload <= 1.03 * MINI_EXPERTS


def test_a_gpu_is_not_offered_for_types_that_only_the_cpu_takes() -> None:
    found = plan(device("cpu", 64), device("cuda", 48), kv_type="q4_0")
    assert [fit.verdict for fit in found.fits] == ["fits", "unsupported"]
    assert set(plan(device("cuda", 48)).fits[0].largest_ctx) == set(GPU_KV_TYPES)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("ctx", [4096, 262144])
@pytest.mark.parametrize("quant", ["q4_k_m", "experts_int8"])
def test_a_gpu_is_judged_by_the_plan_used_for_loading(quant: str, ctx: int, kv_type: str) -> None:
    """As ``load_on_gpu`` plans, once a CUDA context has taken its share of the free memory."""
    chosen = choices(MINI, quant)
    tensors = {name: (c.format, c.tensor.shape) for name, c in chosen.items()}
    weights = sum(c.nbytes for c in chosen.values())
    experts = sum(c.nbytes for name, c in chosen.items() if "_exps" in name)
    seen = set()
    for free in (4, 10, 16, 24, 32, 36, 40, 48, 64, 80):
        devices = device("cpu", 128), device("cuda", free)
        fit = memory_plan(MINI, weights, experts, ctx, kv_type, devices, tensors).fits[1]
        seen.add(fit.verdict)
        try:
            loaded = place(MINI, gpu_sizes(tensors), ctx, kv_type, free * GB - CONTEXT_BYTES)
        except JambaError:
            assert fit.verdict == "too big"
            continue
        assert fit.verdict == ("experts in RAM" if loaded.host_layers else "fits")
        assert fit.offload == loaded.host
        if fit.verdict == "fits":
            assert fit.spare == loaded.spare
            continue
        for name, longest in fit.largest_ctx.items():
            for tokens, fits in ((longest, True), (longest + 1024, False)):
                if 0 < tokens <= MINI.context_length:
                    other = memory_plan(MINI, weights, experts, tokens, name, devices, tensors).fits[1]
                    assert (other.verdict == "fits") == fits
    assert seen >= {"too big", "experts in RAM", "fits"}


def test_keys_and_values_in_ram_are_suggested_if_they_help() -> None:
    for total, ram, helps in ((48, 64, False), (24, 64, False), (8, 64, True), (8, 16, False), (2, 64, False)):
        assert plan(device("cpu", ram), device("cuda", total)).fits[1].cpu_kv == helps, (total, ram)


def test_experts_stay_in_ram_only_if_they_fit() -> None:
    """Otherwise they are mapped like all weights, and read from the file whenever they are needed."""
    short = plan(device("cpu", 8), device("cuda", 24)).fits[1]
    assert short.verdict == "from disk" and short.offload > 8 * GB
    assert plan(device("cpu", 8), device("cuda", 6)).fits[1].verdict == "too big"
    assert plan(device("cpu", 8), device("cuda", 48, 24)).fits[1].verdict == "tight"


def test_the_largest_context_fits_and_a_larger_one_does_not() -> None:
    roomy = plan(device("cpu", 64)).fits[0]
    assert set(roomy.largest_ctx.values()) == {262_144}
    for free in (32.5, 33, 34, 35):
        found = plan(device("cpu", 64, free)).fits[0].largest_ctx
        for kv_type, ctx in found.items():
            assert ctx % 1024 == 0
            if ctx:
                assert plan(device("cpu", 64, free), ctx=ctx, kv_type=kv_type).fits[0].spare >= 0
            if ctx < 262_144:
                assert plan(device("cpu", 64, free), ctx=ctx + 1024, kv_type=kv_type).fits[0].spare < 0
        assert found["q8_0"] >= found["f16"] >= found["f32"]


def test_prefill_work_counts_each_weight_twice_and_each_pair_of_tokens() -> None:
    small = JambaConfig.from_hf(
        {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 10,
         "num_key_value_heads": 1, "num_experts": 1, "attn_layer_period": 1, "attn_layer_offset": 0}
    )  # fmt: skip
    weights = small.params() - 2 * 10 * 8
    # Token i attends to i + 1 positions, two products of q's width each, in both layers.
    pairs = sum(i + 1 for i in range(100))
    assert prefill_flops(small, 100) == 2 * weights * 100 + 2 * 2 * 2 * 8 * pairs
    assert prefill_flops(small, 60) + prefill_flops(small, 40, 60) == pytest.approx(prefill_flops(small, 100))


def test_scratch_of_the_3b_stays_below_600_mb() -> None:
    dense = JambaConfig.from_hf(
        {"num_hidden_layers": 28, "hidden_size": 2560, "intermediate_size": 8192, "num_attention_heads": 20,
         "num_key_value_heads": 1, "num_experts": 1, "tie_word_embeddings": True}
    )  # fmt: skip
    assert scratch_bytes(dense) < 600e6


def test_a_device_of_unknown_speed_has_no_prefill_time() -> None:
    known, unknown = plan(device("cpu", 64), device("cuda", 24, flops=0), ctx=4096).fits
    assert known.prefill_seconds and unknown.prefill_seconds is None
