"""``python -m jambacli.evaluation.gpu_suite``: all there is to check and to measure on one CUDA card, in nine minutes.

Knows nothing of how things are computed. Parts run in order of importance: the card's own rates, every kernel against
its reference, whole models on the CPU and the card, then speeds and memory of synthetic models; one that fails is
reported and the rest goes on, and what no longer fits into the time is skipped and listed. Results are kept after each
step in a JSON file ($OUT/gpu_suite.json, or --out) and shown as a table at the end. ``--tiny`` proves the whole path in a
minute on a machine without a card, under TRITON_INTERPRET=1; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli.evaluation import gpu_report

PARTS = ("rates", "kernels", "models", "gemv", "bench", "limits")


class Suite:
    """The results so far, the clock, and where both are kept."""

    def __init__(self, out: Path, budget: float, tiny: bool) -> None:
        self.out, self.budget, self.tiny = out, budget, tiny
        self.began = time.monotonic()
        self.results: dict[str, Any] = {"failed": [], "skipped": []}

    @property
    def left(self) -> float:
        """Seconds of the budget left."""
        return self.budget - (time.monotonic() - self.began)

    def attempt(self, name: str, seconds: float, run: Callable[[], Any]) -> Any:
        """Run a step expected to take ``seconds``; None where time does not allow it or it failed (both are listed)."""
        if self.left < seconds:
            self.results["skipped"].append(name)
            self.say(f"skipped {name}: {self.left:.0f} s are left, it takes about {seconds:.0f}")
            self.save()
            return None
        start = time.monotonic()
        try:
            result = run()
        except Exception as error:
            text = str(error).strip().splitlines()
            line = f"{type(error).__name__}: {text[0] if text else ''}"
            self.results["failed"].append({"step": name, "error": line, "trace": traceback.format_exc()[-3000:]})
            self.say(f"FAILED {name}: {line}")
            self.save()
            _forget()
            return None
        self.say(f"{name}: {time.monotonic() - start:.1f} s")
        self.save()
        return result

    def say(self, line: str) -> None:
        """A line of progress on stderr, with the time."""
        print(f"[{time.monotonic() - self.began:6.1f}] {line}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write what there is."""
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0 when every part ran and every comparison held."""
    options = _parser().parse_args(arguments)
    import torch

    from jambacli.kernels.triton import triton_version
    from jambacli.kernels.triton.interpret import interpreted

    if not torch.cuda.is_available() and not (options.tiny and interpreted()):
        print("there is no CUDA card; TRITON_INTERPRET=1 with --tiny shows that the suite runs", file=sys.stderr)
        return 1
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # The reference is float32: no TF32 where it runs on the card.
    torch.set_float32_matmul_precision("highest")
    folder = Path(os.environ.get("OUT", "."))
    suite = Suite(Path(options.out) if options.out else folder / "gpu_suite.json", options.budget, options.tiny)
    suite.results["machine"] = _machine(device) | {"triton": ".".join(map(str, triton_version() or ()))}
    suite.results["date"] = time.strftime("%Y-%m-%d")
    suite.say(json.dumps(suite.results["machine"]))
    from jambacli.evaluation import gpu_bench, gpu_models

    wanted = [part for part in PARTS if part in options.parts.split(",")]
    steps: dict[str, Callable[[], None]] = {
        "rates": lambda: gpu_bench.rates(suite, device),
        "kernels": lambda: _kernels(suite, device),
        "models": lambda: gpu_models.models(suite, device),
        "gemv": lambda: gpu_bench.gemv_sweep(suite, device, tune=options.tune),
        "bench": lambda: gpu_bench.bench(suite, device, options.shapes.split(","), options.quants.split(",")),
        "limits": lambda: gpu_bench.limits(suite, device, [float(x) for x in options.limits.split(",") if x]),
    }
    for part in wanted:
        steps[part]()
    suite.save()
    table = gpu_report.markdown(suite.results)
    suite.out.with_suffix(".md").write_text(table)
    print(table)
    bad = [c for c in suite.results.get("kernels", []) if not c["ok"]] + [
        m for m in suite.results.get("models", []) if not m["ok"]
    ]
    return 1 if bad or suite.results["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jambacli.evaluation.gpu_suite", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that every part runs")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for everything")
    parser.add_argument("--out", help="where the JSON goes; the table beside it")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--shapes", default="jamba-3b,jamba-mini")
    parser.add_argument("--quants", default="q4_k_m,q8_0,experts_int8")
    parser.add_argument("--limits", default="24,48", help="GB of card memory to pretend, for the plans")
    parser.add_argument("--tune", action="store_true", help="try other tiles for the matrix-vector product too")
    return parser


def _machine(device: Any) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if device.type != "cuda":
        return facts | {"name": "Triton's interpreter on the CPU", "interpreted": True}
    p = torch.cuda.get_device_properties(device)
    from jambacli.evaluation import nvml

    cards = nvml.cards()
    return facts | {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory": p.total_memory,
        "multiprocessors": p.multi_processor_count,
        "peak_flops": cards[0].peak_flops if cards else None,
    }


def _kernels(suite: Suite, device: Any) -> None:
    """Every parity case, each on its own, so that one that breaks does not hide the others."""
    from jambacli.evaluation.gpu_parity import cases

    rows = suite.results.setdefault("kernels", [])
    start = time.monotonic()
    allowed = 0.45 * suite.budget
    chosen = list(cases())
    if suite.tiny:
        chosen = chosen[::9]
    for case in chosen:
        if time.monotonic() - start > allowed:
            suite.results["skipped"].append(f"kernel cases from {case.name} on")
            break
        try:
            found = case.run(device)
            rows.append({"case": case.name, "error": found, "tolerance": case.tolerance, "ok": found <= case.tolerance})
        except Exception as error:
            text = str(error).strip().splitlines()
            line = f"{type(error).__name__}: {text[-1] if text else ''}"
            rows.append(
                {"case": case.name, "error": None, "tolerance": case.tolerance, "ok": False, "problem": line[:300]}
            )
            suite.say(f"FAILED {case.name}: {line[:200]}")
    suite.say(f"kernels: {sum(r['ok'] for r in rows)} of {len(rows)} hold, {time.monotonic() - start:.1f} s")
    suite.save()


def _forget() -> None:
    """Give back what a failed step held on the card."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
