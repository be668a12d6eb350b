"""The whole model: embedding, layers, logits. Knows nothing of files, text, sampling or of how operations run.

x = embed(ids)
each layer:  x = x + mixer(rms_norm(x));  x = x + ffn(rms_norm(x))      mixer: Mamba, or attention in a few layers
logits = output(rms_norm(x))                                            ffn: one gated network, or experts
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from jambacli.errors import JambaError
from jambacli.kernels import Ops
from jambacli.model.attention import Attention
from jambacli.model.config import JambaConfig
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from jambacli.model.state import KVCache, MambaState, SequenceState
from jambacli.runtime.cuda.placement import PREFILL_CHUNK
from quant.formats import QTensor


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer over time, then a feed-forward network, each behind its norm and added to the residual."""

    attn_norm: torch.Tensor
    mixer: Mamba | Attention
    ffn_norm: torch.Tensor
    ffn: MLP | MoE
    eps: float

    def forward(self, x: torch.Tensor, state: MambaState | KVCache, n_past: int, ops: Ops) -> torch.Tensor:
        """The residual stream x float32 [T, hidden] after this layer."""
        # Nothing is named that is not needed again: of thousands of tokens, every tensor counts.
        if isinstance(self.mixer, Mamba):
            assert isinstance(state, MambaState)
            x = x + self.mixer.forward(ops.rms_norm(x, self.attn_norm, self.eps), state, ops)
        else:
            assert isinstance(state, KVCache)
            x = x + self.mixer.forward(ops.rms_norm(x, self.attn_norm, self.eps), state, n_past, ops)
        return x + self.ffn.forward(ops.rms_norm(x, self.ffn_norm, self.eps), ops)


class StepDecoder(Protocol):
    """Runs a few tokens through all layers at once, as one backend can."""

    @property
    def most_tokens(self) -> int:
        """Tokens up to which this beats the operations made for many."""

    def run(self, ids: torch.Tensor, state: SequenceState, n_logits: int) -> torch.Tensor:
        """Append the tokens ids int64 [T], which are in the vocabulary; logits float32 [n_logits, vocab]."""


@dataclass(frozen=True)
class JambaModel:
    """Weights and the operations to run them with. It holds no sequence: that is a ``SequenceState``.

    token_embd and output [vocab, hidden] (the same tensor where the model ties them), output_norm [hidden].
    """

    config: JambaConfig
    token_embd: QTensor
    layers: tuple[Layer, ...]
    output_norm: torch.Tensor
    output: QTensor
    ops: Ops
    #: Runs a few tokens in one call where the backend can; what it computes is what the layers say.
    decoder: StepDecoder | None = None
    #: Keeps what the weights are views of (a mapped file) open as long as the model lives.
    source: Any = None
    #: Where keys and values lie when not on ``device``: a card's model may keep them in the computer's memory.
    kv_device: torch.device | None = None
    #: How many tokens of a long prompt a plan says to take at a time, where it says anything.
    chunk: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embd.data.device

    @property
    def prefill_chunk(self) -> int:
        """How many tokens of a long prompt to take through the layers at a time: more on a card, which is wider."""
        return self.chunk or (PREFILL_CHUNK if self.device.type == "cuda" else 512)

    def new_state(self, ctx: int, kv_type: str = "f16") -> SequenceState:
        """An empty sequence of at most ``ctx`` tokens, its keys and values kept as f16, bf16, f32 or q8_0."""
        return SequenceState(self.config, ctx, kv_type, self.device, self.kv_device)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, state: SequenceState, *, logits: Literal["last", "all", "none"] = "last"
    ) -> torch.Tensor | None:
        """Append the tokens ``ids`` (int64 [T], T >= 1) to the sequence and return what may follow.

        Returns logits float32 [1, vocab] for "last", [T, vocab] for "all", None for "none". Any split of a sequence
        into calls computes the same up to rounding, and the same split the same to the bit. Scratch memory grows
        with T: feed long prompts in pieces. Raises JambaError for ids outside the vocabulary, ContextFullError when
        they do not fit (nothing has happened then). A pass interrupted half-way leaves ``state.torn`` set.
        """
        # Kernels are launched on the thread's present card, which need not be this model's.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            return self._forward(ids, state, logits)

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
        if self.decoder is not None and n_tokens <= self.decoder.most_tokens:
            out = self.decoder.run(ids, state, n_logits)
            state.commit(n_tokens)
            return out if n_logits else None
        x = self.ops.embed(ids, self.token_embd)
        for layer, part in zip(self.layers, state.layers, strict=True):
            x = layer.forward(x, part, state.position, self.ops)
        state.commit(n_tokens)
        if n_logits == 0:
            return None
        x = self.ops.rms_norm(x[n_tokens - n_logits :], self.output_norm, self.config.rms_eps)
        return self.ops.linear(x, self.output)
