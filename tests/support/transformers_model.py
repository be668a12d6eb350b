"""A transformers Jamba as this program's model, tensor by tensor, without a file and without ``convert``."""

from __future__ import annotations

from typing import Any

import torch

from jambacli.kernels import Ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.loader import build
from quant.formats import FORMATS, QTensor

# The shapes of the runtime's promise: name -> (a layout of tests.support.checkpoints.SHAPES, what differs from it).
FAITHFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "16 experts, top 2": ("moe16", {}),
    "no experts": ("dense", {}),
    "tied": ("tied", {}),
    "attention 8/4, 3 blocks": ("moe4", {"num_hidden_layers": 20}),
    "attention 14/7, one KV head": ("attention14_7", {"num_hidden_layers": 28, "num_experts": 1}),
    "attention 4/1": ("attention4_1", {}),
    "expert period 1": ("expert_every_layer", {}),
    "d_state 8": ("moe4", {"mamba_d_state": 8}),
    "d_conv 3": ("moe4", {"mamba_d_conv": 3}),
    "top 1": ("moe16", {"num_experts_per_tok": 1}),
    "top 4": ("moe16", {"num_experts_per_tok": 4}),
    "one KV head": ("moe4", {"num_key_value_heads": 1}),
    "odd sizes": ("wide_head", {"mamba_dt_rank": 7, "mamba_d_state": 5, "mamba_d_conv": 2, "num_experts": 3}),
}


def gguf_name(layer: int, name: str) -> str:
    """The tensor ``blk.{layer}.{name}``, or the global one where ``layer`` is negative."""
    return name if layer < 0 else f"blk.{layer}.{name}"


def tensors(hf: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under their GGUF names, with A = -exp(A_log), float32."""
    out = {"token_embd.weight": hf.model.embed_tokens.weight, "output_norm.weight": hf.model.final_layernorm.weight}
    out["output.weight"] = hf.lm_head.weight
    for i, layer in enumerate(hf.model.layers):
        found = {"attn_norm.weight": layer.input_layernorm.weight, "ffn_norm.weight": layer.pre_ff_layernorm.weight}
        if hasattr(layer, "self_attn"):
            attention = layer.self_attn
            found |= {f"attn_{n}.weight": getattr(attention, f"{n}_proj").weight for n in "qkv"}
            found["attn_output.weight"] = attention.o_proj.weight
        else:
            mamba = layer.mamba
            found |= {
                "ssm_in.weight": mamba.in_proj.weight,
                "ssm_conv1d.weight": mamba.conv1d.weight[:, 0],
                "ssm_conv1d.bias": mamba.conv1d.bias,
                "ssm_x.weight": mamba.x_proj.weight,
                "ssm_dt.weight": mamba.dt_proj.weight,
                "ssm_dt.bias": mamba.dt_proj.bias,
                "ssm_dt_norm.weight": mamba.dt_layernorm.weight,
                "ssm_b_norm.weight": mamba.b_layernorm.weight,
                "ssm_c_norm.weight": mamba.c_layernorm.weight,
                "ssm_a": -torch.exp(mamba.A_log),
                "ssm_d": mamba.D,
                "ssm_out.weight": mamba.out_proj.weight,
            }
        ffn = layer.feed_forward
        if hasattr(ffn, "router"):
            gate, up = ffn.experts.gate_up_proj.chunk(2, dim=1)
            found |= {"ffn_gate_inp.weight": ffn.router.weight, "ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
            found["ffn_down_exps.weight"] = ffn.experts.down_proj
        else:
            found |= {f"ffn_{n}.weight": getattr(ffn, f"{n}_proj").weight for n in ("gate", "up", "down")}
        out |= {gguf_name(i, name): value for name, value in found.items()}
    return {name: value.detach().float().contiguous() for name, value in out.items()}


def f32_qtensor(x: torch.Tensor) -> QTensor:
    """A float32 tensor as a weight in format f32, uncopied."""
    return QTensor(x.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], tuple(x.shape))


def from_transformers(hf: Any, ops: Ops | None = None) -> JambaModel:
    """The same weights in a JambaModel, float32."""
    named = {name: f32_qtensor(value) for name, value in tensors(hf).items()}
    return build(JambaConfig.from_hf(hf.config.to_dict()), named.__getitem__, ops=ops)


@torch.no_grad()
def truth(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one full pass in transformers without a cache, float32 [T, vocab]."""
    return hf(ids[None], use_cache=False).logits[0].float()


def position_errors(got: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per position: max |difference| over max |expected|, and the same of the norms."""
    difference = got - expected
    return (
        difference.abs().amax(-1) / expected.abs().amax(-1),
        difference.norm(dim=-1) / expected.norm(dim=-1),
    )
