"""Decode on the CPU: the whole model for a few tokens as one call into the C++ library.

Decoding a token takes a few hundred small products, and calling each from Python would cost as much as computing it. So the
layers' steps are listed once and the library runs the list. They compute the same as ``Layer.forward``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from jambacli.kernels.cpu import decode
from jambacli.kernels.cpu.structs import NATIVE_TYPES
from jambacli.model.attention import Attention
from jambacli.model.moe import MLP
from jambacli.model.state import KV_DTYPES, KVCache, SequenceState
from quant.formats import QTensor

if TYPE_CHECKING:
    from jambacli.model.jamba import Layer


class Decoder:
    """A model's layers and output as lists of steps, one list per KV type in use; a ``StepDecoder``."""

    #: See ``StepDecoder``.
    max_tokens = decode.MOST_TOKENS

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        layers: Sequence[Layer],
        output_norm: torch.Tensor,
        output: QTensor,
        eps: float,
    ) -> None:
        """``embed``: token ids int64 [T] to float32 [T, hidden]."""
        self._embed, self._layers = embed, layers
        self._logits = decode.LogitsStep(output_norm, eps, output)
        self._programs: dict[str, decode.Program] = {}
        self._bindings: weakref.WeakKeyDictionary[SequenceState, tuple[int, decode.Binding]] = (
            weakref.WeakKeyDictionary()
        )

    def run(self, ids: torch.Tensor, state: SequenceState, n_logits: int) -> torch.Tensor:
        """See ``StepDecoder.run``."""
        x = self._embed(ids)
        program = self._programs.get(state.kv_type)
        if program is None:
            program = self._programs[state.kv_type] = self._program(KV_DTYPES[state.kv_type])
        moves, binding = self._bindings.get(state, (-1, None))
        if binding is None or moves != state.moves:
            binding = program.bind(_parts(state))
            self._bindings[state] = state.moves, binding
        logits = torch.empty(n_logits, program.n_out)
        program.run(x, state.position, binding, logits, precise=state.precise)
        return logits

    def _program(self, kv_dtype: torch.dtype) -> decode.Program:
        listed: list[decode.Step] = []
        for layer in self._layers:
            listed += [_mixer_step(layer, kv_dtype), _ffn_step(layer)]
        return decode.Program([*listed, self._logits])


def make_decoder(
    embed: Callable[[torch.Tensor], torch.Tensor],
    layers: Sequence[Layer],
    output_norm: torch.Tensor,
    output: QTensor,
    eps: float,
) -> Decoder | None:
    """A decoder, or None if a weight's format has no C++ kernel: decode then calls the single operations."""
    weights = [output, *(w for layer in layers for part in (layer.mixer, layer.ffn) for w in vars(part).values())]
    if any(isinstance(w, QTensor) and w.format.ggml_type not in NATIVE_TYPES for w in weights):
        return None
    return Decoder(embed, layers, output_norm, output, eps)


def _parts(state: SequenceState) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """The state tensors of each step: mixers and feed-forward networks in turn (None), then the logits (None)."""
    parts: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for part in state.layers:
        parts += [(part.k, part.v) if isinstance(part, KVCache) else (part.conv, part.ssm), None]
    return [*parts, None]


def _mixer_step(layer: Layer, kv_dtype: torch.dtype) -> decode.Step:
    m = layer.mixer
    if isinstance(m, Attention):
        return decode.AttentionStep(
            layer.mixer_norm,
            layer.eps,
            q=m.q_proj,
            k=m.k_proj,
            v=m.v_proj,
            out=m.out_proj,
            n_heads=m.n_heads,
            n_kv_heads=m.n_kv_heads,
            kv_dtype=kv_dtype,
        )
    return decode.MambaStep(
        layer.mixer_norm,
        layer.eps,
        in_proj=m.in_proj,
        conv_weight=m.conv_weight,
        conv_bias=m.conv_bias,
        x_proj=m.x_proj,
        dt_norm=m.dt_norm,
        b_norm=m.b_norm,
        c_norm=m.c_norm,
        dt_proj=m.dt_proj,
        dt_bias=m.dt_bias,
        A=m.A,
        D=m.D,
        out_proj=m.out_proj,
    )


def _ffn_step(layer: Layer) -> decode.Step:
    f = layer.ffn
    if isinstance(f, MLP):
        return decode.MlpStep(layer.ffn_norm, layer.eps, gate=f.gate, up=f.up, down=f.down)
    return decode.ExpertsStep(
        layer.ffn_norm, layer.eps, router=f.router, gate=f.gate, up=f.up, down=f.down, top_k=f.top_k
    )
