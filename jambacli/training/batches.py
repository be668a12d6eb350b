"""Training batches: which kind of sample, how long, from which seed; knows nothing of models or of the loss.

Every step draws its samples from a generator seeded with the run's seed and the step's number, so a run that was stopped
and resumed sees the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from jambacli.data import reports as grammar
from jambacli.data.reports import Span
from jambacli.training.probe import homes_tensor
from jambacli.training.tokenizer import MARKERS, Encoder

Sample = tuple[list[int], list[float], list[str]]

# Tokens, about: of a report, of a report that is a document, of a question with its answer, of one that cites.
_PER_REPORT, _PER_DOCUMENT, _PER_TURN, _PER_CITED = 40, 62, 28, 34
_PER_BLANK_PAGE = 31


@dataclass(frozen=True)
class Batch:
    """ids [batch, tokens] to read, targets [batch, tokens] to predict, the weight of each in the loss.

    ``homes`` [batch, tokens, digits]: the document that each id belongs to (probe.py); ``answers``: which ids are learnt.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    homes: Tensor
    answers: Tensor


def key_value(random: Random, tokens: int, vocab_size: int) -> tuple[list[int], list[float]]:
    """A few keys with values, all random tokens, over and over in random order: a value said before is to be said again.

    Most keys and values are one token; a third of the samples have longer ones, as names are.
    """
    first = len(MARKERS) + 256
    long = random.random() < 0.35
    n_key, n_value = (random.randint(1, 2), random.randint(1, 3)) if long else (1, 1)
    most = max(2, (tokens + 1) // (3 * (n_key + n_value)))
    pairs = random.randint(2, max(2, int(most ** random.uniform(0.5, 1.0))))
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
    """Reports and as many questions about them as fit into about ``tokens`` tokens."""
    layout = layout or random.choices(["text", "documents", "cite"], [0.65, 0.2, 0.15])[0]
    each = _PER_REPORT if layout == "text" else _PER_DOCUMENT
    n = random.randint(1, min(60, max(1, (tokens - 60) // each)))
    turns = max(1, (tokens - 20 - n * each) // (_PER_CITED if layout == "cite" else _PER_TURN))
    return grammar.chat(random, grammar.make_reports(random, n, held_out), turns, layout)


def citing(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """A conversation whose answers cite documents."""
    return conversation(random, tokens, held_out, "cite")


def pages(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Questions about a few pages among many that say nothing of matter, as a long PDF has them; most answers cite."""
    n, turns = random.randint(1, max(1, tokens // 150)), max(1, int(0.35 * tokens / _PER_CITED))
    blank = max(0, (tokens - 60 - turns * _PER_CITED - n * _PER_DOCUMENT) // _PER_BLANK_PAGE)
    layout = "cite" if random.random() < 0.8 else "documents"
    return grammar.chat(random, grammar.make_reports(random, min(n, 60), held_out), turns, layout, blank)


def small_talk(random: Random, tokens: int, held_out: bool = False) -> list[Span]:
    """Facts told in a sentence, names and small talk, one after another."""
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
    """Reports and their summary; a question or two where there is room."""
    n = random.randint(1, max(1, min(10, (tokens - 30) // (_PER_REPORT + 18))))
    reports = grammar.make_reports(random, n, held_out)
    question = grammar.summarize(random, reports)
    if random.random() < 0.5:
        spans = grammar.documents(grammar.lay_out(random, reports), False) + grammar.message(
            grammar.USER, question.text
        )
    else:
        given = grammar.join(reports, random)
        both = random.choice(
            [f"{given}\n\n{question.text}", f"{question.text}\n\n{given}", f"{given}\n{question.text}"]
        )
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
    """Makes batches; ``rest`` is the weight of tokens that are no answer."""

    def __init__(self, encoder: Encoder, seed: int, rest: float = 0.1) -> None:
        self._encoder, self._seed, self._rest = encoder, seed, rest

    def training(
        self, step: int, kind: str, shares: dict[str, float], batch: int, tokens: int, pool: int | None = None
    ) -> Batch:
        """The batch of a step: ``kind`` "key-value", or "text", drawn from KINDS by ``shares``.

        ``pool``: how many tokens of the vocabulary key-value samples take.
        """
        random = Random(f"{self._seed} {step}")
        if kind == "key-value":
            return self._key_value(random, batch, tokens, pool)
        kinds = random.choices(list(shares), list(shares.values()), k=batch)
        return self._batch([self._sample(random, k, tokens, False) for k in kinds], tokens)

    def held_out(self, kind: str, batch: int, tokens: int, pool: int | None = None) -> Batch:
        """A fixed batch of one kind with held-out names."""
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
        return self._encoder.sample(KINDS[kind](random, tokens, held_out), self._rest)

    def _batch(self, samples: list[Sample], tokens: int) -> Batch:
        ids, weights = torch.zeros(len(samples), tokens + 1, dtype=torch.int64), torch.zeros(len(samples), tokens + 1)
        for row, (sample, weight, _) in enumerate(samples):
            n = min(len(sample), tokens + 1)
            ids[row, :n], weights[row, :n] = torch.tensor(sample[:n]), torch.tensor(weight[:n])
        return Batch(
            ids[:, :-1].contiguous(),
            ids[:, 1:].contiguous(),
            weights[:, 1:].contiguous(),
            homes_tensor([homes for *_, homes in samples], tokens),
            weights[:, :-1] == 1,
        )
