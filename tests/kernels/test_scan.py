"""The selective scan over many tokens against the torch definition in float64, in pieces, and against decode steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jambacli.kernels import reference
from jambacli.kernels.cpu import prefill

OVER_TIME = ("x", "dt", "B", "C", "z")
SHAPES = [(1, 16, 16), (7, 40, 16), (100, 37, 8), (300, 5, 17), (65, 64, 16), (33, 48, 1), (40, 1, 16), (130, 96, 16)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(tokens: int, d_inner: int, d_state: int) -> dict[str, torch.Tensor]:
    """As the model passes them: x and z, and B and C, are parts of wider tensors; steps from tiny to large."""
    xz, bc = torch.randn(tokens, 2 * d_inner), torch.randn(tokens, 2 * d_state + 5)
    return {
        "x": xz[:, :d_inner],
        "dt": torch.randn(tokens, d_inner) * 2,
        "dt_bias": torch.rand(d_inner) * 8 - 7,
        "A": -torch.rand(d_inner, d_state) * 16 - 1e-3,
        "B": bc[:, 5 : 5 + d_state],
        "C": bc[:, 5 + d_state :],
        "D": torch.randn(d_inner),
        "z": xz[:, d_inner:],
    }


def part(arguments: dict[str, torch.Tensor], tokens: slice) -> dict[str, torch.Tensor]:
    return {name: v[tokens] if name in OVER_TIME else v for name, v in arguments.items()}


def close(got: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    assert got.shape == expected.shape
    assert float((got.double() - expected).abs().max()) <= limit * float(expected.abs().max())


@pytest.mark.parametrize(("tokens", "d_inner", "d_state"), SHAPES)
def test_scan_and_its_state(isa: str, tokens: int, d_inner: int, d_state: int) -> None:
    arguments, state = inputs(tokens, d_inner, d_state), torch.randn(d_inner, d_state)
    exact_state = state.double()
    expected = reference.selective_scan(**{k: v.double() for k, v in arguments.items()}, state=exact_state)
    close(prefill.selective_scan(**arguments, state=state), expected, 2e-6)
    close(state, exact_state, 2e-6)


@pytest.mark.parametrize("d_state", [8, 16])
def test_pieces_and_threads_do_not_change_a_bit(isa: str, d_state: int) -> None:
    arguments, start = inputs(150, 70, d_state), torch.randn(70, d_state)
    whole_state = start.clone()
    whole = prefill.selective_scan(**arguments, state=whole_state)
    threads = torch.get_num_threads()
    try:
        for n, cuts in ((1, [150]), (3, [1, 16, 17, 33, 83]), (2, [1] * 150)):
            torch.set_num_threads(n)
            state, done, outs = start.clone(), 0, []
            for count in cuts:
                outs.append(prefill.selective_scan(**part(arguments, slice(done, done + count)), state=state))
                done += count
            assert torch.equal(torch.cat(outs), whole) and torch.equal(state, whole_state)
    finally:
        torch.set_num_threads(threads)


def test_a_long_sequence_in_chunks_stays_close_to_float64(isa: str) -> None:
    tokens, d_inner, d_state = 4096, 8, 16
    arguments, state = inputs(tokens, d_inner, d_state), torch.zeros(d_inner, d_state)
    arguments["A"] = arguments["A"] * 1e-3  # a memory of thousands of tokens
    exact_state = state.double()
    expected = reference.selective_scan(**{k: v.double() for k, v in arguments.items()}, state=exact_state)
    got = [prefill.selective_scan(**part(arguments, slice(t, t + 512)), state=state) for t in range(0, tokens, 512)]
    close(torch.cat(got), expected, 1e-5)
    close(state, exact_state, 1e-5)


def test_extreme_steps(isa: str) -> None:
    """A step that forgets everything, one that keeps everything, and the far ends of softplus and silu."""
    arguments, state = inputs(6, 16, 16), torch.randn(16, 16)
    arguments["dt"] = torch.tensor([-100.0, -30.0, 0.0, 25.0, 60.0, 200.0])[:, None].expand(6, 16)
    arguments["z"] = torch.tensor([-200.0, -80.0, 0.0, 5.0, 80.0, 200.0])[:, None].expand(6, 16)
    exact_state = state.double()
    expected = reference.selective_scan(**{k: v.double() for k, v in arguments.items()}, state=exact_state)
    close(prefill.selective_scan(**arguments, state=state), expected, 2e-6)
    close(state, exact_state, 2e-6)


def test_a_state_that_cannot_be_written_in_place_is_refused() -> None:
    arguments: dict[str, Any] = inputs(2, 16, 16)
    for state in (torch.zeros(16, 32)[:, ::2], torch.zeros(16, 16, dtype=torch.float64)):
        with pytest.raises(ValueError, match="contiguous float32"):
            prefill.selective_scan(**arguments, state=state)
