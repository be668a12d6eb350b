"""Whether a model that is to be loaded fits into the memory of its device, beside those that are loaded already."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.hardware.devices import devices
from jambacli.runtime.memory_plan import MemoryPlan, memory_plan
from jambacli.runtime.options import DeviceOptions
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.gguf.summary import Summary


@dataclass(frozen=True)
class Shortage:
    """Why a model does not fit. ``ever``: it would fit if nothing else were loaded."""

    reason: str
    ever: bool


def summary_of(path: Path) -> Summary:
    """The description of a file or checkpoint, read again only after it has changed. Raises JambaError."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _summary(path, changed)


@functools.lru_cache(256)
def _summary(path: Path, changed: int) -> Summary:
    if path.is_dir():
        from jambacli.convert.summary import summarize_checkpoint

        return summarize_checkpoint(path)
    from jambacli.gguf.summary import summarize

    return summarize(path)


class DeviceMemory:
    """Plans the memory of one device with the options with which every model is loaded."""

    def __init__(self, options: DeviceOptions, ctx: int | None, kv_type: str | None) -> None:
        self._options, self._ctx, self._kv_type = options, ctx, kv_type or "f16"

    def shortage(self, path: Path, loaded: Iterable[Path]) -> Shortage | None:
        """Why the model does not fit beside those in ``loaded``, None if it does. Raises JambaError for a bad file."""
        summary = summary_of(path)
        config = summary.config
        ctx = min(self._ctx or config.context_length, config.context_length)
        found = devices()
        arguments = (summary.weight_bytes, summary.expert_bytes, ctx, self._kv_type, found, summary.tensors)
        plan = memory_plan(config, *arguments)
        others = list(loaded)
        gpu = self._gpu()
        if gpu is not None and gpu + 1 < len(plan.fits):
            return _on_gpu(summary.name, plan, gpu + 1, bool(others))
        weights = {other: summary_of(other).weight_bytes for other in others}
        return _on_cpu(summary.name, plan, found[0].available, sum(weights.values()))

    def _gpu(self) -> int | None:
        """The number of the GPU on which models are loaded, None for the CPU."""
        if self._options.device == "cpu":
            return None
        from jambacli.runtime.device import gpu_problem

        if gpu_problem() is not None:
            return None
        return int(self._options.device.partition(":")[2] or 0)


def _on_cpu(name: str, plan: MemoryPlan, available: int, mapped: int) -> Shortage | None:
    """``mapped``: bytes of other models' files, which the system counts as available but would have to read again."""
    free = max(0, available - mapped)
    if plan.total <= free:
        return None
    parts = f"{format_bytes(plan.weights)} of weights, {format_bytes(plan.total - plan.weights)} to compute {plan.ctx:,} tokens"
    reason = f"{name} needs {format_bytes(plan.total)} of memory ({parts}), and {format_bytes(free)} are free"
    return Shortage(reason, plan.total <= available)


def _on_gpu(name: str, plan: MemoryPlan, index: int, others: bool) -> Shortage | None:
    """Alone on the GPU, loading itself decides what goes to host memory, and whether that fits."""
    fit = plan.fits[index]
    if fit.verdict in ("fits", "unsupported") or not others:  # what is not supported, loading says
        return None
    free = fit.device.available
    reason = f"{name} needs {format_bytes(free - fit.spare)} of GPU memory, and {format_bytes(free)} are free"
    return Shortage(reason, True)
