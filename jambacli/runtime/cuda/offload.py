"""Experts, and keys and values, that stay in the computer's memory: decoded there, streamed to the card for many tokens.

Knows nothing of plans, files or of what decides. For a few tokens the CPU's kernels do a layer's whole feed-forward half, or
its attention, and only the residual stream or a token's queries cross over. For many, moving the weights is cheaper than
moving the work: an expert's blocks are copied into page-locked memory by a thread, sent to the card on a stream of their
own, and repacked and multiplied there while the next expert is on its way; a layer's keys and values visit the card for
as long as its attention takes. Where streaming fails the CPU computes what was to be streamed, and one line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from jambacli import ui
from jambacli.kernels import Ops, reference
from jambacli.kernels.triton import attention as attend
from jambacli.kernels.triton import experts as routing
from jambacli.kernels.triton.repack import Packed, repack
from jambacli.model.attention import Attention
from jambacli.model.moe import MoE
from jambacli.model.state import KVCache
from jambacli.runtime.cuda.memory import ALIGNED
from jambacli.runtime.cuda.upload import Uploader, staging
from quant.formats import QTensor

#: Tokens up to which the CPU computes; beyond, weights are streamed to the card.
FEW_TOKENS = 16


@dataclass
class _Slot:
    """A place for one expert on its way: page-locked bytes here, bytes on the card, and who still reads them."""

    here: torch.Tensor
    there: torch.Tensor
    sent: Any = None
    used: Any = None


class HostExperts:
    """Computes experts that are not on the card; one for a model, since its buffers are large."""

    def __init__(self, device: torch.device, cpu: Ops, mlp: Callable[..., torch.Tensor]) -> None:
        """``cpu``: the operations for experts here; ``mlp``: the card's gated network, for packed weights."""
        self._device, self._cpu, self._mlp = device, cpu, mlp
        self._cuda = device.type == "cuda"
        self._slots: list[_Slot] = []
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._streaming = True

    def __call__(
        self, x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
    ) -> torch.Tensor:
        """See ``reference.experts``: x float32 [T, hidden] and router on the card, the rest here."""
        if x.shape[0] > FEW_TOKENS and self._streaming:
            try:
                return self._streamed(x, router, (gate, up, down), top_k)
            except RuntimeError as error:
                self._give_up(error)
        here = self._cpu.experts(x.cpu(), router.cpu(), gate, up, down, top_k)
        return here.to(self._device)

    def _give_up(self, error: RuntimeError) -> None:
        """From now on the CPU computes: whatever went wrong would go wrong again."""
        self._streaming = False
        self._mover.submit(lambda: None).result()  # an expert may still be on its way
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._slots = []
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        ui.warn(
            f"experts cannot be streamed to the card ({line}): the CPU computes those in RAM; long prompts are slower"
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
        self._reserve(max(sum(nbytes for w in stacks for nbytes in _room(w)), 1))
        coming: Future[_Slot] = self._mover.submit(self._send, self._slots[0], stacks, spans[0][0])
        for i, (_, start, stop) in enumerate(spans):
            slot = coming.result()
            if i + 1 < len(spans):
                coming = self._mover.submit(self._send, self._slots[(i + 1) % 2], stacks, spans[i + 1][0])
            if slot.sent is not None:
                torch.cuda.current_stream(self._device).wait_event(slot.sent)
            y[start:stop] = self._mlp(rows[start:stop], *_unpack(slot.there, stacks))
            if self._cuda:
                slot.used = torch.cuda.Event()
                slot.used.record(torch.cuda.current_stream(self._device))
        return routing.weigh(y, place, weights)

    def _reserve(self, size: int) -> None:
        if self._slots and self._slots[0].here.numel() >= size:
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
        """Runs in the mover's thread: file pages to page-locked memory, and from there to the card."""
        if slot.sent is not None:
            slot.sent.synchronize()  # the bytes sent last from here have left
        at = 0
        for w in stacks:
            for part, room in zip(_parts(reference.expert(w, e)), _room(w), strict=True):
                slot.here[at : at + part.nbytes].copy_(part.contiguous().view(torch.uint8))
                at += room
        if self._stream is None:
            slot.there[:at].copy_(slot.here[:at])
            return slot
        with torch.cuda.stream(self._stream):
            if slot.used is not None:
                self._stream.wait_event(slot.used)  # the card has multiplied with what lay there
            slot.there[:at].copy_(slot.here[:at], non_blocking=True)
            slot.sent = torch.cuda.Event()
            slot.sent.record(self._stream)
        return slot


def _parts(w: QTensor) -> list[torch.Tensor]:
    """A weight's blocks, and its rows' factors where it has any."""
    return [w.data] if w.scale is None else [w.data, w.scale]


def _room(w: QTensor) -> list[int]:
    """Bytes that one expert's parts take in a slot: each begins aligned."""
    return [-(-(part.nbytes // w.shape[0]) // ALIGNED) * ALIGNED for part in _parts(w)]


def _unpack(there: torch.Tensor, stacks: tuple[QTensor, ...]) -> list[Packed]:
    """The three matrices of the expert in a slot: planes beside it, or views of it where it lies there as kernels read."""
    found, at = [], 0
    for w in stacks:
        parts = []
        for whole, room in zip(_parts(w), _room(w), strict=True):
            parts.append(there[at : at + whole.nbytes // w.shape[0]].view(whole.dtype))
            at += room
        found.append(repack(QTensor(parts[0], w.format, w.shape[1:], parts[1] if len(parts) > 1 else None)))
    return found


class HostKeys:
    """Attention of many tokens over keys and values in the computer's memory, for a model on a card."""

    def __init__(self, device: torch.device) -> None:
        self._upload = Uploader(device)

    def store(self, x: torch.Tensor, cache: torch.Tensor) -> None:
        """See ``reference.kv_store``: x on either side, the cache here."""
        reference.kv_store(x.cpu(), cache)

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See ``reference.attention``: q on the card, k and v here, the result on the card. Products as ``dtype``."""
        total = n_past + q.shape[0]
        return attend.prefill(q, self._upload(k[:total]), self._upload(v[:total]), n_past, dtype)


#: Runs a layer's attention half, norm and residual included, for one token in the computer's memory: x float32
#: [1, hidden], the layer's cache, the token's position.
HostAttention = Callable[[torch.Tensor, KVCache, int], None]


def host_attention(m: Attention, norm: torch.Tensor, eps: float, cpu: Ops) -> HostAttention:
    """A layer's attention half for one token, weights (``m``), keys and values all in the computer's memory."""
    norm = norm.cpu().contiguous()
    programs: dict[torch.dtype, Any] = {}

    def native(x: torch.Tensor, part: KVCache, position: int) -> None:
        from jambacli.kernels.cpu import decode

        kind = part.k.dtype
        if kind not in programs:
            step = decode.AttentionStep(
                norm, eps, q=m.q, k=m.k, v=m.v, out=m.output, n_heads=m.n_heads, n_kv_heads=m.n_kv_heads, kv_dtype=kind
            )
            programs[kind] = decode.Program([step])
        programs[kind].run(x, position, programs[kind].bind([(part.k, part.v)]))

    def plain(x: torch.Tensor, part: KVCache, position: int) -> None:
        x += m.forward(reference.rms_norm(x, norm, eps), part, position, cpu)

    return native if _native(cpu, m.q, m.k, m.v, m.output) else plain


def _native(cpu: Ops, *weights: QTensor) -> bool:
    """Whether the C++ library is there and multiplies all these formats."""
    if cpu.name != "cpu":
        return False
    from jambacli.kernels.cpu.structs import NATIVE_TYPES

    return all(w.format.ggml_type in NATIVE_TYPES for w in weights)


def host_step(ffn: MoE, norm: torch.Tensor, eps: float, cpu: Ops) -> Callable[[torch.Tensor], None]:
    """A layer's feed-forward half for one token in the computer's memory: x += experts(norm(x)), in place.

    The norm and router may be on the card: they are copied here once. Through the C++ library's own step where it is
    built and knows the formats.
    """
    norm, router = norm.cpu().contiguous(), ffn.router.cpu().contiguous()
    if _native(cpu, ffn.gate, ffn.up, ffn.down):
        from jambacli.kernels.cpu import decode

        step = decode.ExpertsStep(norm, eps, router=router, gate=ffn.gate, up=ffn.up, down=ffn.down, top_k=ffn.top_k)
        program = decode.Program([step])
        binding = program.bind([None])
        return lambda x: program.run(x, 0, binding)

    def plain(x: torch.Tensor) -> None:
        x += cpu.experts(reference.rms_norm(x, norm, eps), router, ffn.gate, ffn.up, ffn.down, ffn.top_k)

    return plain
