"""One of the models that are served: its name, its file, and its worker while it is loaded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.server.model_info import ModelInfo, file_info
from jambacli.session.thinking import can_think
from jambacli.text.tool_calls import call_form

if TYPE_CHECKING:
    from jambacli.server.worker import Worker


class ServedModel:
    """A model by the name that clients use. All but ``info`` is for the thread of the event loop.

    ``path``: its file or checkpoint, None if only the worker knows. ``keep_alive``: seconds without requests after which it is
    unloaded, None for never. ``starting``: calls that are about to start in the worker. ``leaving``: it is to be unloaded, so
    new requests wait. ``problem``: why it could not be loaded.
    """

    def __init__(
        self, name: str, load: Callable[[], Worker], path: Path | None = None, keep_alive: float | None = None
    ) -> None:
        self.name, self.load, self.path, self.keep_alive = name, load, path, keep_alive
        self.worker: Worker | None = None
        self.loading: asyncio.Task[None] | None = None
        self.starting = self.wanted = 0
        self.leaving = False
        self.problem: str | None = None
        self.used = self.since = time.time()
        self.loads = 0
        # What the workers of this model counted that have been closed.
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._file: ModelInfo | None = None

    @property
    def busy(self) -> bool:
        """Whether unloading it would cut a reply or a request off."""
        return self.starting > 0 or (self.worker is not None and bool(self.worker.engine.jobs))

    @property
    def status(self) -> str:
        """ "loaded", "loading", "failed" or "unloaded"."""
        if self.worker is not None and not self.leaving:
            return "loaded"
        return "loading" if self.loading is not None else "failed" if self.problem else "unloaded"

    def keep_counts(self) -> None:
        """Add up what the worker counted, before it is closed."""
        if self.worker is not None:
            self.counts.update(self.worker.counts)
            self.seconds.update(self.worker.seconds)

    def total(self, name: str) -> float:
        """What all workers of this model counted: tokens, requests, or seconds of a phase."""
        worker = self.worker
        now = (worker.counts[name] or worker.seconds.get(name, 0.0)) if worker is not None else 0.0
        return self.counts[name] + self.seconds[name] + now

    def info(self) -> ModelInfo:
        """What is known of the model. The first time it reads the file's headers; may be called from any thread."""
        path = self.path or (self.worker.model.path if self.worker is not None else None)
        if self._file is None:
            self._file = file_info(self.name, path) if path is not None else ModelInfo(name=self.name)
        worker = self.worker
        known = replace(self._file, status=self.status, problem=self.problem)
        if worker is None:
            return known
        model = worker.model
        expires = None if self.keep_alive is None else self.used + self.keep_alive
        return replace(
            known,
            created=known.created or worker.started,
            context=worker.ctx,
            trained=model.config.context_length,
            vocabulary=model.config.vocab_size,
            hidden=model.config.hidden,
            template=model.template.source if model.template is not None else "",
            sampling=model.sampling,
            expires=expires,
            thinks=can_think(model.template, model.tokenizer),
            tools=model.template is not None and call_form(model.template.source) is not None,
            on_gpu=model.model.device.type != "cpu",
        )
