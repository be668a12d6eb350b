"""Times the matrix-vector product alone: what decode launches, in other tiles and orders of its activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.evaluation.synthetic import random_weight
from jambacli.evaluation.timing import recorded, seconds
from jambacli.gpu_check.needs import ROUNDED, blocked_by
from jambacli.kernels.triton.interleave import interleaved, padded
from jambacli.runtime.cuda.load import upload

if TYPE_CHECKING:
    from jambacli.gpu_check.results import Suite
    from jambacli.kernels.triton.launch import Tile
    from jambacli.kernels.triton.repack import Packed

#: The formats in which the matrix-vector product is timed.
FORMATS = ("q4_k", "q6_k", "q8_0", "i8", "q5_k", "q4_0", "q3_k", "iq4_xs", "bf16")
#: Matrices of Mini and 3B, with what decode does before or after each.
SHAPES = (
    (16384, 4096, "norm"),
    (14336, 4096, "gated"),
    (4096, 8192, "plain"),
    (10240, 2560, "norm"),
    (8192, 2560, "gated"),
    (2560, 8192, "plain"),
)
#: Ways to take activations: in their usual order, in that of decode, and in that of decode rounded to int8.
WAYS = ("natural", "interleaved", "int8")


def _weights(fmt: str, n: int, k: int, device: torch.device) -> list[Packed]:
    """As many equal matrices as exceed a GPU's caches."""
    count = max(1, math.ceil((256 << 20) / (n * k))) if device.type == "cuda" else 1
    one = random_weight(fmt, (n, k))
    return [upload(one, device) for _ in range(count)]


def _launcher(
    weights: list[Packed], kind: str, tile: Tile | None, way: str, device: torch.device
) -> Callable[[], None]:
    """Multiplies one row with each of the matrices. ``kind``: plain (with a residual), norm, or gated (after a norm)."""
    from jambacli.kernels.triton.gemv import gemv

    n, k = weights[0].shape
    x, norm = torch.randn(1, k, device=device), torch.ones(k, device=device)
    natural = way == "natural"
    options: dict[str, Any] = {} if kind == "plain" else {"norm": norm if natural else interleaved(norm), "eps": 1e-6}
    out = torch.zeros(1, n if natural else padded(n), device=device)
    if kind == "plain":
        options["residual"] = out
    if not natural:
        x = interleaved(x)

    def run() -> None:
        for i, w in enumerate(weights):
            up = weights[i - 1] if kind == "gated" else None
            gemv(x, w, up=up, out=out, tile=tile, interleaved=not natural, placed=0 if natural else n,
                 int8=way == "int8", **options)  # fmt: skip

    return run


def _rate(weights: list[Packed], kind: str, tile: Tile | None, way: str, device: torch.device) -> float:
    """Bytes of weights read per second."""
    run = _launcher(weights, kind, tile, way, device)
    nbytes = sum(w.nbytes for w in weights) * (2 if kind == "gated" else 1)
    return nbytes / seconds(device, recorded(device, run), 5)


def table(suite: Suite, device: torch.device, wrong: Sequence[str] = ()) -> None:
    """Measure products with and without norm and gate, one, two and four rows per thread, and each way to take activations, for
    two formats: which of the terms in ``estimate`` holds. Wrong kernels are not timed."""
    from jambacli.kernels.triton.launch import Tile

    rows = suite.results.setdefault("products", [])
    n, k = (10240, 2560) if not suite.tiny else (64, 256)

    def measure(fmt: str, kind: str, way: str, weights: list[Packed]) -> None:
        for per_thread in (1, 2, 4):
            rate = _rate(weights, kind, Tile(per_thread, 2), way, device)
            rows.append({"format": fmt, "kind": kind, "way": way, "rows": per_thread, "rate": rate})
            suite.save()

    for fmt in ("q4_k", "q8_0") if not suite.tiny else ("q4_k",):
        if name := blocked_by(("gemv",), (fmt,), wrong):
            suite.skip_for_kernel(f"products {fmt}", name)
            continue
        weights = _weights(fmt, n, k, device)
        for kind in ("norm", "gated", "plain"):
            for way in WAYS:
                if way == "int8" and (name := blocked_by(ROUNDED, (fmt,), wrong)):
                    suite.skip_for_kernel(f"products {fmt} {kind} {way}", name)
                    continue
                suite.attempt(f"products {fmt} {kind} {way}", 4, partial(measure, fmt, kind, way, weights))


def sweep(suite: Suite, device: torch.device, formats: Sequence[str], *, tune: bool, wrong: Sequence[str] = ()) -> None:
    """Measure the product as decode launches it, on matrices of Mini and 3B, in bytes per second; ``tune``: other tiles too.

    A tile takes about a second to compile, so ``tune`` fits into the time with one or two formats.
    """
    from jambacli.kernels.triton.launch import Tile, gemv_tile

    rows = suite.results.setdefault("gemv", [])
    shapes = SHAPES if not suite.tiny else ((64, 256, "norm"),)
    formats = formats if not suite.tiny else ("q4_k",)
    best: dict[str, str] = {}

    def measure(fmt: str, n: int, k: int, kind: str) -> None:
        weights = _weights(fmt, n, k, device)
        usual = gemv_tile(weights[0], n, gated=kind == "gated")
        tiles = [usual]
        if tune:
            tiles += [Tile(per_thread, warps) for per_thread in (1, 2, 4) for warps in (1, 2, 4, 8)]
        for tile in dict.fromkeys(tiles):
            rate = _rate(weights, kind, tile, "interleaved", device)
            rows.append({"format": fmt, "shape": [n, k], "kind": kind, "tile": [tile.rows, tile.warps], "rate": rate,
                         "usual": tile == usual})  # fmt: skip
            suite.save()
        mine = [r for r in rows if r["format"] == fmt and r["shape"] == [n, k]]
        top = max(mine, key=lambda r: r["rate"])
        best[f"{fmt} {n}x{k}"] = f"{top['tile']} {top['rate'] / 1e9:.0f} GB/s"

    for fmt in formats:
        if name := blocked_by(("gemv",), (fmt,), wrong):
            suite.skip_for_kernel(f"gemv {fmt}", name)
            continue
        for n, k, kind in shapes:
            suite.attempt(f"gemv {fmt} {n}x{k}", 25 if tune else 4, partial(measure, fmt, n, k, kind))
    if tune:
        suite.log("\n".join(["best tiles", *(f"  {key}: {value}" for key, value in best.items())]))
