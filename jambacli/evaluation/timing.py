"""Times work on a device. Work on a GPU is queued, so its end has to be waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all queued work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], Any], times: int, warmup: int = 2) -> float:
    """Seconds of one run: on a GPU the mean of ``times`` queued runs after ``warmup``, on the CPU a single one."""
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    for _ in range(warmup):
        run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times


def recorded(device: torch.device, run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a CUDA graph, so that timing excludes kernel launches, which take longer than some kernels."""
    import torch

    if device.type != "cuda":
        return run
    run()  # compilation and first-use set-up cannot be recorded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
