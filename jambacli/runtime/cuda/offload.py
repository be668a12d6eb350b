"""Experts, and keys and values, in host memory: the CPU computes them for a few tokens, the GPU for many.

For a few tokens the CPU's kernels compute a layer's whole feed-forward half, or its attention, and only the residual stream
or a token's queries are copied. For many tokens the weights are streamed to the GPU: a thread copies an expert's blocks into
page-locked memory, a separate CUDA stream sends them, and the GPU repacks and multiplies one expert while the next is
being sent. A layer's keys and values are copied to the GPU for the duration of its attention. If streaming fails, the CPU
computes, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from jambacli.errors import first_line
from jambacli.kernels import Ops, reference
from jambacli.kernels.triton import attention as attend
from jambacli.kernels.triton import experts as routing
from jambacli.kernels.triton.repack import Packed, repack
from jambacli.model.attention import Attention
from jambacli.model.moe import MoE
from jambacli.model.state import KVCache
from jambacli.runtime.cuda.memory import ALIGNED
from jambacli.runtime.cuda.model import SMALLEST_PIECE
from jambacli.runtime.cuda.upload import Uploader, staging, with_planes
from quant.formats import QTensor

logger = logging.getLogger(__name__)

#: Maximum number of tokens that the CPU computes; for more, weights are streamed to the GPU.
MAX_CPU_TOKENS = 16


@dataclass
class _Slot:
    """Buffers for one streamed expert: page-locked ``host`` bytes and ``device`` bytes, uint8.

    ``sent`` and ``used``: events after the last copy to the device and after the last products with it.
    """

    host: torch.Tensor
    device: torch.Tensor
    sent: Any = None
    used: Any = None


class HostExperts:
    """Computes experts whose weights are in host memory. A model has one instance, since the buffers are large."""

    def __init__(self, device: torch.device, cpu: Ops, mlp: Callable[..., torch.Tensor]) -> None:
        """``cpu``: the CPU's operations; ``mlp``: the GPU's gated network on packed weights."""
        self._device, self._cpu, self._mlp = device, cpu, mlp
        self._cuda = device.type == "cuda"
        self._slots: list[_Slot] = []
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._streaming = True

    def __call__(
        self, x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
    ) -> torch.Tensor:
        """See ``reference.experts``: x float32 [T, hidden], router and result on the GPU, the experts in host memory."""
        if x.shape[0] > MAX_CPU_TOKENS and self._streaming:
            try:
                return self._streamed(x, router, (gate, up, down), top_k)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) and x.shape[0] > SMALLEST_PIECE:
                    raise  # a smaller piece of the prompt may fit
                self._stop_streaming(error)
        return self._cpu.experts(x.cpu(), router.cpu(), gate, up, down, top_k).to(self._device)

    def _stop_streaming(self, error: RuntimeError) -> None:
        """Let the CPU compute from now on: the error would occur again."""
        self._streaming = False
        self._copier.submit(lambda: None).result()  # wait for an expert that is still being copied
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._slots = []
        logger.warning(
            "experts cannot be streamed to the GPU (%s): the CPU computes the experts in RAM; long prompts will be slower",
            first_line(error),
        )
        if self._cuda:
            torch.cuda.empty_cache()

    def _streamed(
        self, x: torch.Tensor, router: torch.Tensor, stacks: tuple[QTensor, QTensor, QTensor], top_k: int
    ) -> torch.Tensor:
        weights, chosen = routing.choose(x, router, top_k)
        expert, token, place = routing.sort_by_expert(chosen)
        stops = torch.bincount(expert, minlength=router.shape[0]).cumsum(0).tolist()
        spans = [(e, a, b) for e, (a, b) in enumerate(zip([0, *stops], stops, strict=False)) if a < b]
        rows = x[token]
        y = torch.empty_like(rows)
        self._reserve(max(sum(nbytes for w in stacks for nbytes in _aligned_sizes(w)), 1))
        sending: Future[_Slot] = self._copier.submit(self._send, self._slots[0], stacks, spans[0][0])
        for i, (_, start, stop) in enumerate(spans):
            slot = sending.result()
            if i + 1 < len(spans):
                sending = self._copier.submit(self._send, self._slots[(i + 1) % 2], stacks, spans[i + 1][0])
            if slot.sent is not None:
                torch.cuda.current_stream(self._device).wait_event(slot.sent)
            y[start:stop] = self._mlp(rows[start:stop], *_repack(slot.device, stacks))
            if self._cuda:
                slot.used = torch.cuda.Event()
                slot.used.record(torch.cuda.current_stream(self._device))
        return routing.weigh(y, place, weights)

    def _reserve(self, size: int) -> None:
        if self._slots and self._slots[0].host.numel() >= size:
            return
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._slots = []
        self._slots = [
            _Slot(
                staging((size,), torch.uint8, self._device),
                torch.empty(size, dtype=torch.uint8, device=self._device),
            )
            for _ in range(2)
        ]

    def _send(self, slot: _Slot, stacks: tuple[QTensor, QTensor, QTensor], e: int) -> _Slot:
        """Copy an expert from the mapped file to page-locked memory and from there to the GPU, in the copier's thread."""
        if slot.sent is not None:
            slot.sent.synchronize()  # the slot's last expert has left page-locked memory
        at = 0
        for w in stacks:
            for part, size in zip(_parts(reference.expert(w, e)), _aligned_sizes(w), strict=True):
                slot.host[at : at + part.nbytes].copy_(part.contiguous().view(torch.uint8))
                at += size
        if self._stream is None:
            slot.device[:at].copy_(slot.host[:at])
            return slot
        with torch.cuda.stream(self._stream):
            if slot.used is not None:
                self._stream.wait_event(slot.used)  # the GPU has multiplied with the slot's last expert
            slot.device[:at].copy_(slot.host[:at], non_blocking=True)
            slot.sent = torch.cuda.Event()
            slot.sent.record(self._stream)
        return slot


def _parts(w: QTensor) -> list[torch.Tensor]:
    """A weight's blocks, and the factors of its rows where it has them."""
    return [w.data] if w.scale is None else [w.data, w.scale]


def _aligned_sizes(w: QTensor) -> list[int]:
    """Bytes of one expert's parts in a slot, each padded to the alignment."""
    return [-(-(part.nbytes // w.shape[0]) // ALIGNED) * ALIGNED for part in _parts(w)]


def _repack(data: torch.Tensor, stacks: tuple[QTensor, ...]) -> list[Packed]:
    """The three matrices of the expert in ``data`` (a slot on the GPU) in planes; views if the format needs no repacking."""
    found, at = [], 0
    for w in stacks:
        parts = []
        for whole, size in zip(_parts(w), _aligned_sizes(w), strict=True):
            parts.append(data[at : at + whole.nbytes // w.shape[0]].view(whole.dtype))
            at += size
        one = QTensor(parts[0], w.format, w.shape[1:], parts[1] if len(parts) > 1 else None)
        found.append(repack(with_planes(one)))
    return found


class HostKeys:
    """Attention of many tokens over keys and values in host memory, for a model on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._upload = Uploader(device)

    def store(self, x: torch.Tensor, cache: torch.Tensor) -> None:
        """See ``reference.kv_store``: x on either device, the cache in host memory."""
        reference.kv_store(x.cpu(), cache)

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See ``reference.attention``: q and result on the GPU, k and v in host memory; products in ``dtype``."""
        total = n_past + q.shape[0]
        return attend.prefill(q, self._upload(k[:total]), self._upload(v[:total]), n_past, dtype)


#: Computes a layer's attention half (norm and residual included) for one token on the CPU, in place: x float32
#: [1, hidden], the layer's cache, the token's position.
HostAttention = Callable[[torch.Tensor, KVCache, int], None]


def host_attention(m: Attention, norm: torch.Tensor, eps: float, cpu: Ops) -> HostAttention:
    """A ``HostAttention`` with the weights of ``m``, which are in host memory, through the C++ kernels if possible."""
    norm = norm.cpu().contiguous()
    programs: dict[str, Any] = {}

    def native(x: torch.Tensor, part: KVCache, position: int) -> None:
        from jambacli.kernels.cpu import decode
        from jambacli.kernels.cpu.structs import kv_type

        kind = kv_type(part.k, m.q_proj.shape[0] // m.n_heads)
        if kind not in programs:
            step = decode.AttentionStep(
                norm,
                eps,
                q=m.q_proj,
                k=m.k_proj,
                v=m.v_proj,
                out=m.out_proj,
                n_heads=m.n_heads,
                n_kv_heads=m.n_kv_heads,
                kv_type=kind,
            )
            programs[kind] = decode.Program([step])
        programs[kind].run(x, position, programs[kind].bind([(part.k, part.v)]), precise=True)

    def plain(x: torch.Tensor, part: KVCache, position: int) -> None:
        x += m.forward(reference.rms_norm(x, norm, eps), part, position, cpu)

    return native if _native(cpu, m.q_proj, m.k_proj, m.v_proj, m.out_proj) else plain


def _native(cpu: Ops, *weights: QTensor) -> bool:
    """Whether the C++ kernels are built and support the formats of all ``weights``."""
    if cpu.name != "cpu":
        return False
    from jambacli.kernels.cpu.structs import NATIVE_TYPES

    return all(w.format.ggml_type in NATIVE_TYPES for w in weights)


#: Computes a layer's feed-forward half (norm and residual included) for one token on the CPU, in place: x float32
#: [1, hidden].
HostFfn = Callable[[torch.Tensor], None]


def host_ffn(ffn: MoE, norm: torch.Tensor, eps: float, cpu: Ops) -> HostFfn:
    """A ``HostFfn``: x += experts(norm(x)), through the C++ kernels if possible. Copies norm and router to the CPU."""
    norm, router = norm.cpu().contiguous(), ffn.router.cpu().contiguous()
    if _native(cpu, ffn.gate, ffn.up, ffn.down):
        from jambacli.kernels.cpu import decode

        step = decode.ExpertsStep(norm, eps, router=router, gate=ffn.gate, up=ffn.up, down=ffn.down, top_k=ffn.top_k)
        program = decode.Program([step])
        binding = program.bind([None])
        return lambda x: program.run(x, 0, binding, precise=True)

    def plain(x: torch.Tensor) -> None:
        x += cpu.experts(reference.rms_norm(x, norm, eps), router, ffn.gate, ffn.up, ffn.down, ffn.top_k)

    return plain
