"""Speeds and memory on one card: its own rates, single kernels, and whole synthetic models; knows nothing of correctness.

Decoding is measured as it is used: greedy, the next token read back each step. A context of a given depth is not
computed but filled with random keys, values and states, which take as long to read; prefill starts from an empty one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.errors import JambaError
from jambacli.evaluation.bench import weight_bytes_per_token
from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.evaluation.synthetic_gpu import CardTensors
from jambacli.gpu_check.parity import random_weight
from jambacli.hardware.devices import devices
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.load import free_memory, put_on_card, upload
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, beside_weights, card_sizes
from jambacli.runtime.cuda.placement import PREFILL_CHUNK, Placement, place
from jambacli.runtime.memory_plan import prefill_flops
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.gpu_check.suite import Suite

PREFILLS = (512, 4096, 32768)
DEPTHS = (0, 32768, 262144 - 64)
_TINY = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 2,
    "mamba_d_state": 8,
    "vocab_size": 320,
}


def rates(suite: Suite, device: torch.device) -> None:
    """What the card can do: bytes copied (read and written both counted) and bf16 products, per second."""
    size = min(1 << 30, free_memory(device) >> 3) if device.type == "cuda" else 1 << 22
    width = 8192 if device.type == "cuda" else 128

    def measure() -> dict[str, float]:
        from jambacli.kernels.triton.ops import compute_dtype

        a = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
        b = torch.empty_like(a)
        copy = 2 * size / seconds(device, lambda: b.copy_(a), 10)
        dtype = compute_dtype(device)
        x, y = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        product = 2 * width**3 / seconds(device, lambda: x @ y, 5)
        found = {"copy_bytes_per_second": copy, "matrix_flops": product}
        if device.type == "cuda":
            here = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
            found["pcie_bytes_per_second"] = len(here) / seconds(device, lambda: a[: len(here)].copy_(here), 4)
        return found

    found = suite.attempt("rates", 5, measure)
    if found:
        suite.results["rates"] = found
        suite.say(", ".join(f"{k} {v:.4g}" for k, v in found.items()))


def seconds(device: torch.device, run: Callable[[], Any], times: int, warm: int = 2) -> float:
    """Seconds of one run, the mean of ``times`` queued behind each other."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    for _ in range(warm):
        run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times


def recorded(device: torch.device, run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a CUDA graph, so that its kernels are timed and not their launching, which takes longer than some."""
    if device.type != "cuda":
        return run
    run()  # what is compiled or set up the first time cannot be recorded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


#: What the matrix-vector product is timed in.
GEMV_FORMATS = ("q4_k", "q6_k", "q8_0", "i8", "q5_k", "q4_0", "q3_k", "iq4_xs", "bf16")


def gemv_sweep(suite: Suite, device: torch.device, formats: Sequence[str], *, tune: bool) -> None:
    """The matrix-vector product by format on matrices of Mini and 3B, in bytes per second; ``tune``: other tiles too.

    A tile takes about a second to compile: ``tune`` with one or two formats fits into the suite's time. Matrices are taken
    in turn out of enough of them to exceed the card's caches.
    """
    from jambacli.kernels.triton.gemv import gemv
    from jambacli.kernels.triton.launch import Tile, gemv_tile

    rows = suite.results.setdefault("gemv", [])
    shapes = [(16384, 4096), (4096, 8192), (10240, 2560), (2560, 8192)] if not suite.tiny else [(64, 256)]
    formats = formats if not suite.tiny else ("q4_k",)
    best: dict[str, str] = {}

    def measure(fmt: str, n: int, k: int) -> None:
        count = max(1, math.ceil((256 << 20) / (n * k))) if device.type == "cuda" else 1
        one = random_weight(fmt, (n, k))
        weights = [upload(one, device) for _ in range(count)]
        x, out = torch.randn(1, k, device=device), torch.empty(1, n, device=device)
        usual = gemv_tile(weights[0], n)
        tiles = [usual]
        if tune:
            tiles += [Tile(rows, warps) for rows in (1, 2, 4, 8) for warps in (1, 2, 4, 8)]
        for tile in dict.fromkeys(tiles):

            def run(tile: Tile = tile) -> None:
                for w in weights:
                    gemv(x, w, out=out, tile=tile)

            rate = sum(w.nbytes for w in weights) / seconds(device, recorded(device, run), 5)
            rows.append({"format": fmt, "shape": [n, k], "tile": [tile.rows, tile.warps], "rate": rate,
                         "usual": tile == usual})  # fmt: skip
        mine = [r for r in rows if r["format"] == fmt and r["shape"] == [n, k]]
        top = max(mine, key=lambda r: r["rate"])
        best[f"{fmt} {n}x{k}"] = f"{top['tile']} {top['rate'] / 1e9:.0f} GB/s"

    for fmt in formats:
        for n, k in shapes:
            suite.attempt(f"gemv {fmt} {n}x{k}", 25 if tune else 4, partial(measure, fmt, n, k))
    if tune:
        suite.say(json_lines(best))


def json_lines(found: dict[str, str]) -> str:
    """A dictionary, a line an entry."""
    return "\n".join(f"  {key}: {value}" for key, value in found.items())


def bench(suite: Suite, device: torch.device, shapes: list[str], quants: list[str]) -> None:
    """Prefill and decode of every shape in every type, all weights on the card where they fit."""
    rows = suite.results.setdefault("bench", [])
    if suite.tiny:
        shapes, quants = ["tiny"], ["q8_0"]
    for shape in shapes:
        config = JambaConfig.from_hf(_TINY) if shape == "tiny" else shape_config(shape)
        for quant in quants:
            if quant == "experts_int8" and not config.n_moe_layers:
                continue
            suite.attempt(f"bench {shape} {quant}", 12, partial(_model, suite, rows, device, shape, config, quant))


def warm(suite: Suite, device: torch.device, shapes: list[str], quants: list[str], shard: str) -> None:
    """Compile, for the disk's cache, what ``bench`` is going to launch: models of the first few layers. Measures nothing.

    ``shard``: which of them, "i/n" being every n-th from the i-th on.
    """
    mine, of = (int(x) for x in shard.split("/"))
    pairs = [(shape, quant) for shape in shapes for quant in quants] if not suite.tiny else [("tiny", "q8_0")]
    for shape, quant in pairs[mine::of]:
        config = JambaConfig.from_hf(_TINY) if shape == "tiny" else shape_config(shape)
        if quant == "experts_int8" and not config.n_moe_layers:
            continue
        tokens = (5, 1) if suite.tiny else (4096, 512, 1)
        name = f"compile {shape} {quant}"
        suite.attempt(name, 20, partial(_first_layers, suite, name, device, config, quant, tokens))


def first_layers(config: JambaConfig) -> JambaConfig:
    """The same model up to its first layer of attention: one of every kind."""
    n = config.layer_is_attention.index(True) + 1
    return dataclasses.replace(
        config, n_layers=n, layer_is_attention=config.layer_is_attention[:n], layer_is_moe=config.layer_is_moe[:n]
    )


def warm_bytes(shape: str, quant: str) -> int:
    """What compiling for that model takes of a card: its first layers, 4,096 tokens, and a CUDA context."""
    config = first_layers(shape_config(shape))
    if quant == "experts_int8" and not config.n_moe_layers:
        return 0
    sizes = card_sizes({name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()})
    return sizes.total + beside_weights(config, sizes, 8192, "f16", PREFILL_CHUNK, []) + CONTEXT_BYTES


def _first_layers(
    suite: Suite, name: str, device: torch.device, config: JambaConfig, quant: str, tokens: tuple[int, ...]
) -> None:
    config = first_layers(config)
    make = CardTensors(config, quant, device)
    plan = _room(suite, name, config, make, sum(tokens), "f16", device, None)
    if plan is None or plan.host_layers:
        return
    model = put_on_card(config, make, device, plan, graphs=False)
    state = model.new_state(sum(tokens))
    try:
        for count in tokens:
            model.forward(torch.zeros(count, dtype=torch.int64), state)
    except torch.OutOfMemoryError as error:  # processes beside this one compile too
        suite.no_room(name, str(error).splitlines()[0])


def _room(
    suite: Suite, name: str, config: JambaConfig, make: CardTensors, ctx: int, kv_type: str, device: torch.device,
    limit: int | None,
) -> Placement | None:  # fmt: skip
    """The plan, or None (and the reason listed) where the card or the computer's memory has no room for it."""
    free = free_memory(device) if device.type == "cuda" else 1 << 40
    if limit is not None and limit > free:
        suite.no_room(name, f"the card has {format_bytes(free)} free")
        return None
    try:
        plan = place(config, card_sizes(make.shapes()), ctx, kv_type, free, gpu_memory=limit)
    except JambaError as error:
        suite.no_room(name, str(error))
        return None
    here = devices()[0].available
    if plan.host + plan.pinned > 0.8 * here:
        need = format_bytes(plan.host + plan.pinned)
        suite.no_room(name, f"{need} of experts would stay in RAM, of which {format_bytes(here)} are free")
        return None
    return plan


def limits(suite: Suite, device: torch.device, sizes: list[float]) -> None:
    """Mini in Q4_K_M with 256K of context as if the card had less memory: the plan, and its speeds."""
    rows = suite.results.setdefault("limits", [])
    shape = "tiny" if suite.tiny else "jamba-mini"
    config = JambaConfig.from_hf(_TINY) if suite.tiny else shape_config(shape)
    for size in sizes:
        limit = int(size * 1e9)
        suite.attempt(
            f"limit {size:g} GB", 60 if not suite.tiny else 5,
            partial(_model, suite, rows, device, shape, config, "q8_0" if suite.tiny else "q4_k_m", limit),
        )  # fmt: skip


def _model(
    suite: Suite, rows: list[dict[str, Any]], device: torch.device, shape: str, config: JambaConfig, quant: str,
    limit: int | None = None,
) -> None:  # fmt: skip
    ctx = 512 if suite.tiny else config.context_length
    kv_type = "f16"
    name = f"{shape} {quant}" + (f" in {format_bytes(limit)}" if limit is not None else "")
    plan = _room(suite, name, config, CardTensors(config, quant, device), ctx, kv_type, device, limit)
    if plan is None:
        return
    if suite.tiny and limit is not None:
        plan = Placement(plan.budget, plan.weights, plan.moving, 1, frozenset({1}), config.n_moe_layers)
    suite.say(f"{shape} {quant}: {plan.describe()}")
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if limit is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        start = time.monotonic()
        make = CardTensors(config, quant, device, plan.host_layers)
        model = put_on_card(config, make, device, plan)
        made = time.monotonic() - start
        suite.save()  # a sign of life: compiling comes next
        common = {"shape": shape, "quant": quant, "limit": limit, "plan": plan.describe(), "made_seconds": made}
        rate = suite.results.get("rates", {})
        # Decode first: it is the shorter, and the first of the figures people ask for.
        depths: tuple[int, ...] = DEPTHS if not suite.tiny else (0, 64)
        if limit is not None:
            depths = depths[-1:]
        for depth in depths:
            if suite.left < 8:
                suite.results["skipped"].append(f"{shape} {quant} decode at {depth}")
                continue
            rows.append(common | _decode(model, device, ctx, kv_type, depth, rate, 4 if suite.tiny else 48))
            suite.save()
        prefills: tuple[int, ...] = PREFILLS if not suite.tiny else (5, 70)
        if limit is not None:
            prefills = prefills[1:2]
        for tokens in prefills:
            likely = 3 + tokens / 2000
            if suite.left < likely:
                suite.results["skipped"].append(f"{shape} {quant} prefill of {tokens}")
                continue
            rows.append(common | _prefill(model, device, kv_type, tokens, rate))
            suite.save()
    finally:
        if cuda and limit is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _decode(
    model: JambaModel, device: torch.device, ctx: int, kv_type: str, depth: int, rate: dict[str, float], n: int
) -> dict[str, Any]:
    state = model.new_state(min(ctx, depth + n + 8), kv_type)
    _pretend(state, depth)
    token = torch.tensor([1])

    def steps(count: int) -> None:
        nonlocal token
        for _ in range(count):
            logits = model.forward(token, state)
            assert logits is not None
            token = logits[0].argmax()[None].cpu()

    steps(3)  # compile, record, replay
    _wait(device)
    start = time.perf_counter()
    steps(n)
    _wait(device)
    each = (time.perf_counter() - start) / n
    weights = weight_bytes_per_token(model)
    kv = model.config.kv_bytes_per_token(kv_type) * depth
    copy = rate.get("copy_bytes_per_second")
    kernels = (
        model.decoder.launches(state) if model.decoder is not None and hasattr(model.decoder, "launches") else None
    )
    return {
        "test": f"decode @ {depth}",
        "tokens_per_second": 1 / each,
        "milliseconds": each * 1000,
        "weight_bytes": weights,
        "kv_bytes": kv,
        "share_of_copy": (weights + kv) / each / copy if copy else None,
        "kernels": kernels,
        "recorded": getattr(model.decoder, "recorded", None),
        # BENCHMARKS.md's line for cards above 1 TB/s, on the weights alone.
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
        _wait(device)
        start = time.perf_counter()
        parts = ids.split(model.prefill_chunk)
        for i, part in enumerate(parts):
            model.forward(part, state, logits="last" if i == len(parts) - 1 else "none")
        _wait(device)
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


def _pretend(state: Any, depth: int) -> None:
    """Make the state look as if it had read ``depth`` tokens: random keys, values and recurrent state."""
    if depth == 0:
        return
    state.begin(depth)
    for cache in state.caches:
        for x in (cache.k, cache.v):
            if x.dtype == torch.uint8:
                x[:depth] = 0
            else:
                x[:depth].normal_()
    state.ssm.normal_(0, 0.1)
    state.conv.normal_(0, 0.1)
    state.commit(depth)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int | None:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
