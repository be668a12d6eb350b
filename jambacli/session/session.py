"""A chat with one model: messages in, text out, the state kept between turns and processes; knows nothing of terminals.

Every turn is the same operation: render the whole conversation, keep the longest prefix the sequence or the store already
holds, read the rest, generate. An edit, a regeneration or a branch only changes what is rendered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.engine.generate import Generated, Thought, generate
from jambacli.engine.prefix_cache import text_hash
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import Counters, Reading, TokenSequence, silent
from jambacli.errors import JambaError, UsageError
from jambacli.session.conversation import Conversation, Rendered, Turn, ends_in_thought, render_plain, thought_marks
from jambacli.session.session_lock import Record

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.constraints.json_schema import SchemaConstraint
    from jambacli.model.state import SequenceState
    from jambacli.session.session_file import SavedSession

#: How the last reply ended where its turn is no longer part of the conversation.
_TAKEN_BACK = "taken back"


@dataclass
class Stats:
    """One reply in figures; seconds and tokens. ``first_token_seconds`` counts from the call to the first text.

    The prompt's first ``document_tokens`` lead to the end of its documents; so many of them had to be read (again).
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0
    first_token_seconds: float = 0.0
    finish: str = ""
    document_tokens: int = 0
    replayed_document_tokens: int = 0


class Session:
    """One conversation in one state. ``send`` talks through the chat template, ``complete`` continues raw text."""

    def __init__(
        self,
        model: Jamba,
        *,
        ctx: int | None = None,
        kv_type: str | None = None,
        system: str | None = None,
        sampling: Sampling | None = None,
        store: bool = True,
        name: str | None = None,
        resume: str | None = None,
        read_only: bool = False,
    ) -> None:
        """``ctx``: the most tokens the session may hold, the model's own context length by default (memory grows with
        use). ``store``: keep prefixes on disk, so that no process computes them twice. ``name``: save every turn under
        that name. ``resume``: go on where the session of that name stopped (and save under it, unless ``read_only``).

        Raises UsageError for a context the model was not made for, JambaError for a session that is open elsewhere or
        was made with another model or KV type.
        """
        limit = model.config.context_length
        if ctx is not None and ctx > limit > 0:
            raise UsageError(f"--ctx {ctx:,} is more than the {limit:,} tokens {model.name} was made for")
        if (name or resume) and not store:
            raise UsageError("a named session needs the store; leave out the name, or the wish to store nothing")
        self.model = model
        self.sampling = sampling or model.sampling
        self.stats = Stats()
        self._system = system
        self._conversation: Conversation | None = None
        self._prompt: list[int] = []
        self._reply_ids: list[int] = []
        self._chat = True
        self._finish = ""
        self._random_state: dict[str, Any] | None = None
        self._record = Record(model, name=name, resume=resume, read_only=read_only)
        try:
            found = self._record.found
            kv_type = self._record.kv_type(kv_type)
            self.sequence = TokenSequence(model.model, ctx or (found.ctx if found else limit), kv_type)
            if store:
                self.sequence.persistence = self._record.persistence(kv_type)
            if found is not None:
                self._take_up(found)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str | None:
        """The name it is saved under, None where it has none."""
        return self._record.name

    @property
    def state(self) -> SequenceState:
        """The model state behind the session: ``snapshot()`` and ``restore()`` go back and forth in it."""
        return self.sequence.state

    @property
    def conversation(self) -> Conversation:
        """The turns so far. Raises UsageError for a model without a chat template."""
        if self._conversation is None:
            template = self.model.template
            if template is None:
                raise UsageError(
                    f"{self.model.name} has no chat template; continue plain text with it: jamba run --raw"
                )
            self._conversation = Conversation(template, self.model.tokenizer, self._system)
        return self._conversation

    def send(
        self,
        text: str,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reserve: int = 0,
        reading: Reading = silent,
        **sampling: Any,
    ) -> Iterator[str]:
        """Say ``text`` and yield the reply as it comes. ``documents``: mappings with "text" and perhaps "title".

        A model that thinks first yields its thoughts as ``Thought``, a kind of str. Keyword arguments of Sampling
        (``temperature=0`` ...) override the session's. The reply so far is kept when the iterator is closed early.
        Raises ContextFullError (when the iterator starts) where the context has no room for the conversation and
        ``reserve`` tokens of a reply.
        """
        self._check_writable()
        self.conversation.add_user(text, documents, knobs)
        self._remember(documents)
        return self._answer(max_tokens, stop, reserve, reading, sampling)

    def answer(
        self,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reserve: int = 0,
        reading: Reading = silent,
        **sampling: Any,
    ) -> Iterator[str]:
        """Reply to the conversation as it stands, its last turn being the user's: after an edit or to regenerate."""
        self._check_writable()
        turns = self.conversation.turns
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not turns or turns[-1].role != "user":
            raise UsageError("there is nothing to answer yet")
        return self._answer(max_tokens, stop, reserve, reading, sampling)

    def complete(
        self,
        text: str,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reading: Reading = silent,
        **sampling: Any,
    ) -> Iterator[str]:
        """Continue ``text``, with ``documents`` before it as plain text, without a template and yield what follows."""
        self._check_writable()
        self._chat = False
        self._remember(documents)
        options = self._options(sampling)
        rendered = render_plain(self.model.tokenizer, text, documents)
        return self._generate(rendered, max_tokens, stop, reading, options, Generated())

    def extend(
        self, *, max_tokens: int | None = None, stop: Sequence[str] = (), reading: Reading = silent, **sampling: Any
    ) -> Iterator[str]:
        """Go on with the last reply where it was cut off, to the bit as if it had never stopped."""
        self._check_writable()
        if not self._prompt or self._finish == _TAKEN_BACK:
            raise UsageError("there is no reply to go on with")
        before = list(self._reply_ids)
        rendered = Rendered(self._prompt + before, [len(self._prompt)])
        options, result = self._options(sampling), Generated(ids=list(before))
        if not self._chat:
            return self._generate(rendered, max_tokens, stop, reading, options, result, skip=len(before))
        return self._extend_turn(
            self._generate(rendered, max_tokens, stop, reading, options, result, skip=len(before)), result
        )

    def _extend_turn(self, pieces: Iterator[str], result: Generated) -> Iterator[str]:
        """Replace the last turn, a reply, by a longer one; it stays where none comes."""
        turns, prompt, reply, finish = self.conversation.turns, self._prompt, self._reply_ids, self._finish
        last = turns.pop() if turns and turns[-1].role == "assistant" else None
        try:
            yield from self._kept(pieces, result, first=not result.ids)
        finally:
            if not self._prompt:  # interrupted before anything could be added
                self._prompt, self._reply_ids, self._finish = prompt, reply, finish
                turns += [last] if last else []

    @property
    def taken_back(self) -> bool:
        """Whether turns were taken back since the last reply."""
        return self._finish == _TAKEN_BACK

    def changed(self) -> None:
        """Turns were taken back or replaced: the last reply is none to go on with any more. Saves the session so."""
        self._finish = _TAKEN_BACK
        self.commit()

    def save(self, name: str | None = None) -> None:
        """Save the session now, under ``name`` from here on if one is given; returns once it is on disk.

        Raises JambaError when the name is in use by another process.
        """
        if self.sequence.persistence is None:
            raise UsageError("this session stores nothing on disk; it cannot be saved")
        self._record.rename(name)
        self.commit()
        self.sequence.persistence.close()

    def close(self) -> None:
        """Wait for what is being written and give the session's name free."""
        sequence = getattr(self, "sequence", None)
        if sequence is not None and sequence.persistence is not None:
            sequence.persistence.close()
        self._record.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self._record.read_only:
            raise UsageError(f"session {self.name!r} is open read-only; branch it under another name to go on")

    def _take_up(self, saved: SavedSession) -> None:
        """Stand where a saved session stopped."""
        self._chat, self._finish, self._random_state = saved.chat, saved.finish, saved.random_state
        self._prompt, self._reply_ids = list(saved.prompt), list(saved.reply)
        if saved.chat:
            self._system = saved.system
            self.conversation.turns = [Turn.from_json(t) for t in saved.turns]
        self._record.restore(self.sequence)

    def _answer(
        self, max_tokens: int | None, stop: Sequence[str], reserve: int, reading: Reading, sampling: Mapping[str, Any]
    ) -> Iterator[str]:
        try:
            rendered = self.conversation.render()
            options = self._options(sampling)
        except BaseException:
            self.conversation.turns.pop()
            raise
        self._chat = True
        result = Generated()
        pieces = self._generate(rendered, max_tokens, stop, reading, options, result, reserve=reserve)
        return self._kept(pieces, result, first=True)

    def _kept(self, pieces: Iterator[str], result: Generated, first: bool) -> Iterator[str]:
        """Pass the pieces on and keep the reply as a turn, however it ends."""
        try:
            for piece in pieces:
                if isinstance(piece, Thought):
                    yield piece
                    continue
                # The template writes a space after the assistant's header in history but not when generating.
                shown = piece[1:] if first and piece.startswith(" ") else piece
                first = False
                if shown:
                    yield shown
        finally:
            pieces.close()  # type: ignore[attr-defined]
            if self._prompt:
                self.conversation.add_assistant(result.ids, ends_in_thought(self.model.tokenizer, self._prompt))
                self.commit()

    def _generate(
        self,
        rendered: Rendered,
        max_tokens: int | None,
        stop: Sequence[str],
        reading: Reading,
        sampling: Sampling,
        result: Generated,
        skip: int = 0,
        reserve: int = 0,
    ) -> Iterator[str]:
        """Read what is new of ``rendered``, then generate; ``skip`` of its tokens at the end are the reply so far."""
        began = time.perf_counter()
        sequence = self.sequence
        sequence.counters = Counters()
        self.stats = Stats(prompt_tokens=len(rendered.ids), document_tokens=rendered.documents_end)
        tokenizer = self.model.tokenizer
        self._prompt = []
        constraint = self._constraint(sampling)
        sampler = Sampler(sampling, rendered.ids, constraint)
        if skip and self._random_state is not None:
            sampler.random_state = self._random_state
        try:
            sequence.advance(rendered.ids, rendered.boundaries, reading, reserve)
            self._prompt = rendered.ids[: len(rendered.ids) - skip]
            result.thinking = self._chat and ends_in_thought(tokenizer, rendered.ids, skip)
            if constraint is not None:
                room = sequence.ctx - len(rendered.ids)
                opened = self._chat and ends_in_thought(tokenizer, self._prompt)
                constraint.begin(room if max_tokens is None else min(room, max_tokens), opened, result.ids)
            pieces = generate(
                sequence,
                sampler,
                tokenizer,
                max_tokens=None if max_tokens is None else max_tokens + skip,
                stops=() if constraint is not None else stop,
                stop_ids=tokenizer.stop_ids,
                thought_marks=thought_marks(tokenizer),
                result=result,
            )
            for piece in pieces:
                if not self.stats.first_token_seconds:
                    self.stats.first_token_seconds = time.perf_counter() - began
                yield piece
            if constraint is not None and not constraint.finished:
                raise JambaError(
                    f"the JSON was not finished within {len(result.ids):,} tokens: raise --max-tokens (or --ctx), or give "
                    "the schema's strings a maxLength and its arrays a maxItems"
                )
        finally:
            self._reply_ids, self._finish, self._random_state = result.ids, result.finish, sampler.random_state
            c = sequence.counters
            self.stats = replace(
                self.stats,
                reused_tokens=c.reused,
                prefilled_tokens=c.prefilled,
                prefill_seconds=c.prefill_seconds,
                replayed_document_tokens=max(0, min(c.prefilled, rendered.documents_end - c.reused)),
                generated_tokens=len(result.ids) - skip,
                decoded_tokens=c.decoded,
                decode_seconds=c.decode_seconds,
                finish=result.finish,
            )
            if not sequence.sound:  # interrupted within a pass: what was said is saved all the same
                sequence.rewind(len(sequence.tokens))
            if sequence.tokens:
                sequence.checkpoint()
                if not self._chat:
                    self.commit()

    def _remember(self, documents: Sequence[Mapping[str, Any]] | None) -> None:
        """Note which documents the sequence holds, so that they can be cleared from the store."""
        if self.sequence.persistence is not None:
            self.sequence.persistence.documents += [text_hash(str(d.get("text", ""))) for d in documents or ()]

    def _options(self, given: Mapping[str, Any]) -> Sampling:
        """How the tokens of a reply are chosen. UsageError for what is out of range, or no token of this model."""
        options = self.sampling.with_given(**given)
        options.check_vocabulary(self.model.config.vocab_size)
        return options

    def _constraint(self, sampling: Sampling) -> SchemaConstraint | None:
        """What holds the reply to the sampling's schema, None where it has none."""
        if sampling.schema is None:
            return None
        from jambacli.engine.constraints.json_schema import SchemaConstraint

        tokenizer, n_vocab = self.model.tokenizer, self.model.config.vocab_size
        marks = thought_marks(tokenizer)
        return SchemaConstraint(tokenizer, sampling.schema, n_vocab, marks, citable=sampling.cite or 0)

    def commit(self) -> None:
        """Store the sequence and, under a name, the session that leads to it; returns before it is written."""
        sequence, persistence = self.sequence, self.sequence.persistence
        if persistence is None or self._record.read_only or sequence.state.interrupted:
            return
        if self.name is None:
            persistence.commit(sequence)
            return
        self._record.commit(
            sequence,
            system=self._system,
            chat=self._chat,
            turns=[t.to_json() for t in self.conversation.turns] if self._chat else [],
            prompt=list(self._prompt),
            reply=list(self._reply_ids),
            finish=self._finish,
            random_state=self._random_state,
        )
