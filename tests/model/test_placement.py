"""Plans: what goes to a card and what stays behind, for real models' sizes and cards."""

from __future__ import annotations

from typing import Any

import pytest

from jambacli.errors import JambaError, UsageError
from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.model.config import JambaConfig
from jambacli.model.cuda import card_sizes
from jambacli.model.placement import Placement, expert_layer, place

GB = 10**9


def sizes(config: JambaConfig, quant: str) -> dict[str, int]:
    return card_sizes({name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()})


@pytest.fixture(scope="module")
def mini() -> JambaConfig:
    return shape_config("jamba-mini")


def plan(config: JambaConfig, quant: str, ctx: int, free: int, kv_type: str = "f16", **options: Any) -> Placement:
    return place(config, sizes(config, quant), ctx, kv_type, free, **options)


def test_mini_with_its_whole_context_fits_into_48_gb(mini: JambaConfig) -> None:
    found = plan(mini, "q4_k_m", 262144, 48 * GB)
    assert not found.host_layers
    assert found.weights + found.moving < 40 * GB
    assert found.spare >= 0


def test_on_24_gb_experts_stay_behind_and_only_as_many_as_must(mini: JambaConfig) -> None:
    found = plan(mini, "q4_k_m", 32768, 24 * GB)
    assert 0 < len(found.host_layers) < mini.n_moe_layers
    assert found.spare >= 0
    one_less = len(found.host_layers) - 1
    with pytest.raises(JambaError, match="--cpu-experts"):
        plan(mini, "q4_k_m", 32768, 24 * GB, cpu_experts=one_less)


def test_the_last_layers_stay_behind_first(mini: JambaConfig) -> None:
    moe = [i for i, flag in enumerate(mini.layer_is_moe) if flag]
    found = plan(mini, "q4_k_m", 4096, 80 * GB, cpu_experts=3)
    assert found.host_layers == set(moe[-3:])
    all_bytes = sum(sizes(mini, "q4_k_m").values())
    assert found.weights + found.host == all_bytes
    assert "--cpu-experts 3" in found.describe()


def test_a_smaller_budget_leaves_more_behind(mini: JambaConfig) -> None:
    counts = [len(plan(mini, "q4_k_m", 8192, 80 * GB, gpu_memory=g * GB).host_layers) for g in (60, 30, 20, 12)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > counts[1]


def test_a_longer_context_leaves_more_behind(mini: JambaConfig) -> None:
    short, long = (plan(mini, "q4_k_m", ctx, 32 * GB) for ctx in (4096, 262144))
    assert len(long.host_layers) > len(short.host_layers)
    assert long.moving - short.moving == 258048 * mini.kv_bytes_per_token("f16")


def test_keys_and_values_stay_behind_when_asked(mini: JambaConfig) -> None:
    there, here = (plan(mini, "q4_k_m", 262144, 80 * GB, cpu_kv=flag) for flag in (False, True))
    kv = 262144 * mini.kv_bytes_per_token("f16")
    assert (there.host_kv, here.host_kv) == (0, kv)
    # Many tokens' attention reads a layer's keys and values from the card, one layer at a time.
    assert there.moving - here.moving == kv - kv // mini.n_attention_layers
    assert "--cpu-kv" in here.describe()
    assert "--cpu-kv" not in there.describe()
    with pytest.raises(JambaError, match="--cpu-kv"):
        plan(mini, "q4_k_m", 262144, 10 * GB)
    assert plan(mini, "q4_k_m", 262144, 10 * GB, cpu_kv=True, cpu_experts=16).spare >= 0


def test_what_cannot_fit_is_refused_with_advice(mini: JambaConfig) -> None:
    with pytest.raises(JambaError, match=r"even with all experts in RAM.*smaller --ctx.*--kv-type q8_0.*--device cpu"):
        plan(mini, "q4_k_m", 262144, 6 * GB)
    dense = shape_config("jamba-3b")
    with pytest.raises(JambaError, match="--device cpu"):
        plan(dense, "q4_k_m", 4096, 2 * GB)


def test_more_layers_than_there_are_is_a_usage_error(mini: JambaConfig) -> None:
    with pytest.raises(UsageError, match="16 layers with experts"):
        plan(mini, "q4_k_m", 4096, 80 * GB, cpu_experts=17)


def test_planes_take_hardly_more_than_blocks(mini: JambaConfig) -> None:
    for quant in ("q4_k_m", "q8_0", "q3_k_m", "experts_int8"):
        blocks = sum(c.nbytes for c in choices(mini, quant).values())
        assert blocks <= sum(sizes(mini, quant).values()) <= 1.04 * blocks


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
