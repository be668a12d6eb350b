"""Several models by name: each is loaded when it is first asked for, and unloaded when it is idle or another needs its memory.

Models are loaded one after another. A model that answers is never unloaded: who needs its memory waits until it is idle, and
meanwhile its new requests wait too, so that two busy models take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jambacli.errors import JambaError
from jambacli.server.errors import ApiError, as_api_error
from jambacli.server.later import Later
from jambacli.server.served_model import ServedModel

if TYPE_CHECKING:
    from jambacli.server.events import Running
    from jambacli.server.memory import Shortage
    from jambacli.server.model_info import ModelInfo
    from jambacli.server.request import Call
    from jambacli.server.worker import Worker

logger = logging.getLogger(__name__)

# Seconds between two looks at what is idle.
_LOOK = 0.25
_BEDROCK_ID = re.compile(r"(?:arn:.*|(?:[a-z]+\.)?ai21\.[\w.:-]+)")
_FAMILIES = ("mini", "large", "3b", "reasoning")


class Memory(Protocol):
    """Says whether a model fits; see ``memory.DeviceMemory``."""

    def shortage(self, path: Path, loaded: Iterable[Path]) -> Shortage | None:
        """Why the model does not fit beside those in ``loaded``, None if it does."""


class Models:
    """The models that are served. All methods are for the thread of the event loop."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        memory: Memory | None = None,
        most: int | None = None,
        more: Callable[[], Sequence[ServedModel]] | None = None,
        patience: float = 15.0,
        queue: int = 64,
    ) -> None:
        """The first of ``models`` answers requests that name none; one alone answers to every name. ``memory``: the plan before
        a model is loaded. ``most``: models to keep loaded at once. ``more``: looks for further models, such as those pulled
        since. ``patience``: seconds of loading after which a stream is begun without knowing whether its request is right.
        ``queue``: requests that may wait for one model to be loaded.
        """
        self._models = {model.name: model for model in models}
        self._memory, self._most, self._more, self._patience, self._queue = memory, most, more, patience, queue
        self._other_names: set[str] = set()
        self._turn: asyncio.Lock | None = None
        self._idle: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, worker: Worker, name: str) -> Models:
        """One model that is loaded already and stays so."""

        def load() -> Worker:
            raise JambaError("this model cannot be loaded again")

        model = ServedModel(name, load, worker.model.path)
        model.worker, model.since, model.loads = worker, worker.started, 1
        return cls([model])

    # Names

    @property
    def several(self) -> bool:
        """Whether a request must name its model."""
        return len(self._models) > 1 or self._more is not None

    def all(self) -> list[ServedModel]:
        """Every model, loaded or not."""
        self._refresh()
        return list(self._models.values())

    def known(self) -> list[ServedModel]:
        """The models that have been found so far; may be called from any thread."""
        return list(self._models.values())

    @property
    def wanted(self) -> int:
        """How many requests wait for a model to be loaded."""
        return sum(model.wanted for model in self.known())

    async def infos(self) -> list[ModelInfo]:
        """What is known of every model, without loading any."""
        found = self.all()
        return await asyncio.to_thread(lambda: [model.info() for model in found])

    def find(self, name: str | None, *, bedrock: bool = False) -> ServedModel:
        """The model that a request names. ``bedrock``: ids of Jamba models there mean the models here.

        Raises ApiError (404, model_not_found) for an unknown one where there are several.
        """
        if not self.several:
            (only,) = self._models.values()
            self._note(name, only.name)
            return only
        if (found := self._exact(name)) is None:
            self._refresh()
            found = self._exact(name)
        if found is None and bedrock and name is not None and _BEDROCK_ID.fullmatch(name.lower()):
            found = self._of_family(name.lower())
            self._note(name, found.name)
        if found is None:
            known = ", ".join(list(self._models)[:20]) or "none: pull one first"
            message = f"the model {str(name)[:80]!r} does not exist; there are: {known}"
            raise ApiError(404, message, kind="not_found_error", code="model_not_found", parameter="model")
        return found

    async def named(self, name: str | None, *, bedrock: bool = False) -> str:
        """The name in answers of the model that a request names. Raises ApiError as ``find`` does."""
        return self.find(name, bedrock=bedrock).name

    def _exact(self, name: str | None) -> ServedModel | None:
        if not name:
            return next(iter(self._models.values()), None)
        lower = name.lower()
        tried = (name, lower, lower.removesuffix(":latest"), f"{lower}:latest")  # Ollama's clients add the tag
        return next((self._models[n] for n in tried if n in self._models), None)

    def _of_family(self, name: str) -> ServedModel:
        for family in (f for f in _FAMILIES if f in name):
            for model in self._models.values():
                if family in model.name.lower():
                    return model
        if not self._models:
            raise ApiError(404, "there are no models; pull one first", kind="not_found_error", code="model_not_found")
        return next(iter(self._models.values()))

    def _refresh(self) -> None:
        for model in self._more() if self._more is not None else ():
            self._models.setdefault(model.name, model)

    def _note(self, name: str | None, answers: str) -> None:
        """Log once for every other name by which a model is called."""
        if name and name != answers and name not in self._other_names and len(self._other_names) < 64:
            self._other_names.add(name)
            logger.info("a client asks for %s: %s answers", name[:80], answers)

    # Requests

    async def start(self, call: Call, *, bedrock: bool = False) -> Running:
        """Start a call, or begin to load its model and answer later. Raises ApiError for what is known to be wrong."""
        model = self.find(call.model, bedrock=bedrock)
        if model.worker is not None and not model.leaving:
            return await self._start(model, call)
        starting = asyncio.ensure_future(self._start(model, call))
        try:
            await asyncio.wait((starting,), timeout=self._patience)
        except asyncio.CancelledError:
            starting.cancel()
            raise
        if starting.done():
            return starting.result()
        return Later(starting, model.name, max(1, len(call.prompts)) * call.choices, self._patience)

    async def _start(self, model: ServedModel, call: Call) -> Running:
        async with self.loaded(model) as worker:
            running = await worker.start(call)
        running.model = model.name
        return running

    @contextlib.asynccontextmanager
    async def using(self, name: str | None) -> AsyncIterator[Worker]:
        """The worker of the model of that name, which stays loaded in the block. Raises ApiError."""
        async with self.loaded(self.find(name)) as worker:
            yield worker

    @contextlib.asynccontextmanager
    async def loaded(self, model: ServedModel) -> AsyncIterator[Worker]:
        """The model's worker, which stays loaded in the block. Raises ApiError when it cannot be loaded."""
        while (worker := model.worker) is None or model.leaving:
            if model.wanted >= self._queue:
                message = f"the server is busy: {model.wanted} requests wait for {model.name}; try again in 10 seconds"
                raise ApiError(503, message, kind="unavailable_error", code="server_busy", retry_after=10)
            if model.loading is None:
                model.loading = asyncio.ensure_future(self._load(model))
                model.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            model.wanted += 1
            try:
                await asyncio.shield(model.loading)
            finally:
                model.wanted -= 1
        model.starting += 1
        try:
            yield worker
        finally:
            model.starting -= 1
            model.used = time.time()

    async def keep(self, name: str | None, seconds: float | None) -> None:
        """Change how long a model stays loaded without requests; None leaves it. Raises ApiError as ``find`` does."""
        model = self.find(name)
        if seconds is not None and self.several:
            model.keep_alive = None if math.isinf(seconds) else seconds

    async def load(self, name: str | None, seconds: float | None = None) -> str:
        """Load a model or, when it is to stay for 0 ``seconds``, unload it. Returns its name. Raises ApiError."""
        model = self.find(name)
        if seconds == 0 and self.several:
            await self.unload(model)
        else:
            async with self.loaded(model):
                pass
        return model.name

    async def count_tokens(self, call: Call) -> int:
        """The tokens of a call's prompt. Raises ApiError."""
        async with self.using(call.model) as worker:
            try:
                requests, _ = await worker.prepare(functools.partial(worker.requests, call))
            except Exception as error:
                raise as_api_error(error, 400) from error
        return len(requests[0].ids)

    async def unload(self, model: ServedModel) -> None:
        """Unload a model as soon as it is idle; requests that come meanwhile load it again."""
        async with self._one_at_a_time():
            if await self._until_idle(model):
                await self._unload(model)

    def stop_soon(self) -> None:
        """Let prompts that are not ready in a moment fail: the server stops."""
        for model in self._models.values():
            if model.worker is not None:
                model.worker.stop_preparing()

    def close(self) -> None:
        """Close what is loaded, after the event loop has ended."""
        for model in self._models.values():
            if model.worker is not None:
                model.worker.close()

    # Loading

    def _one_at_a_time(self) -> asyncio.Lock:
        self._turn = self._turn or asyncio.Lock()
        return self._turn

    async def _load(self, model: ServedModel) -> None:
        """Make room for a model and load it. Raises ApiError."""
        try:
            async with self._one_at_a_time():
                if model.worker is not None:
                    return
                await self._make_room(model)
                began = time.perf_counter()
                model.worker = await asyncio.to_thread(model.load)
                model.problem, model.used, model.since = None, time.time(), time.time()
                model.loads += 1
                logger.info("%s is loaded (%.1f s)", model.name, time.perf_counter() - began)
        except Exception as error:
            failure = as_api_error(error, 503)
            model.problem = failure.message
            message = f"{model.name} cannot be loaded: {failure.message}"
            logger.warning("%s", message)
            raise ApiError(503, message, kind="unavailable_error", code=failure.code, final=True) from error
        finally:
            model.loading = None
        if self._idle is None or self._idle.done():
            self._idle = asyncio.ensure_future(self._unload_idle())

    async def _make_room(self, model: ServedModel) -> None:
        """Unload others, the one first that was used longest ago, until ``model`` fits. Raises ApiError if it never does."""
        while True:
            others = sorted((m for m in self._models.values() if m.worker is not None), key=lambda m: m.used)
            if self._most is None or len(others) < self._most:
                shortage = await asyncio.to_thread(self._shortage, model, others)
                if shortage is None:
                    return
                if not shortage.ever or not others:
                    raise ApiError(503, shortage.reason, kind="unavailable_error", code="model_too_large")
            victim = next((m for m in others if not m.busy), others[0])
            if not await self._until_idle(victim, lambda: model.wanted > 0):
                raise ApiError(503, "nobody waits for it any more", kind="unavailable_error")
            await self._unload(victim)

    def _shortage(self, model: ServedModel, others: Sequence[ServedModel]) -> Shortage | None:
        if self._memory is None or model.path is None:
            return None
        return self._memory.shortage(model.path, [m.path for m in others if m.path is not None])

    async def _until_idle(self, model: ServedModel, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Wait until the model is idle, while its new requests wait. False when it need not be unloaded any more."""
        model.leaving = True
        while model.busy:
            if not wanted():
                model.leaving = False
                return False
            await asyncio.sleep(0.02)
        if model.worker is None:
            model.leaving = False
        return model.worker is not None

    async def _unload(self, model: ServedModel) -> None:
        worker = model.worker
        assert worker is not None
        model.leaving = True
        try:
            await asyncio.to_thread(worker.close)
        finally:
            model.keep_counts()
            model.worker, model.leaving = None, False
            del worker
        await asyncio.to_thread(_release_memory)
        logger.info("%s is unloaded", model.name)

    async def _unload_idle(self) -> None:
        """Unload models that nobody has asked for lately, until none is loaded that may be."""
        while loaded := [m for m in self._models.values() if m.worker is not None and m.keep_alive is not None]:
            await asyncio.sleep(min(_LOOK, *(max(0.01, (m.keep_alive or 0) / 2) for m in loaded)))
            for model in loaded:
                if model.busy:
                    model.used = time.time()
                elif time.time() - model.used >= (model.keep_alive or 0) and not model.wanted:
                    async with self._one_at_a_time():
                        if model.worker is not None and not model.busy and not model.leaving:
                            await self._unload(model)


def _release_memory() -> None:
    """Give the memory of a model that is no longer used back to the system."""
    gc.collect()
    import torch

    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
