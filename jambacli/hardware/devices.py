"""The devices of this machine that can run a model, with their memory and speed. Never imports torch.

Speeds are effective prefill rates in floating-point operations per second. Measured ones are stored under JAMBA_HOME, others
are estimated from the instruction set and the number of cores, or from a GPU's peak rate.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from jambacli.errors import JambaError
from jambacli.files import atomic_write, jamba_home, open_regular
from jambacli.hardware import nvml

SPEEDS_FILE = "machine.json"
_MAX_SPEEDS_BYTES = 1 << 16

# Prefill GFLOP/s per core by CPU feature, best first: about 60% of torch's GEMM rate with it.
_CORE_GFLOPS: list[tuple[str, float, str]] = [
    ("amx_bf16", 260, "AMX"),
    ("avx512_bf16", 180, "AVX-512 BF16"),
    ("avx512f", 60, "AVX-512"),
    ("avx2", 40, "AVX2"),
    ("bf16", 60, "NEON BF16"),
    ("asimd", 25, "NEON"),
]
_UNKNOWN_GFLOPS = 10.0
_APPLE_GFLOPS = 80.0
# The share of a GPU's peak rate that prefill reaches.
_GPU_SHARE = 0.35


@dataclass(frozen=True)
class Device:
    """A CPU or GPU: ``kind`` "cpu" or "cuda", memory in bytes, prefill rate in FLOP/s (0 if unknown).

    ``key`` identifies it among the stored rates. ``how`` says what an estimated rate is based on.
    """

    kind: str
    key: str
    name: str
    total: int
    available: int
    flops: float
    measured: bool
    how: str


def devices() -> list[Device]:
    """The CPU, then each CUDA GPU."""
    known = remembered_speeds()
    return [_cpu(known), *(_gpu(gpu, known) for gpu in nvml.gpus())]


def cpu_key(threads: int) -> str:
    """The key of this CPU's rate with ``threads`` threads."""
    return f"cpu:{_cpu_name()}:{threads}"


def remember_speed(key: str, flops: float) -> None:
    """Store a measured prefill rate, in floating-point operations per second, for later estimates.

    ``key`` is ``cpu_key(threads)`` or ``"cuda:"`` and the GPU's UUID. Raises OSError if it cannot be written.
    """
    home = jamba_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    speeds = remembered_speeds() | {key: float(flops)}
    with atomic_write(home / SPEEDS_FILE, durable=False) as file:
        file.write(json.dumps({"prefill_flops": speeds}, indent=1).encode())


def remembered_speeds() -> dict[str, float]:
    """The stored prefill rates by key; empty if there are none or the file is damaged."""
    try:
        with open_regular(jamba_home() / SPEEDS_FILE) as file:
            stored = json.loads(file.read(_MAX_SPEEDS_BYTES))["prefill_flops"]
        return {
            str(key): float(value)
            for key, value in stored.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and value > 0
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, JambaError):
        return {}


def usable_cores() -> int:
    """Physical cores that this process may use, given its affinity and its container's quota."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(_physical_cores() or logical, logical)
    for folder in _cgroups("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            cores = min(cores, max(1, round(int(quota) / max(1, int(period)))))
    return max(1, cores)


def _cpu(known: dict[str, float]) -> Device:
    total, available = _memory()
    cores = usable_cores()
    key = cpu_key(cores)
    per_core, what = _core_rate()
    how = f"{cores} core{'s' if cores > 1 else ''}{f' with {what}' if what else ''}"
    # Cores share memory bandwidth and power: sixteen do about twelve times the work of one.
    flops = known.get(key, per_core * 1e9 * cores**0.9)
    return Device("cpu", key, _cpu_name(), total, available, flops, key in known, how)


def _gpu(gpu: nvml.Gpu, known: dict[str, float]) -> Device:
    key = f"cuda:{gpu.uuid}"
    flops = known.get(key, gpu.peak_flops * _GPU_SHARE)
    return Device("cuda", key, gpu.name, gpu.total, gpu.free, flops, key in known, f"GPU {gpu.index}")


def _memory() -> tuple[int, int]:
    """Total and available RAM in bytes, within the container's limit if there is one."""
    total, available = _ram()
    for folder in _cgroups("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if not (limit.isdigit() and used.isdigit()) or int(limit) >= total:
            continue
        stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        cached = sum(int(stat.get(name, "0")) for name in ("inactive_file", "active_file"))
        total = int(limit)
        available = min(available, max(0, total - int(used) + cached))
    return total, available


def _ram() -> tuple[int, int]:
    # psutil reads the same lines, but importing it takes longer than everything else in this module.
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    kib = [lines.get(name, "").split(" kB")[0].strip() for name in ("MemTotal", "MemAvailable")]
    if all(value.isdigit() for value in kib):
        total, available = (int(value) * 1024 for value in kib)
    else:
        import psutil

        memory = psutil.virtual_memory()
        total, available = memory.total, memory.available
    return total, min(available, total)


def _physical_cores() -> int:
    """Physical cores, 0 if their number is unknown."""
    facts = _cpu_facts()
    cores, siblings = facts.get("cpu cores", ""), facts.get("siblings", "")
    if cores.isdigit() and siblings.isdigit() and int(siblings):
        return round((os.cpu_count() or 1) * int(cores) / int(siblings))
    if facts:
        return 0
    import psutil

    return psutil.cpu_count(logical=False) or 0


def _cgroups(controller: str) -> list[Path]:
    """The directories of this process's control groups (version 2 and 1), outermost first."""
    root = Path("/sys/fs/cgroup")
    found: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = root if not controllers else root / controller if controller in controllers.split(",") else None
        if base is not None:
            own = base / path.lstrip("/")
            found += [folder for folder in (base, *reversed([own, *own.parents])) if folder.is_relative_to(base)]
    return list(dict.fromkeys(found))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


@functools.cache
def _cpu_facts() -> dict[str, str]:
    """The lines of the first processor in /proc/cpuinfo; the whole file is slow to read on machines with many."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as file:
        for line in itertools.takewhile(str.strip, file):
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts


def _cpu_name() -> str:
    return _cpu_facts().get("model name") or platform.processor() or platform.machine() or "CPU"


def _core_rate() -> tuple[float, str]:
    """Estimated prefill GFLOP/s of one core, and the name of the instruction set that the estimate is based on."""
    facts = _cpu_facts()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    for flag, gflops, name in _CORE_GFLOPS:
        if flag in flags:
            return gflops, name
    return (_APPLE_GFLOPS, "") if platform.machine() == "arm64" else (_UNKNOWN_GFLOPS, "")
