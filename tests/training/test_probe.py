"""The probes for documents' numbers: their targets, what they can read from states, and where their gradients go."""

from __future__ import annotations

import math

import torch

from jambacli.training.probe import DIGITS, NONE, Probe, digits_of, digits_tensor


def test_a_number_is_up_to_three_digits_from_the_first() -> None:
    assert digits_of("7") == (7, NONE, NONE)
    assert digits_of("137") == (1, 3, 7)
    assert digits_of("") == (-1,) * DIGITS
    rows = digits_tensor([["", "12", "12"], ["5"]], 2)
    assert rows.tolist() == [[[-1] * 3, [1, 2, NONE]], [[5, NONE, NONE], [-1] * 3]]


def test_what_a_state_holds_is_read_and_nothing_else_is_asked() -> None:
    torch.manual_seed(1)
    digits = torch.randint(0, 10, (4, 30, DIGITS))
    answers = torch.zeros(4, 30, dtype=torch.bool)
    answers[:, 20:] = True
    digits[:, ::3] = -1
    known = torch.nn.functional.one_hot(digits.clamp(min=0), 11).flatten(2).float()
    blank = torch.ones(4, 30, 33)
    probe = Probe(33)
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss, shares = probe(known, blank, digits, answers)
        loss.backward()
        optimizer.step()
    inside, answer = shares
    assert inside == 1.0  # every state contains the number
    assert answer < 0.5  # no state contains it
    loss, shares = probe(known, blank, torch.full_like(digits, -1), answers)
    assert float(loss) == 0.0 and all(math.isnan(s) for s in shares)
    assert math.isnan(probe(known, blank, digits, torch.zeros_like(answers))[1][1])


def test_the_gradient_reaches_the_states_where_a_document_is_known_and_no_others() -> None:
    torch.manual_seed(2)
    digits = torch.full((1, 6, DIGITS), -1)
    digits[0, 2], digits[0, 4] = torch.tensor([3, NONE, NONE]), torch.tensor([3, NONE, NONE])
    answers = torch.tensor([[False, False, False, False, True, True]])
    before, after = (torch.randn(1, 6, 16, requires_grad=True) for _ in range(2))
    Probe(16)(before, after, digits, answers)[0].backward()
    assert before.grad is not None and after.grad is not None
    assert before.grad[0].abs().sum(-1).gt(0).tolist() == [False, False, True, False, False, False]
    assert after.grad[0].abs().sum(-1).gt(0).tolist() == [False, False, False, False, True, False]
