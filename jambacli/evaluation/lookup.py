"""What lookup decoding is worth on a document: replies to the document's own questions, and replies that quote a known share.

A random model quotes nothing, so the second kind of reply is a fixed text: runs of the document, and its tokens in random
order between them. A constraint forces it, token by token, and drafts come from the document alone. Every reply is generated
with and without lookup in turn, and the fastest of the repetitions counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from jambacli.engine.counters import Counters
from jambacli.engine.generate import Generated, generate
from jambacli.engine.lookup import Lookup
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.api import Jamba

#: What a document is asked by default.
QUESTIONS = (
    "Summarize the document in three to five sentences.",
    "Quote the most important sentences of the document, word for word.",
    "Which names and numbers are in the document, and what does it say of each?",
)

# Tokens of a run that is quoted, at least and at most.
_RUN = (20, 60)


@dataclass(frozen=True)
class LookupResult:
    """One reply with and without lookup. Rates in tokens per second, with sampling and the search for drafts.

    ``steps`` appended ``tokens``; ``drafted`` tokens were computed ahead and ``accepted`` of them drawn. ``same``: whether both
    replies have the same tokens.
    """

    reply: str
    prompt_tokens: int
    tokens: int
    plain_rate: float
    lookup_rate: float
    steps: int
    drafted: int
    accepted: int
    same: bool

    @property
    def ratio(self) -> float:
        """How many times as fast a reply is with lookup."""
        return self.lookup_rate / self.plain_rate


class ForcedReply:
    """A constraint under which the reply is exactly ``tokens``; it tells drafts nothing."""

    def __init__(self, tokens: Sequence[int], n_vocab: int) -> None:
        self._tokens, self._done = tokens, 0
        self._mask = np.zeros(n_vocab, dtype=np.bool_)

    def allowed(self) -> np.ndarray:
        """See Constraint."""
        self._mask[:] = False
        self._mask[self._tokens[self._done]] = True
        return self._mask

    def accept(self, token: int) -> int:
        """See Constraint."""
        self._done += 1
        return token

    def forced(self) -> tuple[int, ...]:
        """See Constraint."""
        return ()


def quoting(document: Sequence[int], share: float, tokens: int, seed: int = 0) -> list[int]:
    """A reply of ``tokens`` tokens, of which ``share`` are runs of the document; after each of them its tokens in random order.

    The latter match the document by chance alone, in two tokens or three, as unrelated prose does. Raises UsageError for a
    share outside 0 to 1, or a document that is shorter than a run.
    """
    if not 0 <= share <= 1:
        raise UsageError("is outside 0 to 100", field="quoted", value=round(100 * share))
    if len(document) < _RUN[1]:
        raise UsageError(f"a text of {len(document)} tokens is too short to quote; use at least {_RUN[1]}")
    random, reply, taken = Random(seed), list[int](), 0
    quoted = round(share * tokens)
    while taken < quoted:
        length = min(random.randint(*_RUN), quoted - taken)
        start = random.randrange(len(document) - length + 1)
        reply += document[start : start + length]
        taken += length
        # As much between the runs as the share leaves.
        reply += random.choices(document, k=taken * tokens // quoted - len(reply))
    return reply + random.choices(document, k=tokens - len(reply))


def forced_reply(
    model: Jamba,
    document: Sequence[int],
    reply: Sequence[int],
    name: str,
    *,
    kv_type: str = "f16",
    repetitions: int = 2,
    done: Callable[[int], None] = lambda n: None,
) -> LookupResult:
    """Decode a fixed ``reply`` after the ``document`` (token ids); calls ``done`` with the tokens of each run."""
    sequence = TokenSequence(model.model, len(document) + len(reply) + 1, kv_type)
    sequence.advance(document, [len(document)])
    sequence.checkpoint()
    sampling = Sampling(temperature=0)
    best: dict[bool, float] = {}
    counters, same = Counters(), True
    for _ in range(repetitions):
        for lookup in (False, True):
            sequence.advance(document)
            sequence.counters, sequence.lookup = Counters(), Lookup()  # what it learned of this reply is forgotten
            sampler = Sampler(sampling, document, ForcedReply(reply, model.config.vocab_size))
            result = Generated()
            began = time.perf_counter()
            pieces = generate(sequence, sampler, model.tokenizer, max_tokens=len(reply), result=result, lookup=lookup)
            for _piece in pieces:
                pass
            seconds = time.perf_counter() - began
            best[lookup] = min(best.get(lookup, seconds), seconds)
            same &= result.ids == list(reply)
            counters = sequence.counters
            done(len(reply))
    return _result(name, len(document), counters, {k: s / counters.decoded for k, s in best.items()}, same)


def own_replies(
    model: Jamba,
    text: str,
    questions: Sequence[str] = QUESTIONS,
    *,
    max_tokens: int = 256,
    kv_type: str | None = None,
    repetitions: int = 2,
    done: Callable[[int], None] = lambda n: None,
    **options: Any,
) -> Iterator[LookupResult]:
    """The model's replies to questions about ``text``; ``options`` as for ``session.send``, by default greedy.

    Calls ``done(1)`` after each reply.
    """
    with model.session(kv_type=kv_type, store=False) as session:
        for question in questions:
            best: dict[bool, float] = {}
            said: dict[bool, list[int]] = {}
            for _ in range(repetitions):
                for lookup in (False, True):
                    session.sequence.lookup = Lookup()
                    chosen: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens, **options, "lookup": lookup}
                    if model.template is None:
                        pieces = session.complete(question, documents=[{"text": text}], **chosen)
                    else:
                        session.clear()
                        pieces = session.send(question, documents=[{"text": text}], **chosen)
                    for _piece in pieces:
                        pass
                    said[lookup] = session.sequence.tokens[session.stats.prompt_tokens :]
                    stats = session.stats
                    if stats.decoded_tokens:
                        seconds = stats.decode_seconds / stats.decoded_tokens
                        best[lookup] = min(best.get(lookup, seconds), seconds)
                    done(1)
            if best:
                counters = session.sequence.counters
                yield _result(question, session.stats.prompt_tokens, counters, best, said[False] == said[True])


def _result(name: str, prompt: int, counters: Counters, seconds: dict[bool, float], same: bool) -> LookupResult:
    """``seconds``: of a token, without and with lookup."""
    return LookupResult(
        reply=name,
        prompt_tokens=prompt,
        tokens=counters.decoded,
        plain_rate=1 / seconds[False],
        lookup_rate=1 / seconds[True],
        steps=counters.steps,
        drafted=counters.drafted,
        accepted=counters.accepted,
        same=same,
    )
