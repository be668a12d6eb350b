"""Memory plans: what goes to a GPU and what stays in RAM, for real models and GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from jambacli.errors import JambaError, UsageError
from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import GpuSizes, expert_layer, gpu_sizes, working_memory
from jambacli.runtime.cuda.placement import CHUNKS, PREFILL_CHUNK, Placement, place

GB = 10**9


def sizes(config: JambaConfig, quant: str) -> GpuSizes:
    return gpu_sizes({name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()})


@pytest.fixture(scope="module")
def mini() -> JambaConfig:
    return shape_config("jamba-mini")


def plan(config: JambaConfig, quant: str, ctx: int, free: int, kv_type: str = "f16", **options: Any) -> Placement:
    return place(config, sizes(config, quant), ctx, kv_type, free, **options)


def test_mini_with_its_whole_context_fits_into_48_gb(mini: JambaConfig) -> None:
    found = plan(mini, "q4_k_m", 262144, 48 * GB)
    assert not found.host_layers
    assert found.weights + found.working < 40 * GB
    assert found.spare >= 0


def test_on_24_gb_as_few_experts_as_possible_stay_in_ram(mini: JambaConfig) -> None:
    found = plan(mini, "q4_k_m", 32768, 24 * GB)
    assert 0 < len(found.host_layers) < mini.n_moe_layers
    assert found.spare >= 0
    assert found.chunk == PREFILL_CHUNK
    n = len(found.host_layers)
    # With one layer less only smaller pieces of prefill fit, and each piece streams all experts in RAM.
    assert plan(mini, "q4_k_m", 32768, 24 * GB, cpu_experts=n - 1).chunk < PREFILL_CHUNK
    with pytest.raises(JambaError, match="cpu_experts"):
        plan(mini, "q4_k_m", 32768, 24 * GB, cpu_experts=n - 2)


def test_smaller_pieces_come_before_experts_in_ram(mini: JambaConfig) -> None:
    full = plan(mini, "q4_k_m", 32768, 80 * GB)
    for short, chunk in ((0, 4096), (1, 2048), (10**9, 512)):
        tight = plan(mini, "q4_k_m", 32768, 80 * GB, gpu_memory=full.weights + full.working - short)
        assert not tight.host_layers
        assert tight.chunk == chunk
        assert ("tokens at a time" in tight.describe()) == (chunk < PREFILL_CHUNK)
    least = sizes(mini, "q4_k_m").total + working_memory(mini, sizes(mini, "q4_k_m"), 32768, "f16", CHUNKS[-1], [])
    assert plan(mini, "q4_k_m", 32768, 80 * GB, gpu_memory=least).chunk == CHUNKS[-1]
    smallest = plan(mini, "q4_k_m", 32768, 80 * GB, gpu_memory=least - 1)
    assert len(smallest.host_layers) == 1
    assert smallest.chunk == PREFILL_CHUNK
    dense = shape_config("jamba-3b")
    assert plan(dense, "q4_k_m", 4096, int(3.2 * GB)).chunk < PREFILL_CHUNK


@pytest.mark.parametrize(("shape", "quant", "slots"), [("jamba-mini", "q4_k_m", 0.23), ("jamba-large", "q4_k_m", 0.79)])
def test_experts_in_ram_cost_the_gpu_their_slots(shape: str, quant: str, slots: float) -> None:
    config = shape_config(shape)
    none, one, two = (plan(config, quant, 4096, 400 * GB, cpu_experts=n) for n in (0, 1, 2))
    # Two slots, and the current expert in planes.
    assert one.working - none.working == pytest.approx(1.5 * slots * GB, rel=0.1)
    assert two.working == one.working
    assert one.pinned - none.pinned == pytest.approx(slots * GB, rel=0.02)
    assert "page-locked buffers" in one.describe()
    assert one.chunk == PREFILL_CHUNK


def test_the_last_layers_stay_in_ram_first(mini: JambaConfig) -> None:
    moe = [i for i, flag in enumerate(mini.layer_is_moe) if flag]
    found = plan(mini, "q4_k_m", 4096, 80 * GB, cpu_experts=3)
    assert found.host_layers == set(moe[-3:])
    all_bytes = sizes(mini, "q4_k_m").total
    assert found.weights + found.host == all_bytes
    assert "the experts of 3 of 16 layers" in found.describe()


def test_a_smaller_budget_keeps_more_in_ram(mini: JambaConfig) -> None:
    counts = [len(plan(mini, "q4_k_m", 8192, 80 * GB, gpu_memory=g * GB).host_layers) for g in (60, 30, 20, 12)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > counts[1]


def test_a_longer_context_keeps_more_in_ram(mini: JambaConfig) -> None:
    short, long = (plan(mini, "q4_k_m", ctx, 32 * GB) for ctx in (4096, 262144))
    assert len(long.host_layers) > len(short.host_layers)
    # Keys and values, and the partial sums of decode attention.
    kv = 258048 * mini.kv_bytes_per_token("f16")
    assert kv < long.working - short.working < 1.02 * kv


def test_keys_and_values_stay_in_ram_on_request(mini: JambaConfig) -> None:
    on_gpu, in_ram = (plan(mini, "q4_k_m", 262144, 80 * GB, cpu_kv=flag) for flag in (False, True))
    kv = 262144 * mini.kv_bytes_per_token("f16")
    assert (on_gpu.host_kv, in_ram.host_kv) == (0, kv)
    # Prefill copies the keys and values to the GPU one layer at a time.
    assert kv - kv // mini.n_attention_layers < on_gpu.working - in_ram.working < kv
    assert "in RAM: keys and values" in in_ram.describe()
    assert "keys and values" not in on_gpu.describe()
    with pytest.raises(JambaError, match="cpu_kv"):
        plan(mini, "q4_k_m", 262144, 10 * GB)
    assert plan(mini, "q4_k_m", 262144, 10 * GB, cpu_kv=True, cpu_experts=16).spare >= 0


def test_a_model_that_does_not_fit_is_refused_with_a_remedy(mini: JambaConfig) -> None:
    with pytest.raises(JambaError, match=r"even with all experts in RAM.*smaller ctx.*kv_type q8_0.*device cpu"):
        plan(mini, "q4_k_m", 262144, 6 * GB)
    dense = shape_config("jamba-3b")
    with pytest.raises(JambaError, match="device cpu"):
        plan(dense, "q4_k_m", 4096, 2 * GB)


def test_the_description_warns_if_ram_is_too_small(mini: JambaConfig) -> None:
    found = plan(mini, "q4_k_m", 4096, 24 * GB)
    for ram, short in ((None, False), (64 * GB, False), (found.host, True), (4 * GB, True)):
        assert ("of RAM is free" in found.describe(ram)) == short
    assert "4 GB of RAM is free" in found.describe(4 * GB)
    assert "slow" not in plan(mini, "q4_k_m", 4096, 80 * GB).describe(0)  # nothing stays in RAM


def test_more_layers_than_there_are_is_a_usage_error(mini: JambaConfig) -> None:
    with pytest.raises(UsageError, match="16 layers with experts"):
        plan(mini, "q4_k_m", 4096, 80 * GB, cpu_experts=17)


def test_planes_take_at_most_4_percent_more_than_blocks(mini: JambaConfig) -> None:
    for quant in ("q4_k_m", "q8_0", "q3_k_m", "experts_int8"):
        blocks = sum(c.nbytes for c in choices(mini, quant).values())
        assert blocks <= sizes(mini, quant).total <= 1.04 * blocks


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.3.ffn_gate_exps.weight", 3),
        ("blk.31.ffn_down_exps.weight", 31),
        ("blk.3.ffn_gate_inp.weight", None),
        ("blk.2.ffn_gate.weight", None),
        ("output.weight", None),
    ],
)
def test_expert_tensors_are_known_by_name(name: str, layer: int | None) -> None:
    assert expert_layer(name) == layer
