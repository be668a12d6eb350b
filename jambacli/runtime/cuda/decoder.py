"""Decode on a GPU: one token through the model as a few fused kernels per layer on fixed buffers, replayed as CUDA graphs.

The kernels compute the same as ``Layer.forward``. The first token launches them one by one, the second records them, and from
then on a step is one graph, or one per stretch between layers that the CPU computes. If recording fails, steps continue
kernel by kernel, with a warning.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.errors import first_line
from jambacli.kernels.triton import attention, dequant, experts, norm, scan
from jambacli.kernels.triton.gemv import ConvStep, gemv
from jambacli.kernels.triton.interleave import interleaved, natural, padded
from jambacli.kernels.triton.launch import as_packed, rounds
from jambacli.kernels.triton.ops import attention_dtype
from jambacli.kernels.triton.repack import Packed, repack
from jambacli.model.attention import Attention
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from jambacli.model.state import KVCache, MambaState, SequenceState
from jambacli.runtime.cuda.upload import staging
from quant.formats import FORMATS, QTensor

if TYPE_CHECKING:
    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import Layer
    from jambacli.runtime.cuda.offload import HostAttention, HostFfn

logger = logging.getLogger(__name__)

Step = Callable[[], None]

#: Milliseconds of Python for a launch without a graph, measured on a server's CPU without the driver's own time.
LAUNCH_MS = 0.04


class Buffers:
    """The tensors of a step, float32 on the GPU. Allocated once, because recorded graphs keep their addresses.

    What a product reads is in the order of ``interleave``, with padding that stays zero: x, the first half of xz, dt, y, heads
    and wide.
    """

    def __init__(self, config: JambaConfig, device: torch.device) -> None:
        c = config

        def new(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, device=device)

        self.x = new(1, padded(c.hidden))
        self.xz = new(1, padded(c.d_inner) + c.d_inner)
        self.dtbc = new(1, padded(c.dt_rank) + 2 * c.d_state)
        self.y = new(1, padded(c.d_inner))
        self.q = new(1, c.n_heads * c.head_dim)
        self.k = new(1, c.n_kv_heads * c.head_dim)
        self.v = new(1, c.n_kv_heads * c.head_dim)
        self.heads = new(1, padded(c.n_heads * c.head_dim))
        self.wide = new(1, padded(c.ffn))
        self.wide2 = new(1, padded(c.ffn))
        self.wide_experts = new(max(1, c.n_experts_used), padded(c.ffn))
        self.scores = new(1, max(1, c.n_experts))
        self.logits = new(1, c.vocab_size)
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)


@dataclass
class _Bound:
    """A step bound to one sequence: lists of GPU kernels and single CPU steps in order, and the graphs once recorded."""

    moves: int
    stretches: list[list[Step] | Step]
    graphs: list[Any] | None = None
    runs: int = 0
    scratch: list[Any] = field(default_factory=list)


class CudaDecoder:
    """A model's layers and output as kernels for one token; a ``StepDecoder``."""

    #: See ``StepDecoder``.
    max_tokens = 1

    def __init__(
        self,
        config: JambaConfig,
        embedding: QTensor,
        layers: Sequence[Layer],
        output_norm: torch.Tensor,
        output: QTensor,
        dtype: torch.dtype,
        *,
        host_ffn: dict[int, HostFfn] | None = None,
        host_attention: dict[int, HostAttention] | None = None,
        graphs: bool = True,
    ) -> None:
        """``dtype``: operand type of attention's products. ``host_ffn`` and ``host_attention``: by layer, the functions that
        compute experts and attention on the CPU. ``graphs``: record CUDA graphs."""
        self._embedding, self._layers, self._dtype = as_packed(embedding), layers, dtype
        self._output_norm, self._output = output_norm, as_packed(output)
        self._config, self._host_ffn = config, host_ffn or {}
        self._device = self._output.data.device
        self._buffers = Buffers(config, self._device)
        self._host_attention, self._position = host_attention or {}, 0
        self._host_x = staging((1, padded(config.hidden)), torch.float32, self._device)
        self._graphs = graphs and self._device.type == "cuda"
        self._side: Any = None
        self._routers = {i: _router(layer) for i, layer in enumerate(layers) if isinstance(layer.ffn, MoE)}
        self._norms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bound: weakref.WeakKeyDictionary[SequenceState, _Bound] = weakref.WeakKeyDictionary()
        #: Whether states that are not precise take products with activations of int8, where ``launch.rounds`` allows them.
        self.rounds = True

    def int8_products(self) -> int:
        """How many matrices of a step take activations of int8 for states that are not precise."""
        found = [self._output]
        for layer in self._layers:
            for part in (layer.mixer, layer.ffn):
                found += [w for name, w in vars(part).items() if isinstance(w, Packed) and name != "dt_proj"]
        return sum(rounds(w, w.shape[-2]) for w in found) if self.rounds else 0

    def run(self, ids: torch.Tensor, state: SequenceState, n_logits: int) -> torch.Tensor:
        """Append the token ids int64 [1], on either device. Returns logits float32 [n_logits, vocab] on the GPU."""
        bound = self._bound.get(state)
        if bound is None or bound.moves != state.moves:
            bound = None
            self._bound.pop(state, None)  # first: its scratch memory is as large as the new one's
            bound = self._bound[state] = self._bind(state)
        b = self._buffers
        # All memory is allocated before a kernel changes the state: if there is too little, the step can be repeated.
        logits = torch.empty_like(b.logits)
        # A Python number becomes a kernel argument; a copy from pageable host memory would wait for the GPU.
        if ids.is_cuda:
            b.token.copy_(ids)
        else:
            b.token.fill_(int(ids))
        b.position.fill_(state.position)
        self._position = state.position
        if self._graphs and bound.graphs is None and bound.runs > 0:
            self._record(bound)
        for i, stretch in enumerate(bound.stretches):
            if callable(stretch):
                stretch()
            elif bound.graphs is not None:
                bound.graphs[i].replay()
            else:
                for step in stretch:
                    step()
        bound.runs += 1
        return logits.copy_(b.logits)[:n_logits]

    @property
    def recorded(self) -> bool:
        """Whether steps are CUDA graphs (from the third token on)."""
        return any(bound.graphs is not None for bound in self._bound.values())

    def launches(self, state: SequenceState) -> int:
        """Launches per token on the GPU. Attention counts as one although it is several kernels."""
        return sum(len(s) for s in self._bind(state).stretches if not callable(s))

    def move_experts(self, index: int, layer: Layer, ffn: HostFfn) -> None:
        """Replace a layer by one whose experts are in host memory, where ``ffn`` computes its feed-forward half."""
        self._layers = [*self._layers[:index], layer, *self._layers[index + 1 :]]
        self._host_ffn[index] = ffn
        self._routers.pop(index, None)
        self._bound.clear()

    def _on_host(self, compute: HostFfn) -> None:
        self._host_x.copy_(self._buffers.x)  # waits for the GPU
        x = natural(self._host_x, self._config.hidden)
        compute(x)
        self._host_x.copy_(interleaved(x))
        self._buffers.x.copy_(self._host_x, non_blocking=True)

    def _record(self, bound: _Bound) -> None:
        graphs: list[Any] = []
        try:
            for stretch in bound.stretches:
                graph = None
                if not callable(stretch):
                    graph = torch.cuda.CUDAGraph()
                    self._capture(graph, stretch)
                graphs.append(graph)
        except RuntimeError as error:
            self._graphs = False
            n = sum(len(s) for s in bound.stretches if not callable(s))
            logger.warning(
                "CUDA graphs do not work (%s); decode launches its %d kernels one by one, which takes about %d ms a token",
                first_line(error), n, max(1, round(LAUNCH_MS * n)),
            )  # fmt: skip
            return
        bound.graphs = graphs

    def _capture(self, graph: Any, stretch: list[Step]) -> None:
        """Record kernels that have all run before.

        ``torch.cuda.graph`` would also collect garbage and empty the allocator's cache, for each of up to seventeen
        stretches, every time that a KV cache grows.
        """
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            # Other threads may use the GPU during the recording, for example to send experts.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for step in stretch:
                    step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._side)

    def _bind(self, state: SequenceState) -> _Bound:
        bound = _Bound(state.moves, [])
        stretches = bound.stretches

        def add(*steps: Step) -> None:
            if not stretches or callable(stretches[-1]):
                stretches.append([])
            last = stretches[-1]
            assert isinstance(last, list)
            last.extend(steps)

        b, int8 = self._buffers, self.rounds and not state.precise
        add(lambda: _discard(dequant.embed(b.token, self._embedding, out=b.x, interleaved=True)))
        for i, (layer, part) in enumerate(zip(self._layers, state.layers, strict=True)):
            if isinstance(layer.mixer, Mamba):
                assert isinstance(part, MambaState)
                add(*self._mamba(layer, layer.mixer, part, int8))
            else:
                assert isinstance(part, KVCache)
                if i in self._host_attention:
                    stretches.append(partial(self._on_host, self._attention_on_host(self._host_attention[i], part)))
                else:
                    add(*self._attention(layer, layer.mixer, part, bound, int8))
            if i in self._host_ffn:
                stretches.append(partial(self._on_host, self._host_ffn[i]))
            elif isinstance(layer.ffn, MLP):
                add(*self._mlp(layer, layer.ffn, int8))
            else:
                add(*self._experts(layer, layer.ffn, self._routers[i], int8))
        last = self._normed(self._output_norm, self._config.rms_eps)
        last |= _rounding(self._output, int8)
        add(lambda: _discard(gemv(b.x, self._output, out=b.logits, **last)))
        return bound

    def _normed(self, weight: torch.Tensor, eps: float) -> dict[str, Any]:
        """The arguments of a product of interleaved activations after a norm. Copies of the norms' weights are kept."""
        if id(weight) not in self._norms:
            self._norms[id(weight)] = weight, interleaved(weight)
        return {"norm": self._norms[id(weight)][1], "eps": eps, "interleaved": True}

    def _mamba(self, layer: Layer, m: Mamba, part: MambaState, int8: bool) -> list[Step]:
        b, d_inner, hidden = self._buffers, m.A.shape[0], self._config.hidden
        w_in, w_x, w_dt, w_out = (as_packed(w) for w in (m.in_proj, m.x_proj, m.dt_proj, m.out_proj))
        x, z = b.xz.split([padded(d_inner), d_inner], 1)
        norms = interleaved(m.dt_norm), m.b_norm, m.c_norm
        normed = self._normed(layer.mixer_norm, layer.eps) | _rounding(w_in, int8)
        of_x, of_out, rank = _rounding(w_x, int8), _rounding(w_out, int8), m.dt_norm.shape[0]
        conv = ConvStep(m.conv_weight, m.conv_bias, part.conv)
        return [
            lambda: _discard(gemv(b.x, w_in, conv=conv, out=b.xz, placed=d_inner, **normed)),
            lambda: _discard(gemv(x, w_x, out=b.dtbc, interleaved=True, placed=rank, **of_x)),
            lambda: scan.scan_step(x[0], b.dtbc[0], norms, m.eps, w_dt, m.dt_bias, m.A, m.D, z[0], part.ssm, b.y[0]),
            lambda: _discard(gemv(b.y, w_out, residual=b.x, out=b.x, interleaved=True, placed=hidden, **of_out)),
        ]

    def _attention_on_host(self, attention: HostAttention, part: KVCache) -> HostFfn:
        return lambda x: attention(x, part, self._position)

    def _attention(self, layer: Layer, m: Attention, part: KVCache, bound: _Bound, int8: bool) -> list[Step]:
        b, dim, hidden = self._buffers, self._config.head_dim, self._config.hidden
        w_q, w_k, w_v, w_out = (as_packed(w) for w in (m.q_proj, m.k_proj, m.v_proj, m.out_proj))
        normed = self._normed(layer.mixer_norm, layer.eps)
        scratch = attention.DecodeScratch(m.n_heads, dim, part.k.shape[0], self._device)
        bound.scratch.append(scratch)
        dtype = attention_dtype(part.k, self._dtype)
        of_q, of_k, of_v, of_out = (_rounding(w, int8) for w in (w_q, w_k, w_v, w_out))
        return [
            lambda: _discard(gemv(b.x, w_q, out=b.q, **normed, **of_q)),
            lambda: _discard(gemv(b.x, w_k, out=b.k, **normed, **of_k)),
            lambda: _discard(gemv(b.x, w_v, out=b.v, **normed, **of_v)),
            # The cache's tensors are read when a step runs: kept here, they would stay in memory after the cache has grown.
            lambda: attention.append(b.k, b.v, part.k, part.v, b.position, dim),
            lambda: attention.decode(
                b.q.view(-1, dim), part.k, part.v, b.position, scratch, b.heads, dtype, interleaved=True
            ),
            lambda: _discard(gemv(b.heads, w_out, residual=b.x, out=b.x, interleaved=True, placed=hidden, **of_out)),
        ]

    def _mlp(self, layer: Layer, f: MLP, int8: bool) -> list[Step]:
        b, hidden = self._buffers, self._config.hidden
        gate, up, down = (as_packed(w) for w in (f.gate, f.up, f.down))
        normed = self._normed(layer.ffn_norm, layer.eps) | {"placed": gate.shape[0]}
        of_gate, of_up, of_down = (_rounding(w, int8) for w in (gate, up, down))
        last: Step = lambda: _discard(  # noqa: E731
            gemv(b.wide, down, residual=b.x, out=b.x, interleaved=True, placed=hidden, **of_down)
        )
        if gate.format == up.format:
            return [lambda: _discard(gemv(b.x, gate, up=up, out=b.wide, **normed, **of_gate)), last]
        return [
            lambda: _discard(gemv(b.x, gate, out=b.wide, **normed, **of_gate)),
            lambda: _discard(gemv(b.x, up, out=b.wide2, **normed, **of_up)),
            lambda: _discard(norm.gate_up(b.wide, b.wide2, out=b.wide)),
            last,
        ]

    def _experts(self, layer: Layer, f: MoE, router: Packed, int8: bool) -> list[Step]:
        b = self._buffers
        gate, up, down = (as_packed(w) for w in (f.gate, f.up, f.down))
        if gate.format != up.format:
            raise ValueError("experts whose gate and up have different formats have no decode kernel")
        normed = self._normed(layer.ffn_norm, layer.eps)
        return [
            lambda: _discard(gemv(b.x, router, out=b.scores, **normed)),
            lambda: _discard(
                experts.one_token(
                    b.x[0], b.scores[0], gate, up, down, f.top_k,
                    residual=b.x[0], hidden=b.wide_experts, out=b.x[0], int8=int8, **normed,
                )
            ),
        ]  # fmt: skip


def decodable(layers: Sequence[Layer]) -> bool:
    """Whether every layer's experts have gate and up in one format, which the fused kernel needs (all usual files do)."""
    return all(layer.ffn.gate.format == layer.ffn.up.format for layer in layers if isinstance(layer.ffn, MoE))


def _router(layer: Layer) -> Packed:
    assert isinstance(layer.ffn, MoE)
    x = layer.ffn.router
    return repack(QTensor(x.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], tuple(x.shape)))


def _rounding(w: Packed, int8: bool) -> dict[str, Any]:
    """The argument of a product in a step of that mode."""
    return {"int8": int8 and rounds(w, w.shape[0])}


def _discard(_: Any) -> None:
    """Ignores a result: a Step returns nothing."""
