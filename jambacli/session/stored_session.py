"""What a session holds, and its file: the turns, the sequence, the last reply; saved, resumed, closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from jambacli.cache.prefix_store import Prefix, PrefixStore, text_hash
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError, UsageError
from jambacli.session import session_file
from jambacli.session.conversation import Conversation, Turn
from jambacli.session.options import SessionOptions
from jambacli.session.other_model import turns_for_another_model
from jambacli.session.session_lock import SessionLock
from jambacli.session.stats import Stats
from jambacli.session.tool_loop import ToolOptions

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.model.state import SequenceState

logger = logging.getLogger(__name__)

#: How the last reply ended when its turn is no longer part of the conversation; a value in session files.
TAKEN_BACK = "taken back"


class StoredSession:
    """One conversation and its state, and where it is saved. ``Session`` sends messages in it."""

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
        self._lock = SessionLock(
            model, name=options.name, resume=options.resume, read_only=options.read_only, reread=options.reread
        )
        try:
            found = self._lock.found
            kv_type = self._lock.kv_type(options.kv_type)
            precise = self._lock.precise(model.model.precise, asked=not model.model.mode_measured)
            ctx = options.ctx or (min(found.ctx, limit) if found and limit > 0 else found.ctx if found else limit)
            self.sequence = TokenSequence(model.model, ctx, kv_type, precise=precise)
            if options.store:
                self.sequence.prefixes = self.prefix_cache = self.open_prefix_cache(self.sequence)
            if found is not None:
                self._resume(found)
                if options.system is not None and self._chat and options.system != (self.system or ""):
                    self.set_system(options.system)
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

    @property
    def system(self) -> str | None:
        """The system message, None without one."""
        turns = self.conversation.turns
        return turns[0].content if turns and turns[0].role == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replace the system message; "" or None for none. What follows it is read again with the next message."""
        turns = self.conversation.turns
        if turns and turns[0].role == "system":
            del turns[0]
        self._system = text or None
        if text:
            self.conversation.set_system(text)

    @property
    def taken_back(self) -> bool:
        """Whether turns were undone since the last reply."""
        return self._finish == TAKEN_BACK

    def changed(self) -> None:
        """Record that turns were undone or replaced, so that the last reply cannot be continued; saves the session."""
        self._finish = TAKEN_BACK
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
        if self.prefix_cache.unsaved is not None:
            raise JambaError(self.prefix_cache.unsaved)

    @property
    def _last_reply(self) -> tuple[list[int], list[int], str, dict[str, Any] | None]:
        """The prompt and the tokens of the last reply, how it ended, and the state of its random numbers."""
        return self._prompt, self._reply_ids, self._finish, self._random_state

    @_last_reply.setter
    def _last_reply(self, reply: tuple[list[int], list[int], str, dict[str, Any] | None]) -> None:
        self._prompt, self._reply_ids, self._finish, self._random_state = reply

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
            self.model.say_unstored(error)
            return None

    def close(self) -> None:
        """Wait for pending writes, then release the session's lock."""
        if self.prefix_cache is not None:
            self.prefix_cache.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self._lock.read_only:
            raise UsageError(f"session {self.name!r} is open read-only; branch it under another name to continue")

    def _resume(self, saved: session_file.SavedSession) -> None:
        """Take over a saved session: its turns, and the longest of its prefixes that is still stored."""
        ids = [*saved.tokens, *(i for t in saved.turns for k in ("ids", "thought_ids") for i in t.get(k) or ())]
        if ids and not self._lock.reread and not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
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
            turns = [Turn.from_json(t) for t in saved.turns]
            if self._lock.reread:
                turns = turns_for_another_model(turns, saved.template_hash in ("", self._template_hash()))
                self._prompt, self._reply_ids, self._finish, self._random_state = [], [], TAKEN_BACK, None
            self.conversation.turns = turns
        elif self._lock.reread:
            raise JambaError(
                f"session {saved.name!r} continues plain text, whose tokens are those of {saved.model}: it cannot go on with "
                f"{self.model.name}"
            )
        cache, sequence = self.prefix_cache, self.sequence
        assert cache is not None
        cache.documents = list(saved.documents)
        fitting = [p for p in saved.prefixes if p.position <= sequence.ctx]
        if not self._lock.reread and sequence.restore_first(cache.read(fitting, saved.tokens)):
            cache.add_stored(p for p in fitting if p.position < len(sequence.tokens))

    def _template_hash(self) -> str:
        """The hash of the chat template, "" without one or where none is used."""
        template = self.model.template if self._chat else None
        return text_hash(template.source) if template is not None else ""

    def _record_documents(self, documents: Sequence[Mapping[str, Any]] | None) -> None:
        """Record which documents the sequence holds, so that they can be cleared from the store."""
        if self.prefix_cache is not None:
            self.prefix_cache.documents += [text_hash(str(d.get("text", ""))) for d in documents or ()]

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
