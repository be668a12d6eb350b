"""Decides which weights go to the GPU and which stay in host memory. Never imports torch.

What every token reads (mixers, dense networks, routers, output) goes to the GPU. Experts are most of a mixture's bytes and few
of them are active, so they stay in host memory first, whole layers at a time and the last layers first: the GPU then decodes
in one stretch up to the first of these. Before that the plan makes the pieces of prefill smaller, which slows prefill a
little but not decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jambacli.errors import JambaError, UsageError
from jambacli.kernels.triton.limits import PIECE
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import GpuSizes, slot_bytes, working_memory
from jambacli.units import format_bytes

#: Prompt tokens that a GPU takes through the layers at a time: enough that dequantization is cheap next to the matrix products.
PREFILL_CHUNK = 4096
#: The choices, largest first; the smaller ones are for GPUs with little memory.
CHUNKS = (PREFILL_CHUNK, 2048, 1024, 512)
# Free memory that a plan leaves for other programs, fragmentation and the display.
_RESERVE = 384 << 20


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go; sizes in bytes.

    On the GPU, of ``budget`` that may be used: ``weights`` and ``working`` (keys and values, state, scratch). In host memory:
    ``host`` (the experts of ``host_layers``, out of ``moe_layers`` layers with experts), ``host_kv`` (keys and values of the
    whole context, 0 if on the GPU) and ``pinned`` (page-locked buffers). ``chunk``: prompt tokens per piece of prefill.
    """

    budget: int
    weights: int
    working: int
    host: int
    host_layers: frozenset[int]
    moe_layers: int
    host_kv: int = 0
    chunk: int = PREFILL_CHUNK
    pinned: int = 0

    @property
    def spare(self) -> int:
        """Bytes of the budget left over, negative if the plan does not fit."""
        return self.budget - self.weights - self.working

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that the plan needs, 0 if everything is on the GPU."""
        return self.host + self.host_kv + self.pinned if self.host_layers or self.host_kv else 0

    def describe(self, free_ram: int | None = None) -> str:
        """The plan as one line of text. With ``free_ram``, bytes of free host memory, it warns if that is too little."""
        line = (
            f"on the GPU: {format_bytes(self.weights)} of weights, {format_bytes(self.working)} of context and scratch, of "
            f"{format_bytes(self.budget)} that can be used"
        )
        if self.host_layers:
            n, size = len(self.host_layers), format_bytes(self.host)
            line += f"; in RAM: the experts of {n} of {self.moe_layers} layers, {size}"
        if self.host_kv:
            line += f"; in RAM: keys and values, up to {format_bytes(self.host_kv)}"
        if self.host_bytes:
            line += f"; page-locked buffers: {format_bytes(self.pinned)}"
            if free_ram is not None and self.host_bytes > free_ram:
                line += f"; only {format_bytes(free_ram)} of RAM is free: this will be very slow"
        if self.chunk < PREFILL_CHUNK:
            line += f"; prompts are read {self.chunk} tokens at a time to save memory"
        return line


def usable(free: int, gpu_memory: int | None = None) -> int:
    """How many of the ``free`` bytes on a GPU a plan may use: all but a reserve, or the user's limit ``gpu_memory``."""
    return max(0, free - _RESERVE) if gpu_memory is None else min(gpu_memory, free)


def place(
    config: JambaConfig,
    sizes: GpuSizes,
    ctx: int,
    kv_type: str,
    free: int,
    *,
    gpu_memory: int | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
) -> Placement:
    """The best plan that fits, for tensors of ``sizes`` (``memory.gpu_sizes``) and ``ctx`` tokens of ``kv_type``.

    ``free``: bytes free on the GPU. ``gpu_memory``, ``cpu_experts``, ``cpu_kv`` as in ``DeviceOptions``. Raises UsageError for
    an invalid ``cpu_experts``, JambaError with a remedy if even the smallest plan does not fit.
    """
    n_moe = len(sizes.experts)
    if cpu_experts is not None and not 0 <= cpu_experts <= n_moe:
        raise UsageError(
            f"is not possible: this model has {n_moe} layers with experts", field="cpu_experts", value=cpu_experts
        )
    budget = usable(free, gpu_memory)
    kv = ctx * config.kv_bytes_per_token(kv_type)
    order = sorted(sizes.experts, reverse=True)
    plan = None
    for n, chunk in _choices(n_moe) if cpu_experts is None else ((cpu_experts, chunk) for chunk in CHUNKS):
        on_host = order[:n]
        host = sum(sizes.experts[layer] for layer in on_host)
        working = working_memory(config, sizes, ctx, kv_type, chunk, on_host, cpu_kv=cpu_kv)
        pinned = 2 * slot_bytes(sizes, on_host) + 2 * PIECE
        plan = Placement(
            budget, sizes.total - host, working, host, frozenset(on_host), n_moe, kv if cpu_kv else 0, chunk, pinned
        )
        if plan.spare >= 0:
            return plan
    assert plan is not None
    raise _too_big(plan, config, ctx, kv_type, cpu_experts is not None)


def _choices(n_moe: int) -> Iterator[tuple[int, int]]:
    """(layers with experts in host memory, tokens per piece of prefill), the fastest first.

    Every piece of a prompt streams all experts in host memory again, so with these small pieces come last.
    """
    yield from ((0, chunk) for chunk in CHUNKS)
    yield from ((n, CHUNKS[0]) for n in range(1, n_moe + 1))
    yield from ((n_moe, chunk) for chunk in CHUNKS[1:])


def _too_big(plan: Placement, config: JambaConfig, ctx: int, kv_type: str, chosen: bool) -> JambaError:
    """The error for a plan that does not fit. ``chosen``: the user set the number of layers with experts in host memory."""
    advice = ["{device} cpu"]
    if config.n_attention_layers > 1 and not plan.host_kv:
        advice.insert(0, "{cpu_kv}")
    if config.n_attention_layers and kv_type in ("f32", "f16", "bf16") and "q8_0" in config.kv_types:
        advice.insert(0, "{kv_type} q8_0")
    if ctx > 8192:
        advice.insert(0, "a smaller {ctx}")
    if chosen and len(plan.host_layers) < plan.moe_layers:
        advice.insert(0, "a larger {cpu_experts}")
    even = " even with all experts in RAM" if plan.host_layers and not chosen else ""
    listed = f"{', '.join(advice[:-1])} or {advice[-1]}" if len(advice) > 1 else advice[0]
    return JambaError(
        f"the model needs {format_bytes(plan.weights + plan.working)} on the GPU{even}, and "
        f"{format_bytes(plan.budget)} can be used",
        remedy=f"try {listed}",
    )
