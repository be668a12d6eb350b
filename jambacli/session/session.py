"""A conversation with one model: messages in, text out, the state kept between turns and processes.

Every turn is the same operation: render the whole conversation, keep the longest prefix that the sequence or the store
holds, prefill the rest, generate. An edit, a regeneration or a branch only changes what is rendered.
"""

from __future__ import annotations

import contextlib
import inspect
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Unpack

from jambacli.engine.counters import Counters
from jambacli.engine.generate import Generated, Thought, generate
from jambacli.engine.options import GenerationKeywords, GenerationOptions
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.errors import UsageError
from jambacli.interrupts import Stop, StoppedError, interrupts_held
from jambacli.keywords import with_keywords
from jambacli.progress import Progress, no_progress
from jambacli.session.conversation import Rendered, Turn, ends_in_thought, render_plain, thought_marks
from jambacli.session.functions import Tool, tools_of
from jambacli.session.given_documents import given_documents
from jambacli.session.reply_tools import ReplyTools, model_markup, reply_constraint, reply_tools, without_calls
from jambacli.session.stats import Stats
from jambacli.session.stored_session import TAKEN_BACK, StoredSession
from jambacli.session.thinking import forbid_thoughts, render_reply, switch_thoughts
from jambacli.session.tool_loop import ROUNDS, ToolOptions, reply_with_tools
from jambacli.text.template import TemplateError
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse, tool_choice_of


class Session(StoredSession):
    """One conversation and its state. ``send`` uses the chat template, ``complete`` continues plain text.

    A reply ends early when its iterator is closed, at a Ctrl-C, or by ``stop``. It is kept as far as it got, and nothing that
    was read or written is read again; a message to which no reply has begun is taken back.
    """

    _stop: Stop | None = None
    _running: weakref.ref[Generator[str, None, None]] | None = None  # the reply in progress; its reader holds it

    @property
    def replying(self) -> bool:
        """Whether a reply is in progress: its iterator has been made and has not ended."""
        return self._running is not None and self._running() is not None

    def stop(self) -> None:
        """End the reply in progress between two tokens, or while its prompt is rendered or read: its iterator ends, and
        ``stats.finish`` is "interrupted". For other threads and for signal handlers; without a reply nothing happens."""
        if self._stop is not None:
            self._stop.ask()
            self.model.cancel_rendering()

    def close(self) -> None:
        """End the reply in progress, wait for pending writes, then release the session's lock."""
        self._end_reply()
        super().close()

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

        ``documents``: mappings with "text" (or "content") and optionally "title" and "metadata". ``knobs``: the value of the
        chat template's variable ``knobs``, which sets modes. ``options``, and the same fields as keywords (``temperature=0``
        ...), override the session's sampling. A model that thinks first yields its thoughts as ``Thought``, a kind of str. A
        reply that is stopped or whose iterator is closed early is kept as far as it got. Raises ContextFullError, when the
        iterator starts, if the conversation and ``reserve`` tokens of a reply do not fit; the message is then taken back.

        ``tools``: Python functions with type hints that the model may call (see ``Tool.of``). Their results become turns, and
        the model answers again, at most ``tool_rounds`` times (8). ``tool_choice``: "auto", "required", "none" or a function's
        name, for the first reply. ``approve`` is asked before each call. All of this but the choice stays for later messages,
        and for ``answer``, until it is given again; ``tools=[]`` removes the tools.
        """
        stop = self._begin()
        chosen = with_keywords(options or GenerationOptions(), keywords, self.send)
        self.use_tools(tools, choice=tool_choice, rounds=tool_rounds, approve=approve)
        switch_thoughts(self.conversation, chosen.think)  # documents are rendered as they will be in the prompt
        before = list(self.conversation.turns)
        documents = given_documents(documents)
        self.conversation.add_user(text, documents, knobs)
        self._record_documents(documents)
        return self._run(self._taken_back_unless_begun(before, self._answer(chosen, reserve, progress, stop)))

    def answer(
        self,
        *,
        reserve: int = 0,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Reply to the user's last turn, after an edit or to regenerate; otherwise like ``send``."""
        stop = self._begin()
        chosen = with_keywords(options or GenerationOptions(), keywords, self.answer)
        turns = self.conversation.turns
        before = list(turns)
        while turns and turns[-1].role in ("assistant", "tool"):
            turns.pop()
        if not turns or turns[-1].role != "user":
            raise UsageError("there is nothing to answer yet")
        return self._run(self._taken_back_unless_begun(before, self._answer(chosen, reserve, progress, stop)))

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
        stop = self._begin()
        chosen = with_keywords(options or GenerationOptions(), keywords, self.complete)
        documents = given_documents(documents)
        self._chat = False
        self._record_documents(documents)
        rendered = render_plain(self.model.tokenizer, text, documents)
        return self._run(self._generate(rendered, chosen, self._sampling(chosen), progress, Generated(), stop))

    def extend(
        self,
        *,
        progress: Progress = no_progress,
        options: GenerationOptions | None = None,
        **keywords: Unpack[GenerationKeywords],
    ) -> Iterator[str]:
        """Continue the last reply where it was cut off, bit for bit as if it had never stopped."""
        stop = self._begin()
        if not self._prompt or self._finish == TAKEN_BACK:
            raise UsageError("there is no reply to continue")
        before = list(self._reply_ids)
        rendered = Rendered(self._prompt + before, [len(self._prompt)])
        chosen, result = (
            with_keywords(options or GenerationOptions(), keywords, self.extend),
            Generated(ids=list(before)),
        )
        pieces = self._generate(rendered, chosen, self._sampling(chosen), progress, result, stop, skip=len(before))
        return self._run(self._extend_turn(pieces, result) if self._chat else pieces)

    def _begin(self) -> Stop:
        """Begin a reply: what ``stop`` will ask. Raises UsageError for a session that is open read-only."""
        self._check_writable()
        self._end_reply()
        self._stop = Stop()
        return self._stop

    def _run(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces of the reply in progress, until they end."""

        def run() -> Generator[str, None, None]:
            try:
                with contextlib.closing(pieces):  # type: ignore[type-var]
                    yield from pieces
            finally:
                if self._running is reference:
                    self._running = None

        running = run()
        reference = self._running = weakref.ref(running)
        return running

    def _end_reply(self) -> None:
        """Close the iterator of a reply that is still open, unless this is called while it computes."""
        running = self._running() if self._running is not None else None
        self._running = None
        if running is not None and inspect.getgeneratorstate(running) != inspect.GEN_RUNNING:
            running.close()

    def _taken_back_unless_begun(self, before: list[Turn], pieces: Iterator[str]) -> Iterator[str]:
        """The pieces; if no reply begins, the turns are ``before`` again, and the last reply can still be continued."""
        turns, last = self.conversation.turns, self._last_reply
        asked = len(turns)
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]
                yield from pieces
        finally:
            if len(turns) == asked and not self._prompt:
                turns[:] = before
                self._last_reply = last

    def _extend_turn(self, pieces: Iterator[str], result: Generated) -> Iterator[str]:
        """Replace the last turn, a reply, by a longer one; it is unchanged if nothing is added."""
        turns, reply = self.conversation.turns, self._last_reply
        last = turns.pop() if turns and turns[-1].role == "assistant" else None
        try:
            yield from self._kept(pieces, result, first=not result.ids)
        finally:
            if not self._prompt:  # interrupted before anything was added
                self._last_reply = reply
                turns += [last] if last else []

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

    def _answer(self, options: GenerationOptions, reserve: int, progress: Progress, stop: Stop) -> Iterator[str]:
        tools = self._tools
        if tools is None:
            return self._one_reply(options, reserve, progress, stop, None)[0]

        def after_calls(use: ToolUse, results: list[str]) -> tuple[Iterator[str], ReplyTools | None]:
            turns = self.conversation.turns
            before = list(turns)
            turns += [Turn("tool", text) for text in results]
            try:
                return self._one_reply(options, reserve, progress, stop, use)
            except BaseException:
                turns[:] = before
                raise

        def finished() -> bool:
            # With stop strings it is not known which of them ended the reply. A grammar ends at the limit too.
            return self._by_grammar or (self._finish == "stop" and not options.stop)

        first = self._one_reply(options, reserve, progress, stop, tools.use)
        return reply_with_tools(tools, after_calls, finished, first)

    def _one_reply(
        self, options: GenerationOptions, reserve: int, progress: Progress, stop: Stop, tools: ToolUse | None
    ) -> tuple[Iterator[str], ReplyTools | None]:
        """The next reply, and the tools that it may call."""
        try:
            rendered = render_reply(self.conversation, options.think)
            sampling = without_calls(self.model, self._sampling(options), tools)
            calls = reply_tools(self.model, tools)
        except TemplateError:
            if not stop.asked:
                self.conversation.turns.pop()
                raise
            return self._not_begun(), None  # the stop ended the rendering
        except BaseException:
            self.conversation.turns.pop()
            raise
        self._chat = True
        result = Generated()
        pieces = self._generate(rendered, options, sampling, progress, result, stop, reserve=reserve, calls=calls)
        return self._kept(pieces, result, first=True), calls

    def _not_begun(self) -> Iterator[str]:
        """A reply that was stopped before its prompt was rendered."""
        self._prompt, self.stats = [], Stats(finish="interrupted")
        yield from ()

    def _kept(self, pieces: Iterator[str], result: Generated, first: bool) -> Iterator[str]:
        """Pass the pieces on and keep the reply as a turn, however it ends, if it has begun."""
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
            with interrupts_held():
                pieces.close()  # type: ignore[attr-defined]
                if not result.ids and result.finish == "interrupted":
                    self._prompt = []
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
        stop: Stop,
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
            sequence.advance(rendered.ids, rendered.boundaries, progress, reserve, stop)
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
                stop=stop,
            )
            for piece in pieces:
                if not self.stats.first_token_seconds:
                    self.stats.first_token_seconds = time.perf_counter() - began
                yield piece
            if constraint is not None and result.finish != "interrupted":
                at_context = max_tokens is None or len(self._prompt) + max_tokens > sequence.ctx
                constraint.check_finished(len(result.ids), at_context=at_context)
        except StoppedError:  # before there was a token
            pass
        finally:
            with interrupts_held():
                self._reply_ids, self._finish, self._random_state = result.ids, result.finish, sampler.random_state
                self.stats.end(sequence.counters, result, skip)
                if not sequence.consistent:  # interrupted within a pass: the partial reply is still saved
                    sequence.rewind(len(sequence.tokens))
                if sequence.tokens:
                    sequence.checkpoint()
                    if not self._chat:
                        self.commit()

    def _sampling(self, options: GenerationOptions) -> Sampling:
        """How the tokens of a reply are chosen. Raises UsageError for a biased token that the model does not have."""
        sampling = options.sampling(self.sampling)
        sampling.check_vocabulary(self.model.config.vocab_size)
        return forbid_thoughts(self.model, sampling, options.think)
