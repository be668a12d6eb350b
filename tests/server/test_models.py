"""Several models by name: loaded on demand, unloaded when idle or in the way, and never while they answer."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.engine.batch_worker import Turn
from jambacli.hardware.devices import devices
from jambacli.hub.demo import demo_model_path
from jambacli.runtime.options import DeviceOptions
from jambacli.server.memory import DeviceMemory, Shortage, summary_of
from jambacli.server.models import Models
from jambacli.server.served_model import ServedModel
from jambacli.server.worker import Worker
from jambacli.units import parse_duration
from tests.support.servers import Running, serving_models

CHAT = "/v1/chat/completions"


def ask(model: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How many herons were counted?"}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, **more}


def served(
    name: str, path: Path, keep_alive: float | None = None, load: Callable[[], Worker] | None = None
) -> ServedModel:
    turn = Turn()

    def loaded() -> Worker:
        return Worker(Jamba.load(path), ctx=4096, parallel=2, store=False, keep_alive=0.05, turn=turn)

    return ServedModel(name, load or loaded, path, keep_alive)


class Room:
    """Memory for so many models at once; ``never``: names of those that do not fit at all."""

    def __init__(self, count: int, never: Iterable[str] = ()) -> None:
        self.count, self.never = count, set(never)

    def shortage(self, path: Path, loaded: Iterable[Path]) -> Shortage | None:
        if path.stem in self.never:
            return Shortage(f"{path.stem} needs 99 GB of memory, and 1 GB are free", False)
        return Shortage("there is no room now", True) if len(list(loaded)) >= self.count else None


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [shutil.copy(demo_model_path(), tmp_path / f"{name}.gguf") for name in ("one", "mini", "three")]


@pytest.fixture
def models(files: list[Path]) -> Models:
    return Models([served(path.stem, path) for path in files], memory=Room(2), patience=0.05)


def states(server: Running) -> dict[str, str]:
    return {m["id"]: m["status"]["value"] for m in server.client.get("/v1/models").json()["data"]}


def test_a_model_is_loaded_when_it_is_first_asked_for(models: Models) -> None:
    with serving_models(models) as server:
        assert states(server) == {"one": "unloaded", "mini": "unloaded", "three": "unloaded"}
        assert server.client.get("/api/ps").json() == {"models": []}
        answer = server.client.post(CHAT, json=ask("mini")).json()
        assert answer["model"] == "mini" and answer["usage"]["completion_tokens"] > 0
        assert states(server) == {"one": "unloaded", "mini": "loaded", "three": "unloaded"}
        assert [m["name"] for m in server.client.get("/api/tags").json()["models"]] == ["one", "mini", "three"]
        assert [m["name"] for m in server.client.get("/api/ps").json()["models"]] == ["mini"]
        # Without a name, the first answers.
        assert server.client.post(CHAT, json={**ask(""), "model": None}).json()["model"] == "one"


def test_every_api_answers_an_unknown_name_with_404(models: Models) -> None:
    with serving_models(models) as server:
        answer = server.client.post(CHAT, json=ask("gpt-9"))
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
        assert "one, mini, three" in answer.json()["error"]["message"]
        messages = server.client.post("/v1/messages", json=ask("gpt-9"))
        assert messages.status_code == 404 and messages.json()["error"]["type"] == "not_found_error"
        assert server.client.post("/api/chat", json=ask("gpt-9")).json().keys() == {"error"}
        assert server.client.post("/api/show", json={"model": "gpt-9"}).status_code == 404
        assert server.client.post("/tokenize", json={"content": "a", "model": "gpt-9"}).status_code == 404
        invoke = server.client.post("/model/amazon.titan/invoke", json={"inputText": "a"})
        assert invoke.status_code == 404 and invoke.headers["x-amzn-errortype"] == "ResourceNotFoundException"
        assert states(server) == {"one": "unloaded", "mini": "unloaded", "three": "unloaded"}


def test_names_of_other_clients_mean_these_models(models: Models) -> None:
    with serving_models(models) as server:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        answer = server.client.post("/model/us.ai21.jamba-1-5-mini-v1%3A0/invoke", json=body)
        assert answer.json()["model"] == "mini"  # by its family
        assert server.client.post("/model/ai21.jamba-1-5-large/invoke", json=body).json()["model"] == "one"
        assert server.client.post("/api/chat", json=ask("mini:latest", stream=False)).json()["model"] == "mini"


def test_the_one_used_longest_ago_makes_room(models: Models) -> None:
    with serving_models(models) as server:
        for name in ("one", "mini", "one", "three"):
            assert server.client.post(CHAT, json=ask(name)).json()["model"] == name
        assert states(server) == {"one": "loaded", "mini": "unloaded", "three": "loaded"}


def test_at_most_so_many_are_loaded(files: list[Path]) -> None:
    with serving_models(Models([served(path.stem, path) for path in files], most=1)) as server:
        for name in ("one", "mini"):
            assert server.client.post(CHAT, json=ask(name)).status_code == 200
        assert states(server) == {"one": "unloaded", "mini": "loaded", "three": "unloaded"}


def test_a_running_reply_is_never_cut(files: list[Path]) -> None:
    models = Models([served(path.stem, path) for path in files], memory=Room(1), patience=0.05)
    bias = {str(token): -1000 for token in range(8)}  # no end
    long = ask("one", 600, stream=True, logit_bias=bias)
    with serving_models(models) as server, ThreadPoolExecutor(4) as pool:
        with server.client.stream("POST", CHAT, json=long) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            waiting = [pool.submit(server.client.post, CHAT, json=ask(name)) for name in ("mini", "one", "three")]
            ends = [line for line in lines if '"finish_reason":"length"' in line]
        assert len(ends) == 1 and json.loads(ends[0][6:])["timings"]["predicted_n"] == 600
        assert [w.result().json()["model"] for w in waiting] == ["mini", "one", "three"]
        assert server.client.get("/health").json() == {"status": "ok", "active": 0, "waiting": 0}


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(files: list[Path]) -> None:
    models = Models([served(path.stem, path) for path in files], memory=Room(1, never=["three"]))
    with serving_models(models) as server:
        server.client.post(CHAT, json=ask("one"))
        answer = server.client.post(CHAT, json=ask("three"))
        assert answer.status_code == 503 and "needs 99 GB of memory, and 1 GB are free" in answer.text
        assert states(server) == {"one": "loaded", "mini": "unloaded", "three": "failed"}


def test_the_plan_counts_what_is_loaded_already(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = DeviceMemory(DeviceOptions(device="cpu"), 1024, None)
    assert memory.shortage(files[0], files[1:]) is None
    size = summary_of(files[0]).weight_bytes
    cpu = devices()[0]

    def with_free(free: int) -> None:
        found = [type(cpu)("cpu", "", "", 1 << 40, free, 1.0, True, "")]
        monkeypatch.setattr("jambacli.server.memory.devices", lambda: found)

    with_free(0)
    never = memory.shortage(files[0], [])
    assert never is not None and not never.ever and "needs" in never.reason and "0 B are free" in never.reason
    with_free(1 << 30)
    assert memory.shortage(files[0], files[1:]) is None
    # All that is available is the others' weights, which must not be read again.
    monkeypatch.setattr("jambacli.server.memory.summary_of", lambda path: summary_of(path) if path == files[0] else Big)
    now = memory.shortage(files[0], files[1:])
    assert now is not None and now.ever and size < Big.weight_bytes


class Big:
    weight_bytes = 1 << 30


def test_a_file_that_is_no_model_is_an_error_of_its_own(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF nonsense")
    memory = DeviceMemory(DeviceOptions(device="cpu"), 1024, None)
    with serving_models(Models([served(p.stem, p) for p in (bad, files[0])], memory=memory)) as server:
        answer = server.client.post(CHAT, json=ask("bad"))
        assert answer.status_code == 503 and "bad cannot be loaded" in answer.json()["error"]["message"]
        assert server.client.post(CHAT, json=ask("one")).status_code == 200
        tags = {m["name"]: m["size"] for m in server.client.get("/api/tags").json()["models"]}
        assert tags["bad"] == 0 and tags["one"] == files[0].stat().st_size


def test_signs_of_life_come_while_a_model_is_loaded(files: list[Path]) -> None:
    gate = threading.Event()
    slow = served("slow", files[0])
    load, slow.load = slow.load, lambda: (gate.wait(60), load())[1]
    models = Models([slow, served("two", files[1])], patience=0.02)
    body = ask("slow", stream=True)
    with serving_models(models) as server, server.client.stream("POST", CHAT, json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        first = [json.loads(next(lines)[6:]) for _ in range(4)]
        assert first[0]["choices"][0]["delta"]["role"] == "assistant" and "prompt_progress" in first[3]
        # Everything else is answered at once.
        assert states(server) == {"slow": "loading", "two": "unloaded"}
        assert server.client.get("/health").json()["waiting"] == 1
        gate.set()
        assert list(lines)[-1] == "data: [DONE]"


def test_an_error_after_loading_is_told_in_the_stream(files: list[Path]) -> None:
    gate = threading.Event()
    slow = served("slow", files[0])
    load, slow.load = slow.load, lambda: (gate.wait(60), load())[1]
    with serving_models(Models([slow, served("two", files[1])], patience=0.02)) as server:
        body = ask("slow", stream=True)
        body["messages"][0]["content"] = "heron " * 9000
        with server.client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200
            gate.set()
            assert "context_length_exceeded" in [line for line in response.iter_lines() if line][-1]


def test_a_client_that_goes_away_while_a_model_is_loaded_is_forgotten(files: list[Path]) -> None:
    gate = threading.Event()
    slow = served("slow", files[0])
    load, slow.load = slow.load, lambda: (gate.wait(60), load())[1]
    with serving_models(Models([slow, served("two", files[1])], patience=0.02)) as server:
        with server.client.stream("POST", CHAT, json=ask("slow", 4000, stream=True)) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 60
        while server.client.get("/health").json()["waiting"]:
            assert time.monotonic() < deadline
        gate.set()
        assert server.client.post(CHAT, json=ask("slow", 1)).status_code == 200
        assert server.client.get("/health").json()["active"] == 0


def wait_for(server: Running, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while states(server) != wanted:
        assert time.monotonic() < deadline, states(server)
        time.sleep(0.01)


def test_an_idle_model_is_unloaded(files: list[Path]) -> None:
    models = Models([served(path.stem, path, 0.05) for path in files[:2]])
    with serving_models(models) as server:
        before = server.client.post(CHAT, json=ask("one", 6)).json()["choices"]
        wait_for(server, {"one": "unloaded", "mini": "unloaded"})
        assert server.client.post(CHAT, json=ask("one", 6)).json()["choices"] == before
        assert "jamba_model_loads_total 2" in server.client.get("/metrics").text
        # What is counted stays.
        assert "jamba_answered_total 2" in server.client.get("/metrics").text


def test_requests_may_say_how_long_their_model_stays(models: Models) -> None:
    with serving_models(models) as server:
        load = server.client.post("/api/generate", json={"model": "one", "keep_alive": "10m"}).json()
        assert load["done_reason"] == "load" and states(server)["one"] == "loaded"
        (entry,) = server.client.get("/api/ps").json()["models"]
        assert not entry["expires_at"].startswith("9999")
        gone = server.client.post("/api/generate", json={"model": "one", "keep_alive": 0}).json()
        assert gone["done_reason"] == "unload" and states(server)["one"] == "unloaded"
        assert server.client.post("/api/generate", json={"model": "one", "keep_alive": "soon"}).status_code == 400
        # As llama-server's router has it.
        assert server.client.post("/models/load", json={"model": "mini"}).json() == {"success": True}
        assert states(server)["mini"] == "loaded"
        assert server.client.post("/models/unload", json={"model": "mini"}).json() == {"success": True}
        assert states(server)["mini"] == "unloaded"
        assert server.client.post("/models/load", json={}).status_code == 400


def test_two_models_answer_at_once_as_alone(models: Models) -> None:
    with serving_models(models) as server, ThreadPoolExecutor(8) as pool:
        alone = {n: server.client.post(CHAT, json=ask(n, 24)).json()["choices"] for n in ("one", "mini")}
        jobs = [pool.submit(server.client.post, CHAT, json=ask(n, 24)) for _ in range(4) for n in ("one", "mini")]
        answers = [job.result().json() for job in jobs]
        assert all(a["choices"] == alone[a["model"]] for a in answers)


@pytest.mark.slow
def test_memory_stays_flat_over_thirty_rounds(files: list[Path]) -> None:
    models = Models([served(path.stem, path) for path in files[:2]], most=1)
    process, sizes = psutil.Process(), []
    with serving_models(models) as server:
        for _ in range(30):
            for name in ("one", "mini"):
                assert server.client.post(CHAT, json=ask(name)).status_code == 200
            sizes.append(process.memory_info().rss)
        assert "jamba_model_loads_total 60" in server.client.get("/metrics").text
    early, late = min(sizes[5:10]), min(sizes[-5:])
    assert late - early < 2 * files[0].stat().st_size, [s >> 20 for s in sizes]
    assert process.num_threads() < 60


def test_durations() -> None:
    cases = {"300": 300, "5m": 300, "1h30m": 5400, "0": 0, "500ms": 0.5, "-1": None, "forever": None, "-1m": None}
    assert {text: parse_duration(text) for text in cases} == cases
    for text in ("", "m", "5 m", "nan", "1e3", "5x", "5m-"):
        with pytest.raises(Exception, match="not a duration"):
            parse_duration(text)
