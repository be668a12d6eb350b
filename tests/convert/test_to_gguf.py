"""Conversion: every tensor's bytes are what the formulas give, whatever the layout, the naming and the shards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jambacli.convert.to_gguf import convert
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from tests.support.checkpoints import SHAPES, make_checkpoint

F32, F16, BF16, Q8_0 = (gguf.GGMLQuantizationType[n] for n in ("F32", "F16", "BF16", "Q8_0"))
TYPE_OF = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}

# The table of tensors, written once more: suffix in the checkpoint to suffix in the GGUF.
NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "pre_ff_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mamba.in_proj.weight": "ssm_in.weight",
    "mamba.x_proj.weight": "ssm_x.weight",
    "mamba.dt_proj.weight": "ssm_dt.weight",
    "mamba.dt_proj.bias": "ssm_dt.bias",
    "mamba.out_proj.weight": "ssm_out.weight",
    "mamba.conv1d.weight": "ssm_conv1d.weight",
    "mamba.conv1d.bias": "ssm_conv1d.bias",
    "mamba.A_log": "ssm_a",
    "mamba.D": "ssm_d",
    "mamba.dt_layernorm.weight": "ssm_dt_norm.weight",
    "mamba.b_layernorm.weight": "ssm_b_norm.weight",
    "mamba.c_layernorm.weight": "ssm_c_norm.weight",
    "feed_forward.gate_proj.weight": "ffn_gate.weight",
    "feed_forward.up_proj.weight": "ffn_up.weight",
    "feed_forward.down_proj.weight": "ffn_down.weight",
    "feed_forward.router.weight": "ffn_gate_inp.weight",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.final_layernorm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def expected(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, tuple[Any, np.ndarray]]:
    """GGUF name to (ggml type, the bytes as uint8), by the formulas alone."""
    values: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name in TOP:
            values[TOP[name]] = tensor
            continue
        layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name).groups()
        if match := re.fullmatch(r"feed_forward\.experts\.(\d+)\.(gate|up|down)_proj\.weight", rest):
            experts.setdefault(f"blk.{layer}.ffn_{match[2]}_exps.weight", {})[int(match[1])] = tensor
        else:
            values[f"blk.{layer}.{NAMES[rest]}"] = tensor
    for name, by_number in experts.items():
        values[name] = torch.stack([by_number[e] for e in range(len(by_number))])
    out = {}
    for name, tensor in values.items():
        changed = tensor.squeeze(1) if name.endswith(".ssm_conv1d.weight") else tensor
        changed = -torch.exp(tensor.float()) if name.endswith(".ssm_a") else changed
        always_f32 = tensor.dim() == 1 or re.search(r"_norm|ssm_a$|ssm_conv1d|ffn_gate_inp", name)
        target = F32 if always_f32 else TYPE_OF[kind]
        if target == Q8_0 and tensor.shape[-1] % 32:
            target = F16
        out[name] = (target, encode(changed, target))
    return out


def encode(tensor: torch.Tensor, target: Any) -> np.ndarray:
    if target == Q8_0:
        return gguf.quants.quantize(tensor.float().numpy(), Q8_0).reshape(-1)
    dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[target]
    return tensor.float().to(dtype).contiguous().view(torch.uint8).numpy().reshape(-1)


def assert_tensors(path: Path, want: dict[str, tuple[Any, np.ndarray]]) -> None:
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert set(found) == set(want)
    for name, (kind, data) in want.items():
        assert found[name].tensor_type == kind, name
        assert np.array_equal(found[name].data.view(np.uint8).reshape(-1), data), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["moe16", "dense", "tied", "attention14_7", "attention4_1", "expert_every_layer"])
def test_every_byte_is_what_the_formulas_give(tmp_path: Path, shape: str, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "model", shape, dtype=dtype)
    tensors = stored(folder)
    for kind in ("f32", "f16", "bf16", "q8_0"):
        path = tmp_path / f"{kind}.gguf"
        done = convert(folder, path, type=kind)
        assert_tensors(path, expected(tensors, kind))
        assert done.type == kind and done.paths == [path] and done.nbytes == path.stat().st_size


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_metadata_says_what_the_config_says(tmp_path: Path, shape: str) -> None:
    folder = make_checkpoint(tmp_path / "model", shape, max_shard_size="100KB")
    convert(folder, tmp_path / "m.gguf")
    config = json.loads((folder / "config.json").read_text())
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        meta = dict(file.metadata)
    period, offset, layers = config["attn_layer_period"], config["attn_layer_offset"], config["num_hidden_layers"]
    heads = [config["num_key_value_heads"] if i % period == offset else 0 for i in range(layers)]
    assert list(meta.pop("jamba.attention.head_count_kv")) == heads
    assert meta["jamba.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert {k: meta[k] for k in meta if k.startswith("jamba.") and "epsilon" not in k} == {
        "jamba.block_count": layers,
        "jamba.context_length": config["max_position_embeddings"],
        "jamba.embedding_length": config["hidden_size"],
        "jamba.feed_forward_length": config["intermediate_size"],
        "jamba.attention.head_count": config["num_attention_heads"],
        "jamba.ssm.conv_kernel": config["mamba_d_conv"],
        "jamba.ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "jamba.ssm.state_size": config["mamba_d_state"],
        "jamba.ssm.time_step_rank": config["mamba_dt_rank"],
        "jamba.expert_count": config["num_experts"],
        "jamba.expert_used_count": min(config["num_experts_per_tok"], config["num_experts"]),
        "jamba.attention.layer_period": period,
        "jamba.attention.layer_offset": offset,
        "jamba.expert.layer_period": config["expert_layer_period"],
        "jamba.expert.layer_offset": config["expert_layer_offset"],
    }
    assert meta["general.architecture"] == "jamba" and meta["general.quantization_version"] == 2
    assert meta["general.file_type"] == 0


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")])
def test_auto_is_the_checkpoints_own_type(tmp_path: Path, dtype: str, kind: str) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype=dtype)
    assert convert(folder, tmp_path / "m.gguf").type == kind
    assert_tensors(tmp_path / "m.gguf", expected(stored(folder), kind))
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata["general.file_type"] == FILE_TYPES[kind]


def test_auto_goes_by_the_matrices_where_norms_and_states_are_wider(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype="bfloat16")
    tensors = stored(folder)
    for name in tensors:
        if name.endswith(("A_log", ".D", "layernorm.weight", "router.weight")):
            tensors[name] = tensors[name].float()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert convert(folder, tmp_path / "m.gguf").type == "bf16"
    assert_tensors(tmp_path / "m.gguf", expected(tensors, "bf16"))


def test_shards_with_an_index_and_without_one_give_the_same_file(tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one" / "model")
    many = make_checkpoint(tmp_path / "many" / "model", max_shard_size="50KB")
    assert len(list(many.glob("*.safetensors"))) > 5
    outputs = [tmp_path / f"{n}.gguf" for n in range(3)]
    convert(one, outputs[0])
    convert(many, outputs[1])
    (many / "model.safetensors.index.json").unlink()
    convert(many, outputs[2])
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()


def test_panels_far_smaller_than_a_row_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, attn_layer_offset=0, dtype="bfloat16")
    for panel in (64, 192):
        monkeypatch.setattr("jambacli.convert.to_gguf.CONVERT_PANEL_BYTES", panel)
        for kind in ("bf16", "f32", "q8_0"):
            convert(folder, tmp_path / "m.gguf", type=kind, force=True)
            assert_tensors(tmp_path / "m.gguf", expected(stored(folder), kind))


def test_split_files_hold_the_same_tensors(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype="bfloat16")
    done = convert(folder, tmp_path / "m.gguf", split_max_size=200_000)
    assert len(done.paths) > 3
    assert done.paths[0].name == f"m-00001-of-{len(done.paths):05d}.gguf"
    assert sorted(done.paths) == sorted(tmp_path.glob("m-*.gguf")) and not (tmp_path / "m.gguf").exists()
    want = expected(stored(folder), "bf16")
    with GGUFFile.open(done.paths[0]) as file:
        assert set(file.tensors) == set(want)
        assert all(bytes(file.data(name)) == data.tobytes() for name, (_, data) in want.items())


def rewrite(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    """Replace a one-file checkpoint's tensors by ``change`` of them; returns what they were."""
    tensors = stored(folder)
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, folder / "model.safetensors", {"format": "pt"})
    return tensors


def test_names_of_older_checkpoints(tmp_path: Path) -> None:
    """Mini-Jamba: .moe. for every FFN, a dense one being expert 0, capital B and C, pre_moe_layernorm."""

    def older(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in tensors.items():
            old = re.sub(r"\.feed_forward\.(gate|up|down)_proj", r".feed_forward.experts.0.\1_proj", name)
            old = old.replace(".feed_forward.", ".moe.").replace("pre_ff_layernorm", "pre_moe_layernorm")
            renamed[old.replace(".b_layernorm", ".B_layernorm").replace(".c_layernorm", ".C_layernorm")] = tensor
        return renamed

    for shape in ("moe4", "dense"):
        folder = make_checkpoint(tmp_path / shape, shape, dtype="bfloat16")
        tensors = rewrite(folder, older)
        convert(folder, tmp_path / f"{shape}.gguf", type="q8_0")
        assert_tensors(tmp_path / f"{shape}.gguf", expected(tensors, "q8_0"))


def test_experts_stacked_as_transformers_holds_them_in_memory(tmp_path: Path) -> None:
    def stack(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {k: v for k, v in tensors.items() if ".experts." not in k}
        for layer in (1, 3, 5, 7):
            prefix = f"model.layers.{layer}.feed_forward.experts."
            parts = {
                k: torch.stack([tensors[f"{prefix}{e}.{k}_proj.weight"] for e in range(4)])
                for k in ("gate", "up", "down")
            }
            out[prefix + "gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
            out[prefix + "down_proj"] = parts["down"]
        return out

    folder = make_checkpoint(tmp_path / "model")
    tensors = rewrite(folder, stack)
    for kind in ("f32", "q8_0"):
        convert(folder, tmp_path / "m.gguf", type=kind, force=True)
        assert_tensors(tmp_path / "m.gguf", expected(tensors, kind))


def test_a_missing_conv_bias_is_zeros(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", mamba_conv_bias=False)
    tensors = stored(folder)
    assert not any("conv1d.bias" in name for name in tensors)
    convert(folder, tmp_path / "m.gguf")
    zeros = {f"model.layers.{i}.mamba.conv1d.bias": torch.zeros(128) for i in range(8) if i != 4}
    assert_tensors(tmp_path / "m.gguf", expected(tensors | zeros, "f32"))


def test_a_tied_model_has_no_output_matrix_even_when_the_checkpoint_repeats_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "tied")
    tensors = rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    convert(folder, tmp_path / "m.gguf")
    assert_tensors(tmp_path / "m.gguf", expected(tensors, "f32"))


def test_model_without_attention_or_with_nothing_else(tmp_path: Path) -> None:
    for name, period, offset in (("all", 1, 0), ("none", 9, 8)):
        folder = make_checkpoint(
            tmp_path / name, num_hidden_layers=3, attn_layer_period=period, attn_layer_offset=offset
        )
        convert(folder, tmp_path / f"{name}.gguf")
        assert_tensors(tmp_path / f"{name}.gguf", expected(stored(folder), "f32"))


def test_rounding_is_to_nearest_even_at_the_edges(tmp_path: Path) -> None:
    """Ties, subnormals, signed zeros and the largest values, from f32 to the half types."""
    edges = torch.tensor(
        [0.0, -0.0, 1.00390625, 1.01171875, -1.00390625, 65504.0, -65504.0, 6e-8, -3e-8, 5.96e-8, 2.98e-8, 1e-30, 1e-44]
    )
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, attn_layer_offset=0)

    def set_edges(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for tensor in tensors.values():
            if tensor.numel() >= len(edges):
                tensor.view(-1)[: len(edges)] = edges
        return tensors

    rewrite(folder, set_edges)
    tensors = stored(folder)
    for kind in ("f16", "bf16", "q8_0"):
        convert(folder, tmp_path / "m.gguf", type=kind, force=True)
        assert_tensors(tmp_path / "m.gguf", expected(tensors, kind))


def test_values_beyond_f16_are_an_error_not_infinities(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype="bfloat16")

    def enlarge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.2.mamba.in_proj.weight"][3, 5] = 70000.0
        return tensors

    rewrite(folder, enlarge)
    with pytest.raises(JambaError, match=r"blk\.2\.ssm_in\.weight .*f16.*bf16"):
        convert(folder, tmp_path / "m.gguf", type="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert convert(folder, tmp_path / "m.gguf").type == "bf16"
