"""The demo model as an HF checkpoint again, and as a float32 GGUF.

The conversion back uses only the ``gguf`` package and the names of published checkpoints, so that it reveals mistakes in this
repository's reader and converter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file

from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.hub.demo import demo_model_path

_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "pre_ff_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ssm_in.weight": "mamba.in_proj.weight",
    "ssm_x.weight": "mamba.x_proj.weight",
    "ssm_dt.weight": "mamba.dt_proj.weight",
    "ssm_dt.bias": "mamba.dt_proj.bias",
    "ssm_out.weight": "mamba.out_proj.weight",
    "ssm_conv1d.bias": "mamba.conv1d.bias",
    "ssm_d": "mamba.D",
    "ssm_dt_norm.weight": "mamba.dt_layernorm.weight",
    "ssm_b_norm.weight": "mamba.b_layernorm.weight",
    "ssm_c_norm.weight": "mamba.c_layernorm.weight",
    "ffn_gate.weight": "feed_forward.gate_proj.weight",
    "ffn_up.weight": "feed_forward.up_proj.weight",
    "ffn_down.weight": "feed_forward.down_proj.weight",
    "ffn_gate_inp.weight": "feed_forward.router.weight",
}


def as_checkpoint(folder: Path, path: Path | None = None) -> Path:
    """Write the demo model (or the GGUF at ``path``) to ``folder`` as a float32 HF checkpoint that transformers loads."""
    reader = gguf.GGUFReader(path or demo_model_path())
    tensors: dict[str, torch.Tensor] = {}
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))
        tensors.update(_hub_names(t.name, torch.from_numpy(values.copy()).float()))

    def field(name: str) -> Any:
        return reader.get_field(name).contents()  # type: ignore[union-attr]

    kv_heads = field("jamba.attention.head_count_kv")
    attention = [i for i, n in enumerate(kv_heads) if n]
    moe = sorted({int(n.split(".")[1]) for n in (t.name for t in reader.tensors) if "ffn_gate_inp" in n})
    config = {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "hidden_size": field("jamba.embedding_length"),
        "intermediate_size": field("jamba.feed_forward_length"),
        "num_hidden_layers": field("jamba.block_count"),
        "attn_layer_offset": attention[0],
        "attn_layer_period": attention[1] - attention[0],
        "expert_layer_offset": moe[0],
        "expert_layer_period": moe[1] - moe[0],
        "num_attention_heads": _one(field("jamba.attention.head_count")),
        "num_key_value_heads": max(kv_heads),
        "num_experts": field("jamba.expert_count"),
        "num_experts_per_tok": field("jamba.expert_used_count"),
        "mamba_d_state": field("jamba.ssm.state_size"),
        "mamba_d_conv": field("jamba.ssm.conv_kernel"),
        "mamba_dt_rank": field("jamba.ssm.time_step_rank"),
        "rms_norm_eps": field("jamba.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": field("jamba.context_length"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_mamba_kernels": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def as_f32(output: Path, path: Path | None = None) -> Path:
    """Write the demo model (or the GGUF at ``path``) to ``output`` with all tensors in float32, which is exact for bf16."""
    source = GGUFFile.open(path or demo_model_path())
    reader = gguf.GGUFReader(path or demo_model_path())
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    with GGUFWriter(output, force=True) as writer:
        writer.copy_metadata(source.metadata, skip={keys.FILE_TYPE})
        writer.add(keys.FILE_TYPE, 0, "u32")
        for name, tensor in source.tensors.items():
            writer.plan_tensor(name, tensor.shape, "f32")
        writer.begin()
        for name in source.tensors:
            writer.write_tensor(name, values[name])
        writer.finish()
    return output


def _one(value: Any) -> int:
    return int(max(value)) if isinstance(value, list) else int(value)


def _hub_names(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.final_layernorm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in fixed:
        return {fixed[name]: values}
    _, layer, part = name.split(".", 2)
    at = f"model.layers.{layer}."
    if part == "ssm_a":
        return {at + "mamba.A_log": torch.log(-values)}
    if part == "ssm_conv1d.weight":
        return {at + "mamba.conv1d.weight": values[:, None].contiguous()}
    if part.endswith("_exps.weight"):
        kind = part.removeprefix("ffn_").removesuffix("_exps.weight")
        return {f"{at}feed_forward.experts.{e}.{kind}_proj.weight": w.clone() for e, w in enumerate(values)}
    return {at + _LAYER[part]: values}
