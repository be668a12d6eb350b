"""What a batch consists of: one item for each line of a file of requests or prompts, or for each document and a question."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jambacli.batch import openai_format as openai
from jambacli.documents.citations import Cited
from jambacli.documents.pages import entries_of
from jambacli.documents.reader import REPLY_TOKENS, Task
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError
from jambacli.session.requests import chat_request, text_request

if TYPE_CHECKING:
    from jambacli.documents.load import Document
    from jambacli.documents.reader import Reader
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.loaded_model import LoadedModel

#: An error as one line, with a front end's names of options.
Worded = Callable[[Exception], str]


@dataclass(frozen=True)
class Item:
    """One request of a batch.

    ``name``: what messages call it ("line 3"). ``key``: a hash of everything its answer depends on, by which it is found
    again after a crash. ``order``: items that sort together begin with the same text. ``size``: characters of its prompt.
    ``request``: makes it; raises JambaError. ``record``: its line of output, from its job or its error.
    """

    name: str
    key: str
    order: tuple[str, ...]
    size: int
    request: Callable[[], Request] = field(repr=False)
    record: Callable[[Job | None, Exception | None], dict[str, Any]] = field(repr=False)


class Keys:
    """Keys of items: hashes of their contents and of what all of them depend on; equal contents are counted."""

    def __init__(self, *common: Any) -> None:
        self._common = common
        self._count: Counter[str] = Counter()

    def key(self, *parts: Any) -> str:
        """The key of the next item with these contents."""
        # In their own order: that of a schema's properties is the order in which the model writes them.
        text = json.dumps([self._common, parts], default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._count[digest] += 1
        return f"{digest[:40]}-{self._count[digest]}"


def common_parts(model: LoadedModel, options: GenerationOptions, ctx: int, kv_type: str) -> list[Any]:
    """What every answer of a batch depends on."""
    chosen = {**options.chosen_sampling(), "max_tokens": options.max_tokens, "stop": list(options.stop)}
    # Only where they are given, so that answers of earlier versions still count.
    if options.think is not None:
        chosen["think"] = options.think
    if model.chat_template is not None:
        chosen["chat_template"] = model.chat_template
    return [model.fingerprint, model.model.precise, kv_type, ctx, chosen]


def request_items(
    lines: Iterable[str],
    model: LoadedModel,
    options: GenerationOptions,
    keys: Keys,
    *,
    system: str | None = None,
) -> list[Item]:
    """An item for each line in OpenAI's batch format. A line that is wrong is an item whose request raises why.

    ``system``: the system message of requests that have none.
    """
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if text.strip():
            items.append(_request_item(number, text, seen, model, options, keys, system))
    return items


def _request_item(
    number: int,
    text: str,
    seen: dict[str, int],
    model: LoadedModel,
    options: GenerationOptions,
    keys: Keys,
    system: str | None,
) -> Item:
    line: openai.BatchLine | None = None
    wrong: Exception | None = None
    try:
        line = openai.read_line(number, text)
        if system:
            line = openai.with_system(line, system)
        before = seen.setdefault(line.custom_id, number)
        if before != number:
            raise openai.BadRequestError(f"has the custom_id {line.custom_id!r} of line {before}", "custom_id")
    except JambaError as error:
        wrong = error
    parts = text if line is None else [line.custom_id, line.url, line.body]
    key = keys.key(parts) if options.schema is None else keys.key(parts, options.schema)
    name = f"line {number}"

    def request() -> Request:
        if wrong is not None:
            raise wrong
        assert line is not None
        return openai.request_of_line(model, line, options)

    def record(job: Job | None, error: Exception | None) -> dict[str, Any]:
        said = f"{name}: {openai.error_text(error)}" if error is not None else None
        return openai.output_of(line, key, model.name, job, error, said)

    return Item(name, key, _texts(line.body) if line is not None else (), len(text), request, record)


def _texts(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a request in about the order of its prompt: system messages, documents, messages."""
    messages = body.get("messages")
    listed = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    head = [m for m in listed if m.get("role") in ("system", "developer")]
    documents = body.get("documents")
    parts = [*head, *(documents if isinstance(documents, list) else []), *listed, body.get("prompt", "")]
    return tuple(p if isinstance(p, str) else json.dumps(p, sort_keys=True, default=str) for p in parts)


def prompt_items(
    lines: Iterable[str],
    model: LoadedModel,
    options: GenerationOptions,
    keys: Keys,
    worded: Worded,
    *,
    system: str | None = None,
) -> list[Item]:
    """An item for each line that is not empty: a user's message or, without a chat template, a text to continue."""
    head = [{"role": "system", "content": system}] if system else []

    def item(number: int, prompt: str) -> Item:
        def request() -> Request:
            if model.template is None:
                return text_request(model, prompt, options)
            return chat_request(model, [*head, {"role": "user", "content": prompt}], options)

        def record(job: Job | None, error: Exception | None) -> dict[str, Any]:
            return {"line": number, "prompt": prompt, **_answer(job, error, worded, options.schema)}

        return Item(f"line {number}", keys.key(head, prompt, options.schema), (prompt,), len(prompt), request, record)

    return [item(n, text.strip()) for n, text in enumerate(lines, 1) if text.strip()]


def document_items(documents: Sequence[Document], reader: Reader, task: Task, keys: Keys, worded: Worded) -> list[Item]:
    """An item for each document: the task about it alone."""

    def item(document: Document) -> Item:
        entries = entries_of([document])
        texts = tuple(e.text for e in entries)

        def request() -> Request:
            reserve = min(reader.generation.max_tokens or REPLY_TOKENS, max(1, reader.ctx // 4))
            made = reader.request(entries, task)
            return replace(made, reserve=reserve)

        def record(job: Job | None, error: Exception | None) -> dict[str, Any]:
            cited = Cited(json=task.schema is not None)
            said = "".join(cited.answer([job.text])).strip() if job is not None and error is None else ""
            value = {"file": document.name, **_answer(job, error, worded, task.schema, said)}
            if task.citations and error is None:
                value["citations"] = [s.to_json() for s in cited.sources(entries)]
            return value

        key = keys.key(document.name, [[e.title, e.text] for e in entries], task.text, task.citations, task.schema)
        return Item(document.name, key, texts, sum(map(len, texts)), request, record)

    return [item(document) for document in documents]


def unread_item(name: str, error: JambaError, keys: Keys, worded: Worded) -> Item:
    """An item for a file that could not be read: its request raises why."""

    def request() -> Request:
        raise error

    def record(_: Job | None, why: Exception | None) -> dict[str, Any]:
        return {"file": name, "error": worded(why or error)}

    return Item(name, keys.key(name, str(error)), (name,), 0, request, record)


def _answer(
    job: Job | None,
    error: Exception | None,
    worded: Worded,
    schema: Mapping[str, Any] | None,
    text: str | None = None,
) -> dict[str, Any]:
    """The answer as text, or as the value of a JSON schema, or the error."""
    if error is not None or job is None:
        return {"error": worded(error) if error is not None else "no answer"}
    said = job.text.strip() if text is None else text
    return {"answer": json.loads(said) if schema is not None else said, "finish": job.result.finish}
