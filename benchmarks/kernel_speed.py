"""Measures the product of decode without the memory: weights per nanosecond on one core, the matrix in its cache.

    python -m benchmarks.kernel_speed --isa avx2,vnni --ggml AVX2/libggml-cpu.so,NATIVE/libggml-cpu.so

A matrix of 256 x 2,560 weights is multiplied with 1 to 16 tokens, per type and instruction set, activations converted each
time. With a library of ggml (llama.cpp), compiled for the same instruction set, its product is measured in turn with ours: from
weights as they lie in the file, and interleaved where ggml has that for the type (see ``ggml_product``); the faster one counts.
The figure is that of the shortest of many repetitions, so that other work on the machine affects it little.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ggml_product import Ggml, GgmlProduct
from jambacli.errors import JambaError

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

TYPES = "q4_k,q6_k,q4_0,q5_k,q8_0,iq4_xs,bf16"
TOKENS = "1,2,4,8,16"
_MOST_ERROR = 0.05  # relative distance from the exact product; int8 activations give about 0.01


@dataclass
class Measurement:
    """One product: shortest seconds of ours and of ggml's kernels ("plain", "repacked")."""

    isa: str
    type: str
    tokens: int
    weights: int
    seconds: float
    ggml_seconds: dict[str, float] = field(default_factory=dict)

    def rate(self, seconds: float) -> float:
        """Weights times tokens, per nanosecond."""
        return self.weights * self.tokens / seconds / 1e9

    @property
    def ggml_best(self) -> float | None:
        """Seconds of ggml's faster kernel, None where ggml was not measured."""
        return min(self.ggml_seconds.values(), default=None)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print Markdown tables, or JSON."""
    from jambacli.kernels.cpu import available

    options = _parser().parse_args(arguments)
    if not available():
        raise JambaError("the C++ kernels were not built")
    libraries = [Ggml(Path(p)) for p in options.ggml.split(",") if p]
    levels = _levels(options.isa)
    if len(libraries) not in (0, 1, len(levels)):
        raise JambaError(
            f"{len(libraries)} libraries of ggml for {len(levels)} instruction sets: name one, or one for each"
        )
    tokens = [int(n) for n in options.tokens.split(",")]
    found: list[Measurement] = []
    for i, level in enumerate(levels):
        ggml = libraries[min(i, len(libraries) - 1)] if libraries else None
        for name in options.types.split(","):
            found += measure(level, name, options.rows, options.cols, tokens, options.seconds, ggml)
            print(f"{level} {name}: {found[-len(tokens)].rate(found[-len(tokens)].seconds):.1f}", file=sys.stderr)
    features = [ggml.features for ggml in libraries]
    print(_json(found, features) if options.output == "json" else _markdown(found, levels, features, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_speed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--types", default=TYPES, help=f"formats, comma-separated (default: {TYPES})")
    parser.add_argument(
        "--isa", default="", help="instruction sets, comma-separated (default: the best of this processor)"
    )
    parser.add_argument("--tokens", default=TOKENS, help=f"tokens at once, comma-separated (default: {TOKENS})")
    parser.add_argument(
        "--ggml", default="", help="paths of libggml-cpu.so, comma-separated: one, or one for each --isa"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows of the matrix (default: 256)")
    parser.add_argument("--cols", type=int, default=2560, help="columns of the matrix (default: 2560)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for one figure (default: 0.5)")
    parser.add_argument("-o", "--output", choices=("md", "json"), default="md")
    return parser


def _levels(names: str) -> list[str]:
    from jambacli.kernels.cpu import runnable_isas

    levels = [n.strip() for n in names.split(",") if n.strip()] or [runnable_isas()[-1]]
    for name in levels:
        if name not in runnable_isas():
            raise JambaError(f"{name!r} is none of this machine's instruction sets: {', '.join(runnable_isas())}")
    return levels


def measure(
    isa: str, type_name: str, rows: int, cols: int, tokens: list[int], seconds: float, ggml: Ggml | None = None
) -> list[Measurement]:
    """Measurements of one type at one instruction set, for each number of tokens; the level is restored afterwards.

    Raises JambaError where a product is wrong: a fast kernel that does not compute is no finding.
    """
    import torch

    from jambacli.kernels.cpu import cpu_features, set_isa
    from quant import QTensor, dequantize, get_format, quantize

    generator = torch.Generator().manual_seed(1)
    fmt = get_format(type_name)
    w = QTensor(quantize(torch.randn(rows, cols, generator=generator), fmt.name).flatten(), fmt, (rows, cols))
    values = dequantize(w.data.view(rows, -1), fmt.name).view(rows, cols)
    found, before = [], str(cpu_features()["isa"])
    set_isa(isa)
    try:
        for m in tokens:
            x = torch.randn(m, cols, generator=generator)
            exact, y = x @ values.T, torch.empty(m, rows)
            runs = {"ours": _our_product(w, x, y)}
            peers = _ggml_products(ggml, w, x)
            runs |= {name: product.run for name, product in peers.items()}
            times = shortest(runs, seconds)
            results = {"ours": y} | {name: product.result() for name, product in peers.items()}
            for name, result in results.items():
                if (error := float((result - exact).norm() / exact.norm())) > _MOST_ERROR:
                    raise JambaError(f"{name}, {type_name}, {m} tokens: the product is off by {error:.0%}")
            for product in peers.values():
                product.close()
            found.append(Measurement(isa, fmt.name, m, rows * cols, times.pop("ours"), times))
    finally:
        set_isa(before)
    return found


def _our_product(w: QTensor, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """``decode.linear`` on one thread with its arguments made beforehand: they take as long as a tenth of the product."""
    from jambacli.kernels.cpu.library import built_library
    from jambacli.kernels.cpu.structs import address, matrix

    library, struct = built_library(), matrix(w)
    function = library.functions.decode_linear
    values = (address(x), x.shape[1], address(y), y.shape[1], x.shape[0], 0, 1)
    where = (ctypes.byref(struct), *(kind(value) for kind, value in zip(function.argtypes[1:], values, strict=True)))
    library.check(function(*where))
    return lambda: function(*where)


def _ggml_products(ggml: Ggml | None, w: QTensor, x: torch.Tensor) -> dict[str, GgmlProduct]:
    if ggml is None:
        return {}
    made = {"plain": ggml.product(w, x, repacked=False), "repacked": ggml.product(w, x, repacked=True)}
    return {name: product for name, product in made.items() if product is not None}


def shortest(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The shortest time of each of ``runs``, which take turns for ``seconds`` in all; five times each at least."""
    best = dict.fromkeys(runs, float("inf"))
    clock = time.perf_counter
    end, rounds = clock() + seconds, 0
    while rounds < 5 or clock() < end:
        for name, run in runs.items():
            run()  # brings this one's matrix into the cache
            for _ in range(4):
                began = clock()
                run()
                best[name] = min(best[name], clock() - began)
        rounds += 1
    return best


def _json(found: list[Measurement], features: list[list[str]]) -> str:
    from jambacli.hardware.devices import devices

    rows = [{**asdict(m), "weights_per_nanosecond": m.rate(m.seconds)} for m in found]
    return json.dumps({"machine": devices()[0].name, "ggml_features": features, "measurements": rows}, indent=1)


def _markdown(
    found: list[Measurement], levels: list[str], features: list[list[str]], options: argparse.Namespace
) -> str:
    from jambacli.hardware.devices import devices

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [f"{today}, {devices()[0].name}, one core; a matrix of {options.rows:,} x {options.cols:,} weights."]
    for i, level in enumerate(levels):
        mine = [m for m in found if m.isa == level]
        lines += ["", f"### {level}", ""]
        if features:
            lines += [f"ggml compiled for: {', '.join(features[min(i, len(features) - 1)])}.", ""]
        lines += _table(mine, "weights x tokens per nanosecond", _rates)
        lines += ["", *_table(mine, "time against one token's", _against_one)]
    return "\n".join(lines)


def _table(found: list[Measurement], what: str, cell: Callable[[Measurement, Measurement], str]) -> list[str]:
    """A table of types and numbers of tokens; ``cell`` gets the measurement of the first number and the one to show."""
    counts = list(dict.fromkeys(m.tokens for m in found))
    compared = " (ours / ggml's: ratio)" if found[0].ggml_seconds and cell is _rates else ""
    lines = ["| type | ggml's kernel | " + " | ".join(f"{n} token{'s' * (n > 1)}" for n in counts) + " |"]
    lines.append("|---|---|" + "---:|" * len(counts))
    for name in dict.fromkeys(m.type for m in found):
        row = {m.tokens: m for m in found if m.type == name}
        one = row[counts[0]]
        kernel = min(one.ggml_seconds, key=one.ggml_seconds.__getitem__, default="")
        lines.append(f"| {name} | {kernel} | " + " | ".join(cell(one, row[n]) for n in counts) + " |")
    return [f"{what[0].upper()}{what[1:]}{compared}:", "", *lines]


def _rates(_: Measurement, m: Measurement) -> str:
    ours = f"{m.rate(m.seconds):.1f}"
    if m.ggml_best is None:
        return ours
    return f"{ours} / {m.rate(m.ggml_best):.1f}: {m.ggml_best / m.seconds:.2f}"


def _against_one(one: Measurement, m: Measurement) -> str:
    ours = f"{m.seconds / one.seconds:.2f}"
    if m.ggml_best is None or one.ggml_best is None:
        return ours
    return f"{ours} / {m.ggml_best / one.ggml_best:.2f}"


if __name__ == "__main__":
    try:
        main()
    except JambaError as error:
        sys.exit(f"error: {error}")
