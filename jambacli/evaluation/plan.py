"""What a context length costs in memory and time on this machine; knows nothing of files or of torch.

Weights, keys and values and Mamba state are exact; scratch memory and prefill time are estimates, documented here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jambacli.evaluation.machine import Device
from jambacli.model.config import KV_TYPES, JambaConfig

# Tokens that prefill takes through the layers at a time.
PREFILL_CHUNK = 512
# Resident memory of the interpreter with torch loaded, and of a CUDA context with its libraries.
_RUNTIME_BYTES = {"cpu": 350_000_000, "cuda": 600_000_000}
# Dequantized panels of weights on their way into a matrix product.
_PANEL_BYTES = 64 << 20


@dataclass(frozen=True)
class Fit:
    """How a plan sits on one device.

    ``verdict``: "fits" in what is free; "tight": in the memory there is, but not in what is free now; "experts in RAM":
    on a card with that many expert bytes (``offload``) left in RAM; "from disk": the CPU must re-read weights that RAM
    cannot hold; "too big". ``spare`` is free memory less the plan's total, negative when short. ``prefill_seconds`` is
    the time at the device's full rate, which only the first two verdicts let it reach; None where that is unknown.
    ``cpu_kv``: too big for this card, but not with its experts and all but a layer's keys and values in RAM (--cpu-kv).
    ``largest_ctx`` is the longest context that fits in what is free, by KV type, at most the model's own.
    """

    device: Device
    verdict: str
    spare: int
    offload: int
    prefill_seconds: float | None
    largest_ctx: dict[str, int]
    cpu_kv: bool = False


@dataclass(frozen=True)
class Plan:
    """Bytes that ``ctx`` tokens take; ``kv`` for every KV type, the rest with ``kv_type``; ``fits`` one a device."""

    ctx: int
    kv_type: str
    weights: int
    kv: dict[str, int]
    state: int
    scratch: int
    total: int
    fits: list[Fit]


def memory_plan(
    config: JambaConfig, weights: int, expert_weights: int, ctx: int, kv_type: str, devices: Sequence[Device]
) -> Plan:
    """The plan for ``ctx`` tokens: ``weights`` and ``expert_weights`` (those of them that are experts') in bytes."""
    kv = {name: ctx * config.kv_bytes_per_token(name) for name in KV_TYPES}
    state, scratch = config.state_bytes(), scratch_bytes(config, "cpu")
    total = weights + kv[kv_type] + state + scratch
    ram = devices[0].available if devices else 0
    fits = [_fit(config, weights, expert_weights, ctx, kv_type, device, ram) for device in devices]
    return Plan(ctx, kv_type, weights, kv, state, scratch, total, fits)


def scratch_bytes(config: JambaConfig, kind: str) -> int:
    """Estimated bytes beyond weights, KV and state: the runtime, one chunk's activations in f32, the logits."""
    c = config
    used = c.n_experts_used if c.n_moe_layers else 1
    values = 3 * c.hidden + 6 * c.d_inner + 3 * c.ffn * used
    return _RUNTIME_BYTES[kind] + _PANEL_BYTES + 4 * (PREFILL_CHUNK * values + c.vocab_size)


def prefill_flops(config: JambaConfig, tokens: int, start: int = 0) -> float:
    """Floating-point operations of reading ``tokens`` tokens after ``start``: two a weight, and causal attention.

    The embedding is a look-up and the output matrix runs for the last token only: neither counts.
    """
    c = config
    matrices = c.active_params() - c.vocab_size * c.hidden * (1 if c.tied_embeddings else 2)
    pairs = tokens * start + tokens * (tokens + 1) / 2
    return 2.0 * matrices * tokens + 4.0 * c.n_attention_layers * c.n_heads * c.head_dim * pairs


def _fit(config: JambaConfig, weights: int, experts: int, ctx: int, kv_type: str, device: Device, ram: int) -> Fit:
    fixed = config.state_bytes() + scratch_bytes(config, device.kind)
    moving = fixed + ctx * config.kv_bytes_per_token(kv_type)
    need = weights + moving
    spare = device.available - need
    offload = 0
    if spare >= 0:
        verdict = "fits"
    elif need <= device.total:
        verdict = "tight"
    elif device.kind == "cpu":
        verdict = "from disk" if moving <= device.available else "too big"
    elif -spare <= experts and -spare <= ram:
        verdict, offload = "experts in RAM", -spare
    else:
        verdict = "too big"
    kv = moving - fixed
    behind = experts + kv - kv // max(1, config.n_attention_layers)
    cpu_kv = verdict == "too big" and device.kind == "cuda" and -spare <= behind and -spare <= ram
    seconds = prefill_flops(config, ctx) / device.flops if device.flops > 0 else None
    room = device.available - weights - fixed
    largest = {name: _largest(config, room, name) for name in KV_TYPES}
    return Fit(device, verdict, spare, offload, seconds, largest, cpu_kv)


def _largest(config: JambaConfig, room: int, kv_type: str) -> int:
    if room < 0:
        return 0
    per_token = config.kv_bytes_per_token(kv_type)
    tokens = min(room // per_token, config.context_length) if per_token else config.context_length
    return tokens if tokens == config.context_length else tokens // 1024 * 1024
