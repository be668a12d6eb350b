"""The whole model: embedding, layers, logits.

    x = embed(ids)
    each layer:  x = x + mixer(rms_norm(x));  x = x + ffn(rms_norm(x))
    logits = output(rms_norm(x))

The mixer is Mamba or, in a few layers, attention; the feed-forward network is one gated network or a mixture of experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from jambacli.errors import JambaError
from jambacli.kernels import Ops
from jambacli.model.attention import Attention
from jambacli.model.config import CPU_PREFILL_CHUNK, JambaConfig
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from jambacli.model.state import KVCache, MambaState, SequenceState
from quant.formats import QTensor


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer over time, then a feed-forward network; both have a norm before them and add to the residual."""

    mixer_norm: torch.Tensor
    mixer: Mamba | Attention
    ffn_norm: torch.Tensor
    ffn: MLP | MoE
    eps: float

    def forward(self, x: torch.Tensor, state: MambaState | KVCache, n_past: int, ops: Ops) -> torch.Tensor:
        """The residual stream x float32 [T, hidden] after this layer."""
        # Intermediate results have no names, which would keep large tensors alive during prefill.
        if isinstance(self.mixer, Mamba):
            assert isinstance(state, MambaState)
            x = x + self.mixer.forward(ops.rms_norm(x, self.mixer_norm, self.eps), state, ops)
        else:
            assert isinstance(state, KVCache)
            x = x + self.mixer.forward(ops.rms_norm(x, self.mixer_norm, self.eps), state, n_past, ops)
        return x + self.ffn.forward(ops.rms_norm(x, self.ffn_norm, self.eps), ops)


class StepDecoder(Protocol):
    """A backend's fast path for decode: a few tokens through all layers in one call."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens for which this is faster than the single operations."""

    def run(self, ids: torch.Tensor, state: SequenceState, n_logits: int) -> torch.Tensor:
        """Append the token ids int64 [T], all in the vocabulary. Returns logits float32 [n_logits, vocab]."""


@dataclass(frozen=True)
class Span:
    """Tokens to append to one sequence in a step: ``ids`` int64 [T], T >= 1, on the CPU.

    ``logits``: as for ``JambaModel.forward``. ``revocable``: ``state.retract`` may take back any of the last tokens of this
    span until the state's next pass.
    """

    state: SequenceState
    ids: torch.Tensor
    logits: Literal["last", "all", "none"] = "last"
    revocable: bool = False


@dataclass(frozen=True)
class JambaModel:
    """Weights and the operations that run them. ``SequenceState`` holds the state of a sequence.

    embedding and output [vocab, hidden] (the same tensor if the model ties them), output_norm [hidden].
    """

    config: JambaConfig
    embedding: QTensor
    layers: tuple[Layer, ...]
    output_norm: torch.Tensor
    output: QTensor
    ops: Ops
    #: Decodes a few tokens in one call if the backend can. It computes the same as the layers.
    decoder: StepDecoder | None = None
    #: The mapped file that the weights are views of; open as long as the model lives.
    source: Any = None
    #: Device of keys and values if not ``device``: a model on a GPU may keep them in host memory.
    kv_device: torch.device | None = None
    #: Prompt tokens to take through the layers at a time.
    prefill_chunk: int = CPU_PREFILL_CHUNK
    #: The mode of new states: see DeviceOptions.
    precise: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.data.device

    def new_state(self, ctx: int, kv_type: str = "f16", *, precise: bool | None = None) -> SequenceState:
        """An empty sequence of at most ``ctx`` tokens with keys and values in ``kv_type``: f16, bf16, f32 or q8_0.

        ``precise``: decode with 15-bit activations; None for the model's own ``precise``.
        """
        precise = self.precise if precise is None else precise
        return SequenceState(self.config, ctx, kv_type, self.device, self.kv_device, precise=precise)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, state: SequenceState, *, logits: Literal["last", "all", "none"] = "last"
    ) -> torch.Tensor | None:
        """Append the tokens ``ids`` (int64 [T], T >= 1) to the sequence and return logits for the next tokens.

        Returns logits float32 [1, vocab] for "last", [T, vocab] for "all", None for "none". Different splits of a
        sequence into calls give equal results up to rounding; the same split gives the same bits. Scratch memory
        grows with T: split long prompts into pieces of ``prefill_chunk``. Raises JambaError for ids outside the
        vocabulary and ContextFullError if they do not fit; both leave the state unchanged. A pass that is interrupted
        leaves ``state.interrupted`` set.
        """
        # Triton launches on the thread's current GPU, which may be another GPU.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            return self._forward(ids, state, logits)

    def forward_spans(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """Append tokens to several sequences in one step. Returns each span's logits as ``forward`` does.

        The spans' states are distinct. A token's results do not depend on the other spans in the step.
        """
        return [self.forward(span.ids, span.state, logits=span.logits) for span in spans]

    def _forward(
        self, ids: torch.Tensor, state: SequenceState, logits: Literal["last", "all", "none"]
    ) -> torch.Tensor | None:
        n_tokens = len(ids)
        if n_tokens == 0:
            raise JambaError("there are no tokens to run")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise JambaError(f"token {low if low < 0 else high} is not in the vocabulary of {self.config.vocab_size}")
        state.begin(n_tokens)
        n_logits = {"last": 1, "all": n_tokens, "none": 0}[logits]
        if self.decoder is not None and n_tokens <= self.decoder.max_tokens:
            out = self.decoder.run(ids, state, n_logits)
            state.commit(n_tokens)
            return out if n_logits else None
        ops = self.ops.precise if state.precise and self.ops.precise is not None else self.ops
        x = ops.embed(ids, self.embedding)
        for layer, part in zip(self.layers, state.layers, strict=True):
            x = layer.forward(x, part, state.position, ops)
        state.commit(n_tokens)
        if n_logits == 0:
            return None
        x = ops.rms_norm(x[n_tokens - n_logits :], self.output_norm, self.config.rms_eps)
        return ops.linear(x, self.output)
