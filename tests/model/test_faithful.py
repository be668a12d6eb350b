"""The model against transformers in float32, for all layouts of Jamba."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from jambacli.kernels import Ops
from tests.support.checkpoints import random_model
from tests.support.transformers_model import FAITHFUL, from_transformers, position_errors, truth

POSITIONS = 512


@functools.cache
def case(name: str, tokens: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The transformers model, tokens, and its logits after each of them."""
    shape, changes = FAITHFUL[name]
    hf = random_model(shape, seed=1, **changes)
    ids = torch.randint(0, 512, (tokens,), generator=torch.Generator().manual_seed(5))
    return hf, ids, truth(hf, ids)


def check(name: str, tokens: int, ops: Ops) -> None:
    hf, ids, expected = case(name, tokens)
    model = from_transformers(hf, ops)
    got = model.forward(ids, model.new_state(tokens, "f32"), logits="all")
    assert got is not None
    for error in position_errors(got, expected):
        assert error.max() < 1e-4
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert expected.std() > 0.5  # logits that say something


@pytest.mark.parametrize("name", FAITHFUL)
def test_logits_equal_transformers(name: str, ops: Ops) -> None:
    check(name, 96, ops)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAITHFUL)
def test_logits_equal_transformers_over_512_positions(name: str, ops: Ops) -> None:
    check(name, POSITIONS, ops)


@pytest.mark.parametrize("pieces", [[1] * 96, [2] * 48, [64, 32], [31, 1, 7, 57], [95, 1], [1, 95]], ids=str)
@pytest.mark.parametrize("name", ["16 experts, top 2", "attention 4/1", "odd sizes"])
def test_any_split_of_a_sequence_gives_the_same_logits(name: str, pieces: list[int], ops: Ops) -> None:
    hf, ids, expected = case(name, 96)
    model = from_transformers(hf, ops)
    state = model.new_state(96, "f32")
    got = []
    for piece in ids.split(pieces):
        logits = model.forward(piece, state, logits="all")
        assert logits is not None
        got.append(logits)
    for error in position_errors(torch.cat(got), expected):
        assert error.max() < 1e-4


def test_which_logits_are_returned(ops: Ops) -> None:
    hf, ids, expected = case("attention 4/1", 96)
    model = from_transformers(hf, ops)
    last = model.forward(ids, model.new_state(96, "f32"), logits="last")
    assert last is not None
    assert last.shape == (1, 512)
    assert last.dtype == torch.float32
    assert position_errors(last, expected[-1:])[0].item() < 1e-4
    assert model.forward(ids, model.new_state(96, "f32"), logits="none") is None
