"""Metadata and tensors to a config and back: those of published models, and an error in one line for each damaged one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.model.config import JambaConfig, period_and_offset
from tests.support import jamba_gguf

MINI: dict[str, Any] = {"model_type": "jamba"}
DENSE_3B: dict[str, Any] = {
    "num_hidden_layers": 28, "hidden_size": 2560, "intermediate_size": 8192, "num_attention_heads": 20,
    "num_key_value_heads": 1, "num_experts": 1, "attn_layer_period": 14, "attn_layer_offset": 7,
    "tie_word_embeddings": True,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "num_hidden_layers": 72, "hidden_size": 8192, "intermediate_size": 24576, "num_attention_heads": 64,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts": 4, "vocab_size": 128, "rms_norm_eps": 2.0**-20,
}  # fmt: skip


class Shaped(NamedTuple):
    """Stands for a tensor where only its shape counts."""

    shape: tuple[int, ...]


def shaped(config: JambaConfig) -> dict[str, Shaped]:
    return {name: Shaped(shape) for name, shape in keys.expected_tensors(config).items()}


def metadata(config: JambaConfig) -> dict[str, Any]:
    return {key: value for key, value, _ in keys.config_metadata(config)}


@pytest.mark.parametrize(
    ("values", "state_mb", "kv_per_token", "billions", "active"),
    [(MINI, 17.4, 16 << 10, 51.6, 12.1), (DENSE_3B, 10.1, 1 << 10, 3.03, 3.03), (LARGE, 78.4, 36 << 10, 398.6, 94.1)],
)
def test_published_models_come_to_their_published_sizes(
    values: dict[str, Any], state_mb: float, kv_per_token: int, billions: float, active: float
) -> None:
    config = JambaConfig.from_hf(values)
    assert config.state_bytes() / 1e6 == pytest.approx(state_mb, rel=0.005)
    assert config.kv_bytes_per_token() == kv_per_token
    assert config.kv_bytes_per_token("f32") == 2 * kv_per_token
    assert config.kv_bytes_per_token("q8_0") == kv_per_token * 34 // 64
    assert config.params() / 1e9 == pytest.approx(billions, rel=0.005)
    assert config.active_params() / 1e9 == pytest.approx(active, rel=0.005)


@pytest.mark.parametrize("values", [MINI, DENSE_3B, LARGE, SMALL])
def test_the_parameter_count_is_that_of_the_tensors(values: dict[str, Any]) -> None:
    config = JambaConfig.from_hf(values)
    assert config.params() == sum(int(np.prod(shape)) for shape in keys.expected_tensors(config).values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_experts": 1, "num_experts_per_tok": 2},
        {"tie_word_embeddings": True},
        {"attn_layer_period": 14, "attn_layer_offset": 7},
        {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
        {"attn_layer_period": 1, "attn_layer_offset": 0},
        {"mamba_dt_rank": 7, "mamba_d_conv": 3, "mamba_d_state": 8, "mamba_expand": 3},
    ],
)
def test_a_config_survives_metadata_and_tensors(changes: dict[str, Any]) -> None:
    config = JambaConfig.from_hf({**SMALL, **changes})
    assert keys.jamba_config(metadata(config), shaped(config)) == config


def test_parameters_and_shapes_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.JambaForCausalLM(transformers.JambaConfig(**SMALL))
    config = JambaConfig.from_hf(theirs.config.to_dict())
    assert config == JambaConfig.from_hf(SMALL)
    assert config.params() == sum(p.numel() for p in theirs.parameters())
    kinds = theirs.config.layers_block_type
    assert config.layer_is_attention == tuple(kind == "attention" for kind in kinds)
    assert config.layer_is_moe == tuple(n > 1 for n in theirs.config.layers_num_experts)


@pytest.mark.parametrize(
    "shape",
    [
        jamba_gguf.Shape(layers=6, hidden=32, ffn=64, experts=4, attention=(0, 5), moe=(2, 3), dt_rank=2, vocab=16),
        jamba_gguf.Shape(layers=3, hidden=32, ffn=64, experts=1, attention=(1,), dt_rank=5, vocab=16, tied=True),
    ],
)
def test_layers_of_a_foreign_file_come_from_its_tensors(tmp_path: Path, shape: jamba_gguf.Shape) -> None:
    with GGUFFile.open(jamba_gguf.write(tmp_path / "m.gguf", shape)) as file:
        config = keys.jamba_config(file.metadata, file.tensors)
    assert config.layer_is_attention == tuple(i in shape.attention for i in range(shape.layers))
    assert config.layer_is_moe == tuple(i in shape.moe_layers() for i in range(shape.layers))
    assert (config.n_experts, config.n_experts_used) == ((4, 2) if shape.experts > 1 else (1, 1))
    assert config.tied_embeddings == shape.tied
    assert (config.vocab_size, config.dt_rank, config.head_dim) == (16, shape.dt_rank, 8)


def test_period_keys_are_never_believed() -> None:
    config = JambaConfig.from_hf(SMALL)
    lies = {
        keys.ATTENTION_PERIOD: 3,
        keys.ATTENTION_OFFSET: 0,
        keys.EXPERT_PERIOD: 5,
        keys.EXPERT_OFFSET: 9,
    }
    assert keys.jamba_config(metadata(config) | lies, shaped(config)) == config


def test_a_single_kv_head_count_leaves_the_layers_to_the_tensors() -> None:
    config = JambaConfig.from_hf(SMALL)
    assert keys.jamba_config(metadata(config) | {keys.HEAD_COUNT_KV: 2}, shaped(config)) == config


def test_period_keys_are_written_only_where_there_is_a_period() -> None:
    rows = metadata(JambaConfig.from_hf({**SMALL, "num_hidden_layers": 16}))
    assert [rows[key] for key in (keys.ATTENTION_PERIOD, keys.ATTENTION_OFFSET)] == [8, 4]
    assert [rows[key] for key in (keys.EXPERT_PERIOD, keys.EXPERT_OFFSET)] == [2, 1]
    odd = dataclasses.replace(JambaConfig.from_hf(SMALL), layer_is_attention=(True, True, *[False] * 6))
    assert keys.ATTENTION_PERIOD not in metadata(odd)
    assert period_and_offset((False, True, False, False, True)) == (3, 1)
    assert period_and_offset((False, False)) is None


def drop(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


BROKEN: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...] | None], str]] = {
    "architecture": ({keys.ARCHITECTURE: "llama"}, {}, "the architecture is 'llama'; only jamba"),
    "no architecture": (drop(keys.ARCHITECTURE), {}, "general.architecture is missing"),
    "architecture type": ({keys.ARCHITECTURE: 3}, {}, "general.architecture is missing"),
    "no layers": (drop(keys.BLOCK_COUNT), {}, "jamba.block_count is missing"),
    "absurd layers": ({keys.BLOCK_COUNT: 2**31}, {}, "jamba.block_count is '2147483648'"),
    "layers type": ({keys.BLOCK_COUNT: "eight"}, {}, "jamba.block_count is 'eight'"),
    "bool": ({keys.EMBEDDING_LENGTH: True}, {}, "jamba.embedding_length is 'True'"),
    "zero": ({keys.STATE_SIZE: 0}, {}, "jamba.ssm.state_size is '0'"),
    "more layers": ({keys.BLOCK_COUNT: 9}, {}, "jamba.attention.head_count_kv has 8 entries for 9 layers"),
    "kv heads": ({keys.HEAD_COUNT_KV: [0, 0, 0, 0, 3, 0, 0, 0]}, {}, "not a multiple of the 3 key-value heads"),
    "kv text": ({keys.HEAD_COUNT_KV: "00002000"}, {}, "head_count_kv must be an array"),
    "kv strings": ({keys.HEAD_COUNT_KV: ["2"] * 8}, {}, "head_count_kv is '2'"),
    "kv negative": ({keys.HEAD_COUNT_KV: np.array([-1] * 8)}, {}, "head_count_kv is '-1'"),
    "kv mixed": ({keys.HEAD_COUNT_KV: [0, 0, 0, 2, 4, 0, 0, 0]}, {}, "differs between attention layers (2 and 4)"),
    "kv lies": ({keys.HEAD_COUNT_KV: [0, 2, 0, 0, 2, 0, 0, 0]}, {}, "says layer 1 is attention, but there is no blk.1.attn_q"),
    "kv hides": ({keys.HEAD_COUNT_KV: [0] * 8}, {}, "says layer 4 is Mamba, but there is a blk.4.attn_q"),
    "heads": ({keys.HEAD_COUNT: 0}, {}, "jamba.attention.head_count is 0"),
    "experts": ({keys.EXPERT_COUNT: 1}, {}, "jamba.expert_count is missing or 1, but layer 1 has expert tensors"),
    "experts used": ({keys.EXPERT_USED_COUNT: 5}, {}, "jamba.expert_used_count is 5, out of 4 experts"),
    "none used": ({keys.EXPERT_USED_COUNT: 0}, {}, "jamba.expert_used_count is 0, out of 4 experts"),
    "nan": ({keys.RMS_EPS: float("nan")}, {}, "layer_norm_rms_epsilon is 'nan'"),
    "eps text": ({keys.RMS_EPS: "1e-6"}, {}, "layer_norm_rms_epsilon is '1e-6'"),
    "no embedding": ({}, drop("token_embd.weight"), "tensor token_embd.weight is missing"),
    "no norm": ({}, drop("output_norm.weight"), "tensor output_norm.weight is missing"),
    "no bias": ({}, drop("blk.2.ssm_dt.bias"), "tensor blk.2.ssm_dt.bias is missing"),
    "no router": ({}, drop("blk.3.ffn_gate_inp.weight"), "tensor blk.3.ffn_gate_inp.weight is missing"),
    "no experts": ({}, drop("blk.3.ffn_up_exps.weight"), "tensor blk.3.ffn_up_exps.weight is missing"),
    "no mixer": ({}, drop("blk.4.attn_q.weight"), "says layer 4 is attention, but there is no blk.4.attn_q"),
    "shape": ({}, {"blk.0.ssm_a": (16, 128)}, "tensor blk.0.ssm_a has shape [16, 128], but the metadata requires [128, 16]"),
    "rank": ({}, {"blk.0.ssm_d": (128, 1)}, "tensor blk.0.ssm_d has shape [128, 1], but the metadata requires [128]"),
    "output": ({}, {"output.weight": (127, 64)}, "tensor output.weight has shape [127, 64]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_line_that_names_the_cause(case: str) -> None:
    config = JambaConfig.from_hf(SMALL)
    changes, tensor_changes, problem = BROKEN[case]
    values = {key: value for key, value in (metadata(config) | changes).items() if value is not None}
    tensors = shaped(config)
    for name, shape in tensor_changes.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = Shaped(shape)
    with pytest.raises((BadFileError, UnsupportedError)) as caught:
        keys.jamba_config(values, tensors, path="m.gguf")
    assert str(caught.value).startswith("m.gguf: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "mamba"}, "the architecture is 'mamba'"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_attention_heads": 3}, "do not divide evenly"),
        ({"attn_layer_period": 0}, "attn_layer_period is 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ],
)
def test_a_config_json_that_cannot_run_is_refused_by_key(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        JambaConfig.from_hf({**SMALL, **changes}, "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert problem in str(caught.value)
