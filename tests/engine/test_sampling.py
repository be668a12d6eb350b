"""Sampling against transformers' logits processors, and what a user counts on: seeds, greedy, penalties, biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from jambacli.engine.sampling import Sampler, Sampling, model_defaults
from jambacli.errors import UsageError

VOCAB = 200
DRAWS = 4000


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2.5, VOCAB).astype(np.float32)


def frequencies(options: Sampling, x: np.ndarray, seen: tuple[int, ...] = ()) -> np.ndarray:
    rng_source = Sampler(options, seen)
    counts = np.zeros(len(x))
    for _ in range(DRAWS):
        counts[rng_source.sample(x)] += 1
        rng_source._seen = list(seen)
    return counts / DRAWS


def processed(x: np.ndarray, processors: list, seen: tuple[int, ...] = ()) -> np.ndarray:
    scores = torch.tensor(x)[None]
    for processor in processors:
        scores = processor(torch.tensor([list(seen)]), scores)
    return torch.softmax(scores[0], 0).numpy()


#: Options and transformers' processors for them, in the order in which they are applied.
CASES: dict[str, tuple[Sampling, Callable[[Any], list]]] = {
    "temperature": (Sampling(temperature=0.7, top_p=1), lambda lp: [lp.TemperatureLogitsWarper(0.7)]),
    "top_k": (Sampling(temperature=1, top_p=1, top_k=7), lambda lp: [lp.TopKLogitsWarper(7)]),
    "top_p": (Sampling(temperature=1, top_p=0.8), lambda lp: [lp.TopPLogitsWarper(0.8)]),
    "min_p": (Sampling(temperature=1, top_p=1, min_p=0.1), lambda lp: [lp.MinPLogitsWarper(0.1)]),
    "typical_p": (Sampling(temperature=1, top_p=1, typical_p=0.6), lambda lp: [lp.TypicalLogitsWarper(0.6)]),
    "repeat_penalty": (
        Sampling(temperature=1, top_p=1, repeat_penalty=1.8),
        lambda lp: [lp.RepetitionPenaltyLogitsProcessor(1.8)],
    ),
    "several": (
        Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02),
        lambda lp: [
            lp.TopKLogitsWarper(40),
            lp.TopPLogitsWarper(0.9),
            lp.MinPLogitsWarper(0.02),
            lp.TemperatureLogitsWarper(1.3),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_transformers_distribution(name: str) -> None:
    from transformers.generation import logits_process

    options, processors = CASES[name]
    case = list(CASES).index(name)
    x = logits(case)
    seen = tuple(np.argsort(-x)[:20:3])
    expected = processed(x, processors(logits_process), seen)
    options = replace(options, seed=case + 1)
    seen_given = seen if options.repeat_penalty != 1 else ()
    found = frequencies(options, x, seen_given)
    assert not np.any(found[expected == 0]), "drew a token the reference forbids"
    # Pearson's chi-squared over the tokens expected at least five times; 6 sigma of its normal approximation.
    often = expected * DRAWS >= 5
    chi2 = np.sum((found[often] - expected[often]) ** 2 / expected[often]) * DRAWS
    assert chi2 < often.sum() + 6 * np.sqrt(2 * often.sum())


#: Options that differ from NEUTRAL in one field, and the field.
NEUTRAL = Sampling(temperature=1, top_p=1, frequency_penalty=2, penalty_last_n=4, seed=1)
CHANGED = {
    "temperature": 3.0,
    "top_k": 2,
    "top_p": 0.2,
    "min_p": 0.5,
    "typical_p": 0.2,
    "repeat_penalty": 5.0,
    "presence_penalty": 9.0,
    "frequency_penalty": 9.0,
    "penalty_last_n": -1,
    "logit_bias": {5: 20.0},
    "seed": 2,
}


@pytest.mark.parametrize("name", [f.name for f in fields(Sampling)])
def test_every_field_changes_what_is_drawn(name: str) -> None:
    x = logits()

    def draw(options: Sampling) -> list[int]:
        sampler = Sampler(options)
        return [sampler.sample(x) for _ in range(60)]

    assert draw(NEUTRAL) == draw(NEUTRAL) != draw(replace(NEUTRAL, **{name: CHANGED[name]}))


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    x = logits()
    assert Sampler(Sampling(temperature=0)).sample(x) == int(np.argmax(x))
    tied = np.array([1, 3, 3, 2], dtype=np.float32)
    assert Sampler(Sampling(temperature=0)).sample(tied) == 1


def test_a_seed_reproduces_and_another_differs() -> None:
    x = logits()

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=2, top_p=1, seed=seed))
        return [sampler.sample(x) for _ in range(40)]

    assert draw(1) == draw(1) != draw(2)


def test_presence_and_frequency_penalties_look_back_only_so_far() -> None:
    x = np.zeros(4, dtype=np.float32)
    greedy = Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25, penalty_last_n=2)
    sampler = Sampler(greedy, seen=[0, 1, 1])
    adjusted = sampler._adjusted(x)
    assert adjusted.tolist() == [0, -0.5 - 2 * 0.25, 0, 0]
    everything = Sampler(replace(greedy, penalty_last_n=-1), seen=[0, 1, 1])._adjusted(x)
    assert everything.tolist() == [-0.75, -1.0, 0, 0]


def test_bias_forbids_and_forces() -> None:
    x = logits()
    best = int(np.argmax(x))
    forbidden = Sampling(temperature=0, logit_bias={best: float("-inf")})
    assert Sampler(forbidden).sample(x) == int(np.argsort(-x)[1])
    assert Sampler(Sampling(temperature=1, logit_bias={5: 1e4}, seed=1)).sample(x) == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_p", 1.5),
        ("min_p", float("nan")),
        ("top_k", -2),
        ("repeat_penalty", 0),
        ("seed", -1),
        ("logit_bias", {5: float("inf")}),
        ("logit_bias", {5: float("nan")}),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^{field} .* is (outside|not)") as refused:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field and "--" not in str(refused.value)


def test_the_models_own_defaults_are_read_and_bad_ones_ignored() -> None:
    chosen = model_defaults(
        {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 7.0, "other": 1}
    )
    assert (chosen.temperature, chosen.top_k, chosen.top_p) == (0.6, 20, Sampling().top_p)
