"""What of a model goes to the card and what stays in the computer's memory; knows nothing of kernels or of torch.

Everything a token always reads (mixers, dense networks, routers, output) belongs on the card. Experts are most of a mixture's
bytes and few of them are active, so they stay behind first, a whole layer's at a time, the last layers before the
others: the card then decodes one uninterrupted stretch before the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jambacli.errors import JambaError, UsageError
from jambacli.model.config import JambaConfig
from jambacli.units import format_bytes

#: Tokens that a card takes through the layers at a time: enough for expanding weights to cost little beside multiplying.
PREFILL_CHUNK = 4096
# Of what is free on a card, this much is left alone: other programs, fragmentation, the display.
_RESERVE = 384 << 20
# Copies of the recurrent state to go back to, which lie beside the state (engine.sequence keeps to this much).
_CHECKPOINT_BYTES = 256 << 20
# A CUDA context with its libraries.
_RUNTIME_BYTES = 600_000_000
# An expanded panel of weights (see kernels.triton.ops) and its product.
_PANEL_BYTES = 512 << 20


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go. Bytes: ``weights`` and ``moving`` (KV, state and scratch) on the card, ``host`` not.

    ``host_kv``: bytes of keys and values that stay in the computer's memory, for the whole context; 0: on the card.
    ``host_layers`` are the layers whose experts stay in the computer's memory, of ``moe_layers`` that have any.
    ``budget`` is what the card may hold.
    """

    budget: int
    weights: int
    moving: int
    host: int
    host_layers: frozenset[int]
    moe_layers: int
    host_kv: int = 0

    @property
    def spare(self) -> int:
        """Bytes of the budget left over."""
        return self.budget - self.weights - self.moving

    def describe(self) -> str:
        """One line for people."""
        line = (
            f"{format_bytes(self.weights)} of weights and {format_bytes(self.moving)} of context and scratch on the card"
            f" ({format_bytes(self.budget)} to use)"
        )
        if self.host_layers:
            n, size = len(self.host_layers), format_bytes(self.host)
            line += f"; the experts of {n} of {self.moe_layers} layers, {size}, stay in RAM (--cpu-experts {n})"
        if self.host_kv:
            line += f"; keys and values, up to {format_bytes(self.host_kv)}, stay in RAM (--cpu-kv)"
        return line


def card_scratch_bytes(
    config: JambaConfig, ctx: int, kv_type: str, chunk: int = PREFILL_CHUNK, *, cpu_kv: bool = False
) -> int:
    """Estimated bytes beyond weights, KV and state on a card: the runtime, a panel, one chunk's activations, checkpoints,
    and a layer's keys and values once more where they are not stored as attention reads them, or not on the card."""
    c = config
    chunk = min(chunk, ctx)
    used = c.n_experts_used if c.n_moe_layers else 1
    values = 4 * c.hidden + max(7 * c.d_inner, 2 * c.hidden * used + 3 * c.ffn)
    converted = 0
    if c.n_attention_layers and kv_type in ("q8_0", "f32"):
        converted = ctx * c.n_kv_heads * c.head_dim * (4 + 2) * 2
    if c.n_attention_layers and cpu_kv:  # many tokens' attention reads a layer's from the card, one layer at a time
        converted += ctx * c.kv_bytes_per_token(kv_type) // c.n_attention_layers
    return _RUNTIME_BYTES + _PANEL_BYTES + _CHECKPOINT_BYTES + 4 * (chunk * values + c.vocab_size) + converted


def expert_layer(name: str) -> int | None:
    """The layer whose experts the tensor of that GGUF name belongs to; None for any other tensor."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2].startswith("ffn_") and parts[2].endswith("_exps"):
        return int(parts[1])
    return None


def place(
    config: JambaConfig,
    sizes: Mapping[str, int],
    ctx: int,
    kv_type: str,
    free: int,
    *,
    gpu_memory: int | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
) -> Placement:
    """The plan for tensors of ``sizes`` bytes (by GGUF name, as they lie on the card) and ``ctx`` tokens.

    ``free``: bytes free on the card; ``gpu_memory``: use at most this; ``cpu_experts``: leave exactly so many layers'
    experts behind, whether they would fit or not; ``cpu_kv``: keys and values stay behind too. Raises UsageError for an
    impossible number of layers, JambaError when even with all experts behind it does not fit, naming what to change.
    """
    budget = max(0, free - _RESERVE) if gpu_memory is None else min(gpu_memory, free)
    kv = ctx * config.kv_bytes_per_token(kv_type)
    moving = config.state_bytes() + card_scratch_bytes(config, ctx, kv_type, cpu_kv=cpu_kv) + (0 if cpu_kv else kv)
    by_layer: dict[int, int] = {}
    total = sum(sizes.values())
    for name, size in sizes.items():
        layer = expert_layer(name)
        if layer is not None:
            by_layer[layer] = by_layer.get(layer, 0) + size
    order = sorted(by_layer, reverse=True)
    if cpu_experts is not None:
        if not 0 <= cpu_experts <= len(order):
            raise UsageError(f"--cpu-experts {cpu_experts}: this model has {len(order)} layers with experts")
        behind = order[:cpu_experts]
    else:
        behind, over = [], total + moving - budget
        while over > 0 and len(behind) < len(order):
            behind.append(order[len(behind)])
            over -= by_layer[behind[-1]]
    host = sum(by_layer[layer] for layer in behind)
    plan = Placement(budget, total - host, moving, host, frozenset(behind), len(order), kv if cpu_kv else 0)
    if plan.spare < 0:
        raise JambaError(_too_big(plan, config, ctx, kv_type, cpu_experts is not None))
    return plan


def _too_big(plan: Placement, config: JambaConfig, ctx: int, kv_type: str, chosen: bool) -> str:
    advice = ["--device cpu"]
    if config.n_attention_layers > 1 and not plan.host_kv:
        advice.insert(0, "--cpu-kv")
    if config.n_attention_layers and kv_type != "q8_0":
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
