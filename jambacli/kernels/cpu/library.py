"""Finds and loads the compiled kernels and gives them torch's thread pool; knows nothing of what the kernels compute.

Environment: ``JAMBA_CPU_ISA`` (scalar, avx2, avx512, vnni, bf16, amx, neon) lowers the instruction set, for tests and
comparisons; ``JAMBA_CPU_POOL=own`` uses the library's own threads instead of torch's OpenMP runtime.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
from pathlib import Path

ABI_VERSION = 1
ISA_LEVELS = {"scalar": 0, "avx2": 1, "avx512": 2, "vnni": 3, "bf16": 4, "amx": 5, "neon": 10}
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library with its instruction set and thread pool chosen, or None where it was not built."""
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")) + sorted(
        Path(__file__).parent.glob("_kernels*.pyd")
    ):
        try:
            lib = ctypes.CDLL(str(path))
            version = lib.kernels_abi_version()
        except (OSError, AttributeError):
            continue
        if version != ABI_VERSION:
            continue
        _declare(lib)
        _use_torch_pool(lib)
        wanted = os.environ.get("JAMBA_CPU_ISA", "").strip().lower()
        if wanted in ISA_LEVELS:
            lib.kernels_set_isa(ISA_LEVELS[wanted])
        return lib
    return None


def _declare(lib: ctypes.CDLL) -> None:
    """The C signatures of the entry points (decode.cpp, embed.cpp, gemv.cpp, threads.cpp)."""
    pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    lib.kernels_set_openmp.argtypes = [pointer, pointer, pointer]
    lib.kernels_set_openmp.restype = None
    lib.kernels_linear.argtypes = [pointer, pointer, i64, i64, pointer, i64, i32]
    lib.kernels_embed.argtypes = [pointer, pointer, i64, pointer]
    lib.kernels_check_step.argtypes = [i64, pointer]
    lib.kernels_decode.argtypes = [pointer, i64, pointer, pointer, pointer, i64, i64, pointer, i64, i32]
    lib.kernels_read_bandwidth.argtypes = [pointer, i64, i32]
    lib.kernels_read_bandwidth.restype = ctypes.c_double


def available() -> bool:
    """Whether the C++ kernels can be used in this process."""
    return library() is not None


def set_isa(name: str | None) -> str:
    """Run kernels at most at level ``name`` (None: the best this machine has); returns the level now in force."""
    lib = library()
    if lib is None:
        raise RuntimeError("the C++ kernels were not built; install with a C++ compiler or rebuild with `make native`")
    level = lib.kernels_set_isa(lib.kernels_detect_isa() if name is None else ISA_LEVELS[name])
    return _isa_name(level)


def cpu_features() -> dict[str, str | int | bool]:
    """What the kernels run on: ``built``, ``isa`` in force, ``best_isa`` of this processor, ``cores``, ``machine``."""
    lib = library()
    report: dict[str, str | int | bool] = {
        "built": lib is not None,
        "cores": default_threads(),
        "machine": platform.machine(),
    }
    if lib is not None:
        best = lib.kernels_detect_isa()
        report["best_isa"] = _isa_name(best)
        report["isa"] = _isa_name(lib.kernels_isa())
    return report


def default_threads() -> int:
    """Threads to use when the user names none: the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _isa_name(level: int) -> str:
    return next(name for name, number in ISA_LEVELS.items() if number == level)


def _openmp_candidates() -> list[Path]:
    """Paths of the OpenMP runtime that torch brings or has already loaded, likeliest first; torch is not imported."""
    found: list[Path] = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations)))
        for folder in (package / "lib", package.parent / "torch.libs", package / ".dylibs"):
            for name in _OPENMP_NAMES:
                found += sorted(folder.glob(f"{name}*.so*")) + sorted(folder.glob(f"{name}*.dylib"))
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if line.rstrip().endswith(("so", "so.1"))}
        found += [Path(p) for p in sorted(loaded) if Path(p).name.startswith(_OPENMP_NAMES)]
    return found


def _use_torch_pool(lib: ctypes.CDLL) -> None:
    """Hand the library the entry points of torch's OpenMP runtime, so that both share one pool of threads."""
    if os.environ.get("JAMBA_CPU_POOL", "").strip().lower() == "own":
        return
    for path in _openmp_candidates():
        try:
            runtime = ctypes.CDLL(str(path))
            entries = [
                ctypes.cast(getattr(runtime, name), ctypes.c_void_p)
                for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            ]
        except (OSError, AttributeError):
            continue
        lib.kernels_set_openmp(*entries)
        return
