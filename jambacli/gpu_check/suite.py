"""The parts of the GPU check and the order in which they run.

Parts run in order of importance: the environment and one product, every kernel against its reference, products in other orders
and tiles, whole models on CPU and GPU, then speed and memory of synthetic models. A part that fails is recorded and the others
continue, without what needs a kernel that was found wrong; steps that no longer fit into the time are recorded as skipped.

On a GPU the parts run in worker processes, which are restarted after a step that crashes or hangs. A second Python, with
another pair of torch and Triton, repeats the parts that depend on the compiler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import first_line
from jambacli.gpu_check import report
from jambacli.gpu_check.needs import ENOUGH, kernel_of, wrong_kernels
from jambacli.gpu_check.results import DeviceLostError, Suite, release_memory, write_results
from jambacli.gpu_check.workers import LOST, Job, merged, watch

if TYPE_CHECKING:
    from jambacli.gpu_check.parity import Case

logger = logging.getLogger(__name__)

PARTS = ("rates", "kernels", "products", "models", "bench", "growth", "gemv", "limits", "rest")
#: Parts that another Python repeats.
REPEATED = ("rates", "kernels", "products", "bench")
# The share of its worker's time that a part may take.
_SHARES = {"kernels": 0.3, "products": 0.25, "models": 0.3, "bench": 0.4, "growth": 0.3, "gemv": 0.4, "limits": 0.6}


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to run. ``limits``: GB of GPU memory to simulate. ``budget``: seconds for everything. ``formats``: of the
    matrix-vector product alone, for which ``tune`` tries other tiles too. ``shard``: "i/n", every n-th case from the i-th on.
    ``wrong``: kernels found wrong by earlier parts, see ``needs``. ``also``: another Python that repeats some parts.
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
    wrong: tuple[str, ...] = ()
    also: str | None = None


def run_parts(options: CheckOptions, out: Path, failure: str | None = None) -> int:
    """Run the parts in this process; returns ``LOST`` if the GPU can no longer be used in it, else 0.

    ``failure``: how the process before this one ended, whose results in ``out`` are continued.
    """
    import torch

    from jambacli.gpu_check import environment, growth, models, products, speed

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # The reference computes in float32, so no TF32 where it runs on the GPU.
    torch.set_float32_matmul_precision("highest")
    suite = Suite(out, options.budget, options.tiny)
    if failure is not None and out.exists():
        suite.resume(failure)
    suite.results["machine"] = environment.machine(device)
    suite.results["date"] = time.strftime("%Y-%m-%d")
    suite.log(json.dumps(suite.results["machine"]))
    shapes, quants = list(options.shapes), list(options.quants)

    def wrong() -> list[str]:
        return sorted({*options.wrong, *wrong_kernels(suite.results.get("kernels", []))})

    full_size = None if suite.tiny or device.type != "cuda" else partial(speed.full_size_growth, suite, device)
    steps: dict[str, Callable[[], None]] = {
        "rates": lambda: _first(suite, device),
        "kernels": lambda: _kernels(suite, device, options.shard),
        "products": lambda: products.table(suite, device, wrong()),
        "models": lambda: models.models(suite, device, options.shard, wrong()),
        "warm": lambda: speed.warm(suite, device, shapes, quants, options.shard),
        "bench": lambda: speed.bench(suite, device, shapes, quants, wrong()),
        "growth": lambda: growth.growth(suite, device, full_size, wrong()),
        "gemv": lambda: products.sweep(suite, device, options.formats, tune=options.tune, wrong=wrong()),
        "limits": lambda: speed.limits(suite, device, list(options.limits), wrong()),
        "rest": lambda: speed.rest(suite, device, shapes, quants, wrong()),
    }
    try:
        for part in options.parts:
            suite.begin_part(_SHARES.get(part, 1.0))
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
    """Run the parts in worker processes, in the order of ``PARTS``; parts that mostly compile run side by side.

    ``command(options, out, failure)`` is the command line of a worker; ``failure`` as in ``run_parts``. Returns the merged
    results, which are also in ``out``; those of another Python are under "also".
    """
    until, began = time.monotonic() + options.budget, time.monotonic()
    with contextlib.suppress(ValueError):  # raised outside the main thread
        # Unwind the stack on SIGTERM, so that no worker is left behind.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results: dict[str, Any] = {"failed": [], "skipped": []}
    own: list[Job] = []
    others: list[Job] = []

    def job(name: str, parts: tuple[str, ...], shard: str = "0/1", **changes: Any) -> Job:
        place = out.with_name(f"{out.stem}.{name}.json")
        place.unlink(missing_ok=True)
        chosen = dataclasses.replace(options, parts=parts, shard=shard, **changes)

        def line(left: float, failure: str | None) -> list[str]:
            found = results.get("also", {}) if chosen.also else results
            wrong = tuple(wrong_kernels(found.get("kernels", [])))
            return command(dataclasses.replace(chosen, budget=left, wrong=wrong), place, failure)

        made = Job(line, place, threads)
        (others if chosen.also else own).append(made)
        return made

    def changed() -> None:
        results.clear()
        results.update(merged(j.results() for j in own))
        if others:
            results["also"] = merged(j.results() for j in others)
        results["seconds"] = round(time.monotonic() - began, 1)
        write_results(out, results)
        write_report(results, out)

    def run(*jobs: Job) -> None:
        watch(list(jobs), until + 12, changed)  # grace for a worker that keeps to its time
        changed()

    # As many workers as can compile side by side; what "bench" launches is compiled in the same phase.
    share = max(1, (os.cpu_count() or 1) // 4)
    most = {"kernels": 6, "models": 4, "warm": min(5, _concurrent_warm_ups(options))}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (2 * share)))}

    def sharded(*parts: str) -> list[Job]:
        counts = {part: min(most[part], share) for part in parts}
        return [job(f"{part}{i}", (part,), f"{i}/{n}", also=None) for part, n in counts.items() for i in range(n)]

    def alone(name: str, parts: Sequence[str], **changes: Any) -> list[Job]:
        chosen = tuple(part for part in parts if part in options.parts)
        return [job(name, chosen, **changes)] if chosen else []

    run(*alone("first", ("rates",), also=None))
    compiling = ["kernels"] if "kernels" in options.parts else []
    compiling += ["warm"] if "bench" in options.parts else []
    run(*sharded(*compiling))
    run(*alone("products", ("products",), also=None))
    if options.also is not None:
        if problem := _cannot_run(options.also):
            results["failed"].append({"step": f"--also {options.also}", "error": problem})
            write_results(out, results)
            own.append(_noted(out, results["failed"][-1:]))
        else:
            few = {"shapes": options.shapes[:1], "quants": options.quants[:1]}
            run(*alone("also", REPEATED, **few))
    if "models" in options.parts:
        run(*sharded("models"))
    run(*alone("others", ("bench", "growth", "gemv", "limits", "rest"), also=None))
    return results


def _cannot_run(python: str) -> str | None:
    """Why another Python cannot run the check, None if it can."""
    code = "import torch, triton, numpy, psutil, jambacli; assert torch.cuda.is_available(), 'it finds no GPU'"
    try:
        ran = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return None if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["it does not start"])[-1]


def _noted(out: Path, failed: list[dict[str, str]]) -> Job:
    """A job that is over and has only failed."""
    place = out.with_name(f"{out.stem}.also.json")
    write_results(place, {"failed": failed})
    return Job(lambda left, failure: [], place, over=True)


def write_report(results: dict[str, Any], out: Path) -> str:
    """Write the results as Markdown next to ``out``, and return the text."""
    page = report.markdown(results)
    out.with_suffix(".md").write_text(page)
    return page


def all_good(results: dict[str, Any]) -> bool:
    """Whether no step failed and every comparison held."""
    rows = [row for part in ("kernels", "models", "growth") for row in results.get(part, [])]
    good = all(row["ok"] for row in rows) and not results["failed"]
    return good and ("also" not in results or all_good(results["also"]))


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


def _first(suite: Suite, device: Any) -> None:
    """One product against float64, then the GPU's rates."""
    from jambacli.gpu_check import parity, speed

    alive = parity.Case(
        "alive: norm q4_k, 4 rows a thread, 2 warps", 1e-4,
        partial(parity.tiled_product, "q4_k", "norm", 4, 2, 70 if suite.tiny else 10240, 512 if suite.tiny else 2560),
    )  # fmt: skip
    _compare(suite, device, alive)
    speed.rates(suite, device)


def _kernels(suite: Suite, device: Any, shard: str = "0/1") -> None:
    """Run every parity case as a separate step, so that one that fails does not hide the others."""
    from jambacli.gpu_check.parity import cases, device_cases

    rows = suite.results.setdefault("kernels", [])
    start = time.monotonic()
    first, step = (int(x) for x in shard.split("/"))
    # What a GPU alone can tell comes first.
    chosen = [*(device_cases() if device.type == "cuda" else ()), *cases()][first::step]
    if suite.tiny:
        chosen = chosen[::9]
    wrong: Counter[str] = Counter()
    for case in chosen:
        kernel = kernel_of(case.name)
        if suite.left < 1:
            suite.results["skipped"].append(f"kernel cases from {case.name} on")
            break
        if wrong[kernel] >= ENOUGH:
            if wrong[kernel] == ENOUGH:
                suite.skip_for_kernel(f"further cases of {kernel}", kernel)
                wrong[kernel] += 1
            continue
        wrong[kernel] += not _compare(suite, device, case)
    suite.log(f"kernels: {sum(r['ok'] for r in rows)} of {len(rows)} hold, {time.monotonic() - start:.1f} s")
    suite.save()


def _compare(suite: Suite, device: Any, case: Case) -> bool:
    """Run a case as a step; whether it holds, or an earlier process ran it."""
    if not suite.begin(case.name, 1):
        return True
    row: dict[str, Any] = {"case": case.name, "error": None, "tolerance": case.tolerance, "ok": False}
    try:
        row["error"] = case.run(device)
        row["ok"] = row["error"] <= case.tolerance
    except Exception as error:
        row["problem"] = f"{type(error).__name__}: {first_line(error)}"[:300]
        suite.log(f"FAILED {case.name}: {row['problem'][:200]}")
    suite.results.setdefault("kernels", []).append(row)
    suite.end(case.name)
    if "problem" in row:
        release_memory()
    return bool(row["ok"])
