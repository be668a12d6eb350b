"""Batches over a Ray cluster: the hand-out with a scripted cluster, and real nodes and a driver that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jambacli.batch import cluster
from jambacli.batch.cluster import Answer
from jambacli.batch.items import Item
from jambacli.batch.part_file import PartFile
from jambacli.errors import JambaError
from jambacli.hub.demo import demo_model_path
from tests.support.repository import REPO


def item(number: int, size: int = 5) -> Item:
    def request() -> Any:
        raise JambaError("cannot be read")

    def record(job: Any, error: Exception | None) -> dict[str, Any]:
        return {"n": number, "error": str(error)}

    return Item(f"line {number}", f"k{number:03}", (f"{number:03}",), size, request, record)


class Lost(Exception):
    """As Ray's error for a process that is gone."""

    actor_init_failed = False


class Refused(Exception):
    """As Ray's error for a worker that could not be made."""

    actor_init_failed = True


class ScriptedRay:
    """A cluster whose nodes answer at once, until their script says otherwise: the exception that a call raises."""

    def __init__(self, nodes: dict[str, list[Any]], keys: dict[str, frozenset[str]] | None = None) -> None:
        self.scripts, self.own_keys = nodes, keys or {}
        self.alive = dict.fromkeys(nodes, True)
        self.handed: list[tuple[str, tuple[str, ...]]] = []
        self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": alive, "Resources": {"CPU": 2.0}, "NodeManagerAddress": name}
            for name, alive in self.alive.items()
        ]

    def wait(self, refs: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return list(refs)[:1], list(refs)[1:]

    def get(self, ref: Any) -> Any:
        value = ref()
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, actor: Any) -> None:
        self.killed += 1


class ScriptedActor:
    def __init__(self, ray: ScriptedRay, node: str, everything: frozenset[str]) -> None:
        self.keys = self.answer = self
        self._ray, self._node, self._all = ray, node, everything

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        script = self._ray.scripts[self._node]
        outcome = script.pop(0) if script else None
        if not arguments:
            return lambda: outcome or self._ray.own_keys.get(self._node, self._all)
        keys = tuple(arguments[0])
        self._ray.handed.append((self._node, keys))
        return lambda: outcome or [Answer(key, {"key": key, "node": self._node}) for key in keys]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    """Answer items on a scripted cluster: the result, and what was said of nodes and items."""
    monkeypatch.setattr(cluster, "_LOOK", 0.0)

    def go(ray: ScriptedRay, items: list[Item], part: PartFile | None = None, group: int = 2) -> tuple[Any, list[str]]:
        everything = frozenset(i.key for i in items)

        def start(self: Any, key: str, node: dict[str, Any]) -> None:
            actor = ScriptedActor(ray, key, everything)
            self.nodes[key] = cluster._Node(key, actor, actor.keys.remote(), False, {})

        monkeypatch.setattr(cluster._Run, "_start", start)
        said: list[str] = []
        runner = cluster._Run(
            ray,
            lambda threads: None,  # type: ignore[arg-type, return-value]
            items,
            part,
            group,
            lambda i, record: said.append(f"answered {i.key}"),
            lambda i, error: said.append(f"failed {i.key}: {error}"),
            lambda node: said.append(f"joined {node}"),
            lambda node, why: said.append(f"lost {node}: {why}"),
        )
        runner.run()
        return runner.result, said

    return go


def test_neighbours_are_handed_out_together_and_answered_once(run: Any, tmp_path: Path) -> None:
    items = [item(n) for n in (3, 1, 4, 0, 2)]
    part = PartFile(tmp_path / "o.jsonl")
    part.add("k004", {"n": 4})
    ray = ScriptedRay({"a": [], "b": []})
    result, said = run(ray, items, part)
    assert (result.answered, result.reused, result.failed) == (4, 1, {})
    assert sorted(keys for _, keys in ray.handed) == [("k000", "k001"), ("k002", "k003")]
    assert len([line for line in said if line.startswith("answered")]) == 4
    assert sorted(i.key for i in items if i.key in part) == sorted(i.key for i in items)
    part.close()


def test_what_a_lost_node_had_is_answered_by_another(run: Any) -> None:
    items = [item(n) for n in range(6)]
    ray = ScriptedRay({"a": [None, Lost("gone"), None], "b": []})
    result, said = run(ray, items)
    assert result.answered == 6
    assert not result.failed
    assert sum(line.startswith("lost a") for line in said) == 1
    assert sorted(line.split()[1] for line in said if line.startswith("answered")) == [i.key for i in items]


def test_a_node_that_cannot_work_is_left_alone(run: Any) -> None:
    items = [item(n) for n in range(3)]
    ray = ScriptedRay({"a": [Refused("Traceback\nJambaError: no such model")], "b": []}, {"c": frozenset()})
    result, said = run(ray, items)
    assert result.answered == 3
    assert [line for line in said if line.startswith("lost")] == ["lost a: JambaError: no such model"]
    with pytest.raises(JambaError, match="no node of the cluster can answer"):
        run(ScriptedRay({"a": [Refused("no")]}), items)
    with pytest.raises(JambaError, match="no node of the cluster can answer"):
        run(ScriptedRay({"a": []}, {"a": frozenset({"another"})}), items)


def test_an_item_that_loses_every_node_fails_and_the_rest_goes_on(run: Any) -> None:
    def losses() -> list[Any]:
        return [None, Lost("out of memory")] * cluster.ATTEMPTS

    result, _ = run(ScriptedRay({"a": losses(), "b": []}), [item(n) for n in range(2)])
    assert result.answered == 2  # another node took them
    result, said = run(ScriptedRay({"a": losses()}), [item(0), item(1)])
    assert result.answered == 0
    assert sorted(result.failed) == ["k000", "k001"]
    assert f"failed k000: {cluster.ATTEMPTS} nodes were lost while they answered it: out of memory" in said


def test_files_that_could_not_be_read_fail_without_a_node(run: Any) -> None:
    ray = ScriptedRay({"a": []})
    result, said = run(ray, [item(0), item(1, size=0)])
    assert result.answered == 1
    assert list(result.failed) == ["k001"]
    assert "failed k001: cannot be read" in said
    assert all("k001" not in keys for _, keys in ray.handed)


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs ray (the extra cluster)")
    with pytest.raises(JambaError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        cluster.run_on_cluster("127.0.0.1:1", lambda threads: None, [item(0)], None, group=1)  # type: ignore[arg-type, return-value]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A real cluster on this machine: a head without CPUs, and two nodes."""
    pytest.importorskip("ray", reason="needs ray (the extra cluster)")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, workers
    made.shutdown()


@pytest.mark.slow
def test_a_node_and_the_driver_are_killed_and_every_answer_is_there_once(nodes: Any, tmp_path: Path) -> None:
    made, workers = nodes
    count = 300
    prompts = [
        f"Report {i}: boat Anna left pier {i % 7} with {i % 5} crates. Where was boat Anna?" for i in range(count)
    ]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    options = [
        "--max-tokens",
        "8",
        "--no-store",
        "--threads",
        "1",
        "--parallel",
        "4",
        "--model",
        str(demo_model_path()),
    ]
    command = [sys.executable, "-m", "jambacli", "batch", "p.txt", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([*command, "-o", "alone.jsonl"], cwd=tmp_path, env=environment, check=True)
    part = tmp_path / "ray.jsonl.part"

    def answers() -> int:
        return part.read_bytes().count(b"\n") if part.exists() else 0

    def until(least: int, driver: subprocess.Popen[bytes]) -> None:
        while answers() < least:
            assert driver.poll() is None
            time.sleep(0.05)

    distributed = [*command, "-o", "ray.jsonl", "--ray", made.address]
    driver = subprocess.Popen(distributed, cwd=tmp_path, env=environment)
    until(count // 4, driver)
    made.remove_node(workers[1], allow_graceful=False)
    until(count // 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    subprocess.run(distributed, cwd=tmp_path, env=environment, check=True)
    alone, together = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("alone.jsonl", "ray.jsonl")
    )
    assert len(together) == count
    assert together == alone
    assert not part.exists()
