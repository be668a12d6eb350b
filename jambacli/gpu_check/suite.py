"""The parts of the GPU check and the order in which they run.

Parts run in order of importance: the GPU's peak rates, every kernel against its reference, whole models on CPU and GPU,
then speed and memory of synthetic models. A part that fails is recorded and the others continue; steps that no longer fit
into the time are recorded as skipped. On a GPU the parts run in worker processes, which are restarted after a step that
crashes or hangs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli.errors import first_line
from jambacli.gpu_check import report
from jambacli.gpu_check.results import DeviceLostError, Suite, release_memory, write_results
from jambacli.gpu_check.workers import LOST, Job, merged, watch

logger = logging.getLogger(__name__)

PARTS = ("rates", "kernels", "models", "gemv", "bench", "limits")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to run. ``limits``: GB of GPU memory to simulate. ``budget``: seconds for everything. ``formats``: of the
    matrix-vector product alone, for which ``tune`` tries other tiles too. ``shard``: "i/n", every n-th case from the i-th on.
    """

    parts: tuple[str, ...] = PARTS
    shapes: tuple[str, ...] = ("jamba-3b", "jamba-mini")
    quants: tuple[str, ...] = ("q4_k_m", "q8_0", "experts_int8")
    limits: tuple[float, ...] = (24, 48)
    formats: tuple[str, ...] = ()
    tune: bool = False
    tiny: bool = False
    budget: float = 520.0
    shard: str = "0/1"


def run_parts(options: CheckOptions, out: Path, failure: str | None = None) -> int:
    """Run the parts in this process; returns ``LOST`` if the GPU can no longer be used in it, else 0.

    ``failure``: how the process before this one ended, whose results in ``out`` are continued.
    """
    import torch

    from jambacli.gpu_check import models, speed
    from jambacli.kernels.triton import triton_version

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # The reference computes in float32, so no TF32 where it runs on the GPU.
    torch.set_float32_matmul_precision("highest")
    suite = Suite(out, options.budget, options.tiny)
    if failure is not None and out.exists():
        suite.resume(failure)
    suite.results["machine"] = _machine(device) | {"triton": ".".join(map(str, triton_version() or ()))}
    suite.results["date"] = time.strftime("%Y-%m-%d")
    suite.log(json.dumps(suite.results["machine"]))
    shapes, quants = list(options.shapes), list(options.quants)
    steps: dict[str, Callable[[], None]] = {
        "rates": lambda: speed.rates(suite, device),
        "kernels": lambda: _kernels(suite, device, options.shard),
        "models": lambda: models.models(suite, device, options.shard),
        "warm": lambda: speed.warm(suite, device, shapes, quants, options.shard),
        "gemv": lambda: speed.gemv_sweep(suite, device, options.formats, tune=options.tune),
        "bench": lambda: speed.bench(suite, device, shapes, quants),
        "limits": lambda: speed.limits(suite, device, list(options.limits)),
    }
    try:
        for part in options.parts:
            steps[part]()
    except DeviceLostError as error:
        suite.log(str(error))
        return LOST
    suite.results["ended"] = True
    suite.save()
    return 0


def run_in_workers(
    options: CheckOptions, out: Path, command: Callable[[CheckOptions, Path, str | None], list[str]]
) -> dict[str, Any]:
    """Run the parts in worker processes: first those that mostly compile, side by side, then those that are timed.

    ``command(options, out, failure)`` is the command line of a worker; ``failure`` as in ``run_parts``. Returns the merged
    results, which are also in ``out``.
    """
    until, began = time.monotonic() + options.budget, time.monotonic()
    with contextlib.suppress(ValueError):  # raised outside the main thread
        # Unwind the stack on SIGTERM, so that no worker is left behind.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    def job(name: str, parts: tuple[str, ...], shard: str = "0/1", environment: dict[str, str] | None = None) -> Job:
        place = out.with_name(f"{out.stem}.{name}.json")
        place.unlink(missing_ok=True)
        own = dataclasses.replace(options, parts=parts, shard=shard)
        return Job(
            lambda left, failure: command(dataclasses.replace(own, budget=left), place, failure),
            place,
            environment or {},
        )

    # As many workers as can compile side by side; what "bench" launches is compiled in the same phase.
    share = max(1, (os.cpu_count() or 1) // 4)
    max_workers = {"kernels": 6, "models": 4, "warm": min(5, _concurrent_warm_ups(options))}
    first: list[str] = [part for part in ("kernels", "models") if part in options.parts]
    first += ["warm"] if "bench" in options.parts else []
    shards = {part: min(max_workers[part], share) for part in first}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, sum(shards.values()))))}
    side_by_side = [job(f"{part}{i}", (part,), f"{i}/{n}", threads) for part, n in shards.items() for i in range(n)]
    rest = tuple(part for part in options.parts if part not in first)
    others = [job("others", rest)] if rest else []
    results: dict[str, Any] = {}

    def changed() -> None:
        results.clear()
        results.update(merged(j.results() for j in [*side_by_side, *others]))
        results["seconds"] = round(time.monotonic() - began, 1)
        write_results(out, results)
        write_report(results, out)

    for jobs in (side_by_side, others):
        watch(jobs, until + 12, changed)  # grace for a worker that keeps to its time
    changed()
    return results


def write_report(results: dict[str, Any], out: Path) -> str:
    """Write the results as Markdown next to ``out``, and return the text."""
    page = report.markdown(results)
    out.with_suffix(".md").write_text(page)
    return page


def all_good(results: dict[str, Any]) -> bool:
    """Whether no step failed and every comparison held."""
    rows = [row for part in ("kernels", "models") for row in results.get(part, [])]
    return all(row["ok"] for row in rows) and not results["failed"]


def _concurrent_warm_ups(options: CheckOptions) -> int:
    """How many workers that compile whole layers fit on the first GPU at the same time; 1 if that is unknown."""
    from jambacli.gpu_check.speed import warm_bytes
    from jambacli.hardware import nvml

    gpus = nvml.gpus()
    if not gpus or options.tiny:
        return 1
    each = [warm_bytes(shape, quant) for shape in options.shapes for quant in options.quants]
    # Half of the memory: workers with single kernels and tiny models run at the same time.
    return max(1, gpus[0].free // 2 // max(1, *each))


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

    gpus = nvml.gpus()
    return facts | {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory": p.total_memory,
        "multiprocessors": p.multi_processor_count,
        "peak_flops": gpus[0].peak_flops if gpus else None,
    }


def _kernels(suite: Suite, device: Any, shard: str = "0/1") -> None:
    """Run every parity case as a separate step, so that one that fails does not hide the others."""
    from jambacli.gpu_check.parity import cases, device_cases

    rows = suite.results.setdefault("kernels", [])
    start = time.monotonic()
    allowed = 0.45 * suite.budget
    first, step = (int(x) for x in shard.split("/"))
    # What a GPU alone can tell comes first.
    chosen = [*(device_cases() if device.type == "cuda" else ()), *cases()][first::step]
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
            row["problem"] = f"{type(error).__name__}: {first_line(error)}"[:300]
            suite.log(f"FAILED {case.name}: {row['problem'][:200]}")
        rows.append(row)
        suite.end(case.name)
        if "problem" in row:
            release_memory()
    suite.log(f"kernels: {sum(r['ok'] for r in rows)} of {len(rows)} hold, {time.monotonic() - start:.1f} s")
    suite.save()
