"""Decode on the CPU: the whole model for a few tokens as one call into the C++ library.

Decoding a token takes a few hundred small products, and calling each from Python would cost as much as computing it. So the
layers' steps are listed once and the library runs the list. They compute the same as ``Layer.forward``.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from jambacli.kernels.cpu import decode
from jambacli.kernels.cpu.structs import NATIVE_TYPES
from jambacli.model.attention import Attention
from jambacli.model.moe import MLP
from jambacli.model.spans import SpanPiece
from jambacli.model.state import KVCache, SequenceState
from quant.formats import QTensor

if TYPE_CHECKING:
    from jambacli.model.jamba import Layer

logger = logging.getLogger(__name__)


class Decoder:
    """A model's layers and output as lists of steps, one list per KV type in use; a ``StepDecoder``."""

    #: See ``StepDecoder`` and ``SpanDecoder``.
    max_tokens = decode.MOST_TOKENS
    max_step_tokens = decode.MOST_STEP_TOKENS

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
        return self.run_spans([SpanPiece(state, ids, state.position, n_logits)])[0]

    def run_spans(self, pieces: Sequence[SpanPiece]) -> list[torch.Tensor]:
        """See ``SpanDecoder.run_spans``."""
        first = pieces[0]
        x = self._embed(first.ids if len(pieces) == 1 else torch.cat([p.ids for p in pieces]))
        program = self._program(first.state.kv_type)
        spans = [decode.Span(len(p.ids), p.past, p.n_logits, -1 if p.slot is None else p.slot) for p in pieces]
        bindings = [self._binding(program, p.state) for p in pieces]
        counts = [p.n_logits for p in pieces]
        logits = torch.empty(sum(counts), program.n_out)
        program.run_spans(x, spans, bindings, logits, precise=first.state.precise)
        return list(logits.split(counts))

    def _program(self, kv_type: str) -> decode.Program:
        program = self._programs.get(kv_type)
        if program is None:
            listed: list[decode.Step] = []
            for layer in self._layers:
                listed += [_mixer_step(layer, kv_type), _ffn_step(layer)]
            program = self._programs[kv_type] = decode.Program([*listed, self._logits])
        return program

    def _binding(self, program: decode.Program, state: SequenceState) -> decode.Binding:
        moves, binding = self._bindings.get(state, (-1, None))
        if binding is None or moves != state.moves:
            binding = program.bind(_parts(state))
            self._bindings[state] = state.moves, binding
        return binding


def make_decoder(
    embed: Callable[[torch.Tensor], torch.Tensor],
    layers: Sequence[Layer],
    output_norm: torch.Tensor,
    output: QTensor,
    eps: float,
) -> Decoder | None:
    """A decoder, or None, with a warning, if a weight's format has no C++ kernel: decode then calls the single operations."""
    weights = [output, *(w for layer in layers for part in (layer.mixer, layer.ffn) for w in vars(part).values())]
    slow = {w.format.name for w in weights if isinstance(w, QTensor) and w.format.ggml_type not in NATIVE_TYPES}
    if slow:
        names = ", ".join(sorted(slow))
        logger.warning("%s has no CPU kernel: these weights are dequantized for every token, which is slow", names)
        return None
    return Decoder(embed, layers, output_norm, output, eps)


def _parts(state: SequenceState) -> list[tuple[torch.Tensor, ...] | None]:
    """The state tensors of each step: mixers and feed-forward networks in turn (None), then the logits (None)."""
    parts: list[tuple[torch.Tensor, ...] | None] = []
    history = iter(state.history_layers())
    for part in state.layers:
        mixer = (part.k, part.v) if isinstance(part, KVCache) else (part.conv, part.ssm, *next(history, ()))
        parts += [mixer, None]
    return [*parts, None]


def _mixer_step(layer: Layer, kv_type: str) -> decode.Step:
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
            kv_type=kv_type,
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
