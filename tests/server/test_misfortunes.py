"""A server on a full disk, without a home that can be written, whose store is deleted, beside another on the same store, with a
wrong clock, without descriptors: requests get their reply or a clear answer, the server goes on, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.page.page import Page
from jambacli.session import session_file
from tests.server.page.talking import SESSIONS, Talk
from tests.support.limits import limited
from tests.support.servers import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
_BODY = {"messages": [{"role": "user", "content": "How many herons?"}], "max_tokens": 3, "temperature": 0}


def said(client: httpx.Client, **more: Any) -> str:
    """The reply to a request."""
    answer = client.post("/v1/chat/completions", json={**_BODY, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def ended(talk: Talk, name: str, text: str) -> list[str]:
    """The messages of the errors of a reply on the page, empty when it is there."""
    answer = talk.client.post(f"{SESSIONS}/{name}/messages", json={"text": text, "options": {"max_tokens": 3}})
    if answer.status_code != 202:
        return [answer.json()["error"]["message"]]
    return [event["message"] for event in talk.events(name, answer.json()["from"]) if event["type"] == "error"]


def clear(messages: list[str]) -> bool:
    return all(m and "internal" not in m and "Traceback" not in m and "\n" not in m for m in messages)


def texts(talk: Talk, name: str) -> list[str]:
    return [message["text"] for message in talk.get(name)["messages"]]


@contextlib.contextmanager
def begun(tiny: Jamba) -> Iterator[tuple[Any, Talk, str]]:
    """A server, its page, and a session with one answer."""
    with serving(tiny, store=True, page=Page()) as running:
        talk = Talk(running.client)
        name = talk.session()
        assert ended(talk, name, "Before.") == []
        yield running, talk, name


@pytest.fixture
def home(own_home: Path) -> Path:
    return own_home


def test_no_room_on_the_disk(tiny: Jamba, home: Path) -> None:
    with begun(tiny) as (running, talk, name):
        with limited(resource.RLIMIT_FSIZE, 6000):
            whole = said(running.client)
            errors = ended(talk, name, "Within.")
            assert clear(errors)
            upload = running.client.post(
                "/v1/files", files={"file": ("a.txt", b"herons " * 5000)}, data={"purpose": "x"}
            )
            assert upload.status_code in (200, 507, 500, 503), upload.text
            assert clear([upload.json().get("error", {"message": "x"})["message"]]), upload.text
        assert said(running.client) == whole
        assert ended(talk, name, "After.") == []
        assert [t for t in texts(talk, name) if t in ("Before.", "After.")] == ["Before.", "After."]
    assert not list(home.rglob("*.part"))
    assert session_file.exists(name)


def test_a_home_that_cannot_be_written(tiny: Jamba, home: Path) -> None:
    home.write_text("no folder")
    with serving(tiny, store=True, page=Page()) as running:
        talk = Talk(running.client)
        whole = said(running.client)
        answer = talk.client.post(SESSIONS, json={})
        assert answer.status_code >= 400 and clear([answer.json()["error"]["message"]]), answer.text
        assert "JAMBA_HOME" in answer.json()["error"]["message"] or str(home) in answer.json()["error"]["message"]
        assert said(running.client) == whole
        home.unlink()
        assert ended(talk, talk.session(), "Now.") == []


def test_a_store_that_is_deleted_while_it_is_used(tiny: Jamba, home: Path) -> None:
    with begun(tiny) as (running, talk, name):
        whole = said(running.client)
        shutil.rmtree(home)
        assert said(running.client) == whole
        answer = talk.client.get(f"{SESSIONS}/{name}")
        assert answer.status_code in (200, 404) and clear([answer.json().get("error", {"message": "x"})["message"]])
        assert clear(ended(talk, name, "After."))
        new = talk.session()
        assert ended(talk, new, "A new one.") == [] and "A new one." in texts(talk, new)
        assert said(running.client) == whole


def test_two_servers_on_a_store(tiny: Jamba, home: Path) -> None:
    with (
        serving(tiny, store=True, page=Page()) as one,
        serving(Jamba.load(tiny.path), store=True, page=Page()) as two,
    ):
        first, second = Talk(one.client), Talk(two.client)
        name = first.session()
        asked = []
        for i in range(6):
            talk = (first, second)[i % 2]
            errors = ended(talk, name, f"Question {i}.")
            assert clear(errors)
            asked += [] if errors else [f"Question {i}."]
            assert said(one.client) == said(two.client)
        assert len(asked) == 6
        assert [t for t in texts(second, name) if t.startswith("Question")] == asked
        assert texts(first, name) == texts(second, name)


@pytest.mark.parametrize("now", [1.0, 4_294_967_300.0])
def test_a_clock_in_1970_or_2106(tiny: Jamba, home: Path, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    with begun(tiny) as (running, talk, name):
        whole = said(running.client)
        monkeypatch.setattr(time, "time", lambda: now)
        monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
        assert said(running.client) == whole
        assert ended(talk, name, "After.") == []
        assert [t for t in texts(talk, name) if t in ("Before.", "After.")] == ["Before.", "After."]
        for path in ("/v1/models", "/metrics", SESSIONS, "/v1/page/state", "/health"):
            assert running.client.get(path).status_code == 200, path


def test_no_descriptors(tiny: Jamba, home: Path) -> None:
    with begun(tiny) as (running, talk, name):
        whole = said(running.client)
        used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        free = [n for n in range(used + 1) if not Path(f"/proc/self/fd/{n}").exists()]
        taken = [os.open(os.devnull, os.O_RDONLY) for _ in free]
        try:
            with limited(resource.RLIMIT_NOFILE, used + 1):
                answer = running.client.post("/v1/chat/completions", json=_BODY)
                assert answer.status_code in (200, 500, 503), answer.text
                assert clear([answer.json().get("error", {"message": "x"})["message"]]), answer.text
                errors = [talk.client.post(f"{SESSIONS}/{name}/messages", json={"text": "Within."})]
                assert clear([e.json()["error"]["message"] for e in errors if e.status_code != 202])
                if errors[0].status_code == 202:
                    list(talk.events(name, errors[0].json()["from"]))
                with contextlib.suppress(httpx.HTTPError, OSError):  # a connection that cannot be accepted
                    httpx.get(f"{running.url}/health", timeout=0.2)
        finally:
            for descriptor in taken:
                os.close(descriptor)
        assert said(running.client) == whole
        assert ended(talk, name, "After.") == []
        assert [t for t in texts(talk, name) if t in ("Before.", "After.")] == ["Before.", "After."]
