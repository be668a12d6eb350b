"""Where and how a model is loaded: the options of ``Jamba.load``, of the command line and of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class DeviceKeywords(TypedDict, total=False):
    """The fields of DeviceOptions, as keyword arguments of ``Jamba.load``."""

    device: str
    threads: int | None
    gpu_memory: int | None
    cpu_experts: int | None
    cpu_kv: bool
    precise: bool


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a model computes.

    ``device``: "auto" (a GPU that works, else the CPU), "cpu", "cuda" or "cuda:N". ``threads``: CPU threads of the process,
    None for the number of cores. ``gpu_memory``: maximum GPU memory to use in bytes, None for all that is free.
    ``cpu_experts``: how many layers keep their experts in host memory, None for as many as do not fit on the GPU.
    ``cpu_kv``: keep keys and values in host memory. ``precise``: multiply quantized weights with
    activations of 15 bits (decode) and float32 (prefill) instead of int8: slower, and closer to the exact model. The mode
    is part of a state's identity. On a GPU precise decode takes float32 activations, and without the option the mode is the
    one that was measured to be faster. In prefill on a GPU, and with bf16 or AMX, it changes nothing.
    """

    device: str = "auto"
    threads: int | None = None
    gpu_memory: int | None = None
    cpu_experts: int | None = None
    cpu_kv: bool = False
    precise: bool = False
