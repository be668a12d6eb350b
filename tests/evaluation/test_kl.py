"""Divergence from a reference: zero from itself, larger for coarser types, and equal to torch's own figure."""

from __future__ import annotations

import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import JambaError
from jambacli.evaluation.kl import divergence, random_windows
from tests.support.small_models import small_file, small_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Jamba]:
    folder = tmp_path_factory.mktemp("kl")
    return {kind: Jamba.load(small_file(folder, kind)) for kind in ("q8_0", "q2_k")}


def test_a_model_does_not_diverge_from_itself() -> None:
    model = small_model()
    same = divergence(model, model, random_windows(model.config.vocab_size, 256, 64), "f32")
    assert same.mean == same.maximum == 0.0
    assert same.top1 == 1.0
    assert same.nll == same.reference_nll
    assert same.tokens == 4 * 63


def test_the_figures_are_those_of_the_definition(files: dict[str, Jamba]) -> None:
    model, reference = files["q2_k"], files["q8_0"]
    windows = random_windows(reference.config.vocab_size, 96, 96)
    got = divergence(model, reference, windows, "f32")
    p = reference.logits(windows[0].ids)[:-1].double().log_softmax(-1)
    q = model.logits(windows[0].ids)[:-1].double().log_softmax(-1)
    each = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert got.mean == pytest.approx(float(each.mean()), rel=1e-3, abs=1e-9)
    assert got.median == pytest.approx(float(each.median()), rel=1e-2, abs=1e-9)
    assert got.maximum == pytest.approx(float(each.max()), rel=1e-3, abs=1e-9)
    assert got.p99 <= got.maximum
    assert got.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_random_tokens_come_from_their_seed() -> None:
    one, other = random_windows(400, 128, 32, seed=1), random_windows(400, 128, 32, seed=2)
    assert one == random_windows(400, 128, 32, seed=1) != other
    assert all(0 <= i < 400 for w in one for i in w.ids)


def test_models_with_other_vocabularies_are_refused(files: dict[str, Jamba]) -> None:
    model = files["q8_0"]
    other = small_model()
    if other.config.vocab_size == model.config.vocab_size:
        other = Jamba(other.model, {}, "other")
        other.config = type(model.config)(**{**vars(model.config), "vocab_size": model.config.vocab_size + 1})
    with pytest.raises(JambaError, match="cannot be compared"):
        divergence(model, other, [])
