"""Training batches: samples of several kinds as token ids, targets and loss weights.

Every step draws its samples from a generator seeded with the run's seed and the step's number, so a resumed run sees the
same batches as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from jambacli.data import reports as grammar
from jambacli.data.reports import Span
from jambacli.training.probe import digits_tensor
from jambacli.training.tokenizer import MARKERS, Encoder

Sample = tuple[list[int], list[float], list[str]]

# Approximate tokens of a report, of a report that is a document, of a question with its answer, of one that cites.
_PER_REPORT, _PER_DOCUMENT, _PER_TURN, _PER_CITED = 40, 62, 28, 34
_PER_BLANK_PAGE = 31


@dataclass(frozen=True)
class Batch:
    """One batch; all tensors are [batch, tokens] unless noted.

    ``ids``: int64, the input. ``targets``: int64, the next tokens. ``weights``: float32, the weight of each target in the loss.
    ``document_digits``: int64 [batch, tokens, digits], the number of each id's document (probe.py). ``answers``: bool, which
    ids belong to answers.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    document_digits: Tensor
    answers: Tensor


def key_value(random: Random, tokens: int, vocab_size: int) -> tuple[list[int], list[float]]:
    """A key-value recall task: ids and loss weights of a few pairs of random tokens, repeated in random order.

    A value is to be predicted (weight 1) when its pair occurred before. Most keys and values are one token; a third of the
    samples have longer ones, like names.
    """
    first = len(MARKERS) + 256
    long = random.random() < 0.35
    n_key, n_value = (random.randint(1, 2), random.randint(1, 3)) if long else (1, 1)
    max_pairs = max(2, (tokens + 1) // (3 * (n_key + n_value)))
    pairs = random.randint(2, max(2, int(max_pairs ** random.uniform(0.5, 1.0))))
    keys = [tuple(random.sample(range(first, vocab_size), n_key)) for _ in range(pairs)]
    values = {key: [random.randrange(first, vocab_size) for _ in range(n_value)] for key in keys}
    ids: list[int] = []
    weights: list[float] = []
    seen: set[tuple[int, ...]] = set()
    while len(ids) <= tokens:
        key = random.choice(keys)
        ids += [*key, *values[key]]
        weights += [0.0] * n_key + [1.0 if key in seen else 0.0] * n_value
        seen.add(key)
    return ids, weights


def conversation(random: Random, tokens: int, held_out: bool = False, layout: str | None = None) -> list[Span]:
    """Reports, and as many questions about them as fit in about ``tokens`` tokens."""
    layout = layout or random.choices(["text", "documents", "cite"], [0.65, 0.2, 0.15])[0]
    each = _PER_REPORT if layout == "text" else _PER_DOCUMENT
    n = random.randint(1, min(60, max(1, (tokens - 60) // each)))
    turns = max(1, (tokens - 20 - n * each) // (_PER_CITED if layout == "cite" else _PER_TURN))
    return grammar.chat(random, grammar.make_reports(random, n, held_out), turns, layout)


def citing(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """A conversation whose answers cite documents."""
    return conversation(random, tokens, held_out, "cite")


def pages(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Questions about a few pages with reports among many without, as in a long PDF; most answers cite."""
    n, turns = random.randint(1, max(1, tokens // 150)), max(1, int(0.35 * tokens / _PER_CITED))
    blank = max(0, (tokens - 60 - turns * _PER_CITED - n * _PER_DOCUMENT) // _PER_BLANK_PAGE)
    layout = "cite" if random.random() < 0.8 else "documents"
    return grammar.chat(random, grammar.make_reports(random, min(n, 60), held_out), turns, layout, blank)


def small_talk(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Facts told in a sentence, names and small talk."""
    spans: list[Span] = []
    for _ in range(max(1, tokens // 130)):
        spans += grammar.told(random, held_out)
    return spans


def plain_text(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Reports and questions without chat markup."""
    n = random.randint(1, min(60, max(1, (tokens - 40) // _PER_REPORT)))
    return grammar.plain(
        random, grammar.make_reports(random, n, held_out), max(1, (tokens - 10 - n * _PER_REPORT) // _PER_TURN)
    )


def summary(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Reports and their summary, then questions if there is room."""
    n = random.randint(1, max(1, min(10, (tokens - 30) // (_PER_REPORT + 18))))
    reports = grammar.make_reports(random, n, held_out)
    question = grammar.summarize(random, reports)
    if random.random() < 0.5:
        spans = grammar.documents(grammar.lay_out(random, reports), False) + grammar.message(
            grammar.USER, question.text
        )
    else:
        body = grammar.join(reports, random)
        both = random.choice([f"{body}\n\n{question.text}", f"{question.text}\n\n{body}", f"{body}\n{question.text}"])
        spans = grammar.message(grammar.USER, both)
    spans += grammar.message(grammar.ASSISTANT, question.answer, True)
    for _ in range(max(0, (tokens - 40 - n * (_PER_REPORT + 20)) // _PER_TURN)):
        more = grammar.ask(random, reports, random.randrange(n))
        spans += grammar.message(grammar.USER, more.text) + grammar.message(grammar.ASSISTANT, more.answer, True)
    return spans


KINDS: dict[str, Callable[[Random, int, bool], list[Span]]] = {
    "chat": conversation,
    "summary": summary,
    "told": small_talk,
    "plain": plain_text,
    "cite": citing,
    "pages": pages,
}


class Batches:
    """Makes batches. ``other_weight``: the loss weight of tokens outside answers."""

    def __init__(self, encoder: Encoder, seed: int, other_weight: float = 0.1) -> None:
        self._encoder, self._seed, self._other_weight = encoder, seed, other_weight

    def training(
        self, step: int, kind: str, shares: dict[str, float], batch: int, tokens: int, pool: int | None = None
    ) -> Batch:
        """The batch of a step: ``kind`` is "key-value", or "text" with samples drawn from KINDS by ``shares``.

        ``pool``: how many tokens of the vocabulary key-value samples use, None for all.
        """
        random = Random(f"{self._seed} {step}")
        if kind == "key-value":
            return self._key_value(random, batch, tokens, pool)
        kinds = random.choices(list(shares), list(shares.values()), k=batch)
        return self._batch([self._sample(random, k, tokens, False) for k in kinds], tokens)

    def held_out(self, kind: str, batch: int, tokens: int, pool: int | None = None) -> Batch:
        """A fixed batch of one kind, with held-out names."""
        random = Random(f"held out {kind} {tokens}")
        if kind == "key-value":
            return self._key_value(random, batch, tokens, pool)
        return self._batch([self._sample(random, kind, tokens, True) for _ in range(batch)], tokens)

    def _key_value(self, random: Random, batch: int, tokens: int, pool: int | None) -> Batch:
        size = self._encoder.vocab_size
        size = size if pool is None else min(size, len(MARKERS) + 256 + pool)
        made = [key_value(random, tokens, size) for _ in range(batch)]
        return self._batch([(ids, weights, []) for ids, weights in made], tokens)

    def _sample(self, random: Random, kind: str, tokens: int, held_out: bool) -> Sample:
        return self._encoder.sample(KINDS[kind](random, tokens, held_out), self._other_weight)

    def _batch(self, samples: list[Sample], tokens: int) -> Batch:
        ids, weights = torch.zeros(len(samples), tokens + 1, dtype=torch.int64), torch.zeros(len(samples), tokens + 1)
        for row, (sample, weight, _) in enumerate(samples):
            n = min(len(sample), tokens + 1)
            ids[row, :n], weights[row, :n] = torch.tensor(sample[:n]), torch.tensor(weight[:n])
        return Batch(
            ids[:, :-1].contiguous(),
            ids[:, 1:].contiguous(),
            weights[:, 1:].contiguous(),
            digits_tensor([document_ids for *_, document_ids in samples], tokens),
            weights[:, :-1] == 1,
        )
