"""Passes: a text longer than the context is read in parts, then the replies to the parts are read (map-reduce).

Each part's reply is stored with the prefixes as soon as it is complete, and its prefill is stored like any other, so an
interrupted call continues where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from jambacli.cache.prefix_store import text_hash
from jambacli.cache.reply_cache import ReplyCache, reply_key
from jambacli.documents.citations import Cited
from jambacli.documents.pages import DocumentEntry, Source
from jambacli.documents.reader import Reader, Task
from jambacli.errors import JambaError
from jambacli.text.markup import THINK

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

# Tokens around a document's text and title: markup, its number, line breaks.
_AROUND = 16
#: Maximum reply to a part if the user sets no limit; never more than an eighth of the context.
PART_REPLY = 512


class PromptReader(Protocol):
    """What ``plan`` needs of a ``Reader``: the size of the context and of prompts."""

    @property
    def model(self) -> LoadedModel:
        """The model."""

    @property
    def ctx(self) -> int:
        """The context, in tokens."""

    def reserve(self) -> int:
        """Tokens to keep free for the reply."""

    def prompt(self, entries: Sequence[DocumentEntry], task: Task) -> list[int]:
        """The tokens of the whole prompt."""


@dataclass(frozen=True)
class ReadingPlan:
    """How documents are read: at once (one group) or in several passes. ``tokens``: of the whole prompt."""

    groups: list[list[DocumentEntry]]
    tokens: int


def plan(
    reader: PromptReader, entries: Sequence[DocumentEntry], task: Task, *, each: Task | None = None
) -> ReadingPlan:
    """One group if everything fits together with the reply, else groups in order, with room for the task ``each``.

    Raises JambaError for a context that has no room for documents.
    """
    total = len(reader.prompt(entries, task))
    room = reader.ctx - reader.reserve()
    if total <= room:
        return ReadingPlan([list(entries)], total)
    tokenizer = reader.model.tokenizer
    around = len(reader.prompt([DocumentEntry("", "", ())], each or task))
    room = reader.ctx - around - min(PART_REPLY, reader.ctx // 8) - 8
    if room < 4 * _AROUND:
        raise JambaError(
            f"a context of {reader.ctx:,} tokens is too small to read documents", remedy="use a larger {ctx}"
        )
    groups: list[list[DocumentEntry]] = [[]]
    left = room
    for entry in entries:
        for part, size in _fitting(entry, room, lambda text: len(tokenizer.encode(text))):
            if size > left and groups[-1]:
                groups.append([])
                left = room
            groups[-1].append(part)
            left -= size
    return ReadingPlan(groups, total)


def does_not_fit(reader: Reader, entries: Sequence[DocumentEntry], tokens: int, otherwise: str) -> JambaError:
    """The error for documents that are larger than the context: by how much, where it is full, and what to do.

    ``otherwise``: a remedy besides fewer documents or a larger context.
    """
    room, limit = reader.ctx - reader.reserve(), reader.model.config.context_length
    tokenizer, used, where = reader.model.tokenizer, 0, ""
    for entry in entries:
        used += len(tokenizer.encode(entry.text)) + len(tokenizer.encode(entry.title)) + _AROUND
        if used > room:
            where = f"; it is full at {entry.title}"
            break
    larger = f"raise {{ctx}} (the model takes up to {limit:,}), " if reader.ctx < limit else ""
    return JambaError(
        f"the documents are {tokens:,} tokens and the context of {reader.ctx:,} has room for {room:,}{where}",
        remedy=f"leave out documents, {larger}or {otherwise}",
    )


def _fitting(entry: DocumentEntry, room: int, count: Callable[[str], int]) -> Iterator[tuple[DocumentEntry, int]]:
    """The entry, divided in halves until each is at most ``room`` tokens, with the sizes in tokens."""
    size = count(entry.text) + count(entry.title) + _AROUND
    if size <= room or len(entry.text) < 2:
        yield entry, size
        return
    middle = len(entry.text) // 2
    line = entry.text.find("\n", middle, middle + 2000)
    cut = line + 1 if line >= 0 else middle
    for half in (entry.text[:cut], entry.text[cut:]):
        yield from _fitting(replace(entry, text=half), room, count)


def read_in_passes(
    reader: Reader,
    groups: Sequence[Sequence[DocumentEntry]],
    each: Callable[[int, int], Task],
    *,
    reply_title: str,
    cache: ReplyCache | None,
) -> list[DocumentEntry]:
    """The model's replies about each group, as documents for a last pass. Several groups are read at once.

    ``each``: the task for part i of n. ``reply_title``: what a reply's title calls it ("Summary"). ``cache``: where
    replies are stored, if anywhere.
    """
    said: dict[int, tuple[str, list[int]]] = {}
    missing: list[_Part] = []
    for i, group in enumerate(groups):
        part = _part(reader, i, group, each(i + 1, len(groups)))
        found = cache.get(part.key) if cache is not None else None
        if found is None:
            missing.append(part)
        else:
            logger.info("pass %d of %d: %s: reusing the stored reply", i + 1, len(groups), group_span(group))
            said[i] = found["text"], found.get("numbers", [])

    def request(part: _Part) -> Request:
        logger.info(
            "pass %d of %d: %s, %s tokens", part.index + 1, len(groups), group_span(part.group), f"{part.tokens:,}"
        )
        return reader.request(part.group, part.task, max_tokens=part.max_tokens)

    def ended(part: _Part, job: Job | None, error: Exception | None) -> None:
        if error is not None:
            raise error
        assert job is not None
        cited = Cited()
        text = "".join(cited.answer([job.text])).strip()
        said[part.index] = text, cited.cited(part.group)
        if cache is not None:
            documents = [text_hash(e.text) for e in part.group]
            cache.put(part.key, text, documents, numbers=said[part.index][1])

    if missing:
        total = sum(part.tokens for part in missing)
        with reader.progress("Reading", total, "tokens") as advance, reader.engine(at_most=len(missing)) as engine:
            engine.run_all(((part, partial(request, part)) for part in missing), ended, advance)
    reader.close()
    replies: list[DocumentEntry] = []
    for i, group in enumerate(groups):
        text, numbers = said[i]
        named = [s for n in numbers if isinstance(n, int) and n < len(group) for s in group[n].sources]
        sources = list(dict.fromkeys(named)) or group_sources(group)
        replies.append(DocumentEntry(f"{reply_title} of {group_span(group)}", text, tuple(sources)))
    return replies


@dataclass(frozen=True)
class _Part:
    """One group to be read: its number, its task, the longest reply, and the key of its reply."""

    index: int
    group: Sequence[DocumentEntry]
    task: Task
    tokens: int
    max_tokens: int
    key: str


def _part(reader: Reader, index: int, group: Sequence[DocumentEntry], task: Task) -> _Part:
    ids = reader.prompt(group, task)
    thinks = reader.model.tokenizer.marker_id(THINK) in ids[-4:]
    usual = PART_REPLY * (4 if thinks else 1)
    max_tokens = min(reader.generation.max_tokens or usual, max(1, reader.ctx // 8))
    return _Part(index, group, task, len(ids), max_tokens, _key(reader, ids, max_tokens, task))


def _key(reader: Reader, ids: Sequence[int], max_tokens: int, task: Task) -> str:
    """The key of a part's reply. The values and their order must not change, so that stored replies are found."""
    sampling = {**reader.generation.chosen_sampling(), "stop": reader.generation.stop}
    model = reader.model
    weights = model.fingerprint if reader.options.store else model.name
    return reply_key(weights, reader.options.kv_type, list(ids), max_tokens, sampling, task.citations)


def group_sources(group: Sequence[DocumentEntry]) -> list[Source]:
    """All places of a group; pages of a file that follow one another are one span."""
    found: list[Source] = []
    for place in dict.fromkeys(s for e in group for s in e.sources):
        last = found[-1] if found else None
        if last is not None and place.unit and (last.file, last.unit) == (place.file, place.unit):
            found[-1] = replace(last, last=max(last.last, place.last))
        else:
            found.append(place)
    return found


def group_span(group: Sequence[DocumentEntry]) -> str:
    """What a group covers: ``contract.pdf, pages 3-40``, or its first and last file or title."""
    places = [s for e in group for s in e.sources]
    files = list(dict.fromkeys(s.file for s in places))
    if len(files) == 1 and all(s.unit for s in places):
        return str(replace(places[0], first=min(s.first for s in places), last=max(s.last for s in places)))
    if len(group) == 1:
        return group[0].title
    return (
        f"{len(files):,} files, {files[0]} to {files[-1]}"
        if len(files) > 1
        else f"{group[0].title} to {group[-1].title}"
    )
