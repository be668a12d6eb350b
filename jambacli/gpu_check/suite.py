"""``python -m jambacli.gpu_check.suite``: all there is to check and to measure on one CUDA card, in nine minutes.

Knows nothing of how things are computed. Parts run in order of importance: the card's own rates, every kernel against
its reference, whole models on the CPU and the card, then speeds and memory of synthetic models; one that fails is
reported and the rest goes on, and what no longer fits into the time is skipped and listed. Results are kept after each
step in a JSON file ($OUT/gpu_suite.json, or --out), with a table beside it. On a card the parts run in processes of their
own, which begin again after a step that crashed or hung. ``--tiny`` proves the whole path in a minute on a machine
without a card, under TRITON_INTERPRET=1; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli.files import atomic_write
from jambacli.gpu_check import report
from jambacli.gpu_check.workers import LOST, Job, merged, watch

PARTS = ("rates", "kernels", "models", "gemv", "bench", "limits")


class CardLostError(Exception):
    """Every call on the card fails from now on, in this process."""


class Suite:
    """The results so far, the clock, and where both are kept."""

    def __init__(self, out: Path, budget: float, tiny: bool) -> None:
        self.out, self.budget, self.tiny = out, budget, tiny
        self.began = time.monotonic()
        self.results: dict[str, Any] = {"failed": [], "skipped": [], "done": [], "running": None}

    def resume(self, died: str) -> None:
        """Go on with what an earlier process left, after the step that it died of, if ``died`` says so."""
        self.results |= json.loads(self.out.read_text())
        if step := self.results["running"]:
            self.results["failed"].append({"step": step, "error": died or "the card was lost"})
            self.end(step)

    @property
    def left(self) -> float:
        """Seconds of the budget left."""
        return self.budget - (time.monotonic() - self.began)

    def begin(self, name: str, seconds: float) -> bool:
        """Note that a step of about ``seconds`` begins; False when an earlier process has been through it."""
        if name in self.results["done"]:
            return False
        # The first time, kernels are compiled; a step that keeps what it has found is heard in between.
        self.results["patience"] = min(200.0, max(90.0, 10 * seconds))
        self.results["running"] = name
        self.save()
        return True

    def end(self, name: str) -> None:
        """Note that it has ended, well or not."""
        self.results["done"].append(name)
        self.results["running"] = None
        self.save()

    def attempt(self, name: str, seconds: float, run: Callable[[], Any]) -> Any:
        """Run a step expected to take ``seconds``; None where time does not allow it or it failed (both are listed).

        Raises CardLostError where no other step can work either.
        """
        if self.left < seconds and name not in self.results["done"]:
            self.results["skipped"].append(name)
            self.say(f"skipped {name}: {self.left:.0f} s are left, it takes about {seconds:.0f}")
            self.save()
            return None
        if not self.begin(name, seconds):
            return None
        start = time.monotonic()
        try:
            result = run()
        except Exception as error:
            text = str(error).strip().splitlines()
            line = f"{type(error).__name__}: {text[0] if text else ''}"
            self.results["failed"].append({"step": name, "error": line, "trace": traceback.format_exc()[-3000:]})
        else:
            self.say(f"{name}: {time.monotonic() - start:.1f} s")
            self.end(name)
            return result
        # Only here is what the step held on the card let go of: the error's traceback held it.
        self.say(f"FAILED {name}: {line}")
        self.end(name)
        _forget()
        return None

    def no_room(self, name: str, reason: str) -> None:
        """Note that a step is left out because the card or the computer has no memory for it."""
        self.results.setdefault("no_room", []).append({"step": name, "reason": reason})
        self.say(f"skipped {name}: {reason}")

    def say(self, line: str) -> None:
        """A line of progress on stderr, with the time."""
        print(f"[{time.monotonic() - self.began:6.1f}] {line}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write what there is, whole: the process may be ended at any time."""
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.out, durable=False) as file:
            file.write(json.dumps(self.results, indent=1).encode())


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0 when every part ran and every comparison held."""
    options = _parser().parse_args(arguments)
    import torch

    from jambacli.kernels.triton.interpret import interpreted

    if not torch.cuda.is_available() and not (options.tiny and interpreted()):
        print("there is no CUDA card; TRITON_INTERPRET=1 with --tiny shows that the suite runs", file=sys.stderr)
        return 1
    _formats(options.formats)  # a wrong one ends it here
    out = Path(options.out) if options.out else Path(os.environ.get("OUT", ".")) / "gpu_suite.json"
    if options.inside:
        return _run_parts(options, options.parts.split(","), out)
    wanted = [part for part in PARTS if part in options.parts.split(",")]
    if torch.cuda.is_available():
        results = _watched(options, wanted, out)
    else:
        _run_parts(options, wanted, out)
        results = json.loads(out.read_text())
    print(_show(results, out))
    bad = [row for part in ("kernels", "models") for row in results.get(part, []) if not row["ok"]]
    return 1 if bad or results["failed"] else 0


def _show(results: dict[str, Any], out: Path) -> str:
    table = report.markdown(results)
    out.with_suffix(".md").write_text(table)
    return table


def _run_parts(options: argparse.Namespace, wanted: list[str], out: Path) -> int:
    """The parts one after the other in this process; ``LOST`` when the card cannot be used in it any more."""
    import torch

    from jambacli.gpu_check import models, speed
    from jambacli.kernels.triton import triton_version

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # The reference is float32: no TF32 where it runs on the card.
    torch.set_float32_matmul_precision("highest")
    suite = Suite(out, options.budget, options.tiny)
    if options.died is not None and out.exists():
        suite.resume(options.died)
    suite.results["machine"] = _machine(device) | {"triton": ".".join(map(str, triton_version() or ()))}
    suite.results["date"] = time.strftime("%Y-%m-%d")
    suite.say(json.dumps(suite.results["machine"]))
    steps: dict[str, Callable[[], None]] = {
        "rates": lambda: speed.rates(suite, device),
        "kernels": lambda: _kernels(suite, device, options.shard),
        "models": lambda: models.models(suite, device, options.shard),
        "warm": lambda: speed.warm(suite, device, options.shapes.split(","), options.quants.split(","), options.shard),
        "gemv": lambda: speed.gemv_sweep(suite, device, _formats(options.formats), tune=options.tune),
        "bench": lambda: speed.bench(suite, device, options.shapes.split(","), options.quants.split(",")),
        "limits": lambda: speed.limits(suite, device, [float(x) for x in options.limits.split(",") if x]),
    }
    try:
        for part in wanted:
            steps[part]()
    except CardLostError as error:
        suite.say(str(error))
        return LOST
    suite.results["ended"] = True
    suite.save()
    return 0


def _watched(options: argparse.Namespace, wanted: list[str], out: Path) -> dict[str, Any]:
    """The parts in processes of their own: first what mostly compiles, side by side, then what is timed."""
    until, began = time.monotonic() + options.budget, time.monotonic()
    with contextlib.suppress(ValueError):  # not in the main thread
        # Leave through the stack, so that no process is left behind.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    common = [sys.executable, "-m", "jambacli.gpu_check.suite", "--inside", "--shapes", options.shapes,
              "--quants", options.quants, "--limits", options.limits, "--formats", options.formats,
              *(["--tiny"] if options.tiny else []), *(["--tune"] if options.tune else [])]  # fmt: skip

    def job(name: str, parts: list[str], shard: str = "0/1", environment: dict[str, str] | None = None) -> Job:
        place = out.with_name(f"{out.stem}.{name}.json")
        place.unlink(missing_ok=True)
        return Job(
            [*common, "--parts", ",".join(parts), "--shard", shard, "--out", str(place)], place, environment or {}
        )

    # As many processes as compile well side by side; what ``bench`` launches is compiled beside the rest.
    share = max(1, (os.cpu_count() or 1) // 4)
    most = {"kernels": 6, "models": 4, "warm": 5}
    first = [part for part in ("kernels", "models") if part in wanted] + (["warm"] if "bench" in wanted else [])
    most["warm"] = min(most["warm"], _warm_at_once(options))
    shards = {part: min(most[part], share) for part in first}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, sum(shards.values()))))}
    side_by_side = [job(f"{part}{i}", [part], f"{i}/{n}", threads) for part, n in shards.items() for i in range(n)]
    rest = [part for part in wanted if part not in first]
    others = [job("others", rest)] if rest else []
    results: dict[str, Any] = {}

    def changed() -> None:
        results.clear()
        results.update(merged(j.found() for j in [*side_by_side, *others]))
        results["seconds"] = round(time.monotonic() - began, 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, durable=False) as file:
            file.write(json.dumps(results, indent=1).encode())
        _show(results, out)

    for jobs in (side_by_side, others):
        watch(jobs, until + 12, changed)  # a process that keeps to its time is let finish
    changed()
    return results


def _warm_at_once(options: argparse.Namespace) -> int:
    """How many processes that compile whole layers fit on the first card side by side; one where that is not known."""
    from jambacli.gpu_check.speed import warm_bytes
    from jambacli.hardware import nvml

    cards = nvml.cards()
    if not cards or options.tiny:
        return 1
    each = [warm_bytes(shape, quant) for shape in options.shapes.split(",") for quant in options.quants.split(",")]
    # Half of the card: those that run single kernels and tiny models are there too.
    return max(1, cards[0].free // 2 // max(1, *each))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jambacli.gpu_check.suite", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that every part runs")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for everything")
    parser.add_argument("--out", help="where the JSON goes; the table beside it")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--shapes", default="jamba-3b,jamba-mini")
    parser.add_argument("--quants", default="q4_k_m,q8_0,experts_int8")
    parser.add_argument("--limits", default="24,48", help="GB of card memory to pretend, for the plans")
    parser.add_argument("--formats", default="all", help="of the matrix-vector product alone, comma-separated")
    parser.add_argument("--tune", action="store_true", help="try other tiles for the matrix-vector product too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # one of the processes watched
    parser.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)  # which of the kernels' cases: i of n
    parser.add_argument("--died", help=argparse.SUPPRESS)  # why the process before this one ended
    return parser


def _formats(text: str) -> tuple[str, ...]:
    """The formats named; SystemExit for one that is not timed."""
    from jambacli.gpu_check.speed import GEMV_FORMATS

    named = GEMV_FORMATS if text == "all" else tuple(text.split(","))
    if unknown := set(named) - set(GEMV_FORMATS):
        sys.exit(f"--formats {', '.join(sorted(unknown))}: known are all, {', '.join(GEMV_FORMATS)}")
    return named


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
    from jambacli.hardware import nvml

    cards = nvml.cards()
    return facts | {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory": p.total_memory,
        "multiprocessors": p.multi_processor_count,
        "peak_flops": cards[0].peak_flops if cards else None,
    }


def _kernels(suite: Suite, device: Any, shard: str = "0/1") -> None:
    """Every parity case, each on its own, so that one that breaks does not hide the others."""
    from jambacli.gpu_check.parity import cases

    rows = suite.results.setdefault("kernels", [])
    start = time.monotonic()
    allowed = 0.45 * suite.budget
    mine, of = (int(x) for x in shard.split("/"))
    chosen = list(cases())[mine::of]
    if suite.tiny:
        chosen = chosen[::9]
    for case in chosen:
        if time.monotonic() - start > allowed:
            suite.results["skipped"].append(f"kernel cases from {case.name} on")
            break
        if not suite.begin(case.name, 1):
            continue
        row: dict[str, Any] = {"case": case.name, "error": None, "tolerance": case.tolerance, "ok": False}
        try:
            row["error"] = case.run(device)
            row["ok"] = row["error"] <= case.tolerance
        except Exception as error:
            text = str(error).strip().splitlines()
            row["problem"] = f"{type(error).__name__}: {text[-1] if text else ''}"[:300]
            suite.say(f"FAILED {case.name}: {row['problem'][:200]}")
        rows.append(row)
        suite.end(case.name)
        if "problem" in row:
            _forget()
    suite.say(f"kernels: {sum(r['ok'] for r in rows)} of {len(rows)} hold, {time.monotonic() - start:.1f} s")
    suite.save()


def _forget() -> None:
    """Give back what a failed step held on the card; CardLostError where the card is not to be used any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise CardLostError(f"the card cannot be used any more: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    sys.exit(main())
