"""Decode on a GPU with activations rounded to int8: products, whole steps, and which of the two modes a model takes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jambacli.gpu_check.models import relative_error
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.placement import Placement
from jambacli.runtime.loader import build
from jambacli.session.session_file import SavedSession
from tests.support.log_lines import log_lines
from tests.support.triton_model import SMALL, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.evaluation.synthetic import random_weight
from jambacli.gpu_check.parity import packed_on
from jambacli.kernels.triton import limits
from jambacli.kernels.triton.dequant import dequantize
from jambacli.kernels.triton.gemv import gemv
from jambacli.runtime.cuda import decode_mode
from jambacli.runtime.cuda.load import put_on_gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = JambaConfig.from_hf(SMALL)
FORMATS = ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "i8")


@pytest.fixture(scope="module")
def model() -> Iterator[JambaModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "INT8_ROWS", 1)
        plan = Placement(0, 0, 0, 0, frozenset(), CONFIG.n_moe_layers)
        tensors = tiny_tensors(CONFIG, "int8")
        yield put_on_gpu(CONFIG, tensors.__getitem__, DEVICE, plan, dtype=torch.float32)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_product_stays_within_the_rounding_of_activations(fmt: str) -> None:
    """A value of x is off by at most half a level, a 127th of its group's largest; all of that times the weight's size."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 512, generator=generator) * torch.logspace(-3, 3, 512)
    x[0, 64:96] = 0
    w = packed_on(random_weight(fmt, (21, 512)), DEVICE)
    values = dequantize(w, torch.float32).view(21, 512).double().cpu()
    step = x.view(-1, 32).abs().amax(1, keepdim=True).double().expand(-1, 32).reshape(-1) / 127
    allowed = values.abs() @ step * 0.5001 + 1e-5 * (values.abs() @ x[0].abs().double())
    got = gemv(x.to(DEVICE), w, int8=True)[0].double().cpu()
    exact = values @ x[0].double()
    assert bool(((got - exact).abs() <= allowed).all())
    assert not torch.equal(got, gemv(x.to(DEVICE), w)[0].double().cpu())


def test_a_value_that_is_no_number_is_not_lost() -> None:
    w = packed_on(random_weight("q4_k", (8, 512)), DEVICE)
    for wrong in (float("nan"), float("inf")):
        x = torch.ones(1, 512)
        x[0, 300] = wrong
        assert not bool(gemv(x.to(DEVICE), w, int8=True).isfinite().any())


@pytest.mark.slow
def test_the_state_decides_how_its_tokens_are_computed(model: JambaModel) -> None:
    cpu = build(CONFIG, tiny_tensors(CONFIG, "int8").__getitem__, ops=reference_ops())
    ids = torch.randint(0, CONFIG.vocab_size, (2,), generator=torch.Generator().manual_seed(3))
    assert model.precise  # until int8 was measured to be faster
    expected, exact, rounded, again = (m.new_state(8, "f32", precise=p) for m, p in
                                       ((cpu, True), (model, True), (model, False), (model, False)))  # fmt: skip
    for token in ids.split(1):
        want, a, b = (m.forward(token, s) for m, s in ((cpu, expected), (model, exact), (model, rounded)))
        assert want is not None
        assert a is not None
        assert b is not None
        assert relative_error(a.cpu(), want) < 2e-4
        assert 1e-4 < relative_error(b.cpu(), want) < 5e-2
        # Steps of other states in between, of either mode, change no bit.
        c = model.forward(token, again)
        assert c is not None
        assert torch.equal(b, c)


def test_the_faster_mode_is_chosen_once_and_kept(model: JambaModel, home: Path) -> None:
    asked: list[int] = []

    def measure(exact: float, rounded: float) -> decode_mode.Measure:
        return lambda m: asked.append(1) or (exact, rounded)  # type: ignore[func-returns-value]

    assert not decode_mode.chosen(model, measure(1.0, 0.9)).precise
    assert not decode_mode.chosen(model, measure(1.0, 2.0)).precise  # as before
    assert len(asked) == 1
    (home / decode_mode.FILE).write_text("{damaged")
    assert decode_mode.chosen(model, measure(1.0, 0.99)).precise  # not enough faster
    assert decode_mode.chosen(model, measure(1.0, 0.5)).precise
    assert len(asked) == 2
    (kept,) = json.loads((home / decode_mode.FILE).read_text()).values()
    assert kept == {"gpu": "cpu", "float32_ms": 1000, "int8_ms": 990, "precise": True}


def test_without_a_measurement_activations_stay_float32(model: JambaModel, home: Path) -> None:
    def broken(m: JambaModel) -> tuple[float, float]:
        raise RuntimeError("no kernel image\nmore")

    with log_lines() as lines:
        assert decode_mode.chosen(model, broken).precise
    assert any("could not be measured (no kernel image)" in line for line in lines)
    assert not (home / decode_mode.FILE).exists()


def test_times_of_both_modes_are_of_whole_steps(model: JambaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(decode_mode, "_ROUNDS", 1)
    steps: list[bool] = []
    monkeypatch.setattr(type(model), "forward", lambda self, ids, state: steps.append(state.precise))
    exact, rounded = decode_mode.step_seconds(model)
    assert exact > 0
    assert rounded > 0
    assert set(steps) == {True, False}


def test_a_wrong_kernel_leaves_float32(model: JambaModel, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from jambacli.runtime.cuda import self_check

    right = self_check.gemv.gemv
    monkeypatch.setattr(self_check.gemv, "gemv", lambda *a, **k: right(*a, **k) * (1.01 if k.get("int8") else 1.0))
    monkeypatch.setattr(self_check, "_check_values", lambda *_: None)
    monkeypatch.setattr(self_check, "_step_error", lambda *_, **__: 0.0)
    keep = ("int8", "gemv")
    found = self_check._errors(model, model.kernels)  # type: ignore[attr-defined]
    monkeypatch.setattr(self_check, "_errors", lambda *_: (pair for pair in [next(found)] if pair[0] in keep))
    try:
        with log_lines() as lines:
            checked = self_check.checked(model, lambda name: None)  # type: ignore[arg-type, return-value]
        assert any("the GPU kernel 'int8' is wrong" in line for line in lines)
        assert checked.decoder is model.decoder
        assert decode_mode.chosen(checked, lambda m: (1.0, 0.1)).precise
    finally:
        model.decoder.rounds = True  # type: ignore[union-attr]
        model.kernels.without.clear()  # type: ignore[attr-defined]


def test_a_session_of_the_other_mode_goes_on_unless_a_mode_was_asked_for(model: JambaModel) -> None:
    from jambacli.errors import JambaError
    from jambacli.session.session_lock import SessionLock

    lock = object.__new__(SessionLock)
    lock.found, lock.reread = replace(_saved(), precise=False), False
    assert not lock.precise(True, asked=not model.mode_measured)
    with pytest.raises(JambaError, match="int8 activations"):
        lock.precise(True)


def _saved() -> SavedSession:

    return SavedSession("s", "m", "m.gguf", "f", "f16", 8, 0.0, 0.0)
