"""What a context length costs in memory and time on this machine; knows nothing of files or of torch.

Weights, keys and values and Mamba state are exact; the CPU's scratch memory and prefill time are estimates, documented here.
What a card can do is what ``model.placement`` decides when a model is loaded on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jambacli.errors import JambaError
from jambacli.hardware.devices import Device
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, CardSizes, beside_weights, card_sizes, guessed_sizes
from jambacli.runtime.cuda.placement import CHUNKS, Placement, place, usable

# Tokens that prefill takes through the layers at a time on the CPU.
_CPU_CHUNK = 512
# Resident memory of the interpreter with torch loaded.
_RUNTIME_BYTES = 350_000_000
# Dequantized panels of weights on their way into a matrix product.
_PANEL_BYTES = 64 << 20


@dataclass(frozen=True)
class Fit:
    """How a plan sits on one device.

    ``verdict``: "fits" in what is free; "tight": in the memory there is, but not in what is free now; "experts in RAM":
    on a card with the experts of some layers (``offload`` bytes) left in RAM; "from disk": weights that RAM cannot hold,
    on a card the experts left behind (``offload`` too), are read again and again; "too big". ``spare`` is free memory less
    all that is needed, negative when short. ``prefill_seconds`` is the time at the device's full rate, which only the
    first two verdicts let it reach; None where that is unknown.
    ``cpu_kv``: too big for this card, but not with keys and values in RAM (--cpu-kv), experts too where they must.
    ``largest_ctx`` is the longest context that fits in what is free, by KV type, at most the model's own;
    ``largest_ctx_offload`` the same of a card with experts left in RAM where they must, so never shorter there.
    """

    device: Device
    verdict: str
    spare: int
    offload: int
    prefill_seconds: float | None
    largest_ctx: dict[str, int]
    largest_ctx_offload: dict[str, int]
    cpu_kv: bool = False


@dataclass(frozen=True)
class Plan:
    """Bytes that ``ctx`` tokens take; ``kv`` for each KV type of the model, the rest with ``kv_type``; ``fits`` one a device.

    ``scratch`` and ``total`` are the CPU's: cards, and plans for them, differ.
    """

    ctx: int
    kv_type: str
    weights: int
    kv: dict[str, int]
    state: int
    scratch: int
    total: int
    fits: list[Fit]


def memory_plan(
    config: JambaConfig,
    weights: int,
    expert_weights: int,
    ctx: int,
    kv_type: str,
    devices: Sequence[Device],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Plan:
    """The plan for ``ctx`` tokens: ``weights`` and ``expert_weights`` (those of them that are experts') in bytes.

    ``tensors`` (format, shape) by GGUF name, where they are known: a card's plan is then the one it will be loaded by.
    UnsupportedError for a KV type the model cannot have.
    """
    config.check_kv_type(kv_type)
    kv = {name: ctx * config.kv_bytes_per_token(name) for name in config.kv_types}
    state, scratch = config.state_bytes(), scratch_bytes(config)
    total = weights + kv[kv_type] + state + scratch
    ram = devices[0].available if devices else 0
    sizes = card_sizes(tensors) if tensors else guessed_sizes(config, weights, expert_weights)
    fits = [
        _on_card(config, sizes, ctx, kv_type, device, ram)
        if device.kind == "cuda"
        else _on_cpu(config, weights, ctx, kv_type, device)
        for device in devices
    ]
    return Plan(ctx, kv_type, weights, kv, state, scratch, total, fits)


def scratch_bytes(config: JambaConfig) -> int:
    """Estimated bytes on the CPU beyond weights, KV and state: the runtime, a chunk's activations in f32, the logits."""
    c = config
    used = c.n_experts_used if c.n_moe_layers else 1
    values = 3 * c.hidden + 6 * c.d_inner + 3 * c.ffn * used
    return _RUNTIME_BYTES + _PANEL_BYTES + 4 * (_CPU_CHUNK * values + c.vocab_size)


def prefill_flops(config: JambaConfig, tokens: int, start: int = 0) -> float:
    """Floating-point operations of reading ``tokens`` tokens after ``start``: two a weight, and causal attention.

    The embedding is a look-up and the output matrix runs for the last token only: neither counts.
    """
    c = config
    matrices = c.active_params() - c.vocab_size * c.hidden * (1 if c.tied_embeddings else 2)
    pairs = tokens * start + tokens * (tokens + 1) / 2
    return 2.0 * matrices * tokens + 4.0 * c.n_attention_layers * c.n_heads * c.head_dim * pairs


def _on_cpu(config: JambaConfig, weights: int, ctx: int, kv_type: str, device: Device) -> Fit:
    fixed = config.state_bytes() + scratch_bytes(config)
    moving = fixed + ctx * config.kv_bytes_per_token(kv_type)
    need = weights + moving
    spare = device.available - need
    if spare >= 0:
        verdict = "fits"
    elif need <= device.total:
        verdict = "tight"
    else:
        verdict = "from disk" if moving <= device.available else "too big"
    room = device.available - weights - fixed
    largest = {name: _largest(config, room, name) for name in config.kv_types}
    return Fit(device, verdict, spare, 0, _seconds(config, ctx, device), largest, largest)


def _on_card(config: JambaConfig, sizes: CardSizes, ctx: int, kv_type: str, device: Device, ram: int) -> Fit:
    """What ``place`` will decide once a process has its context on the card, which takes of what is free now."""
    free = device.available - CONTEXT_BYTES
    plan = _plan(config, sizes, ctx, kv_type, free)
    roomy = _plan(config, sizes, ctx, kv_type, device.total - CONTEXT_BYTES)
    verdict = _card_verdict(plan, roomy, ram)
    if plan is not None and verdict == "fits":
        spare = plan.spare
    else:
        spare = usable(free) - sizes.total - _beside(config, sizes, ctx, kv_type)
    offload = plan.host if plan is not None and verdict in ("experts in RAM", "from disk") else 0
    cpu_kv = False
    if verdict == "too big" and config.n_attention_layers:
        other = _plan(config, sizes, ctx, kv_type, free, cpu_kv=True)
        cpu_kv = other is not None and _in_ram(other) <= ram
    room = usable(free) - sizes.total

    def whole(tokens: int, kv_type: str) -> bool:
        return _beside(config, sizes, tokens, kv_type) <= room

    def offloaded(tokens: int, kv_type: str) -> bool:
        other = _plan(config, sizes, tokens, kv_type, free)
        return other is not None and _in_ram(other) <= ram

    largest = {name: _longest(config, name, whole) for name in config.kv_types}
    largest_offload = (
        {name: _longest(config, name, offloaded) for name in config.kv_types} if sizes.experts else largest
    )
    return Fit(device, verdict, spare, offload, _seconds(config, ctx, device), largest, largest_offload, cpu_kv)


def _card_verdict(plan: Placement | None, roomy: Placement | None, ram: int) -> str:
    """``plan``: for what is free on the card; ``roomy``: if all of it were; ``ram``: bytes free there."""
    if plan is not None and not plan.host_layers:
        return "fits"
    if plan is not None and _in_ram(plan) <= ram:
        return "experts in RAM"
    if roomy is not None and not roomy.host_layers:
        return "tight"
    return "too big" if plan is None else "from disk"


def _in_ram(plan: Placement) -> int:
    """What a card's plan leaves to the computer's memory; 0 where it leaves nothing."""
    return plan.host + plan.host_kv + plan.pinned if plan.host_layers or plan.host_kv else 0


def _plan(
    config: JambaConfig, sizes: CardSizes, ctx: int, kv_type: str, free: int, *, cpu_kv: bool = False
) -> Placement | None:
    try:
        return place(config, sizes, ctx, kv_type, free, cpu_kv=cpu_kv)
    except JambaError:
        return None


def _beside(config: JambaConfig, sizes: CardSizes, ctx: int, kv_type: str) -> int:
    """The least that must lie beside all the weights."""
    return beside_weights(config, sizes, ctx, kv_type, CHUNKS[-1], [])


def _longest(config: JambaConfig, kv_type: str, fits: Callable[[int, str], bool]) -> int:
    """The longest context, in steps of 1,024 tokens, that ``fits``; 0 where none does."""
    if fits(config.context_length, kv_type):
        return config.context_length
    low, high = 0, config.context_length // 1024 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * 1024, kv_type) else (low, middle)
    return low * 1024


def _seconds(config: JambaConfig, ctx: int, device: Device) -> float | None:
    return prefill_flops(config, ctx) / device.flops if device.flops > 0 else None


def _largest(config: JambaConfig, room: int, kv_type: str) -> int:
    if room < 0:
        return 0
    per_token = config.kv_bytes_per_token(kv_type)
    tokens = min(room // per_token, config.context_length) if per_token else config.context_length
    return tokens if tokens == config.context_length else tokens // 1024 * 1024
