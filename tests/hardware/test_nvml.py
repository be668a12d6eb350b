"""NVIDIA GPUs as a driver library reports them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jambacli.hardware import devices, nvml

# A driver library with two GPUs, one of them old, and NVML's own signatures.
DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int started;
int nvmlInit_v2(void) { started = 1; return FAILS; }
int nvmlShutdown(void) { started = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return started ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory *m) {
    if ((long)d == 2) return 4;
    m->total = (unsigned long long)(long)d << 34; m->free = m->total - 5; m->used = 5; return 0;
}
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { strcpy(s, (long)d == 1 ? "GPU-aaaa" : "GPU-bbbb"); return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strcpy(s, (long)d == 1 ? "NVIDIA H100" : "Old"); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    *major = (long)d == 1 ? 9 : 6; *minor = 0; return 0;
}
int nvmlDeviceGetNumGpuCores(void *d, unsigned *n) { *n = 16896; return 0; }
int nvmlDeviceGetMaxClockInfo(void *d, int kind, unsigned *mhz) { *mhz = kind == 1 ? 1980 : 1; return 0; }
"""


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    (folder / "driver.c").write_text(DRIVER.replace("FAILS", str(fails)))
    library = folder / f"libdriver{fails}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    monkeypatch.setattr(nvml, "_LIBRARIES", {"linux": [str(folder / "none.so"), str(library)]})


def test_gpus_come_from_the_driver_without_broken_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, last = nvml.gpus()
    assert (first.index, first.uuid, first.name) == (0, "GPU-aaaa", "NVIDIA H100")
    assert (first.total, first.free) == (1 << 34, (1 << 34) - 5)
    # NVIDIA's data sheet: 989 TFLOP/s for the H100 SXM, at a clock of 1830 MHz.
    assert first.peak_flops * 1830 / 1980 == pytest.approx(989e12, rel=0.01)
    assert (last.index, last.peak_flops) == (2, 0)
    known, unknown = devices.devices()[1:]
    assert [known.name, unknown.name] == ["NVIDIA H100", "Old"]
    assert known.flops > 0 and unknown.flops == 0


@pytest.mark.parametrize(
    ("setting", "uuids"),
    [
        ("0", ["GPU-aaaa"]),
        ("2,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-bb", ["GPU-bbbb"]),
        ("", []),
        ("-1", []),
        ("0,7,2", ["GPU-aaaa"]),
    ],
)
def test_cuda_visible_devices_selects_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, uuids: list[str]
) -> None:
    driver(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [gpu.uuid for gpu in nvml.gpus()] == uuids


def test_without_a_working_driver_there_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, fails=9)
    assert nvml.gpus() == []
    monkeypatch.setattr(nvml, "_LIBRARIES", {})
    assert nvml.gpus() == []


@pytest.mark.gpu
def test_gpus_agree_with_torch() -> None:
    import torch

    found = nvml.gpus()
    assert [gpu.name for gpu in found] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for i, gpu in enumerate(found):
        assert gpu.total == pytest.approx(torch.cuda.get_device_properties(i).total_memory, rel=0.05)
        assert 1e13 < gpu.peak_flops < 1e16
