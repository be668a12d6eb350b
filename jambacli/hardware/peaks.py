"""Measures the CPU's peak rates (memory bandwidth, matrix products) and this process's peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _best(run: Callable[[], object], seconds: float = 0.4, least: int = 3) -> float:
    """The shortest time of one ``run`` in seconds, over at least ``least`` runs and ``seconds`` seconds."""
    run()
    best, began, n = float("inf"), time.perf_counter(), 0
    while n < least or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        n += 1
    return best


def read_bandwidth(size: int = 512 << 20) -> float:
    """Bytes per second that torch's threads read from memory while summing ``size`` bytes."""
    import torch

    data = torch.ones(size // 8, dtype=torch.int64)
    return data.nbytes / _best(data.sum)


def matrix_rate(rows: int = 512, width: int = 4096) -> tuple[str, float]:
    """The faster of torch's bf16 and f32 matrix products on the CPU: its name and floating-point operations per second."""
    import torch

    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        a, b = torch.randn(rows, width).to(dtype), torch.randn(width, width).to(dtype)

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return a @ b.T

        rates[name] = 2 * rows * width * width / _best(product, 0.5)
    name = max(rates, key=rates.__getitem__)
    return name, rates[name]
