"""--device on machines without a card, with a driver too old, and with a card on which something fails."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from types import SimpleNamespace

import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import JambaError, UsageError
from jambacli.hardware import nvml
from jambacli.model.config import JambaConfig
from jambacli.runtime import device as devices

CARD = nvml.Card(0, "GPU-1", "A card", 24 << 30, 20 << 30, 1e14)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvml, "cards", list)


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(nvml, "cards", lambda: [CARD])


@pytest.mark.usefixtures("no_card")
def test_auto_is_the_cpu_without_a_word() -> None:
    found = devices.find_device("auto")
    assert found.device.type == "cpu"
    assert found.note is None


@pytest.mark.usefixtures("no_card")
def test_a_card_that_is_asked_for_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(JambaError, match="built without CUDA"):
        devices.find_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(JambaError, match="no NVIDIA card"):
        devices.find_device("cuda:0")


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvml, "cards", lambda: [CARD])
    with pytest.raises(JambaError, match=r"driver is too old .*CUDA 13\.0"):
        devices.find_device("cuda")
    found = devices.find_device("auto")
    assert found.device.type == "cpu"
    assert "driver is too old" in (found.note or "")


@pytest.mark.usefixtures("one_card")
def test_cards_are_numbered_from_zero() -> None:
    assert devices.find_device("auto").device == torch.device("cuda", 0)
    assert devices.find_device("cuda").device == torch.device("cuda", 0)
    assert devices.find_device("cpu").device.type == "cpu"
    with pytest.raises(JambaError, match="there is 1 card, numbered from 0"):
        devices.find_device("cuda:1")


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "mps"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="none of auto, cpu, cuda, cuda:N"):
        devices.find_device(word)


@pytest.mark.usefixtures("no_card")
def test_options_of_a_card_need_one() -> None:
    with pytest.raises(UsageError, match="--cpu-kv are for a card"):
        Jamba.load(None, device="cpu", gpu_memory=1 << 30)
    with pytest.raises(UsageError, match="there is none in use here"):
        Jamba.load(None, cpu_kv=True)


@pytest.mark.usefixtures("no_card")
def test_without_the_kernels_torch_computes_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jambacli.kernels import cpu

    Jamba.load("jamba:tiny")
    assert "slower" not in capsys.readouterr().err or not cpu.available()
    monkeypatch.setattr(cpu, "available", lambda: False)
    model = Jamba.load("jamba:tiny")
    assert capsys.readouterr().err.count("torch computes alone, slower") == 1
    assert model.logits([1, 2, 3]).isfinite().all()


@pytest.mark.usefixtures("one_card")
def test_auto_falls_back_where_the_card_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jambacli.runtime.cuda import load

    monkeypatch.setattr(load, "load_on_card", _fails)
    model = Jamba.load(None, device="auto")
    assert model.model.device.type == "cpu"
    assert "no kernel image" in capsys.readouterr().err
    with pytest.raises(JambaError, match="--device cuda: no kernel image"):
        Jamba.load(None, device="cuda")


@pytest.mark.usefixtures("one_card")
def test_a_compiler_that_fails_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import load

    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"])

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(load, "load_on_card", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    config = JambaConfig.from_hf({})
    given = lambda: config, dict, lambda device: fails, lambda: "here"
    assert devices.load_on("auto", *given) == "here"  # type: ignore[arg-type]
    with pytest.raises(JambaError, match=r"--device cuda: Command .*gcc"):
        devices.load_on("cuda", *given)  # type: ignore[arg-type]


def _fails(*_: object, **__: object) -> None:
    raise RuntimeError("no kernel image is available\nand more")


def test_why_not_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels import triton as kernels
    from jambacli.kernels.triton import why_not

    if _has_triton():  # kernels see when they are imported whether they are interpreted: not first in here
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
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
        driver = importlib.import_module("triton.runtime").driver
        monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_device=_no_compiler))
        assert "Failed to find C compiler); it needs gcc" in (why_not() or "")
        monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_device=lambda: 0))
        assert why_not() is None


def _no_compiler() -> None:
    raise RuntimeError("Failed to find C compiler")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
