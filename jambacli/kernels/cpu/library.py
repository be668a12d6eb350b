"""Loads the compiled kernels, declares their functions and gives them torch's thread pool.

Environment: ``JAMBA_CPU_ISA`` (scalar, avx2, avxvnni, avx512, vnni, bf16, amx, neon, i8mm) lowers the instruction set, for
tests and comparisons; ``JAMBA_CPU_POOL=own`` uses the library's own threads instead of torch's OpenMP runtime.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import sys
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from quant.native.shared_library import SharedLibrary, load

ABI_VERSION, TRAIN_ABI_VERSION = 6, 1
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")

_P, _N, _I = c_void_p, c_int64, c_int
_ROWS = [_P, _N]  # an array and the distance between its rows
#: The arguments of the exported functions, in the order of c_interface.h: weights, inputs, state, outputs, sizes, threads.
#: All return a status.
FUNCTIONS: dict[str, list[Any]] = {
    "decode_linear": [_P, *_ROWS, *_ROWS, _N, _I, _I],
    "decode_embed": [_P, _P, _P, _N],
    "decode_check_step": [_N, _P],
    "decode_steps": [_P, _P, _P, _P, _P, _P, _N, _N, _I, _I],
    "prefill_linear": [_P, *_ROWS, *_ROWS, _N, _I, _I],
    "prefill_gated": [*[_P] * 6, *_ROWS, *_ROWS, _N, _I, _I],
    "prefill_dequantize": [_P, *_ROWS, _I],
    "prefill_element_bytes": [_I],
    "prefill_conv": [_P, _P, *_ROWS, _P, *_ROWS, _N, _N, _N, _I],
    "prefill_scan": [_P, _P, _P, *_ROWS * 5, _P, *_ROWS, _N, _N, _N, _I],
    "prefill_rms_norm": [_P, *_ROWS, _P, _N, _N, c_float, _I],
    "prefill_attention": [*_ROWS, _P, _P, _N, _N, _P, _I, *[_N] * 5, _I],
    "rotate_heads": [_P, _P, _N, _N, _I],
}
TRAIN_FUNCTIONS: dict[str, list[Any]] = {
    "train_scan": [_P, _N, _I, _I, _I],
    "train_conv": [_P, _N, _I, _I, _I],
    "train_norm": [_P, _N, _N, _I, _I, _I],
    "train_gate": [_P, _N, _I, _I, _I],
}


@functools.cache
def library() -> SharedLibrary | None:
    """The loaded library with its thread pool chosen, or None where it was not built. AMX is used only where it works."""
    lib = _load("_kernels", "kernels_abi_version", ABI_VERSION, FUNCTIONS)
    if lib is not None and lib.best_isa == "amx" and sys.platform == "linux":  # other systems' AMX is not used
        from jambacli.kernels.cpu import amx_check

        amx_check.limit(lib)
    return lib


@functools.cache
def train_library() -> SharedLibrary | None:
    """The training kernels, or None where they were not built: ``quant.native.build.build("_train")`` does it."""
    lib = _load("_train", "train_abi_version", TRAIN_ABI_VERSION, TRAIN_FUNCTIONS)
    if lib is not None:
        lib.functions.train_lanes.restype = lib.functions.train_chunk.restype = c_int64
    return lib


def _load(stem: str, abi_function: str, abi_version: int, functions: dict[str, list[Any]]) -> SharedLibrary | None:
    lib = load(Path(__file__).parent, stem, abi_function, abi_version)
    if lib is not None:
        for name, arguments in functions.items():
            getattr(lib.functions, name).argtypes = arguments
        _use_torch_pool(lib.functions)
    return lib


def built_library() -> SharedLibrary:
    """``library()``; RuntimeError where it was not built."""
    lib = library()
    if lib is None:
        raise RuntimeError("the C++ kernels were not built; install with a C++ compiler or rebuild with `make native`")
    return lib


def available() -> bool:
    """Whether the C++ kernels can be used in this process."""
    return library() is not None


def set_isa(name: str | None) -> str:
    """Run kernels at most at level ``name`` (None: the best, or JAMBA_CPU_ISA); returns the level now in use."""
    return built_library().set_isa(name)


def runnable_isas() -> tuple[str, ...]:
    """The levels that this machine runs, the lowest first; empty where the library was not built."""
    lib = library()
    if lib is None:
        return ()
    before = lib.isa
    found = tuple(name for name in lib.isa_names if lib.set_isa(name) == name)
    lib.set_isa(before)
    return found


def cpu_features() -> dict[str, str | int | bool]:
    """What the kernels run on: ``built``, ``isa`` in use, ``best_isa`` of this processor, ``cores``, ``machine``."""
    lib = library()
    report: dict[str, str | int | bool] = {
        "built": lib is not None,
        "cores": default_threads(),
        "machine": platform.machine(),
    }
    if lib is not None:
        report["best_isa"] = lib.best_isa
        report["isa"] = lib.isa
    return report


def default_threads() -> int:
    """Threads to use by default: the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


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


def _use_torch_pool(functions: ctypes.CDLL) -> None:
    """Give the library the entry points of torch's OpenMP runtime, so that both share one pool of threads."""
    functions.native_set_openmp.argtypes = [c_void_p] * 3
    functions.native_set_openmp.restype = None
    if os.environ.get("JAMBA_CPU_POOL", "").strip().lower() == "own":
        return
    for path in _openmp_candidates():
        try:
            runtime = ctypes.CDLL(str(path))
            entries = [
                ctypes.cast(getattr(runtime, name), c_void_p)
                for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            ]
        except (OSError, AttributeError):
            continue
        functions.native_set_openmp(*entries)
        return
