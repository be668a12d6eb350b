"""Give documents and a task to the model, and stream its reply.

Every page (or part of a text) is one of the prompt's documents, titled with its file and page, with or without citations.
The instruction comes after them, so the same files are the same tokens, and a second question, with or without citations,
prefills only the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jambacli.documents.modes import Modes, Task
from jambacli.documents.pages import DocumentEntry
from jambacli.engine.batch import BatchEngine
from jambacli.engine.options import GenerationOptions
from jambacli.engine.parallel import MOST_IN_BULK, default_parallel
from jambacli.progress import Progress, no_progress
from jambacli.session.conversation import Rendered, render_plain
from jambacli.session.options import SessionOptions
from jambacli.session.requests import request_of
from jambacli.session.session import Session
from jambacli.session.thinking import render_reply, switch_thoughts

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Request
    from jambacli.engine.loaded_model import LoadedModel

#: Tokens kept free for a reply if the user sets no limit and the context is large enough.
REPLY_TOKENS = 1024


class Reader:
    """Answers tasks about documents in a session of its own."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        options: SessionOptions | None = None,
        generation: GenerationOptions | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.model = model
        self.options = options or SessionOptions()
        self.generation = generation or GenerationOptions()
        self.progress = progress
        self.ctx = self.options.ctx or model.config.context_length
        self.session: Session | None = None
        self._known_modes: Modes | None = None

    def reserve(self) -> int:
        """Tokens to keep free for the reply."""
        return min(self.generation.max_tokens or REPLY_TOKENS, max(1, self.ctx // 4))

    def prompt(self, entries: Sequence[DocumentEntry], task: Task) -> list[int]:
        """The tokens of the whole prompt; ``stream`` reuses the tokenization."""
        return self._rendered(entries, task).ids

    def request(
        self,
        entries: Sequence[DocumentEntry],
        task: Task,
        *,
        max_tokens: int | None = None,
        reserve: int = 0,
    ) -> Request:
        """What ``stream`` asks the model, to run among others in a BatchEngine. ``reserve``: tokens of the reply that must
        fit besides the prompt."""
        return request_of(
            self.model,
            self._rendered(entries, task),
            self._options(entries, task, max_tokens),
            chat=self.model.template is not None,
            sampling=self._opened().sampling,
            documents=[e.as_document() for e in entries],
            reserve=reserve,
        )

    def engine(
        self, *, parallel: int | None = None, at_most: int = MOST_IN_BULK, commit_ends: bool = True
    ) -> BatchEngine:
        """A scheduler for the requests of this reader, which stores what it reads if the session options say so.

        ``parallel``: how many at once, by default as many as are worthwhile and fit in memory, ``at_most`` so many.
        ``commit_ends``: see BatchEngine.
        """
        session = self._opened()
        kv_type = session.state.kv_type
        return BatchEngine(
            self.model,
            parallel=parallel or min(default_parallel(self.model.model, self.ctx, kv_type, most=MOST_IN_BULK), at_most),
            ctx=self.ctx,
            kv_type=kv_type,
            precise=session.state.precise,
            open_store=session.open_prefix_cache if self.options.store else None,
            commit_ends=commit_ends,
        )

    def stream(self, entries: Sequence[DocumentEntry], task: Task, *, max_tokens: int | None = None) -> Iterator[str]:
        """The reply in pieces, with its sections of citations; thoughts come as ``Thought``.

        ``max_tokens``: the longest reply, by default that of the generation options.
        """
        session = self._opened()
        documents = [e.as_document() for e in entries]
        options = self._options(entries, task, max_tokens)
        instruction = self.instruction(task)
        if self.model.template is None:
            text = f"{instruction}\n\nAnswer:"
            return session.complete(text, documents=documents, options=options, progress=self.progress)
        session.clear()
        return session.send(
            instruction, documents=documents, knobs=self.knobs(task), options=options, progress=self.progress
        )

    def knobs(self, task: Task) -> dict[str, Any] | None:
        """The template's modes for the task, None when it has none."""
        return self._modes().knobs(task)

    def instruction(self, task: Task) -> str:
        """The text after the documents: the task, with instructions for anything that the template has no mode for."""
        return self._modes().instruction(task)

    def close(self) -> None:
        """Wait until the prefixes are stored, and close the session."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _rendered(self, entries: Sequence[DocumentEntry], task: Task) -> Rendered:
        session = self._opened()
        documents = [e.as_document() for e in entries]
        if self.model.template is None:
            text = f"{self.instruction(task)}\n\nAnswer:"
            return render_plain(self.model.tokenizer, text, documents)
        session.clear()
        switch_thoughts(session.conversation, self.generation.think)
        session.conversation.add_user(self.instruction(task), documents, self.knobs(task))
        return render_reply(session.conversation, self.generation.think)

    def _options(self, entries: Sequence[DocumentEntry], task: Task, max_tokens: int | None) -> GenerationOptions:
        options = self.generation if max_tokens is None else replace(self.generation, max_tokens=max_tokens)
        if task.schema is not None:
            options = replace(options, schema=task.schema, cite=len(entries) if task.citations else None)
        return options

    def _opened(self) -> Session:
        if self.session is None:
            self.session = Session(self.model, self.options)
        return self.session

    def _modes(self) -> Modes:
        if self._known_modes is None:
            self._known_modes = Modes(self._opened().conversation if self.model.template is not None else None)
        return self._known_modes
