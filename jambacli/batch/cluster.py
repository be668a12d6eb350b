"""Answers the items of a batch on the nodes of a Ray cluster: one loaded model a node, work handed out in small groups.

The driver makes the items and keeps the answers; a node makes the same items from the same input and is told their keys, so
a node with another model or version, whose keys differ, is found out and left alone. A lost node costs the group it was
working on, which another node then takes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jambacli.batch.items import Item
from jambacli.batch.part_file import PartFile
from jambacli.batch.run import BatchResult
from jambacli.errors import JambaError

logger = logging.getLogger(__name__)

#: Attempts of a group on nodes that are lost.
ATTEMPTS = 4
# Groups that a node has at a time: one it works on, one that waits.
_AHEAD = 2
# Seconds between two looks for nodes that have joined.
_LOOK = 2.0
# Seconds without any node before the batch gives up.
_PATIENCE = 120.0


@dataclass(frozen=True)
class Answer:
    """What became of an item: its record, whether it failed and why, and the tokens of its prompt, shared ones, reply."""

    key: str
    record: dict[str, Any]
    error: str | None = None
    tokens: tuple[int, int, int] = (0, 0, 0)


class Worker(Protocol):
    """What runs on a node: made there by ``WorkerFactory``."""

    def keys(self) -> frozenset[str]:
        """The keys of the items that it can answer."""

    def answer(self, keys: Sequence[str]) -> list[Answer]:
        """Answer the items of these keys."""


#: Makes a worker that uses so many CPU threads; runs on the node, so it must be importable there and hold plain values.
WorkerFactory = Callable[[int], Worker]


def run_on_cluster(
    address: str,
    factory: WorkerFactory,
    items: Sequence[Item],
    part: PartFile | None,
    *,
    group: int,
    answered: Callable[[Item, dict[str, Any]], None] = lambda item, record: None,
    failed: Callable[[Item, Exception], None] = lambda item, error: None,
    joined: Callable[[str], None] = lambda node: None,
    lost: Callable[[str, str], None] = lambda node, why: None,
) -> BatchResult:
    """Answer every item that ``part`` does not hold yet, as ``run_batch`` does, on all nodes of the cluster at ``address``.

    ``address``: of a Ray cluster, "auto" for the one that this machine belongs to, "local" for this machine alone. ``group``:
    items that are handed out together, neighbours in their order so that they share what they begin with. The callbacks are
    called in the driver; ``joined`` and ``lost`` with a node's address. Raises JambaError without Ray, where there is no
    cluster, where no node can work, and when ``part`` cannot be written.
    """
    ray = _connect(address)
    try:
        run = _Run(ray, factory, items, part, group, answered, failed, joined, lost)
        run.run()
        return run.result
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise JambaError("a cluster needs: pip install 'jambacli[cluster]'") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if address == "local":
            ray.init(include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        why = str(error).splitlines()[0][:150]
        raise JambaError(f"no Ray cluster at {address}: {why}; start one with ray start") from error
    return ray


@dataclass
class _Node:
    """A node with its worker; ``running``: the groups it has, by the reference of their results."""

    name: str
    actor: Any
    ready: Any
    checked: bool
    running: dict[Any, list[Item]]


class _Run:
    """The hand-out of one batch."""

    def __init__(
        self,
        ray: Any,
        factory: WorkerFactory,
        items: Sequence[Item],
        part: PartFile | None,
        group: int,
        answered: Callable[[Item, dict[str, Any]], None],
        failed: Callable[[Item, Exception], None],
        joined: Callable[[str], None],
        lost: Callable[[str, str], None],
    ) -> None:
        self.ray, self.factory, self.part = ray, factory, part
        self.answered, self.failed, self.joined, self.lost = answered, failed, joined, lost
        missing = [item for item in items if part is None or item.key not in part]
        self.result = BatchResult(reused=len(items) - len(missing))
        self.waiting: deque[list[Item]] = deque()
        for item in sorted(missing, key=lambda item: item.order):
            if item.size == 0:  # a file that could not be read: no node knows it
                self._fail(item, _refusal(item))
            elif self.waiting and len(self.waiting[-1]) < group:
                self.waiting[-1].append(item)
            else:
                self.waiting.append([item])
        self.needed = {item.key for work in self.waiting for item in work}
        self.attempts: dict[str, int] = {}
        self.nodes: dict[str, _Node] = {}
        self.useless: set[str] = set()
        self.starts: dict[str, int] = {}
        self._looked = self._last_node = time.monotonic()

    def run(self) -> None:
        """Hand out groups until all are answered."""
        self._look()
        while self.waiting or any(node.running for node in self.nodes.values()):
            for node in list(self.nodes.values()):
                while node.checked and self.waiting and len(node.running) < _AHEAD:
                    work = self.waiting.popleft()
                    node.running[node.actor.answer.remote([item.key for item in work])] = work
            pending = [
                ref for node in self.nodes.values() for ref in (*node.running, *([] if node.checked else [node.ready]))
            ]
            if pending:
                done, _ = self.ray.wait(pending, num_returns=1, timeout=_LOOK)
                for ref in done:
                    self._ended(ref)
            else:
                time.sleep(0.2)
            if time.monotonic() - self._looked > _LOOK:
                self._look()

    def _look(self) -> None:
        """Start a worker on every node that has none; drop the workers of nodes that are gone."""
        self._looked = time.monotonic()
        alive = {
            node["NodeID"]: node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        for key in [key for key in self.nodes if key not in alive]:
            self._drop(key, "it has left the cluster")
        for key, node in alive.items():
            if key not in self.nodes and key not in self.useless:
                self._start(key, node)
        if self.nodes:
            self._last_node = time.monotonic()
        elif not self.waiting:
            return
        elif alive and self.useless >= set(alive):
            raise JambaError("no node of the cluster can answer this batch; the lines above say why")
        elif time.monotonic() - self._last_node > _PATIENCE:
            raise JambaError("the cluster has no node left; the answers so far are kept")

    def _start(self, key: str, node: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cpus = int(node["Resources"]["CPU"])
        options = {"num_cpus": cpus, "scheduling_strategy": NodeAffinitySchedulingStrategy(key, soft=False)}
        actor = self.ray.remote(_Remote).options(**options).remote(self.factory, cpus)
        self.nodes[key] = _Node(node["NodeManagerAddress"], actor, actor.keys.remote(), False, {})

    def _ended(self, ref: Any) -> None:
        key = next((k for k, node in self.nodes.items() if ref == node.ready or ref in node.running), None)
        if key is None:
            return
        node = self.nodes[key]
        try:
            found = self.ray.get(ref)
        except Exception as error:  # of Ray: the node or its process is gone; of the worker: it cannot load the model
            self.starts[key] = self.starts.get(key, 0) + 1
            if (ref == node.ready and _failed_to_start(error)) or self.starts[key] >= ATTEMPTS:
                self.useless.add(key)
            self._drop(key, _reason(error))
            return
        if ref == node.ready:
            node.checked = True
            if not self.needed <= found:
                self.useless.add(key)
                self._drop(key, "its model, its version or its input is another one")
                return
            self.joined(node.name)
            return
        by_key = {item.key: item for item in node.running.pop(ref)}
        for answer in found:
            self._take(by_key.pop(answer.key), answer)
        if by_key:
            self._again(list(by_key.values()), "a node has left them out")

    def _take(self, item: Item, answer: Answer) -> None:
        prompt, shared, generated = answer.tokens
        self.result.prompt_tokens += prompt
        self.result.shared_tokens += shared
        self.result.generated_tokens += generated
        if answer.error is not None:
            self.result.failed[item.key] = answer.record
            self.failed(item, JambaError(answer.error))
            return
        if self.part is not None:
            self.part.add(item.key, answer.record)
        self.result.answered += 1
        self.answered(item, answer.record)

    def _drop(self, key: str, why: str) -> None:
        """Give up a node; what it had is handed out again."""
        node = self.nodes.pop(key)
        self.lost(node.name, why)
        for work in node.running.values():
            self._again(work, why)
        self.ray.kill(node.actor)

    def _again(self, work: list[Item], why: str) -> None:
        for item in work:
            self.attempts[item.key] = self.attempts.get(item.key, 0) + 1
        kept = [item for item in work if self.attempts[item.key] < ATTEMPTS]
        if kept:
            self.waiting.appendleft(kept)
        for item in work:
            if item not in kept:
                self._fail(item, JambaError(f"{ATTEMPTS} nodes were lost while they answered it: {why}"))

    def _fail(self, item: Item, error: Exception) -> None:
        self.result.failed[item.key] = item.record(None, error)
        self.failed(item, error)


def _refusal(item: Item) -> Exception:
    """Why an item without a prompt cannot be asked."""
    try:
        item.request()
    except JambaError as error:
        return error
    return JambaError("there is nothing to ask")


def _failed_to_start(error: Exception) -> bool:
    """Whether a worker could not be made, and not that its process or node is gone."""
    return bool(getattr(error, "actor_init_failed", False)) or type(error).__name__ == "RayTaskError"


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(cause).__name__


class _Remote:
    """The Ray actor: a worker in a process of its own on a node."""

    def __init__(self, factory: WorkerFactory, threads: int) -> None:
        self._worker = factory(threads)

    def keys(self) -> frozenset[str]:
        """See ``Worker``."""
        return self._worker.keys()

    def answer(self, keys: Sequence[str]) -> list[Answer]:
        """See ``Worker``."""
        return self._worker.answer(keys)
