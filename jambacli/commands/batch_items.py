"""The items of ``jamba batch`` from its input, made alike by the command and by each node of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.commands import documents_io
from jambacli.commands import options as o
from jambacli.commands.flags import flag
from jambacli.errors import JambaError, first_line

if TYPE_CHECKING:
    from jambacli.batch.cluster import Answer
    from jambacli.batch.items import Item, Keys
    from jambacli.batch.run import Column
    from jambacli.documents.load import Document
    from jambacli.documents.reader import Reader, Task
    from jambacli.engine.batch_job import Job
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.options import GenerationOptions
    from jambacli.session.options import SessionOptions


@dataclass(frozen=True)
class Given:
    """The input of a batch: ``lines`` of requests (``requests``) or of prompts, or ``documents`` to ask the task about."""

    requests: bool
    lines: list[str]
    documents: list[Document]
    task: Task
    generation: GenerationOptions
    options: SessionOptions


def keys_of(loaded: LoadedModel, reader: Reader, given: Given) -> Keys:
    """New keys for the items of this input and model."""
    from jambacli.batch.items import Keys, common_parts

    return Keys(*common_parts(loaded, given.generation, reader.ctx, given.options.kv_type or "f16"))


def make_items(loaded: LoadedModel, reader: Reader, given: Given) -> tuple[list[Item], list[Column] | None]:
    """The items, and the columns of a table of their answers; None for requests, whose answers are JSON lines."""
    from jambacli.batch import items as made
    from jambacli.batch.run import csv_columns

    keys, task = keys_of(loaded, reader, given), given.task
    if given.documents or task.text:
        columns = csv_columns(["file"], task.schema, citations=task.citations)
        return made.document_items(given.documents, reader, task, keys, worded), columns
    # What a request does not say for itself, the preset does.
    chosen, system = replace(given.generation, schema=task.schema), given.options.system
    if given.requests:
        return made.request_items(given.lines, loaded, chosen, keys, system=system), None
    items = made.prompt_items(given.lines, loaded, chosen, keys, worded, system=system)
    return items, csv_columns(["line", "prompt"], task.schema)


def worded(error: Exception) -> str:
    """An error as one line, with this command's names of options."""
    return error.worded(flag) if isinstance(error, JambaError) else f"{type(error).__name__}: {first_line(error)}"


@dataclass(frozen=True)
class NodeTask:
    """What a node of a cluster is told: the model by its name or path, the input, the options, and how many at once.

    Called with a number of CPU threads, it makes the node's worker.
    """

    model: str
    given: Given
    arguments: o.GenerationArguments
    parallel: int

    def __call__(self, threads: int) -> NodeWorker:
        """Load the model on this node."""
        return NodeWorker(self, threads)


class NodeWorker:
    """The loaded model of a node with the items of the batch. See ``batch.cluster.Worker``."""

    def __init__(self, task: NodeTask, threads: int) -> None:
        from jambacli import ui

        ui.set_quiet(True)
        self._open = contextlib.ExitStack()
        given, arguments = task.given, task.arguments
        arguments = arguments if arguments.threads is not None else replace(arguments, threads=threads)
        loaded = arguments.load_model(task.model)
        reader = self._open.enter_context(documents_io.reader(loaded, given.options, given.generation))
        items, _ = make_items(loaded, reader, given)
        self._items = {item.key: item for item in items}
        self._engine = self._open.enter_context(reader.engine(parallel=task.parallel, commit_ends=False))

    def keys(self) -> frozenset[str]:
        """The keys of all items."""
        return frozenset(self._items)

    def answer(self, keys: Sequence[str]) -> list[Answer]:
        """Answer the items of these keys together."""
        from jambacli.batch.cluster import Answer

        answers: list[Answer] = []

        def ended(item: Item, job: Job | None, error: Exception | None) -> None:
            record = None
            if error is None:
                try:
                    record = item.record(job, None)
                except ValueError as wrong:
                    error = JambaError(f"the answer is not valid: {wrong}")
            if record is None:
                record = item.record(job, error)
            tokens = (len(job.ids), job.counters.reused, len(job.result.ids)) if job is not None else (0, 0, 0)
            answers.append(Answer(item.key, record, None if error is None else worded(error), tokens))

        self._engine.run_all(((self._items[key], self._items[key].request) for key in keys), ended)
        return answers
