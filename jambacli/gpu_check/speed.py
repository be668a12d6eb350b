"""Measures speed and memory on one GPU: its peak rates, single kernels, and whole synthetic models.

Decode is measured as it is used: greedy, with the next token read back after each step. A deep context is filled with random
keys, values and states instead of being computed, which takes as long to read; prefill starts from an empty context.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.errors import JambaError, first_line
from jambacli.evaluation.bench import fill_randomly, weight_bytes_per_token
from jambacli.evaluation.bench_gpu import gpu_rates
from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.evaluation.synthetic_gpu import GpuTensors
from jambacli.evaluation.timing import seconds, wait_for
from jambacli.gpu_check.needs import DECODE, DECODE_EXPERTS, PREFILL, PREFILL_EXPERTS, ROUNDED, blocked_by
from jambacli.hardware.devices import devices
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.load import free_memory, put_on_gpu
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, gpu_sizes, working_memory
from jambacli.runtime.cuda.placement import PREFILL_CHUNK, Placement, place
from jambacli.runtime.memory_plan import prefill_flops
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.gpu_check.results import Suite

PREFILLS = (512, 4096, 32768)
DEPTHS = (0, 32768, 262144 - 64)
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 32,
    "num_experts": 2,
    "mamba_d_state": 8,
    "vocab_size": 96,
}


def rates(suite: Suite, device: torch.device) -> None:
    """The GPU's peak rates: bytes per second copied (reads and writes counted) and received from the host, FLOP/s."""
    size = min(1 << 30, free_memory(device) >> 3) if device.type == "cuda" else 1 << 22
    width = 8192 if device.type == "cuda" else 128

    def measure() -> dict[str, float]:
        copied, _, product = gpu_rates(device, size, width)
        found = {"copy_bytes_per_second": copied, "matrix_flops": product}
        if device.type == "cuda":
            host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
            target = torch.empty_like(host, device=device, pin_memory=False)
            found["pcie_bytes_per_second"] = len(host) / seconds(device, lambda: target.copy_(host), 4)
        return found

    found = suite.attempt("rates", 5, measure)
    if found:
        suite.results["rates"] = found
        suite.log(", ".join(f"{k} {v:.4g}" for k, v in found.items()))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure of a model: decode after ``depths`` tokens, prefill of ``prefills``, with keys and values in ``kv_type``,
    as if the GPU had ``limit`` bytes (None: all)."""

    depths: tuple[int, ...]
    prefills: tuple[int, ...]
    kv_type: str = "f16"
    limit: int | None = None


#: What matters most of the first file type, and the rest.
MOST, REST = Plan((DEPTHS[0], DEPTHS[-1]), PREFILLS[:2]), Plan(DEPTHS[1:2], PREFILLS[2:])


def bench(suite: Suite, device: torch.device, shapes: list[str], quants: list[str], wrong: Sequence[str] = ()) -> None:
    """Measure decode and prefill of every shape in the first file type, with all weights on the GPU if they fit."""
    for shape in shapes if not suite.tiny else ["tiny"]:
        _bench(suite, device, shape, quants[0] if not suite.tiny else "q8_0", MOST, wrong)


def rest(suite: Suite, device: torch.device, shapes: list[str], quants: list[str], wrong: Sequence[str] = ()) -> None:
    """Measure what ``bench`` leaves out: other file types, depths and prompts, and keys and values in q8_0."""
    if suite.tiny:
        return
    for shape in shapes:
        _bench(suite, device, shape, quants[0], REST, wrong)
        _bench(suite, device, shape, quants[0], Plan(DEPTHS[-1:], (), "q8_0"), wrong)
        for quant in quants[1:]:
            _bench(suite, device, shape, quant, Plan(DEPTHS, PREFILLS[:2]), wrong)


def _bench(suite: Suite, device: torch.device, shape: str, quant: str, plan: Plan, wrong: Sequence[str]) -> None:
    config = JambaConfig.from_hf(_TINY) if shape == "tiny" else shape_config(shape)
    if quant == "experts_int8" and not config.n_moe_layers:
        return
    rows = suite.results.setdefault("bench", [])
    kind = "" if plan in (MOST, Plan(DEPTHS, PREFILLS[:2])) else ", more" if plan == REST else f", KV in {plan.kv_type}"
    name = f"bench {shape} {quant}{kind}"
    suite.attempt(name, 12, partial(_model, suite, rows, device, shape, config, quant, plan, wrong))


def warm(suite: Suite, device: torch.device, shapes: list[str], quants: list[str], shard: str) -> None:
    """Compile what ``bench`` will launch, for Triton's cache on disk, by running the first few layers of each model.

    ``shard``: "i/n", every n-th model from the i-th on.
    """
    first, step = (int(x) for x in shard.split("/"))
    pairs = [(shape, quant) for shape in shapes for quant in quants] if not suite.tiny else [("tiny", "q8_0")]
    for shape, quant in pairs[first::step]:
        config = JambaConfig.from_hf(_TINY) if shape == "tiny" else shape_config(shape)
        if quant == "experts_int8" and not config.n_moe_layers:
            continue
        tokens = (5, 1) if suite.tiny else (4096, 512, 1)
        name = f"compile {shape} {quant}"
        suite.attempt(name, 20, partial(_first_layers, suite, name, device, config, quant, tokens))


def first_layers(config: JambaConfig) -> JambaConfig:
    """The same model up to its first attention layer, which has every kind of layer."""
    n = config.layer_is_attention.index(True) + 1
    return dataclasses.replace(
        config, n_layers=n, layer_is_attention=config.layer_is_attention[:n], layer_is_moe=config.layer_is_moe[:n]
    )


def warm_bytes(shape: str, quant: str) -> int:
    """GPU bytes that ``warm`` needs for a model: its first layers, a prefill of 4,096 tokens, and a CUDA context."""
    config = first_layers(shape_config(shape))
    if quant == "experts_int8" and not config.n_moe_layers:
        return 0
    sizes = gpu_sizes({name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()})
    return sizes.total + working_memory(config, sizes, 8192, "f16", PREFILL_CHUNK, []) + CONTEXT_BYTES


def _first_layers(
    suite: Suite, name: str, device: torch.device, config: JambaConfig, quant: str, tokens: tuple[int, ...]
) -> None:
    config = first_layers(config)
    make = GpuTensors(config, quant, device)
    plan = _plan_or_skip(suite, name, config, make, sum(tokens), "f16", device, None)
    if plan is None or plan.host_layers:
        return
    model = put_on_gpu(config, make, device, plan, graphs=False)
    state = model.new_state(sum(tokens))
    try:
        for count in tokens:
            model.forward(torch.zeros(count, dtype=torch.int64), state)
    except torch.OutOfMemoryError as error:  # other workers use the GPU at the same time
        suite.skip_for_memory(name, first_line(error))


def _plan_or_skip(
    suite: Suite, name: str, config: JambaConfig, make: GpuTensors, ctx: int, kv_type: str, device: torch.device,
    limit: int | None,
) -> Placement | None:  # fmt: skip
    """The plan, or None, with the reason recorded, if GPU or host memory is too small."""
    free = free_memory(device) if device.type == "cuda" else 1 << 40
    if limit is not None and limit > free:
        suite.skip_for_memory(name, f"the GPU has {format_bytes(free)} free")
        return None
    try:
        plan = place(config, gpu_sizes(make.shapes()), ctx, kv_type, free, gpu_memory=limit)
    except JambaError as error:
        suite.skip_for_memory(name, error.problem)
        return None
    free_ram = devices()[0].available
    if plan.host + plan.pinned > 0.8 * free_ram:
        need = format_bytes(plan.host + plan.pinned)
        suite.skip_for_memory(name, f"{need} of experts would stay in RAM, of which {format_bytes(free_ram)} is free")
        return None
    return plan


def limits(suite: Suite, device: torch.device, sizes: list[float], wrong: Sequence[str] = ()) -> None:
    """Measure Mini in Q4_K_M with a context of 256K as if the GPU had less memory."""
    rows = suite.results.setdefault("limits", [])
    shape = "tiny" if suite.tiny else "jamba-mini"
    config = JambaConfig.from_hf(_TINY) if suite.tiny else shape_config(shape)
    quant = "q8_0" if suite.tiny else "q4_k_m"
    for size in sizes:
        plan = Plan(DEPTHS[-1:], PREFILLS[1:2], limit=int(size * 1e9))
        suite.attempt(
            f"limit {size:g} GB", 60 if not suite.tiny else 5,
            partial(_model, suite, rows, device, shape, config, quant, plan, wrong),
        )  # fmt: skip


def full_size_growth(suite: Suite, device: torch.device) -> dict[str, Any] | None:
    """Memory of Mini in Q4_K_M while its cache grows, on a GPU as if of 48 GB; None if it does not fit."""
    from jambacli.gpu_check.growth import peak_of_growth

    config, quant, limit = shape_config("jamba-mini"), "q4_k_m", int(48e9)
    make = GpuTensors(config, quant, device)
    plan = _plan_or_skip(suite, "growth at full size", config, make, config.context_length, "f16", device, limit)
    if plan is None:
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        model = put_on_gpu(config, GpuTensors(config, quant, device, plan.host_layers), device, plan)
        suite.save()  # restarts the worker's patience before kernels are compiled
        return peak_of_growth(model, device, config.context_length, 130_000, 4096, plan.weights + plan.working)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _model(
    suite: Suite, rows: list[dict[str, Any]], device: torch.device, shape: str, config: JambaConfig, quant: str,
    what: Plan, wrong: Sequence[str] = (),
) -> None:  # fmt: skip
    from jambacli.runtime.cuda.decode_mode import step_seconds
    from jambacli.runtime.cuda.decoder import CudaDecoder

    ctx = 512 if suite.tiny else config.context_length
    limit, kv_type = what.limit, what.kv_type
    name = f"{shape} {quant}" + (f" in {format_bytes(limit)}" if limit is not None else "")
    formats = {choice.format for choice in choices(config, quant).values()}
    experts = bool(config.n_moe_layers)
    no_decode = blocked_by(DECODE + (DECODE_EXPERTS if experts else ()), formats, wrong)
    no_prefill = blocked_by(PREFILL + (PREFILL_EXPERTS if experts else ()), formats, wrong)
    for part, reason in (("decode", no_decode), ("prefill", no_prefill)):
        if reason is not None:
            suite.skip_for_kernel(f"{name} {part}", reason)
    if no_decode and no_prefill:
        return
    plan = _plan_or_skip(suite, name, config, GpuTensors(config, quant, device), ctx, kv_type, device, limit)
    if plan is None:
        return
    if suite.tiny and limit is not None:
        plan = Placement(plan.budget, plan.weights, plan.working, 1, frozenset({1}), config.n_moe_layers)
    suite.log(f"{shape} {quant}: {plan.describe()}")
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if limit is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        start = time.monotonic()
        make = GpuTensors(config, quant, device, plan.host_layers)
        model = put_on_gpu(config, make, device, plan)
        made = time.monotonic() - start
        suite.save()  # restarts the worker's patience before kernels are compiled
        common = {
            "shape": shape,
            "quant": quant,
            "limit": limit,
            "kv": kv_type,
            "plan": plan.describe(),
            "made_seconds": made,
        }
        rate = suite.results.get("rates", {})
        # Decode first: it takes less time and its figures matter most.
        depths: tuple[int, ...] = what.depths if not suite.tiny else (0, 64)
        for depth in depths if no_decode is None else ():
            if suite.left < 8:
                suite.results["skipped"].append(f"{shape} {quant} decode at {depth}")
                continue
            rows.append(common | _decode(model, device, ctx, kv_type, depth, rate, 4 if suite.tiny else 48))
            suite.save()
            rounds = isinstance(model.decoder, CudaDecoder) and model.decoder.int8_products() > 0
            if depth == 0 and rounds and not blocked_by(ROUNDED, formats, wrong):
                rows.append(
                    common | _decode(model, device, ctx, kv_type, depth, rate, 4 if suite.tiny else 48, precise=False)
                )
                if what is MOST:
                    exact, rounded = step_seconds(model)
                    both = {"model": name, "float32_ms": exact * 1e3, "int8_ms": rounded * 1e3}
                    suite.results.setdefault("modes", []).append(both)
                suite.save()
            if depth == 0 and what is MOST:
                suite.results.setdefault("steps", []).append({"model": name} | step_kernels(model, device, kv_type))
                suite.save()
        prefills: tuple[int, ...] = what.prefills if not suite.tiny else (5, 70)
        for tokens in prefills if no_prefill is None else ():
            if suite.left < 3 + tokens / 2000:
                suite.results["skipped"].append(f"{shape} {quant} prefill of {tokens}")
                continue
            rows.append(common | _prefill(model, device, kv_type, tokens, rate))
            suite.save()
    finally:
        if cuda and limit is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def step_kernels(model: JambaModel, device: torch.device, kv_type: str) -> dict[str, Any]:
    """One decode step under torch's profiler: microseconds by kernel, and of the gaps between kernels."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    state = model.new_state(256, kv_type)
    for _ in range(3):
        model.forward(torch.tensor([1]), state)
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        model.forward(torch.tensor([1]), state)
        wait_for(device)
    on_gpu = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    events = [e for e in profiled.events() if e.device_type == on_gpu]
    return kernel_times([(e.name, float(e.time_range.start), float(e.time_range.end)) for e in events])


def kernel_times(events: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Totals of events (name, start, end in microseconds): by kernel, their span, and the gaps in which none runs."""
    by_kernel: dict[str, list[float]] = {}
    busy_until, gaps = None, 0.0
    for name, start, end in sorted(events, key=lambda event: event[1]):
        by_kernel.setdefault(name, []).append(end - start)
        if busy_until is not None:
            gaps += max(0.0, start - busy_until)
        busy_until = end if busy_until is None else max(busy_until, end)
    first = min((start for _, start, _ in events), default=0.0)
    return {
        "kernels": {name: [len(times), sum(times)] for name, times in by_kernel.items()},
        "span": (busy_until or first) - first,
        "gaps": gaps,
    }


def _decode(
    model: JambaModel, device: torch.device, ctx: int, kv_type: str, depth: int, rate: dict[str, float], n: int,
    *, precise: bool = True,
) -> dict[str, Any]:  # fmt: skip
    state = model.new_state(min(ctx, depth + n + 8), kv_type, precise=precise)
    if depth:
        fill_randomly(state, depth)
    token = torch.tensor([1])

    def steps(count: int) -> None:
        nonlocal token
        for _ in range(count):
            logits = model.forward(token, state)
            assert logits is not None
            token = logits[0].argmax()[None].cpu()

    steps(3)  # compile, record, replay
    wait_for(device)
    start = time.perf_counter()
    steps(n)
    wait_for(device)
    each = (time.perf_counter() - start) / n
    weights = weight_bytes_per_token(model)
    kv = model.config.kv_bytes_per_token(kv_type) * depth
    copy = rate.get("copy_bytes_per_second")
    kernels = (
        model.decoder.launches(state) if model.decoder is not None and hasattr(model.decoder, "launches") else None
    )
    return {
        "test": f"decode @ {depth}" + ("" if precise else ", int8"),
        "tokens_per_second": 1 / each,
        "milliseconds": each * 1000,
        "weight_bytes": weights,
        "kv_bytes": kv,
        "share_of_copy": (weights + kv) / each / copy if copy else None,
        "kernels": kernels,
        "recorded": getattr(model.decoder, "recorded", None),
        # The target for GPUs above 1 TB/s: bytes over bandwidth, and 2 microseconds per kernel.
        "target_milliseconds": 1000 * (weights + kv) / copy + 0.002 * kernels if copy and kernels else None,
        "peak_memory": _peak(device),
    }


def _prefill(
    model: JambaModel, device: torch.device, kv_type: str, tokens: int, rate: dict[str, float]
) -> dict[str, Any]:
    ids = torch.randint(0, model.config.vocab_size, (tokens,))
    times = []
    for _ in range(2 if tokens < 32768 else 1):  # the first compiles
        state = model.new_state(tokens, kv_type)
        wait_for(device)
        start = time.perf_counter()
        parts = ids.split(model.prefill_chunk)
        for i, part in enumerate(parts):
            model.forward(part, state, logits="last" if i == len(parts) - 1 else "none")
        wait_for(device)
        times.append(time.perf_counter() - start)
    flops = prefill_flops(model.config, tokens)
    peak = rate.get("matrix_flops")
    return {
        "test": f"prefill {tokens}",
        "tokens_per_second": tokens / times[-1],
        "milliseconds": times[-1] * 1000,
        "share_of_matrix_rate": flops / times[-1] / peak if peak else None,
        "peak_memory": _peak(device),
    }


def _peak(device: torch.device) -> int | None:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
