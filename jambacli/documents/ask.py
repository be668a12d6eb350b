"""What is asked of documents: summaries and answers, at once or in passes. Knows nothing of files, consoles or commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jambacli.cache.prefix_store import PrefixStore
from jambacli.cache.reply_cache import Notes
from jambacli.documents.passes import does_not_fit, plan, read_in_passes
from jambacli.documents.reader import Entry, Reader, Task
from jambacli.errors import JambaError, UsageError

_LENGTHS = {
    "short": ("two or three sentences", "three to five bullet points"),
    "medium": ("one to three paragraphs", "six to ten bullet points"),
    "long": ("a page, in paragraphs", "fifteen to twenty-five bullet points"),
}
_NOTHING = "NOTHING"
# Passes over the summaries of passes: each makes the text several times shorter.
_DEPTH = 8

Tell = Callable[[str], None]
Size = Callable[[Sequence[Entry], int], None]


@dataclass(frozen=True)
class Wish:
    """How a summary is wanted. ``length``: short, medium, long or a number of words; ``style``: prose or bullets."""

    length: str = "medium"
    style: str = "prose"
    focus: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.style not in ("prose", "bullets"):
            raise UsageError(f"--style {self.style!r} is neither bullets nor prose")
        if self.length not in _LENGTHS and not (self.length.isdecimal() and 0 < int(self.length) < 1_000_000):
            raise UsageError(f"--length {self.length!r} is none of {', '.join(_LENGTHS)}, nor a number of words")

    def instruction(self, what: str = "the documents") -> str:
        """The instruction, in words."""
        bullets = self.style == "bullets"
        if self.length in _LENGTHS:
            size = _LENGTHS[self.length][bullets]
        else:
            size = f"about {int(self.length):,} words" + (", as bullet points" if bullets else "")
        text = f"Summarize {what} in {size}. Say only what is in them."
        if self.focus:
            text += f" Pay most attention to this: {self.focus.strip()}"
        return text + _in_language(self.language)


def question_text(question: str, language: str | None = None) -> str:
    """The question as it is put."""
    return question.strip() + _in_language(language)


def _in_language(language: str | None) -> str:
    return f"\nWrite in {language.strip()}." if language and language.strip() else ""


@dataclass
class Work:
    """A reply about to come, and the documents that its citations count: those it was read from, or passes' replies."""

    pieces: Iterator[str]
    entries: Sequence[Entry]
    passes: int = 1


def summarize_documents(
    reader: Reader,
    entries: Sequence[Entry],
    task: Task,
    wish: Wish,
    *,
    tell: Tell = lambda _: None,
    size: Size | None = None,
) -> Work:
    """A summary; where the documents are more than the context, of the summaries of their parts. ``size`` is told first."""

    def each(i: int, n: int) -> Task:
        part = replace(wish, length="medium").instruction(f"the documents, which are part {i} of {n} of a longer text,")
        return Task(part, task.citations)

    return _in_passes(reader, entries, task, each, "Summary", tell, size)


def ask_documents(
    reader: Reader,
    entries: Sequence[Entry],
    task: Task,
    *,
    passes: bool = False,
    tell: Tell = lambda _: None,
    size: Size | None = None,
) -> Work:
    """An answer. Documents that do not fit are refused with what to do, or asked part by part with ``passes``."""

    def each(i: int, n: int) -> Task:
        text = f"{task.text}\n\nThese documents are part {i} of {n}. If they say nothing about it, answer {_NOTHING}."
        return Task(text, task.citations)

    if not passes:
        first = plan(reader, entries, task)
        if len(first.groups) > 1:
            otherwise = f"use --passes to ask {len(first.groups)} parts one after another"
            raise does_not_fit(reader, entries, first.tokens, otherwise)
    return _in_passes(reader, entries, task, each, "Answer", tell, size)


def _notes(reader: Reader) -> Notes | None:
    """Where passes are kept; nowhere without a store (the session says why there is none)."""
    try:
        return Notes(PrefixStore().root) if reader.options.get("store", True) else None
    except JambaError:
        return None


def _in_passes(
    reader: Reader,
    entries: Sequence[Entry],
    task: Task,
    each: Callable[[int, int], Task],
    called: str,
    tell: Tell,
    size: Size | None,
) -> Work:
    notes = _notes(reader)
    passes = 1
    for depth in range(_DEPTH):
        chosen = plan(reader, entries, task, each=each(99, 99))
        if not depth and size is not None:
            size(entries, chosen.tokens)
        if len(chosen.groups) == 1:
            return Work(reader.stream(entries, task), entries, passes)
        n = len(chosen.groups)
        passes += n
        tell(
            f"{chosen.tokens:,} tokens do not fit into the context of {reader.ctx:,}: reading in {n} passes, then what "
            "they said" + ("; each is kept, so if interrupted, the same command goes on there" if notes else "")
        )
        said = read_in_passes(reader, chosen.groups, each, called=called, notes=notes, tell=tell)
        entries = [e for e in said if e.text.strip() and e.text.strip(" .\n") != _NOTHING] or said[:1]
    raise JambaError(f"the text does not get short enough for a context of {reader.ctx:,} tokens; use a larger --ctx")
