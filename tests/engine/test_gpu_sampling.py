"""Choosing tokens on the GPU against choosing them on the CPU, given the same random numbers; runs on either."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.engine.gpu_sampling import DeviceLogits, choose
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import TokenSequence
from tests.support.small_models import small_file

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 5003
OPTIONS = {
    "greedy": Sampling(temperature=0),
    "plain": Sampling(temperature=1, top_p=1),
    "hot": Sampling(temperature=1.7, top_p=1),
    "usual": Sampling(),
    "top_k": Sampling(temperature=0.8, top_k=40, top_p=1),
    "top_k more than there are": Sampling(temperature=0.8, top_k=10**6, top_p=1),
    "top_p": Sampling(temperature=1.2, top_p=0.6),
    "top_p of nothing": Sampling(temperature=1.2, top_p=0),
    "min_p": Sampling(temperature=1.5, top_p=1, min_p=0.05),
    "typical": Sampling(temperature=1, top_p=1, typical_p=0.4),
    "all": Sampling(temperature=1.3, top_k=300, top_p=0.97, min_p=0.002, typical_p=0.9),
    "bias": Sampling(temperature=0.9, logit_bias={3: 12.0, 7: float("-inf"), VOCAB + 5: 1.0, -2: 4.0}),
    "greedy bias": Sampling(temperature=0, logit_bias={9: 50.0}),
}


# The fields that the GPU does not read: penalties are applied on the CPU, and the seed is the generator's.
PENALTIES = {"repeat_penalty": 1.4, "presence_penalty": 0.7, "frequency_penalty": 0.3}
NOT_ON_THE_GPU = {*PENALTIES, "penalty_last_n", "seed"}
# The values that switch a field's step off, where they are not the default.
NEUTRAL = {"temperature": 1.0, "top_p": 1.0}


def logits(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, 2.5, VOCAB).astype(np.float32)
    if seed % 3 == 1:  # equal logits, which the lower id wins
        x = np.round(x)
    if seed % 3 == 2:  # what a mask leaves
        x[seed::2] = -np.inf
    return x


@pytest.mark.parametrize("field", fields(Sampling), ids=lambda f: f.name)
def test_every_sampling_field_is_compared(field: Field) -> None:
    neutral = NEUTRAL.get(field.name, getattr(Sampling(), field.name))
    varied = any(getattr(options, field.name) != neutral for options in OPTIONS.values())
    assert varied != (field.name in NOT_ON_THE_GPU), "compare the field in OPTIONS, or say that the CPU applies it"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_random_numbers_choose_the_same_tokens(name: str) -> None:
    on_cpu, on_gpu = (Sampler(replace(OPTIONS[name], seed=11)) for _ in range(2))
    for step in range(90):
        x = logits(step)
        given = DeviceLogits(torch.from_numpy(x).to(DEVICE))
        assert on_gpu.sample(given) == on_cpu.sample(x), step
        assert given._copy is None  # only the token was copied
    assert on_cpu.random_state == on_gpu.random_state


def test_the_largest_random_number_still_chooses_a_token_that_is_kept() -> None:
    x = torch.full((100,), -torch.inf)
    x[[4, 60, 97]] = torch.tensor([1.0, 3.0, 2.0])
    for u, token in ((0.0, 4), (np.nextafter(1.0, 0.0), 97)):
        assert int(choose(x.to(DEVICE), Sampling(temperature=1, top_p=1), lambda u=u: float(u))) == token


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_applied_on_the_cpu(name: str) -> None:
    options = Sampling(seed=3, temperature=1.5, **{name: PENALTIES[name]})
    on_cpu, on_gpu = (Sampler(options, seen=range(50)) for _ in range(2))
    for step in range(6):
        given = DeviceLogits(torch.from_numpy(logits(step)).to(DEVICE))
        assert on_gpu.sample(given) == on_cpu.sample(logits(step))
        assert given._copy is not None


def test_a_mask_is_applied_on_the_cpu_and_without_one_the_logits_stay() -> None:
    class Some:
        mask: np.ndarray | None = None

        def allowed(self) -> np.ndarray | None:
            return self.mask

        def accept(self, token: int) -> int:
            return token

    rule = Some()
    sampler = Sampler(Sampling(seed=1), constraint=rule)
    free = DeviceLogits(torch.from_numpy(logits(0)).to(DEVICE))
    sampler.sample(free)
    assert free._copy is None
    rule.mask = np.zeros(VOCAB, dtype=bool)
    rule.mask[[17, 300]] = True
    bound = DeviceLogits(torch.from_numpy(logits(0)).to(DEVICE))
    assert sampler.sample(bound) in (17, 300)


def test_they_are_usable_as_an_array_and_report_waits() -> None:
    x, times = logits(0), []
    given = DeviceLogits(torch.from_numpy(x).to(DEVICE), times.append)
    assert np.array_equal(np.asarray(given), x)
    assert len(given) == VOCAB
    given.token(Sampling(temperature=0), lambda: 0.5)
    assert len(times) == 2
    assert min(times) >= 0


def test_a_session_says_the_same_with_its_logits_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Jamba.load(small_file(tmp_path, "q8_0"))
    options = {"temperature": 1.2, "seed": 5, "max_tokens": 12, "lookup": False}
    expected = "".join(model.session().send("herons", **options))
    plain = TokenSequence.step
    given = []

    def step(self: TokenSequence, token: int) -> np.ndarray:
        self.logits = self._device_logits(torch.from_numpy(plain(self, token)).to(DEVICE))
        given.append(self.logits)
        return self.logits

    monkeypatch.setattr(TokenSequence, "step", step)
    with model.session() as session:
        assert "".join(session.send("herons", **options)) == expected
    assert len(given) > 5
    assert sum(x._copy is not None for x in given) <= 2  # at checkpoints
