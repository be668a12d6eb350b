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
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.tools import call_object
from jambacli.session.conversation import Conversation, Turn
from jambacli.session.reply_tools import model_markup
from jambacli.session.thinking import SWITCHES, template_variables
from jambacli.text.tools import same_arguments

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.server.request import Call, Message
    from jambacli.text.tool_calls import ToolCall

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
        if call.tools is not None or any(m.calls or m.role == "tool" for m in call.messages):
            try:
                model_markup(self._model)
            except UsageError as error:  # the template would leave them out
                raise bad_request(error.problem, "tools" if call.tools is not None else "messages") from error
        conversation = Conversation(template, tokenizer)
        conversation.variables = {**template.protect(call.variables), **template_variables(template, call.think)}
        # A reply is found again when the next one is to be with thoughts, or without.
        lasting = {name: value for name, value in call.variables.items() if name not in SWITCHES}
        chain = reply_key("chat", self._scope, lasting)
        if call.tools is not None:
            definitions = call.tools.as_messages()
            conversation.variables["tools"] = template.protect(definitions)
            chain = reply_key("tools", chain, definitions)
        where = self._documents_at(call, chain)
        for i, message in enumerate(call.messages):
            before, chain = chain, _after(chain, message)
            if message.role == "assistant":
                self._add_reply(conversation, before, message)
            elif message.role == "user":
                documents = [*message.documents, *(call.documents if i == where else ())]
                conversation.add_user(message.content, documents or None)
            else:
                named = {"tool_call_id": message.call_id, "name": message.name}
                extra = {k: v for k, v in named.items() if v is not None}
                conversation.turns.append(Turn(message.role, message.content, extra=extra))
        return conversation, chain

    def keep(
        self,
        chain: str,
        text: str,
        ids: Sequence[int],
        thinking: bool,
        documents: Sequence[str],
        calls: Sequence[ToolCall] = (),
    ) -> None:
        """Keep the reply ``ids`` to the messages of the hash ``chain``: its text and its calls. ``thinking``: the prompt had
        opened a thought."""
        self._put(_reply(chain, text, calls), text, documents, ids=list(ids), thinking=thinking)

    def _add_reply(self, conversation: Conversation, chain: str, message: Message) -> None:
        known = self._get(_reply(chain, message.content, message.calls))
        ids = known.get("ids") if known is not None else None
        if isinstance(ids, list) and all(isinstance(t, int) for t in ids):
            conversation.add_assistant(ids, bool(known and known.get("thinking")))
            return
        extra = {"tool_calls": [call_object(c) for c in message.calls]} if message.calls else {}
        conversation.turns.append(Turn("assistant", message.content, thoughts=message.thoughts, extra=extra))

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
    more: list[object] = [documents] if documents else []
    more += [_same_calls(message.calls)] if message.calls else []
    more += [message.name] if message.name is not None else []
    data = json.dumps([chain, message.role, content, *more]).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()


def _reply(chain: str, text: str, calls: Sequence[ToolCall]) -> str:
    return reply_key("reply", chain, text.strip(), *([_same_calls(calls)] if calls else []))


def _same_calls(calls: Sequence[ToolCall]) -> list[list[str]]:
    """The calls as they are compared: ids are a client's own, and it may write the arguments again."""
    return [[call.name, same_arguments(call.arguments)] for call in calls]
