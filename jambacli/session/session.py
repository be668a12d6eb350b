"""A conversation with one model: messages in, text out, the state kept between turns and processes.

Every turn is the same operation: render the whole conversation, keep the longest prefix that the sequence or the store
holds, prefill the rest, generate. An edit, a regeneration or a branch only changes what is rendered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from jambacli.cache.prefix_store import Prefix, PrefixStore, text_hash
from jambacli.engine.generate import Generated, Thought, generate
from jambacli.engine.options import GenerationKeywords, GenerationOptions
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import Counters, TokenSequence
from jambacli.errors import JambaError, UsageError
from jambacli.progress import Progress, no_progress
from jambacli.session import session_file
from jambacli.session.conversation import Conversation, Rendered, Turn, ends_in_thought, render_plain, thought_marks
from jambacli.session.functions import Tool, tools_of
from jambacli.session.options import SessionOptions
from jambacli.session.reply_tools import ReplyTools, model_markup, reply_constraint, reply_tools, without_calls
from jambacli.session.session_lock import SessionLock
from jambacli.session.stats import Stats
from jambacli.session.thinking import forbid_thoughts, render_reply, switch_thoughts
from jambacli.session.tool_loop import ROUNDS, ToolOptions, reply_with_tools
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse, tool_choice_of

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.model.state import SequenceState

logger = logging.getLogger(__name__)

#: How the last reply ended when its turn is no longer part of the conversation; a value in session files.
_TAKEN_BACK = "taken back"


class Session:
    """One conversation and its state. ``send`` uses the chat template, ``complete`` continues plain text."""

    def __init__(self, model: LoadedModel, options: SessionOptions | None = None) -> None:
        """Raises UsageError for a context larger than the model's or a new name that is taken, JambaError for a session
        that is open elsewhere or was made with another model or KV type.
        """
        options = options or SessionOptions()
        limit = model.config.context_length
        if options.ctx is not None and options.ctx > limit > 0:
            problem = f"{options.ctx:,} is more than the {limit:,} tokens {model.name} was made for"
            raise UsageError(problem, field="ctx")
        if (options.name or options.resume) and not options.store:
            raise UsageError("a session with a name is stored on disk", remedy="leave out {name} or {store}")
        self.model = model
        self.sampling = options.sampling or model.sampling
        self.stats = Stats()
        self._system = options.system
        self._conversation: Conversation | None = None
        self._prompt: list[int] = []
        self._reply_ids: list[int] = []
        self._chat = True
        self._finish = ""
        self._random_state: dict[str, Any] | None = None
        self._tools: ToolOptions | None = None
        self._by_grammar = False  # whether a grammar decided all of the last reply
        #: The stored prefixes of this session, None without a store.
        self.prefix_cache: PrefixCache | None = None
        self._lock = SessionLock(model, name=options.name, resume=options.resume, read_only=options.read_only)
        try:
            found = self._lock.found
            kv_type = self._lock.kv_type(options.kv_type)
            precise = self._lock.precise(model.model.precise)
            ctx = options.ctx or (found.ctx if found else limit)
            self.sequence = TokenSequence(model.model, ctx, kv_type, precise=precise)
            if options.store:
                self.sequence.prefixes = self.prefix_cache = self.open_prefix_cache(self.sequence)
            if found is not None:
                self._resume(found)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str | None:
        """The name it is saved under, None without one."""
        return self._lock.name

    @property
    def state(self) -> SequenceState:
        """The model state of the session; ``snapshot()`` and ``restore()`` go back and forth in it."""
        return self.sequence.state

    @property
    def conversation(self) -> Conversation:
        """The turns so far. Raises UsageError for a model without a chat template."""
        if self._conversation is None:
            template = self.model.template
            if template is None:
                raise UsageError(f"{self.model.name} has no chat template; it can only continue plain text")
            self._conversation = Conversation(template, self.model.tokenizer, self._system)
        return self._conversation

    def send(
        self,
        text: str,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        tools: Sequence[Callable[..., Any] | Tool] | None = None,
        tool_choice: str = "auto",
        tool_rounds: int | None = None,
        approve: Callable[[ToolCall], bool] | None = None,
        reserve: int = 0,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Send ``text`` and yield the reply as it is generated.

        ``documents``: mappings with "text" and optionally "title". ``knobs``: the value of the chat template's variable
        ``knobs``, which sets modes. ``options``, and the same fields as keywords (``temperature=0`` ...), override the
        session's sampling. A model that thinks first yields its thoughts as ``Thought``, a kind of str. A reply whose
        iterator is closed early is kept as far as it got. Raises ContextFullError, when the iterator starts, if the
        conversation and ``reserve`` tokens of a reply do not fit.

        ``tools``: Python functions with type hints that the model may call (see ``Tool.of``). Their results become turns, and
        the model answers again, at most ``tool_rounds`` times (8). ``tool_choice``: "auto", "required", "none" or a function's
        name, for the first reply. ``approve`` is asked before each call. All of this but the choice stays for later messages,
        and for ``answer``, until it is given again; ``tools=[]`` removes the tools.
        """
        self._check_writable()
        chosen = _merged(options, keywords)
        self.use_tools(tools, choice=tool_choice, rounds=tool_rounds, approve=approve)
        switch_thoughts(self.conversation, chosen.think)  # documents are rendered as they will be in the prompt
        self.conversation.add_user(text, documents, knobs)
        self._record_documents(documents)
        return self._answer(chosen, reserve, progress)

    def answer(
        self,
        *,
        reserve: int = 0,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Reply to the user's last turn, after an edit or to regenerate; otherwise like ``send``."""
        self._check_writable()
        chosen = _merged(options, keywords)
        turns = self.conversation.turns
        while turns and turns[-1].role in ("assistant", "tool"):
            turns.pop()
        if not turns or turns[-1].role != "user":
            raise UsageError("there is nothing to answer yet")
        return self._answer(chosen, reserve, progress)

    def complete(
        self,
        text: str,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Continue ``text`` without a chat template, after ``documents`` as plain text, and yield what follows."""
        self._check_writable()
        chosen = _merged(options, keywords)
        self._chat = False
        self._record_documents(documents)
        rendered = render_plain(self.model.tokenizer, text, documents)
        return self._generate(rendered, chosen, self._sampling(chosen), progress, Generated())

    def extend(
        self,
        *,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Continue the last reply where it was cut off, bit for bit as if it had never stopped."""
        self._check_writable()
        if not self._prompt or self._finish == _TAKEN_BACK:
            raise UsageError("there is no reply to continue")
        before = list(self._reply_ids)
        rendered = Rendered(self._prompt + before, [len(self._prompt)])
        chosen, result = _merged(options, keywords), Generated(ids=list(before))
        pieces = self._generate(rendered, chosen, self._sampling(chosen), progress, result, skip=len(before))
        return self._extend_turn(pieces, result) if self._chat else pieces

    def _extend_turn(self, pieces: Iterator[str], result: Generated) -> Iterator[str]:
        """Replace the last turn, a reply, by a longer one; it is unchanged if nothing is added."""
        turns, prompt, reply, finish = self.conversation.turns, self._prompt, self._reply_ids, self._finish
        last = turns.pop() if turns and turns[-1].role == "assistant" else None
        try:
            yield from self._kept(pieces, result, first=not result.ids)
        finally:
            if not self._prompt:  # interrupted before anything was added
                self._prompt, self._reply_ids, self._finish = prompt, reply, finish
                turns += [last] if last else []

    @property
    def taken_back(self) -> bool:
        """Whether turns were undone since the last reply."""
        return self._finish == _TAKEN_BACK

    def changed(self) -> None:
        """Record that turns were undone or replaced, so that the last reply cannot be continued; saves the session."""
        self._finish = _TAKEN_BACK
        self.commit()

    def clear(self) -> None:
        """Remove all turns, and the documents that came with them; the state stays for the next prompt to reuse."""
        self.conversation.clear()
        if self.prefix_cache is not None:
            self.prefix_cache.documents = []

    def save(self, name: str | None = None) -> None:
        """Save the session, from now on under ``name`` if given; returns once it is on disk.

        Raises UsageError for a session without a store, JambaError when another process has the name open.
        """
        if self.prefix_cache is None:
            raise UsageError("this session stores nothing on disk; it cannot be saved")
        self._lock.rename(name)
        self.commit()
        self.prefix_cache.close()

    def open_prefix_cache(self, sequence: TokenSequence) -> PrefixCache | None:
        """The part of the store for this model and a sequence like the session's. If the store cannot be created, a session
        without a name works without it."""
        state = sequence.state
        try:
            weights = self.model.weights
            return PrefixCache(PrefixStore(), state_spaces(weights.name, state), state.layout, weights.in_use)
        except JambaError as error:
            if self.name:
                raise
            logger.warning("%s; nothing will be stored on disk", error)
            return None

    def close(self) -> None:
        """Wait for pending writes, then release the session's lock."""
        if self.prefix_cache is not None:
            self.prefix_cache.close()
        self._lock.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self._lock.read_only:
            raise UsageError(f"session {self.name!r} is open read-only; branch it under another name to continue")

    def _resume(self, saved: session_file.SavedSession) -> None:
        """Take over a saved session: its turns, and the longest of its prefixes that is still stored."""
        ids = [*saved.tokens, *(i for t in saved.turns for k in ("ids", "thought_ids") for i in t.get(k) or ())]
        if ids and not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            raise JambaError(
                f"session {saved.name!r} is damaged: it holds tokens that the model does not have; delete it"
            )
        self._chat, self._finish, self._random_state = saved.chat, saved.finish, saved.random_state
        self._prompt, self._reply_ids = list(saved.prompt), list(saved.reply)
        if saved.chat:
            if saved.template_hash not in ("", self._template_hash()):
                logger.info(
                    "session %s was made with another chat template: what this one renders otherwise is read again",
                    saved.name,
                )
            self._system = saved.system
            self.conversation.turns = [Turn.from_json(t) for t in saved.turns]
        cache, sequence = self.prefix_cache, self.sequence
        assert cache is not None
        cache.documents = list(saved.documents)
        fitting = [p for p in saved.prefixes if p.position <= sequence.ctx]
        if sequence.restore_first(cache.read(fitting, saved.tokens)):
            cache.add_stored(p for p in fitting if p.position < len(sequence.tokens))

    def _template_hash(self) -> str:
        """The hash of the chat template, "" without one or where none is used."""
        template = self.model.template if self._chat else None
        return text_hash(template.source) if template is not None else ""

    def use_tools(
        self,
        tools: Sequence[Callable[..., Any] | Tool] | None,
        *,
        choice: str = "auto",
        rounds: int | None = None,
        approve: Callable[[ToolCall], bool] | None = None,
    ) -> None:
        """Set the tools of the next replies; see ``send``. Raises UsageError for a template without tools or a wrong choice."""
        before = self._tools
        known = tools_of(tools) if tools is not None else before.tools if before is not None else {}
        if not known:
            self._tools = None
            self.conversation.variables.pop("tools", None)
            return
        model_markup(self.model)
        use = ToolUse([t.definition for t in known.values()], *tool_choice_of(choice))
        if before is not None:
            rounds, approve = rounds or before.rounds, approve or before.approve
        self._tools = ToolOptions(known, use, rounds or ROUNDS, approve)
        self.conversation.variables["tools"] = self.conversation.template.protect(use.as_messages())

    def _answer(self, options: GenerationOptions, reserve: int, progress: Progress) -> Iterator[str]:
        tools = self._tools
        if tools is None:
            return self._one_reply(options, reserve, progress, None)[0]

        def after_calls(use: ToolUse, results: list[str]) -> tuple[Iterator[str], ReplyTools | None]:
            turns = self.conversation.turns
            before = list(turns)
            turns += [Turn("tool", text) for text in results]
            try:
                return self._one_reply(options, reserve, progress, use)
            except BaseException:
                turns[:] = before
                raise

        def finished() -> bool:
            # With stop strings it is not known which of them ended the reply. A grammar ends at the limit too.
            return self._by_grammar or (self._finish == "stop" and not options.stop)

        return reply_with_tools(tools, after_calls, finished, self._one_reply(options, reserve, progress, tools.use))

    def _one_reply(
        self, options: GenerationOptions, reserve: int, progress: Progress, tools: ToolUse | None
    ) -> tuple[Iterator[str], ReplyTools | None]:
        """The next reply, and the tools that it may call."""
        try:
            rendered = render_reply(self.conversation, options.think)
            sampling = without_calls(self.model, self._sampling(options), tools)
            calls = reply_tools(self.model, tools)
        except BaseException:
            self.conversation.turns.pop()
            raise
        self._chat = True
        result = Generated()
        pieces = self._generate(rendered, options, sampling, progress, result, reserve=reserve, calls=calls)
        return self._kept(pieces, result, first=True), calls

    def _kept(self, pieces: Iterator[str], result: Generated, first: bool) -> Iterator[str]:
        """Pass the pieces on and keep the reply as a turn, however it ends."""
        try:
            for piece in pieces:
                if isinstance(piece, Thought):
                    yield piece
                    continue
                # The template writes a space after the assistant's header in history, but not in a generation prompt.
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
        options: GenerationOptions,
        sampling: Sampling,
        progress: Progress,
        result: Generated,
        skip: int = 0,
        reserve: int = 0,
        calls: ReplyTools | None = None,
    ) -> Iterator[str]:
        """Prefill the new tokens of ``rendered``, then generate; its last ``skip`` tokens are the reply so far. With ``calls``,
        their marks are in the text."""
        began = time.perf_counter()
        sequence = self.sequence
        sequence.counters = Counters()
        self.stats = Stats(prompt_tokens=len(rendered.ids), document_tokens=rendered.documents_end)
        tokenizer, max_tokens = self.model.tokenizer, options.max_tokens
        self._prompt = []
        constraint = reply_constraint(self.model, options, calls)
        whole = self._by_grammar = constraint is not None and constraint.whole
        sampler = Sampler(sampling, rendered.ids, constraint)
        if skip and self._random_state is not None:
            sampler.random_state = self._random_state
        try:
            sequence.advance(rendered.ids, rendered.boundaries, progress, reserve)
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
                stops=() if whole else options.stop,
                stop_ids=tokenizer.stop_ids,
                thought_marks=thought_marks(tokenizer),
                result=result,
                lookup=sequence.fast_steps if options.lookup is None else options.lookup,
                markup=calls.markup.shown if calls is not None else None,
            )
            for piece in pieces:
                if not self.stats.first_token_seconds:
                    self.stats.first_token_seconds = time.perf_counter() - began
                yield piece
            if constraint is not None:
                at_context = max_tokens is None or len(self._prompt) + max_tokens > sequence.ctx
                constraint.check_finished(len(result.ids), at_context=at_context)
        finally:
            self._reply_ids, self._finish, self._random_state = result.ids, result.finish, sampler.random_state
            self.stats.end(sequence.counters, result, skip)
            if not sequence.consistent:  # interrupted within a pass: the partial reply is still saved
                sequence.rewind(len(sequence.tokens))
            if sequence.tokens:
                sequence.checkpoint()
                if not self._chat:
                    self.commit()

    def _record_documents(self, documents: Sequence[Mapping[str, Any]] | None) -> None:
        """Record which documents the sequence holds, so that they can be cleared from the store."""
        if self.prefix_cache is not None:
            self.prefix_cache.documents += [text_hash(str(d.get("text", ""))) for d in documents or ()]

    def _sampling(self, options: GenerationOptions) -> Sampling:
        """How the tokens of a reply are chosen. Raises UsageError for a biased token that the model does not have."""
        sampling = options.sampling(self.sampling)
        sampling.check_vocabulary(self.model.config.vocab_size)
        return forbid_thoughts(self.model, sampling, options.think)

    def commit(self) -> None:
        """Store the sequence and, under a name, save the session; returns once everything is copied."""
        cache, sequence = self.prefix_cache, self.sequence
        if cache is None or self._lock.read_only or sequence.state.interrupted:
            return
        if self.name is None:
            cache.commit(sequence.content)
            return
        saved = self._saved(self.name, cache)

        def done(prefixes: list[Prefix]) -> None:
            saved.prefixes = prefixes
            session_file.write(saved)

        cache.commit(sequence.content, done)

    def _saved(self, name: str, cache: PrefixCache) -> session_file.SavedSession:
        """The current session, without its prefixes."""
        model, sequence = self.model, self.sequence
        return session_file.SavedSession(
            name=name,
            model=model.name,
            model_path=str(model.path),
            fingerprint=model.fingerprint,
            kv_type=sequence.state.kv_type,
            precise=sequence.state.precise,
            ctx=sequence.ctx,
            created=self._lock.created,
            updated=time.time(),
            system=self._system,
            parent=self._lock.parent,
            chat=self._chat,
            turns=[t.to_json() for t in self.conversation.turns] if self._chat else [],
            prompt=list(self._prompt),
            reply=list(self._reply_ids),
            finish=self._finish,
            random_state=self._random_state,
            documents=list(cache.documents),
            template_hash=self._template_hash(),
            chat_template=model.chat_template if self._chat else None,
        )


def _merged(options: GenerationOptions | None, keywords: GenerationKeywords) -> GenerationOptions:
    """The options with the keywords in place of their fields. Raises TypeError for an unknown keyword."""
    return replace(options or GenerationOptions(), **keywords)
