"""The whole model: embedding, layers, logits.

    x = embed(ids)
    each layer:  x = x + mixer(rms_norm(x));  x = x + ffn(rms_norm(x))
    logits = output(rms_norm(x))

The mixer is Mamba or, in a few layers, attention; the feed-forward network is one gated network or a mixture of experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from jambacli.errors import JambaError
from jambacli.kernels import Ops
from jambacli.model.attention import Attention
from jambacli.model.config import CPU_PREFILL_CHUNK, JambaConfig, check_gpu_kv_type
from jambacli.model.lora import NO_ADAPTERS, AdapterSet
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from jambacli.model.spans import Span, SpanDecoder, StepDecoder, check_spans, run_in_steps
from jambacli.model.state import KVCache, MambaState, PassAbandonedError, SequenceState
from quant.formats import QTensor

__all__ = ["JambaModel", "Layer", "Span", "SpanDecoder", "StepDecoder"]


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

    def forward_parts(
        self, x: torch.Tensor, sizes: list[int], parts: Sequence[tuple[MambaState | KVCache, int]], ops: Ops
    ) -> torch.Tensor:
        """As ``forward`` for several sequences: x float32 [sum(sizes), hidden]; each part has its state and its past tokens.

        All tokens share the products, so each weight is read and unpacked once; convolution, scan and attention take each part
        by itself. Each part has the bits of a ``forward`` of its own.
        """
        u = ops.rms_norm(x, self.mixer_norm, self.eps)
        if isinstance(self.mixer, Mamba):
            states = [state for state, _ in parts if isinstance(state, MambaState)]
            x = x + self.mixer.forward_parts(u, sizes, states, ops)
        else:
            caches = [(cache, n_past) for cache, n_past in parts if isinstance(cache, KVCache)]
            x = x + self.mixer.forward_parts(u, sizes, caches, ops)
        h = ops.rms_norm(x, self.ffn_norm, self.eps)
        return x + (self.ffn.forward(h, ops, sizes) if isinstance(self.ffn, MoE) else self.ffn.forward(h, ops))


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
    #: The LoRA adapters of new states.
    adapters: AdapterSet = NO_ADAPTERS
    #: The adapters that these weights have. A state of others is computed by the model that ``adapt`` returns for them.
    applied: AdapterSet = NO_ADAPTERS
    adapt: Callable[[AdapterSet], JambaModel] | None = None
    #: Whether that mode is the one measured to be faster, not one that was asked for: then sessions of either mode go on.
    mode_measured: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.data.device

    def new_state(
        self,
        ctx: int,
        kv_type: str = "f16",
        *,
        precise: bool | None = None,
        adapters: AdapterSet | None = None,
    ) -> SequenceState:
        """An empty sequence of at most ``ctx`` tokens with keys and values in ``kv_type``, one of KV_TYPES.

        ``precise``: decode with 15-bit activations; None for the model's own ``precise``. ``adapters``: None for the model's
        own.
        """
        precise = self.precise if precise is None else precise
        if self.device.type == "cuda":
            check_gpu_kv_type(kv_type)
        adapters = self.adapters if adapters is None else adapters
        return SequenceState(self.config, ctx, kv_type, self.device, self.kv_device, precise=precise, adapters=adapters)

    def with_adapters(self, adapters: AdapterSet) -> JambaModel:
        """The model whose weights have ``adapters``. Raises JambaError for a model that takes none."""
        if adapters.key == self.applied.key:
            return self
        if self.adapt is None:
            raise JambaError("LoRA adapters cannot be applied to this model")
        return self.adapt(adapters)

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
        with self._on_device():
            return self.with_adapters(state.adapters)._forward(ids, state, logits)

    @torch.no_grad()
    def forward_spans(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """Append tokens to several distinct sequences in one step. Returns each span's logits as ``forward`` does.

        A token's results do not depend on the other spans. Where the decoder takes several sequences (on the CPU), spans of
        up to ``decoder.max_tokens`` tokens, and revocable ones of any length, share the products of a step, and each token's
        results are to the bit those of ``forward`` with this token alone. Longer ones, such as pieces of prompts, then follow
        and share the products, up to ``prefill_chunk`` tokens at a time; each has the bits of a
        ``forward`` of its own. Elsewhere each span is a ``forward``, token by token if it is revocable: so the tokens of a
        revocable span always get the results of decode.

        Raises as ``forward`` does, and JambaError for a state in two spans; all states are unchanged then.
        """
        check_spans(spans, self.config.vocab_size)
        groups: dict[str, list[int]] = {}
        for i, span in enumerate(spans):
            groups.setdefault(span.state.adapters.key, []).append(i)
        out: list[torch.Tensor | None] = [None] * len(spans)
        for group in groups.values():  # sequences with different adapters share no step
            model = self.with_adapters(spans[group[0]].state.adapters)
            for i, logits in zip(group, model._forward_spans([spans[i] for i in group]), strict=True):
                out[i] = logits
        return out

    def _forward_spans(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """``forward_spans`` for checked spans with the adapters of this model's weights."""
        out: list[torch.Tensor | None] = [None] * len(spans)
        with self._on_device():
            rest = list(range(len(spans)))
            if isinstance(self.decoder, SpanDecoder):
                most = self.decoder.max_tokens
                shared = [i for i, span in enumerate(spans) if len(span.ids) <= most or span.revocable]
                rest = [i for i in rest if i not in set(shared)]
                for i, logits in zip(shared, run_in_steps(self.decoder, [spans[i] for i in shared]), strict=True):
                    out[i] = logits if len(logits) else None
                for group in self._joined(spans, rest):
                    for i, joined in zip(group, self._forward_joined([spans[i] for i in group]), strict=True):
                        out[i] = joined
                return out
            for i in rest:
                span = spans[i]
                out[i] = self._revocable(span) if span.revocable else self._forward(span.ids, span.state, span.logits)
        return out

    def _joined(self, spans: Sequence[Span], indices: Sequence[int]) -> list[list[int]]:
        """The spans of these indices in groups of one mode and up to ``prefill_chunk`` tokens."""
        groups: list[list[int]] = []
        tokens = 0
        for i in sorted(indices, key=lambda i: spans[i].state.precise):
            tokens += len(spans[i].ids)
            if groups and tokens <= self.prefill_chunk and spans[i].state.precise == spans[groups[-1][0]].state.precise:
                groups[-1].append(i)
            else:
                groups.append([i])
                tokens = len(spans[i].ids)
        return groups

    def _forward_joined(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """``forward`` for several checked spans of one mode."""
        if len(spans) == 1:
            return [self._forward(spans[0].ids, spans[0].state, spans[0].logits)]
        sizes = [len(span.ids) for span in spans]
        for span in spans:
            span.state.begin(len(span.ids))
        ops = self.ops.precise if spans[0].state.precise and self.ops.precise is not None else self.ops
        x = ops.embed(torch.cat([span.ids for span in spans]), self.embedding)
        for i, layer in enumerate(self.layers):
            x = layer.forward_parts(x, sizes, [(span.state.layers[i], span.state.position) for span in spans], ops)
        out: list[torch.Tensor | None] = []
        for span, rows in zip(spans, x.split(sizes), strict=True):
            span.state.commit(len(span.ids))
            if span.n_logits:
                last = ops.rms_norm(rows[len(rows) - span.n_logits :], self.output_norm, self.config.rms_eps)
                out.append(ops.linear(last, self.output))
            else:
                out.append(None)
        return out

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the thread's current GPU, which may be another GPU."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _revocable(self, span: Span) -> torch.Tensor | None:
        """A revocable span token by token, with a copy of the Mamba part before each."""
        n_tokens, state = len(span.ids), span.state
        state.reserve_history(n_tokens)
        rows: list[torch.Tensor] = []
        for i in range(n_tokens):
            state.keep(i)
            logits = self._forward(span.ids[i : i + 1], state, "last" if i >= n_tokens - span.n_logits else "none")
            if logits is not None:
                rows.append(logits)
        state.allow_retract(n_tokens)
        return torch.cat(rows) if rows else None

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
            if state.abandon is not None and state.abandon():
                raise PassAbandonedError("the pass was abandoned")
            x = layer.forward(x, part, state.position, ops)
        state.commit(n_tokens)
        if n_logits == 0:
            return None
        x = ops.rms_norm(x[n_tokens - n_logits :], self.output_norm, self.config.rms_eps)
        return ops.linear(x, self.output)
