"""Recall of single facts from long texts of reports, by length and depth.

The texts are the field reports of ``data.reports`` with invented names that training never saw. Each report has a person, a
place, a count and a code word of its own; a question names one of them and asks for another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from jambacli.data import reports as grammar
from jambacli.data import words
from jambacli.data.reports import Question, Report
from jambacli.errors import JambaError, UsageError

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.session.session import Session

_ANSWER_TOKENS = 48
KINDS = tuple(grammar.KINDS)


@dataclass(frozen=True)
class Trial:
    """A question with the model's reply: length of the prompt in tokens, depth of the fact in the text (0 first, 1 last)."""

    tokens: int
    depth: float
    kind: str
    question: str
    expected: str
    reply: str

    @property
    def correct(self) -> bool:
        """Whether the reply contains the expected text as whole words."""
        return re.search(rf"(?<!\w){re.escape(self.expected)}(?!\w)", self.reply) is not None


def parse_kinds(text: str | None) -> tuple[str, ...]:
    """The kinds of question named in ``text``, comma-separated; all for None or "all". UsageError for unknown ones."""
    if text is None or text == "all":
        return KINDS
    kinds = tuple(k.strip() for k in text.split(",") if k.strip())
    unknown = [k for k in kinds if k not in grammar.KINDS]
    if unknown or not kinds:
        known = f"all, {', '.join(grammar.KINDS)}"
        raise UsageError(f"is not one of {known}", field="kinds", value=", ".join(unknown))
    return kinds


def reports_of(model: Jamba, tokens: int, seed: int) -> list[Report]:
    """As many held-out reports as fit into ``tokens`` tokens with a question and an answer.

    Raises JambaError if none fits, or more than the grammar can make.
    """
    random = Random(f"needle {tokens} {seed}")
    max_reports = len(words.ANIMALS)
    made = grammar.make_reports(random, max_reports, held_out=True, first=1)
    used, room = 0, tokens - 40
    for i, report in enumerate(made):
        used += len(model.tokenizer.encode(report.text + "\n"))
        if used > room:
            if i == 0:
                raise JambaError(f"no report fits into {tokens} tokens; use at least 100")
            return made[:i]
    raise JambaError(
        f"{tokens:,} tokens need more than the {max_reports} reports that the grammar can make; use fewer tokens"
    )


def needle(
    model: Jamba,
    tokens: int,
    documents: int = 10,
    questions: int = 10,
    seed: int = 0,
    kv_type: str | None = None,
    kinds: Sequence[str] = KINDS,
    done: Callable[[int], None] | None = None,
) -> Iterator[Trial]:
    """Ask ``questions`` questions, evenly spread in depth, about each of ``documents`` texts of about ``tokens`` tokens.

    Replies are greedy. ``kinds``: the kinds of question. ``done(1)`` is called after each reply.
    """
    for document in range(documents):
        reports = reports_of(model, tokens, seed * 1000 + document)
        random = Random(f"questions {tokens} {seed} {document}")
        text = "\n".join(r.text for r in reports)
        with model.session(kv_type=kv_type, store=False) as session:
            for i in range(questions):
                index = min(len(reports) - 1, int((i + random.random()) * len(reports) / questions))
                question = grammar.ask(random, reports, index, random.choice(kinds))
                reply = answer(session, text, question)
                depth = index / max(1, len(reports) - 1)
                yield Trial(session.stats.prompt_tokens, depth, question.kind, question.text, question.value, reply)
                if done is not None:
                    done(1)


def answer(session: Session, text: str, question: Question) -> str:
    """The greedy reply to a question about ``text`` as the first message of a conversation."""
    if session.model.template is None:
        prompt = f"{text}\n\nQuestion: {question.text}\nAnswer:"
        return "".join(session.complete(prompt, max_tokens=_ANSWER_TOKENS, stop=["\n"], temperature=0))
    session.conversation.turns.clear()
    return "".join(session.send(f"{text}\n\n{question.text}", max_tokens=_ANSWER_TOKENS, temperature=0))


def standard_error(share: float, n: int) -> float:
    """The standard error of a proportion over ``n`` independent trials."""
    return math.sqrt(share * (1 - share) / n) if n else math.nan
