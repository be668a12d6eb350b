"""The memory plan: published figures, verdicts at their edges, and the machine it is measured against."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.evaluation.synthetic import choices
from jambacli.hardware import devices, nvml
from jambacli.hardware.devices import Device
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import CONTEXT_BYTES, gpu_sizes
from jambacli.runtime.cuda.placement import place
from jambacli.runtime.memory_plan import Plan, memory_plan, prefill_flops, scratch_bytes

MINI = JambaConfig.from_hf({})
MINI_Q4_K_M, MINI_EXPERTS = 31_200_000_000, 27_300_000_000
GB = 10**9


def device(kind: str, total: float, available: float | None = None, flops: float = 5e11) -> Device:
    free = total if available is None else available
    return Device(kind, kind, kind, int(total * GB), int(free * GB), flops, False, "")


def plan(*devices: Device, ctx: int = 262_144, kv_type: str = "f16") -> Plan:
    return memory_plan(MINI, MINI_Q4_K_M, MINI_EXPERTS, ctx, kv_type, devices)


def test_mini_at_256k_fits_an_a6000_as_published() -> None:
    found = plan(device("cpu", 64), device("cuda", 51.5))
    assert found.kv["f16"] == pytest.approx(4.3e9, rel=0.01)
    assert found.kv["f32"] == 2 * found.kv["bf16"] == 2 * found.kv["f16"]
    assert found.kv["q8_0"] == found.kv["f16"] * 34 // 64
    assert found.state == pytest.approx(17.4e6, rel=0.01)
    assert found.total == pytest.approx(36e9, rel=0.02)
    assert [fit.verdict for fit in found.fits] == ["fits", "fits"]


def test_the_total_is_the_sum_and_follows_the_kv_type() -> None:
    for kv_type in ("f32", "f16", "bf16", "q8_0"):
        found = plan(kv_type=kv_type)
        assert found.total == MINI_Q4_K_M + found.kv[kv_type] + found.state + found.scratch


@pytest.mark.parametrize(
    ("kind", "total", "available", "verdict"),
    [
        ("cpu", 64, 40, "fits"),
        ("cpu", 40, 20, "tight"),
        ("cpu", 24, 20, "from disk"),
        ("cpu", 4, 3, "too big"),
        ("cuda", 48, 47, "fits"),
        ("cuda", 24, 23.5, "experts in RAM"),
        ("cuda", 8, 7.5, "too big"),
    ],
)
def test_verdicts(kind: str, total: float, available: float, verdict: str) -> None:
    devices = [device("cpu", 64)] if kind == "cuda" else []
    fit = plan(*devices, device(kind, total, available)).fits[-1]
    assert fit.verdict == verdict
    assert (fit.spare >= 0) == (verdict == "fits")
    assert (fit.offload > 0) == (verdict == "experts in RAM")
    assert fit.offload <= 1.03 * MINI_EXPERTS


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("ctx", [4096, 262144])
@pytest.mark.parametrize("quant", ["q4_k_m", "experts_int8"])
def test_a_gpu_is_judged_as_loading_decides(quant: str, ctx: int, kv_type: str) -> None:
    """What ``load_on_gpu`` plans with, once a CUDA context has taken its part of what was free."""
    chosen = choices(MINI, quant)
    tensors = {name: (c.format, c.tensor.shape) for name, c in chosen.items()}
    weights = sum(c.nbytes for c in chosen.values())
    experts = sum(c.nbytes for name, c in chosen.items() if "_exps" in name)
    seen = set()
    for free in (4, 10, 16, 24, 32, 36, 40, 48, 64, 80):
        devices = device("cpu", 128), device("cuda", free)
        fit = memory_plan(MINI, weights, experts, ctx, kv_type, devices, tensors).fits[1]
        seen.add(fit.verdict)
        try:
            loaded = place(MINI, gpu_sizes(tensors), ctx, kv_type, free * GB - CONTEXT_BYTES)
        except JambaError:
            assert fit.verdict == "too big"
            continue
        assert fit.verdict == ("experts in RAM" if loaded.host_layers else "fits")
        assert fit.offload == loaded.host
        if fit.verdict == "fits":
            assert fit.spare == loaded.spare
            continue
        for name, longest in fit.largest_ctx.items():
            for tokens, fits in ((longest, True), (longest + 1024, False)):
                if 0 < tokens <= MINI.context_length:
                    other = memory_plan(MINI, weights, experts, tokens, name, devices, tensors).fits[1]
                    assert (other.verdict == "fits") == fits
    assert seen >= {"too big", "experts in RAM", "fits"}


def test_keys_and_values_in_ram_are_named_where_they_are_what_helps() -> None:
    for total, ram, helps in ((48, 64, False), (24, 64, False), (8, 64, True), (8, 16, False), (2, 64, False)):
        assert plan(device("cpu", ram), device("cuda", total)).fits[1].cpu_kv == helps, (total, ram)


def test_experts_stay_in_ram_only_where_ram_has_room() -> None:
    """Where it has none they are loaded all the same, as any weights are: from the file, whenever they are needed."""
    short = plan(device("cpu", 8), device("cuda", 24)).fits[1]
    assert short.verdict == "from disk" and short.offload > 8 * GB
    assert plan(device("cpu", 8), device("cuda", 6)).fits[1].verdict == "too big"
    assert plan(device("cpu", 8), device("cuda", 48, 24)).fits[1].verdict == "tight"


def test_the_largest_context_is_one_that_fits_and_no_smaller() -> None:
    roomy = plan(device("cpu", 64)).fits[0]
    assert set(roomy.largest_ctx.values()) == {262_144}
    for free in (32.5, 33, 34, 35):
        found = plan(device("cpu", 64, free)).fits[0].largest_ctx
        for kv_type, ctx in found.items():
            assert ctx % 1024 == 0
            if ctx:
                assert plan(device("cpu", 64, free), ctx=ctx, kv_type=kv_type).fits[0].spare >= 0
            if ctx < 262_144:
                assert plan(device("cpu", 64, free), ctx=ctx + 1024, kv_type=kv_type).fits[0].spare < 0
        assert found["q8_0"] >= found["f16"] >= found["f32"]


def test_prefill_work_counts_each_weight_twice_and_each_pair_of_tokens() -> None:
    small = JambaConfig.from_hf(
        {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 10,
         "num_key_value_heads": 1, "num_experts": 1, "attn_layer_period": 1, "attn_layer_offset": 0}
    )  # fmt: skip
    weights = small.params() - 2 * 10 * 8
    # Token i attends to i + 1 positions, two products of q's width each, in both layers.
    pairs = sum(i + 1 for i in range(100))
    assert prefill_flops(small, 100) == 2 * weights * 100 + 2 * 2 * 2 * 8 * pairs
    assert prefill_flops(small, 60) + prefill_flops(small, 40, 60) == pytest.approx(prefill_flops(small, 100))


def test_scratch_stays_within_what_the_engine_is_held_to() -> None:
    dense = JambaConfig.from_hf(
        {"num_hidden_layers": 28, "hidden_size": 2560, "intermediate_size": 8192, "num_attention_heads": 20,
         "num_key_value_heads": 1, "num_experts": 1, "tie_word_embeddings": True}
    )  # fmt: skip
    assert scratch_bytes(dense) < 600e6


def test_a_measured_speed_is_remembered_and_used() -> None:
    before = devices.devices()[0]
    assert not before.measured and before.flops > 0
    devices.remember_speed(before.key, 1.25e12)
    after = devices.devices()[0]
    assert (after.measured, after.flops) == (True, 1.25e12)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"prefill_flops": 3}', '{"prefill_flops": {"cpu": "fast", "x": -1, "y": NaN}}', "[" * 9999],
)
def test_a_damaged_speed_file_is_no_error(own_home: Path, content: str) -> None:
    own_home.mkdir()
    (own_home / devices.SPEEDS_FILE).write_text(content)
    assert devices.remembered_speeds() == {}
    devices.remember_speed("cpu", 2.0)
    assert devices.remembered_speeds() == {"cpu": 2.0}


def test_memory_and_cores_agree_with_psutil() -> None:
    import psutil

    cpu = devices.devices()[0]
    assert cpu.total <= psutil.virtual_memory().total
    assert 0 < cpu.available <= cpu.total
    assert 1 <= devices.usable_cores() <= psutil.cpu_count()


# A driver library with two GPUs, one of an old kind; NVML's own signatures.
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


def test_gpus_come_from_the_driver_and_broken_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, last = nvml.gpus()
    assert (first.index, first.uuid, first.name) == (0, "GPU-aaaa", "NVIDIA H100")
    assert (first.total, first.free) == (1 << 34, (1 << 34) - 5)
    # NVIDIA's data sheet says 989 Tflop/s for the H100 SXM, at a clock of 1830 MHz.
    assert first.peak_flops * 1830 / 1980 == pytest.approx(989e12, rel=0.01)
    assert (last.index, last.peak_flops) == (2, 0)
    fits = memory_plan(MINI, MINI_Q4_K_M, MINI_EXPERTS, 4096, "f16", devices.devices()).fits
    assert [fit.device.name for fit in fits[1:]] == ["NVIDIA H100", "Old"]
    assert fits[1].prefill_seconds and fits[2].prefill_seconds is None


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
def test_cuda_visible_devices_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, uuids: list[str]
) -> None:
    driver(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [gpu.uuid for gpu in nvml.gpus()] == uuids


def test_no_driver_or_a_broken_one_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
