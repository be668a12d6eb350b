"""The NVIDIA GPUs of this machine, as the driver's own library (NVML) reports them. Needs neither torch nor CUDA.

Calls and structures follow NVIDIA's NVML API reference. Without a working driver the list is empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_LIBRARIES = {
    "win32": ["nvml.dll"],
    "linux": ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"],
}
_SM_CLOCK = 1

# By compute capability: tensor-core operations in bf16 (7.x: fp16) per multiprocessor and clock, and CUDA cores per
# multiprocessor, from NVIDIA's architecture white papers. A capability that is not listed takes the nearest older one.
_TENSOR_RATES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (1024, 64),
    (7, 5): (1024, 64),
    (8, 0): (2048, 64),
    (8, 6): (1024, 128),
    (8, 9): (1024, 128),
    (9, 0): (4096, 128),
    (10, 0): (8192, 128),
    (12, 0): (1024, 128),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in bytes; ``peak_flops`` is its dense bf16 matrix rate per second, 0 if unknown."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    peak_flops: float


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible; empty without a working driver."""
    nvml = _load()
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = [gpu for i in range(count.value) if (gpu := _gpu(nvml, i)) is not None]
    finally:
        nvml.nvmlShutdown()
    return list(_visible(found, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _load() -> ctypes.CDLL | None:
    for name in _LIBRARIES.get(sys.platform, []):
        with contextlib.suppress(OSError, AttributeError):  # missing, or older than NVML's second version
            library = ctypes.CDLL(name)
            _ = library.nvmlInit_v2, library.nvmlDeviceGetCount_v2, library.nvmlDeviceGetHandleByIndex_v2
            return library
    return None


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu | None:
    device, memory = ctypes.c_void_p(), _Memory()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
        return None
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID, device),
        name=_text(nvml.nvmlDeviceGetName, device) or "NVIDIA GPU",
        total=memory.total,
        free=memory.free,
        peak_flops=_peak_flops(nvml, device),
    )


def _text(call: ctypes._NamedFuncPointer, device: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(96)
    return buffer.value.decode("utf-8", "replace") if call(device, buffer, ctypes.c_uint(96)) == 0 else ""


def _peak_flops(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> float:
    major, minor, cores, clock = ctypes.c_int(), ctypes.c_int(), ctypes.c_uint(), ctypes.c_uint()
    try:
        failed = (
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            or nvml.nvmlDeviceGetNumGpuCores(device, ctypes.byref(cores))
            or nvml.nvmlDeviceGetMaxClockInfo(device, ctypes.c_int(_SM_CLOCK), ctypes.byref(clock))
        )
    except AttributeError:  # a driver older than these calls
        return 0.0
    known = [at for at in _TENSOR_RATES if at <= (major.value, minor.value)]
    if failed or not known:
        return 0.0
    rate, cores_each = _TENSOR_RATES[max(known)]
    return cores.value / cores_each * rate * clock.value * 1e6


def _visible(found: list[Gpu], setting: str | None) -> Iterator[Gpu]:
    """The GPUs named by CUDA_VISIBLE_DEVICES, in its order: indexes or UUID prefixes, up to the first invalid one."""
    if setting is None:
        yield from found
        return
    for item in setting.split(","):
        word = item.strip()
        match = [gpu for gpu in found if word and (str(gpu.index) == word or gpu.uuid.startswith(word))]
        if len(match) != 1:
            return
        yield match[0]
