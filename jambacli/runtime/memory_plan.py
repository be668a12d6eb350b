"""The cost of a context length in memory and time on each device of this machine. Never imports torch.

Sizes of weights, keys and values and Mamba state are exact; the CPU's scratch memory and prefill times are estimates. For a
GPU the plan is the one that ``cuda.placement`` makes when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jambacli.errors import JambaError
from jambacli.hardware.devices import Device
from jambacli.model.config import CPU_PREFILL_CHUNK, GPU_KV_TYPES, JambaConfig
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, GpuSizes, estimated_sizes, gpu_sizes, working_memory
from jambacli.runtime.cuda.placement import CHUNKS, Placement, place, usable

# Resident memory of the interpreter with torch loaded.
_RUNTIME_BYTES = 350_000_000
# Dequantized panels of weights during a matrix product.
_DEQUANTIZED_PANEL_BYTES = 64 << 20


@dataclass(frozen=True)
class DeviceFit:
    """Whether and how a model fits on one device.

    ``verdict``: "fits" in the free memory; "tight": in the total memory but not in what is free now; "experts in RAM": on a GPU
    with the experts of some layers (``offload`` bytes) in host memory; "from disk": host memory is too small, so weights
    (on a GPU: ``offload`` bytes of experts) are read from the file repeatedly; "too big"; "unsupported": a GPU does not
    take this KV type. ``spare``: free memory minus needed memory in bytes, negative if it does not fit.
    ``prefill_seconds``: time at the device's full rate, which only "fits" and "tight" reach; None if the rate is unknown.
    ``cpu_kv``: too big for this GPU, but not with keys and values (and experts, if needed) in host memory. ``largest_ctx``:
    the longest context that fits in the free memory, by KV type, at most the model's own. ``largest_ctx_offload``: the same
    for a GPU with experts in host memory as far as needed.
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
class MemoryPlan:
    """Bytes that a context of ``ctx`` tokens takes, and the fit on each device.

    ``kv`` is by KV type; ``total`` counts the one of ``kv_type``. ``drafts``: copies of the state before drafted tokens, which
    a reply takes once it repeats earlier text. ``drafts``, ``scratch`` and ``total`` are for the CPU.
    """

    ctx: int
    kv_type: str
    weights: int
    kv: dict[str, int]
    state: int
    drafts: int
    scratch: int
    total: int
    fits: list[DeviceFit]


def memory_plan(
    config: JambaConfig,
    weights: int,
    expert_weights: int,
    ctx: int,
    kv_type: str,
    devices: Sequence[Device],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> MemoryPlan:
    """The plan for ``ctx`` tokens of ``kv_type``; ``weights`` in bytes, ``expert_weights`` of them in experts.

    ``tensors``: (format, shape) by GGUF name if known; the plan for a GPU is then the one used for loading, else an estimate.
    ``devices``: as from ``hardware.devices``, the CPU first. Raises UnsupportedError for a KV type that does not fit the
    model's heads.
    """
    config.check_kv_type(kv_type)
    kv = {name: ctx * config.kv_bytes_per_token(name) for name in config.kv_types}
    state, drafts, scratch = config.state_bytes(), config.draft_bytes(), scratch_bytes(config)
    total = weights + kv[kv_type] + state + drafts + scratch
    ram = devices[0].available if devices else 0
    sizes = gpu_sizes(tensors) if tensors else estimated_sizes(config, weights, expert_weights)
    fits = [
        _on_gpu(config, sizes, ctx, kv_type, device, ram)
        if device.kind == "cuda"
        else _on_cpu(config, weights, ctx, kv_type, device)
        for device in devices
    ]
    return MemoryPlan(ctx, kv_type, weights, kv, state, drafts, scratch, total, fits)


def scratch_bytes(config: JambaConfig) -> int:
    """Estimated bytes on the CPU besides weights, KV, state and drafts: runtime, float32 activations of a chunk, logits."""
    c = config
    used = c.n_experts_used if c.n_moe_layers else 1
    values = 3 * c.hidden + 6 * c.d_inner + 3 * c.ffn * used
    return _RUNTIME_BYTES + _DEQUANTIZED_PANEL_BYTES + 4 * (CPU_PREFILL_CHUNK * values + c.vocab_size)


def prefill_flops(config: JambaConfig, tokens: int, start: int = 0) -> float:
    """Floating-point operations of a prefill of ``tokens`` tokens after ``start``: two per weight, and causal attention.

    The embedding is a look-up and the output matrix is needed for the last token only, so neither counts.
    """
    c = config
    matrices = c.active_params() - c.vocab_size * c.hidden * (1 if c.tied_embeddings else 2)
    pairs = tokens * start + tokens * (tokens + 1) / 2
    return 2.0 * matrices * tokens + 4.0 * c.n_attention_layers * c.n_heads * c.head_dim * pairs


def _on_cpu(config: JambaConfig, weights: int, ctx: int, kv_type: str, device: Device) -> DeviceFit:
    fixed = config.state_bytes() + config.draft_bytes() + scratch_bytes(config)
    working = fixed + ctx * config.kv_bytes_per_token(kv_type)
    need = weights + working
    spare = device.available - need
    if spare >= 0:
        verdict = "fits"
    elif need <= device.total:
        verdict = "tight"
    else:
        verdict = "from disk" if working <= device.available else "too big"
    room = device.available - weights - fixed
    largest = {name: _largest(config, room, name) for name in config.kv_types}
    return DeviceFit(device, verdict, spare, 0, _seconds(config, ctx, device), largest, largest)


def _on_gpu(config: JambaConfig, sizes: GpuSizes, ctx: int, kv_type: str, device: Device, ram: int) -> DeviceFit:
    """The fit on a GPU, as ``place`` will decide once the process's CUDA context has taken its share of free memory."""
    if kv_type not in GPU_KV_TYPES:
        return DeviceFit(device, "unsupported", 0, 0, None, {}, {})
    free = device.available - CONTEXT_BYTES
    plan = _plan(config, sizes, ctx, kv_type, free)
    plan_if_empty = _plan(config, sizes, ctx, kv_type, device.total - CONTEXT_BYTES)
    verdict = _gpu_verdict(plan, plan_if_empty, ram)
    if plan is not None and verdict == "fits":
        spare = plan.spare
    else:
        spare = usable(free) - sizes.total - _least_working_memory(config, sizes, ctx, kv_type)
    offload = plan.host if plan is not None and verdict in ("experts in RAM", "from disk") else 0
    cpu_kv = False
    if verdict == "too big" and config.n_attention_layers:
        other = _plan(config, sizes, ctx, kv_type, free, cpu_kv=True)
        cpu_kv = other is not None and other.host_bytes <= ram
    room = usable(free) - sizes.total

    def whole(tokens: int, kv_type: str) -> bool:
        return _least_working_memory(config, sizes, tokens, kv_type) <= room

    def offloaded(tokens: int, kv_type: str) -> bool:
        other = _plan(config, sizes, tokens, kv_type, free)
        return other is not None and other.host_bytes <= ram

    largest = {name: _longest(config, name, whole) for name in config.kv_types if name in GPU_KV_TYPES}
    largest_offload = {name: _longest(config, name, offloaded) for name in largest} if sizes.experts else largest
    return DeviceFit(device, verdict, spare, offload, _seconds(config, ctx, device), largest, largest_offload, cpu_kv)


def _gpu_verdict(plan: Placement | None, plan_if_empty: Placement | None, ram: int) -> str:
    """``plan``: for the free memory; ``plan_if_empty``: for all of the GPU's memory; ``ram``: free bytes of host memory."""
    if plan is not None and not plan.host_layers:
        return "fits"
    if plan is not None and plan.host_bytes <= ram:
        return "experts in RAM"
    if plan_if_empty is not None and not plan_if_empty.host_layers:
        return "tight"
    return "too big" if plan is None else "from disk"


def _plan(
    config: JambaConfig, sizes: GpuSizes, ctx: int, kv_type: str, free: int, *, cpu_kv: bool = False
) -> Placement | None:
    try:
        return place(config, sizes, ctx, kv_type, free, cpu_kv=cpu_kv)
    except JambaError:
        return None


def _least_working_memory(config: JambaConfig, sizes: GpuSizes, ctx: int, kv_type: str) -> int:
    """Working memory with all weights on the GPU and the smallest pieces of prefill."""
    return working_memory(config, sizes, ctx, kv_type, CHUNKS[-1], [])


def _longest(config: JambaConfig, kv_type: str, fits: Callable[[int, str], bool]) -> int:
    """The longest context that ``fits``, in steps of 1,024 tokens; 0 if none does."""
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
