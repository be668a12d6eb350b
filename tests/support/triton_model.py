"""A tiny model with tensors in chosen formats, for tests of the Triton kernels."""

from __future__ import annotations

import math

import torch

from jambacli.evaluation.synthetic import synthetic_tensors
from jambacli.model.config import JambaConfig
from quant.formats import FORMATS, QTensor

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 8,
    "mamba_dt_rank": 64,
    "vocab_size": 400,
}

#: Two layers, 64 wide, for formats with blocks of 32 values: the interpreter takes a second per token even for this.
SMALL = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "mamba_dt_rank": 32,
    "vocab_size": 96,
    "num_attention_heads": 2,
}

#: Sets of three formats (experts, networks, the rest) that together use every branch of the kernels.
FORMATS_TOGETHER = {
    "k": ("q4_k", "q6_k", "q5_k"),
    "small": ("q2_k", "q3_k", "iq4_xs"),
    "legacy": ("q8_0", "q4_1", "q5_1"),
    "int8": ("i8", "q5_0", "q4_0"),
    "float": ("bf16", "f16", "iq4_nl"),
}


def tiny_config() -> JambaConfig:
    """Four layers: one of attention, two with experts."""
    return JambaConfig.from_hf(SHAPE)


def tiny_tensors(config: JambaConfig, formats: str) -> dict[str, QTensor]:
    """Random tensors by GGUF name; matrices in the three formats of ``FORMATS_TOGETHER[formats]``."""
    from jambacli.runtime.cuda.memory import is_matrix

    experts, networks, rest = FORMATS_TOGETHER[formats]
    found = {}
    for name, w in synthetic_tensors(config, "f32"):
        fmt = experts if name.endswith("_exps.weight") else networks if "ffn_" in name else rest
        if is_matrix(name) and w.shape[-1] % FORMATS[fmt].block:
            fmt = "q8_0"
        found[name] = in_format(w, fmt) if is_matrix(name) else w
    return found


def in_format(w: QTensor, fmt: str) -> QTensor:
    """A float32 weight in another format."""
    from quant.experts_int8 import quantize as quantize_int8
    from quant.quantize_blocks import quantize

    x = w.data.view(torch.float32).view(w.shape)
    if fmt == "i8":
        levels, scale = quantize_int8(x)
        return QTensor(levels.view(torch.uint8).view(-1), FORMATS["i8"], w.shape, scale)
    if fmt in ("f16", "bf16"):
        data = x.to(torch.float16 if fmt == "f16" else torch.bfloat16).view(torch.uint8).view(-1)
        return QTensor(data, FORMATS[fmt], w.shape)
    blocks = quantize(x.reshape(math.prod(w.shape[:-1]), w.shape[-1]), fmt)
    return QTensor(blocks.reshape(-1), FORMATS[fmt], w.shape)
