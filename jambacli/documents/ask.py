"""Summaries of documents and answers about them, at once or in passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jambacli.cache.prefix_store import PrefixStore
from jambacli.cache.reply_cache import ReplyCache
from jambacli.documents.pages import DocumentEntry
from jambacli.documents.passes import does_not_fit, plan, read_in_passes
from jambacli.documents.reader import Reader, Task
from jambacli.errors import JambaError, UsageError
from jambacli.units import counted

logger = logging.getLogger(__name__)

_LENGTHS = {
    "short": ("two or three sentences", "three to five bullet points"),
    "medium": ("one to three paragraphs", "six to ten bullet points"),
    "long": ("a page, in paragraphs", "fifteen to twenty-five bullet points"),
}
_NOTHING = "NOTHING"
# Maximum number of rounds of passes. Each round reads the replies of the one before, which are several times shorter.
_DEPTH = 8


@dataclass(frozen=True)
class SummaryOptions:
    """The options of a summary.

    ``length``: short, medium, long or a number of words. ``style``: prose or bullets. ``focus``: what to pay most attention
    to. ``language``: what to write in. Raises UsageError for another length or style.
    """

    length: str = "medium"
    style: str = "prose"
    focus: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.style not in ("prose", "bullets"):
            raise UsageError("is neither bullets nor prose", field="style", value=self.style)
        if self.length not in _LENGTHS and not (self.length.isdecimal() and 0 < int(self.length) < 1_000_000):
            problem = f"is not one of {', '.join(_LENGTHS)} or a number of words"
            raise UsageError(problem, field="length", value=self.length)

    def instruction(self, what: str = "the documents") -> str:
        """The instruction to the model."""
        bullets = self.style == "bullets"
        if self.length in _LENGTHS:
            size = _LENGTHS[self.length][bullets]
        else:
            size = f"about {int(self.length):,} words" + (", as bullet points" if bullets else "")
        text = f"Summarize {what} in {size}. Say only what is in them."
        if self.focus:
            text += f" Pay most attention to this: {self.focus.strip()}"
        return text + _in_language(self.language)

    def part_instruction(self, part: int, parts: int) -> str:
        """The instruction for one part of documents that are larger than the context."""
        what = f"the documents, which are part {part} of {parts} of a longer text,"
        return replace(self, length="medium").instruction(what)


def asked_part(question: str, part: int, parts: int) -> str:
    """The question about one part of the documents."""
    return f"{question}\n\nThese documents are part {part} of {parts}. If they say nothing about it, answer {_NOTHING}."


def telling(said: Sequence[DocumentEntry]) -> Sequence[DocumentEntry]:
    """The replies to parts that say something, or the first one."""
    return [e for e in said if e.text.strip() and e.text.strip(" .\n") != _NOTHING] or said[:1]


def question_text(question: str, language: str | None = None) -> str:
    """The question as the model gets it."""
    return question.strip() + _in_language(language)


def _in_language(language: str | None) -> str:
    return f"\nWrite in {language.strip()}." if language and language.strip() else ""


@dataclass
class PendingAnswer:
    """A reply that is about to be generated.

    ``entries``: the documents that its citations count, after passes the replies to the parts. ``passes``: how many
    replies it takes in total.
    """

    pieces: Iterator[str]
    entries: Sequence[DocumentEntry]
    passes: int = 1


def summarize_documents(
    reader: Reader,
    entries: Sequence[DocumentEntry],
    task: Task,
    options: SummaryOptions,
) -> PendingAnswer:
    """Summarize; documents larger than the context are summarized in parts, then their summaries are."""

    def each(i: int, n: int) -> Task:
        return Task(options.part_instruction(i, n), task.citations)

    return _in_passes(reader, entries, task, each, "Summary")


def ask_documents(
    reader: Reader,
    entries: Sequence[DocumentEntry],
    task: Task,
    *,
    passes: bool = False,
) -> PendingAnswer:
    """Answer a question. Raises JambaError for documents larger than the context, unless ``passes`` allows parts."""

    def each(i: int, n: int) -> Task:
        return Task(asked_part(task.text, i, n), task.citations)

    if not passes:
        first = plan(reader, entries, task)
        if len(first.groups) > 1:
            otherwise = f"use {{passes}} to ask {len(first.groups)} parts one after another"
            raise does_not_fit(reader, entries, first.tokens, otherwise)
    return _in_passes(reader, entries, task, each, "Answer")


def log_size(entries: Sequence[DocumentEntry], tokens: int) -> None:
    """Log the number of files and tokens that are about to be read."""
    files = len({s.file for e in entries for s in e.sources})
    logger.info("%s, %s", counted(files, "file"), counted(tokens, "token"))


def _reply_cache(reader: Reader) -> ReplyCache | None:
    """The cache of replies to parts; None without a store (the session warns if it cannot create one)."""
    try:
        return ReplyCache(PrefixStore().root) if reader.options.store else None
    except JambaError:
        return None


def _in_passes(
    reader: Reader,
    entries: Sequence[DocumentEntry],
    task: Task,
    each: Callable[[int, int], Task],
    reply_title: str,
) -> PendingAnswer:
    cache = _reply_cache(reader)
    passes = 1
    for depth in range(_DEPTH):
        chosen = plan(reader, entries, task, each=each(99, 99))
        if not depth:
            log_size(entries, chosen.tokens)
        if len(chosen.groups) == 1:
            return PendingAnswer(reader.stream(entries, task), entries, passes)
        n = len(chosen.groups)
        passes += n
        size = f"{chosen.tokens:,} tokens do not fit into the context of {reader.ctx:,}"
        resumes = "; if interrupted, the same command continues where it stopped" if cache else ""
        logger.info("%s: reading in %d passes, then their replies%s", size, n, resumes)
        said = read_in_passes(reader, chosen.groups, each, reply_title=reply_title, cache=cache)
        entries = telling(said)
    raise JambaError(
        f"the text does not get short enough for a context of {reader.ctx:,} tokens", remedy="use a larger {ctx}"
    )
