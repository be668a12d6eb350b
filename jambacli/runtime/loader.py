"""Builds a JambaModel from named tensors, usually those of a GGUF file.

Nothing is copied or dequantized: a weight is a view of the mapped file, whose pages are read on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jambacli.gguf.jamba_metadata import jamba_config
from jambacli.gguf.reader import GGUFFile
from jambacli.kernels import Ops, choose_ops, reference
from jambacli.model.attention import Attention
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel, Layer
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from quant.formats import QTensor

GetTensor = Callable[[str], QTensor]


def load_gguf(path: str | Path, *, ops: Ops | None = None) -> JambaModel:
    """The model in a GGUF file (any part of a split one) with mapped weights; ``ops`` as in ``build``.

    Raises JambaError for a file that cannot be opened, BadFileError for a damaged one or one with a missing or
    misshapen tensor (naming it), UnsupportedError for another architecture.
    """
    return from_gguf(GGUFFile.open(path), ops=ops)


def from_gguf(file: GGUFFile, *, ops: Ops | None = None) -> JambaModel:
    """The model in an opened GGUF file, which stays open as long as the model lives; ``ops`` as in ``build``."""
    config = jamba_config(file.metadata, file.tensors)
    return build(config, file.qtensor, ops=ops, source=file)


def build(config: JambaConfig, tensor: GetTensor, *, ops: Ops | None = None, source: Any = None) -> JambaModel:
    """Assemble a model; ``tensor(name)`` returns each tensor of ``jamba_metadata.expected_tensors(config)``.

    ``ops``: the backend, None for ``choose_ops()``. ``source``: what the tensors are views of, kept alive.
    """
    ops = ops or choose_ops()
    embedding = tensor("token_embd.weight")
    layers = tuple(build_layer(config, i, tensor) for i in range(config.n_layers))
    output_norm = _values(tensor("output_norm.weight"))
    output = embedding if config.tied_embeddings else tensor("output.weight")
    decoder = None
    if ops.name == "cpu":
        from jambacli.runtime.cpu_decoder import make_decoder

        embed = ops.embed
        decoder = make_decoder(lambda ids: embed(ids, embedding), layers, output_norm, output, config.rms_eps)
    return JambaModel(config, embedding, layers, output_norm, output, ops, decoder, source)


def _values(w: QTensor) -> torch.Tensor:
    """A small tensor (norm, bias, convolution, A, D, router) as float32, a view if the file stores float32."""
    return reference.dequantize(w)


def build_layer(config: JambaConfig, index: int, tensor: GetTensor) -> Layer:
    """Layer ``index`` of named tensors, as ``build`` assembles it."""

    def weight(name: str) -> QTensor:
        return tensor(f"blk.{index}.{name}.weight")

    def values(name: str) -> torch.Tensor:
        return _values(tensor(f"blk.{index}.{name}"))

    mixer: Mamba | Attention
    if config.layer_is_attention[index]:
        mixer = Attention(
            q_proj=weight("attn_q"),
            k_proj=weight("attn_k"),
            v_proj=weight("attn_v"),
            out_proj=weight("attn_output"),
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
        )
    else:
        mixer = Mamba(
            in_proj=weight("ssm_in"),
            conv_weight=values("ssm_conv1d.weight"),
            conv_bias=values("ssm_conv1d.bias"),
            x_proj=weight("ssm_x"),
            dt_norm=values("ssm_dt_norm.weight"),
            b_norm=values("ssm_b_norm.weight"),
            c_norm=values("ssm_c_norm.weight"),
            dt_proj=weight("ssm_dt"),
            dt_bias=values("ssm_dt.bias"),
            A=values("ssm_a"),
            D=values("ssm_d"),
            out_proj=weight("ssm_out"),
            eps=config.rms_eps,
        )
    ffn: MLP | MoE
    if config.layer_is_moe[index]:
        ffn = MoE(
            router=values("ffn_gate_inp.weight"),
            gate=weight("ffn_gate_exps"),
            up=weight("ffn_up_exps"),
            down=weight("ffn_down_exps"),
            top_k=config.n_experts_used,
        )
    else:
        ffn = MLP(gate=weight("ffn_gate"), up=weight("ffn_up"), down=weight("ffn_down"))
    return Layer(values("attn_norm.weight"), mixer, values("ffn_norm.weight"), ffn, config.rms_eps)
