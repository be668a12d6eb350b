"""Choosing a device on machines without a GPU, with a driver that is too old, and with a GPU on which something fails."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import JambaError, UsageError
from jambacli.hardware import nvml
from jambacli.model.config import JambaConfig
from jambacli.runtime import device as devices
from jambacli.runtime.options import DeviceOptions
from tests.support.log_lines import log_lines

GPU = nvml.Gpu(0, "GPU-1", "A GPU", 24 << 30, 20 << 30, 1e14)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvml, "gpus", list)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(nvml, "gpus", lambda: [GPU])


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_without_a_note() -> None:
    found = devices.find_device("auto")
    assert found.device.type == "cpu"
    assert found.note is None


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(JambaError, match="built without CUDA"):
        devices.find_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(JambaError, match="finds no GPU"):
        devices.find_device("cuda:0")


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvml, "gpus", lambda: [GPU])
    with pytest.raises(JambaError, match=r"driver is too old .*CUDA 13\.0"):
        devices.find_device("cuda")
    found = devices.find_device("auto")
    assert found.device.type == "cpu"
    assert "driver is too old" in (found.note or "")


@pytest.mark.usefixtures("one_gpu")
def test_gpus_are_numbered_from_zero() -> None:
    assert devices.find_device("auto").device == torch.device("cuda", 0)
    assert devices.find_device("cuda").device == torch.device("cuda", 0)
    assert devices.find_device("cpu").device.type == "cpu"
    with pytest.raises(JambaError, match="has 1 GPU, numbered from 0"):
        devices.find_device("cuda:1")


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "mps"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="not one of auto, cpu, cuda, cuda:N"):
        devices.find_device(word)


@pytest.mark.usefixtures("no_gpu")
def test_gpu_options_need_a_gpu() -> None:
    with pytest.raises(UsageError, match="gpu_memory needs a GPU"):
        Jamba.load(None, device="cpu", gpu_memory=1 << 30)
    with pytest.raises(UsageError, match="cpu_experts and cpu_kv need a GPU"):
        Jamba.load(None, cpu_kv=True, cpu_experts=1)


@pytest.mark.usefixtures("no_gpu")
def test_without_the_cpp_kernels_torch_computes_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels import cpu

    with log_lines() as lines:
        Jamba.load("jamba:tiny")
    assert not any("slower" in line for line in lines) or not cpu.available()
    monkeypatch.setattr(cpu, "available", lambda: False)
    with log_lines() as lines:
        model = Jamba.load("jamba:tiny")
    assert sum("using torch, which is slower" in line for line in lines) == 1
    assert model.logits([1, 2, 3]).isfinite().all()


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("system", "release", "own", "expected"),
    [
        ("linux", "6.8.0", None, "expandable_segments:True"),
        ("linux", "6.8.0", "backend:native", "backend:native"),
        ("linux", "5.15.0-microsoft-standard-WSL2", None, None),
        ("win32", "11", None, None),
    ],
)
def test_blocks_of_gpu_memory_can_grow_where_that_works(
    system: str, release: str, own: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    devices.find_device("cuda")
    assert os.environ.get(name) == expected


@pytest.mark.usefixtures("one_gpu")
def test_auto_falls_back_if_the_gpu_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import load

    monkeypatch.setattr(load, "load_on_gpu", _fails)
    with log_lines() as lines:
        model = Jamba.load(None, device="auto")
    assert model.model.device.type == "cpu"
    assert any("no kernel image" in line for line in lines)
    with pytest.raises(JambaError, match="device 'cuda' failed: no kernel image"):
        Jamba.load(None, device="cuda")


@pytest.mark.usefixtures("one_gpu")
def test_a_failing_compiler_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import load

    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"])

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(load, "load_on_gpu", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    config = JambaConfig.from_hf({})
    parts = lambda: config, dict, lambda device: fails, lambda: "on the CPU"
    assert devices.load_on(DeviceOptions(), *parts) == "on the CPU"  # type: ignore[arg-type]
    with pytest.raises(JambaError, match=r"device 'cuda' failed: Command .*gcc"):
        devices.load_on(DeviceOptions(device="cuda"), *parts)  # type: ignore[arg-type]


def _fails(*_: object, **__: object) -> None:
    raise RuntimeError("no kernel image is available\nand more")


def test_why_not_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels import triton as kernels
    from jambacli.kernels.triton import why_not

    if _has_triton():  # kernels read TRITON_INTERPRET when they are imported, so import them before it changes
        importlib.import_module("jambacli.kernels.triton.ops")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    monkeypatch.setattr(kernels, "triton_version", lambda: None)
    assert "pip install 'jambacli[cuda]'" in (why_not() or "")
    monkeypatch.setattr(kernels, "triton_version", lambda: (3, 1))
    assert "triton 3.1 is too old" in (why_not() or "")
    monkeypatch.setattr(kernels, "triton_version", lambda: (3, 6))
    if kernels.triton_version() and _has_triton():
        assert "compute capability is 7.0" in (why_not() or "")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 0))
        monkeypatch.setattr(kernels, "triton_version", lambda: (3, 2))
        assert "triton 3.2 does not know the GPU's compute capability 12.0; 3.3 or newer" in (why_not() or "")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
        driver = importlib.import_module("triton.runtime").driver
        monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_device=_no_compiler))
        assert "Failed to find C compiler); it needs gcc" in (why_not() or "")
        monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_device=lambda: 0))
        assert why_not() is None


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"triton": "3.9.0"}, (3, 9)),
        ({"triton-windows": "3.8.0.post29"}, (3, 8)),
        ({"pytorch-triton": "3.7.1+git1"}, (3, 7)),
        ({}, (99, 0)),
    ],
)
def test_every_distribution_of_triton_is_known(
    installed: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    from jambacli.kernels.triton import triton_version

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert triton_version() == expected


def _no_compiler() -> None:
    raise RuntimeError("Failed to find C compiler")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
