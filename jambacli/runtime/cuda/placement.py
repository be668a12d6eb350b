"""What of a model goes to the card and what stays in the computer's memory; knows nothing of kernels or of torch.

Everything a token always reads (mixers, dense networks, routers, output) belongs on the card. Experts are most of a mixture's
bytes and few of them are active, so they stay behind first, a whole layer's at a time, the last layers before the
others: the card then decodes one uninterrupted stretch before the first of them. Before any stay behind, long prompts are
read in smaller pieces: that takes less memory, and costs reading them some speed, but no token its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jambacli.errors import JambaError, UsageError
from jambacli.kernels.triton.limits import PIECE
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import CardSizes, beside_weights, slot
from jambacli.units import format_bytes

#: Tokens that a card takes through the layers at a time: enough for expanding weights to cost little beside multiplying.
PREFILL_CHUNK = 4096
#: What it may be where memory is short.
CHUNKS = (PREFILL_CHUNK, 2048, 1024, 512)
# Of what is free on a card, this much is left alone: other programs, fragmentation, the display.
_RESERVE = 384 << 20


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go. Bytes: ``weights`` and ``moving`` (KV, state and scratch) on the card, ``host`` not.

    ``host_kv``: bytes of keys and values that stay in the computer's memory, for the whole context; 0: on the card.
    ``host_layers`` are the layers whose experts stay in the computer's memory, of ``moe_layers`` that have any.
    ``budget`` is what the card may hold. ``chunk``: how many tokens of a long prompt the card takes at a time. ``pinned``:
    bytes of page-locked memory here that weights, keys and values pass through.
    """

    budget: int
    weights: int
    moving: int
    host: int
    host_layers: frozenset[int]
    moe_layers: int
    host_kv: int = 0
    chunk: int = PREFILL_CHUNK
    pinned: int = 0

    @property
    def spare(self) -> int:
        """Bytes of the budget left over."""
        return self.budget - self.weights - self.moving

    def describe(self, ram: int | None = None) -> str:
        """One line for people; ``ram``: bytes free in the computer's memory, where that is known."""
        line = (
            f"{format_bytes(self.weights)} of weights and {format_bytes(self.moving)} of context and scratch on the card"
            f" ({format_bytes(self.budget)} to use)"
        )
        if self.host_layers:
            n, size = len(self.host_layers), format_bytes(self.host)
            line += f"; the experts of {n} of {self.moe_layers} layers, {size}, stay in RAM (--cpu-experts {n})"
        if self.host_kv:
            line += f"; keys and values, up to {format_bytes(self.host_kv)}, stay in RAM (--cpu-kv)"
        if self.host_layers or self.host_kv:
            line += f", through {format_bytes(self.pinned)} of page-locked memory"
            if ram is not None and self.host + self.host_kv + self.pinned > ram:
                line += f"; {format_bytes(ram)} of RAM are free, too little for them: this will be very slow"
        if self.chunk < PREFILL_CHUNK:
            line += f"; prompts are read {self.chunk} tokens at a time, for want of memory"
        return line


def usable(free: int, gpu_memory: int | None = None) -> int:
    """Bytes that a plan may fill of those free on a card; ``gpu_memory``: at most this."""
    return max(0, free - _RESERVE) if gpu_memory is None else min(gpu_memory, free)


def place(
    config: JambaConfig,
    sizes: CardSizes,
    ctx: int,
    kv_type: str,
    free: int,
    *,
    gpu_memory: int | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
) -> Placement:
    """The plan for tensors of ``sizes`` (``card_memory.card_sizes``) and ``ctx`` tokens.

    ``free``: bytes free on the card; ``gpu_memory``: use at most this; ``cpu_experts``: leave exactly so many layers'
    experts behind, whether they would fit or not; ``cpu_kv``: keys and values stay behind too. Raises UsageError for an
    impossible number of layers, JambaError when even with all experts behind it does not fit, naming what to change.
    """
    most = len(sizes.experts)
    if cpu_experts is not None and not 0 <= cpu_experts <= most:
        raise UsageError(f"--cpu-experts {cpu_experts}: this model has {most} layers with experts")
    budget = usable(free, gpu_memory)
    kv = ctx * config.kv_bytes_per_token(kv_type)
    order = sorted(sizes.experts, reverse=True)
    plan = None
    for n, chunk in _choices(most) if cpu_experts is None else ((cpu_experts, chunk) for chunk in CHUNKS):
        behind = order[:n]
        host = sum(sizes.experts[layer] for layer in behind)
        moving = beside_weights(config, sizes, ctx, kv_type, chunk, behind, cpu_kv=cpu_kv)
        pinned = 2 * slot(sizes, behind) + 2 * PIECE
        plan = Placement(
            budget, sizes.total - host, moving, host, frozenset(behind), most, kv if cpu_kv else 0, chunk, pinned
        )
        if plan.spare >= 0:
            return plan
    assert plan is not None
    raise JambaError(_too_big(plan, config, ctx, kv_type, cpu_experts is not None))


def _choices(most: int) -> Iterator[tuple[int, int]]:
    """Layers behind and tokens at a time, in the order of what they cost.

    With experts behind, every piece of a prompt has them all sent to the card again: then small pieces come last.
    """
    yield from ((0, chunk) for chunk in CHUNKS)
    yield from ((n, CHUNKS[0]) for n in range(1, most + 1))
    yield from ((most, chunk) for chunk in CHUNKS[1:])


def _too_big(plan: Placement, config: JambaConfig, ctx: int, kv_type: str, chosen: bool) -> str:
    advice = ["--device cpu"]
    if config.n_attention_layers > 1 and not plan.host_kv:
        advice.insert(0, "--cpu-kv")
    if config.n_attention_layers and kv_type != "q8_0" and "q8_0" in config.kv_types:
        advice.insert(0, "--kv-type q8_0")
    if ctx > 8192:
        advice.insert(0, "a smaller --ctx")
    if chosen and len(plan.host_layers) < plan.moe_layers:
        advice.insert(0, "a larger --cpu-experts")
    behind = " even with all experts in RAM" if plan.host_layers and not chosen else ""
    try_ = f"{', '.join(advice[:-1])} or {advice[-1]}" if len(advice) > 1 else advice[0]
    return (
        f"{format_bytes(plan.weights + plan.moving)} are needed on the card{behind}, "
        f"{format_bytes(plan.budget)} are there to use: try {try_}"
    )
