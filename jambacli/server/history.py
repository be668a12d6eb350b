"""The text that a stateless client sends back -> the tokens that were generated, so that a conversation is read once.

Tokenized anew, a reply may differ from the tokens that were generated, and everything after it would be read again. So each
reply is kept under a hash of the messages before it and its text. Documents that a client sends with every request stay
before the message with which they came first.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore, text_hash
from jambacli.cache.reply_cache import ReplyCache, reply_key
from jambacli.errors import JambaError
from jambacli.server.errors import ApiError
from jambacli.server.thinking import SWITCHES, template_variables
from jambacli.session.conversation import Conversation, Turn

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.server.request import Call, Message

# Entries in memory, besides those on the disk.
_IN_MEMORY = 4096


class History:
    """What was generated after which messages, in memory and with a store on the disk too."""

    def __init__(self, model: LoadedModel, store: bool) -> None:
        self._model = model
        self._cache: ReplyCache | None = None
        self._scope = model.fingerprint if model.path is not None else ""
        if store:
            try:
                self._cache = ReplyCache(PrefixStore().root)
            except JambaError:
                self._cache = None  # the sequences' store says why
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def conversation(self, call: Call) -> tuple[Conversation, str]:
        """The conversation to be answered, and the hash of its messages, which ``keep`` takes.

        Raises ApiError for a model without a chat template.
        """
        template, tokenizer = self._model.template, self._model.tokenizer
        if template is None:
            raise ApiError(400, f"{self._model.name} has no chat template; use /v1/completions")
        conversation = Conversation(template, tokenizer)
        conversation.variables = {**template.protect(call.variables), **template_variables(template, call.thinking)}
        # A reply is found again when the next one is to be with thoughts, or without.
        lasting = {name: value for name, value in call.variables.items() if name not in SWITCHES}
        chain = reply_key("chat", self._scope, lasting)
        where = self._documents_at(call, chain)
        for i, message in enumerate(call.messages):
            before, chain = chain, _after(chain, message)
            if message.role == "assistant":
                self._add_reply(conversation, before, message)
            elif message.role == "user":
                documents = [*message.documents, *(call.documents if i == where else ())]
                conversation.add_user(message.content, documents or None)
            else:
                conversation.turns.append(Turn(message.role, message.content))
        return conversation, chain

    def keep(self, chain: str, text: str, ids: Sequence[int], thinking: bool, documents: Sequence[str]) -> None:
        """Keep the reply ``ids`` to the messages of the hash ``chain``. ``thinking``: the prompt had opened a thought."""
        self._put(_reply(chain, text), text, documents, ids=list(ids), thinking=thinking)

    def _add_reply(self, conversation: Conversation, chain: str, message: Message) -> None:
        known = self._get(_reply(chain, message.content))
        ids = known.get("ids") if known is not None else None
        if isinstance(ids, list) and all(isinstance(t, int) for t in ids):
            conversation.add_assistant(ids, bool(known and known.get("thinking")))
            return
        conversation.turns.append(Turn("assistant", message.content, thoughts=message.thoughts))

    def _documents_at(self, call: Call, chain: str) -> int | None:
        """The message before which the documents stand: that with which they came first, by default the last user's."""
        if not call.documents:
            return None
        users = [i for i, m in enumerate(call.messages) if m.role == "user"]
        if not users:
            raise ApiError(400, "documents come before a message of the user", parameter="documents")
        names = [text_hash(str(d.get("text", ""))) for d in call.documents]
        documents = [dict(d) for d in call.documents]
        keys = []
        for message in call.messages:
            chain = _after(chain, message)
            keys.append(reply_key("documents", chain, documents))
        for i in users:
            if self._get(keys[i]) is not None:
                return i
        self._put(keys[users[-1]], "", names)
        return users[-1]

    def _get(self, key: str) -> Mapping[str, Any] | None:
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        return self._cache.get(key) if self._cache is not None else None

    def _put(self, key: str, text: str, documents: Sequence[str], **more: Any) -> None:
        with self._lock:
            self._recent[key] = {"text": text, **more}
            self._recent.move_to_end(key)
            if len(self._recent) > _IN_MEMORY:
                self._recent.popitem(last=False)
        if self._cache is not None:
            self._cache.put(key, text, documents, **more)


def _after(chain: str, message: Message) -> str:
    """The hash of the messages up to this one. Clients trim replies, so spaces around them do not count."""
    content = message.content.strip() if message.role == "assistant" else message.content
    documents = [[str(d.get("title", "")), text_hash(str(d.get("text", "")))] for d in message.documents]
    parts = [chain, message.role, content, *([documents] if documents else [])]
    data = json.dumps(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()


def _reply(chain: str, text: str) -> str:
    return reply_key("reply", chain, text.strip())
