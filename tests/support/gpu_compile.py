"""Compiles every kernel that a piece of code launches, for a given compute capability, without running it.

Triton's compiler needs no GPU; only its driver does. So the driver is replaced and a launch ends after compilation. The
code under test runs with CPU tensors, whose values afterwards mean nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel: its name, shared memory in bytes, and the assembly by kind (ttgir, ptx, cubin ...)."""

    name: str
    shared: int
    warps: int
    asm: dict[str, Any]


@contextlib.contextmanager
def compile_for(capability: int) -> Iterator[list[Compiled]]:
    """In this context launches only compile, for compute capability ``capability`` (75, 80, 90 ...)."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", capability, 32)
    found: dict[str, Compiled] = {}
    result: list[Compiled] = []
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in found:
            found[kernel.hash] = Compiled(kernel.name, kernel.metadata.shared, kernel.metadata.num_warps, kernel.asm)
            result.append(found[kernel.hash])
        return kernel

    fake = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_active_torch_device=lambda: "cpu",
        launcher_cls=lambda *a, **k: None,
    )
    driver.set_active(fake)
    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield result
    finally:
        JITFunction.run = original  # type: ignore[method-assign]
        driver._active = None  # Triton's initial value
