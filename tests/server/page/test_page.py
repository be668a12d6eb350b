"""The page's files, its state, its login; tasks about documents; a server that is killed; another server behind it."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jambacli.api import Jamba
from jambacli.server.http import Access
from jambacli.server.page.page import Page
from jambacli.server.page.presets import presets
from jambacli.server.page.static_files import StaticFiles
from jambacli.server.page.tables import read_columns, schema_of
from jambacli.server.upstream import Upstream
from jambacli.server.upstream_client import UpstreamClient
from jambacli.session import session_file
from tests.server.page.talking import DOCUMENTS, HERONS, OWLS, SESSIONS, Talk
from tests.support.canned_server import DONE, USAGE, Canned, piece, streamed
from tests.support.servers import serve_process, serving, serving_app, serving_models

HTML = {"Accept": "text/html,application/xhtml+xml"}


def test_browsers_get_the_page_and_programs_what_they_got_before(talk: Talk) -> None:
    page = talk.client.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8" and "accept" in page.headers["vary"]
    assert talk.client.get("/").text == "Ollama is running"
    assert talk.client.head("/").status_code == 200


def test_files_are_compressed_and_known_by_their_content(talk: Talk, tmp_path: Path) -> None:
    names = StaticFiles().names
    assert "index.html" in names and any(name.endswith(".js") for name in names)
    for name in names:
        url = f"/static/{name}"
        whole = talk.client.get(url, headers={"Accept-Encoding": "identity"})
        assert whole.status_code == 200 and "content-encoding" not in whole.headers
        assert talk.client.get(url).content == whole.content
        again = talk.client.get(url, headers={"If-None-Match": whole.headers["etag"]})
        assert again.status_code == 304 and not again.content
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "a.css").write_text("a {}\n" * 1000)
    (folder / "secret.py").write_text("no")
    files = StaticFiles(folder)
    first = files.answer("a.css", {"accept-encoding": "gzip"})
    assert gzip.decompress(bytes(first.body)).startswith(b"a {}") and files.names == ["a.css"]
    (folder / "a.css").write_text("b {}\n")
    assert files.answer("a.css", {}).headers["etag"] != first.headers["etag"]


def test_the_state_and_the_presets(talk: Talk) -> None:
    state = talk.client.get("/v1/page/state").json()
    assert state["context"] == 16384 and state["model"] == "jamba:tiny" and state["kept"] and state["upstream"] is None
    assert {p["id"] for p in state["presets"]} >= {"obligations", "dates-amounts", "parties", "risks", "paper", "code"}
    for preset in presets():
        if preset["kind"] == "table":
            assert schema_of(read_columns(preset["columns"]))["required"] == ["rows"]
        else:
            assert preset["kind"] in ("question", "summarize") and preset["title"]


def test_without_the_page_there_is_none(tiny: Jamba) -> None:
    with serving(tiny) as server:
        assert server.client.get("/", headers=HTML).text == "Ollama is running"
        for path in ("/static/app.css", "/v1/page/state", DOCUMENTS, SESSIONS):
            assert server.client.get(path).status_code == 404


def test_a_key_is_asked_for_once_and_kept_in_a_cookie(tiny: Jamba) -> None:
    with serving(tiny, page=Page(keep=False), access=Access(key="sesame é")) as server:
        client = server.client
        assert client.get("/", headers=HTML).status_code == 200
        assert client.get("/static/app.css").status_code in (200, 404)
        assert client.get("/v1/page/state").status_code == client.get(DOCUMENTS).status_code == 401
        wrong = client.post("/v1/page/login", json={"key": "open"})
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
        right = client.post("/v1/page/login", json={"key": "sesame é"})
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "sesame" not in cookie
        assert client.get("/v1/page/state").status_code == 200  # by the cookie
        assert client.get(DOCUMENTS, headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/models").status_code == 200
        client.post("/v1/page/logout", json={})
        client.cookies.clear()
        for forged in ("jamba_page=x", "jamba_page=", "jamba_page=é; x", "jamba_page"):
            assert client.get(DOCUMENTS, headers={"Cookie": forged.encode()}).status_code == 401
        bearer = {"Authorization": "Bearer sesame é".encode()}
        assert client.get(DOCUMENTS, headers=bearer).status_code == 200


def test_nothing_is_kept_if_nothing_is_to_be(tiny: Jamba, own_home: Path) -> None:
    with serving(tiny, page=Page(keep=False)) as running:
        talk = Talk(running.client)
        document = talk.document()
        name = talk.session(documents=[document["id"]])
        assert "Ines Vorban" in talk.ask(name, text="Who counted the owls?")["text"]
        assert "17" in talk.ask(name, text="How many owls were counted?")["text"]
        assert len(talk.get(name)["messages"]) == 4 and talk.client.get("/v1/page/state").json()["kept"] is False
        renamed = talk.client.patch(f"{SESSIONS}/{name}", json={"name": "kept"}).json()
        assert renamed["name"] == "kept" and talk.client.delete(f"{SESSIONS}/kept").status_code == 200
    kept = [path for path in own_home.rglob("*") if path.is_file() and OWLS.encode()[:30] in path.read_bytes()]
    assert kept == []


def test_tasks_about_documents(talk: Talk) -> None:
    owls, herons = talk.document(), talk.document(HERONS, "herons.txt")
    name = talk.session(documents=[owls["id"], herons["id"]], options={"max_tokens": 60})
    summary = talk.ask(name, "summarize", length="short", style="bullets", focus="numbers", language="English")
    assert summary["task"]["kind"] == "summarize" and summary["text"]
    asked = talk.get(name)["messages"][0]
    assert "three to five bullet points" in asked["text"] and "Write in English." in asked["text"]
    assert asked["documents"] == [owls["id"], herons["id"]]
    comparison = talk.ask(name, "compare", documents=[owls["id"], herons["id"]])
    assert comparison["task"]["kind"] == "compare"
    assert "owls.txt and herons.txt" in talk.get(name)["messages"][2]["text"]
    nothing = talk.client.post(f"{SESSIONS}/{talk.session()}/summarize", json={})
    assert nothing.status_code == 400 and "no documents" in nothing.json()["error"]["message"]


def test_a_table_of_named_columns(talk: Talk) -> None:
    pytest.importorskip("llguidance", reason="the extra `schema` is not installed")
    document = talk.document()
    name = talk.session(documents=[document["id"]], options={"max_tokens": 120})
    columns = [{"name": "Who"}, {"name": "How many", "type": "number"}, {"name": "Sure", "type": "yes/no"}]
    message = talk.ask(name, "table", columns=columns, instruction="Who counted what?")
    assert message["table"] is not None and message["finish"] == "stop"
    assert [column["name"] for column in message["table"]["columns"]] == ["Who", "How many", "Sure"]
    for row in message["table"]["rows"]:
        assert (
            isinstance(row[0], str)
            and (row[1] is None or isinstance(row[1], int | float))
            and row[2] in (None, True, False)
        )
    question = talk.get(name)["messages"][0]
    assert question["text"] == "Who counted what?: Who, How many, Sure"
    csv = talk.client.get(f"{SESSIONS}/{name}/tables/1", params={"format": "csv"})
    assert csv.headers["content-type"].startswith("text/csv") and csv.text.lstrip("\ufeff").startswith(
        "Who,How many,Sure"
    )
    again = talk.ask(name, "regenerate")
    assert again["table"] is not None and again["siblings"]["count"] == 2


def test_a_killed_server_loses_no_question_and_no_turn(own_home: Path) -> None:
    with serve_process() as (server, client):
        talk = Talk(client)
        document = talk.document()
        name = talk.session(documents=[document["id"]])
        first = talk.ask(name, text="Who counted the owls?")
        begun = talk.begin(
            name, text="Tell me everything.", options={"temperature": 1.5, "min_p": 0, "max_tokens": 3000}
        )
        with contextlib.suppress(httpx.HTTPError):
            for event in talk.events(name, begun["from"]):
                if event["type"] == "text":
                    os.kill(server.pid, signal.SIGKILL)
    with serve_process() as (_, client):
        talk = Talk(client)
        session = talk.get(name)
        assert [m["text"] for m in session["messages"]] == ["Who counted the owls?", first["text"]]
        assert session["unsent"]["text"] == "Tell me everything." and session["running"] is None and session["writable"]
        assert session["next"] > begun["from"]
        assert [event["type"] for event in talk.events(name, begun["from"])] == ["reset"]
        stats = talk.ask(name, text="And where was that?")["stats"]
        assert stats["read_tokens"] < 25
        assert talk.get(name)["unsent"] is None and session_file.exists(name)


def test_an_open_page_does_not_keep_the_server_from_stopping(own_home: Path) -> None:
    with serve_process() as (server, client):
        name = Talk(client).session()
        with client.stream("GET", f"{SESSIONS}/{name}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": events"
            server.send_signal(signal.SIGINT)
            assert list(lines) == [""]  # to the end of the stream, not of the connection
            assert server.wait(60) == 0


@pytest.fixture
def front(tiny: Jamba) -> Iterator[Talk]:
    """The page in front of another server."""
    with serving(tiny) as behind:
        upstream = Upstream(UpstreamClient(behind.url))
        with serving_models(upstream, page=Page()) as running:
            yield Talk(running.client)


def test_in_front_of_another_server_it_talks_about_documents(front: Talk) -> None:
    state = front.client.get("/v1/page/state").json()
    assert state["upstream"].startswith("http://127.0.0.1") and len(state["missing"]) == 3 and state["context"] == 16384
    document = front.document()
    assert document["state"] == "ready" and document["tokens"] is None and document["fits"] is None
    name = front.session(documents=[document["id"]])
    reply = front.ask(name, text="Who counted the owls?")
    assert reply["text"] and reply["stats"]["prompt_tokens"] > 50
    assert front.ask(name, text="And where was that?")["role"] == "assistant"
    assert front.ask(name, "regenerate")["siblings"]["count"] == 2
    front.ask(name, "edit", index=0, text="What is the code word?")
    assert len(front.get(name)["messages"]) == 2 and front.get(name)["writable"]


def test_citations_of_another_server_are_found_in_the_documents(own_home: Path) -> None:
    behind = Canned()
    said = piece("Ines Vorban counted 17 owls.<citations>[0]</citations>", "stop")
    behind.answer = lambda: streamed(said, USAGE, DONE)
    with serving_app(behind.app) as other, serving_models(Upstream(UpstreamClient(other.url)), page=Page()) as running:
        talk = Talk(running.client)
        document = talk.document()
        reply = talk.ask(talk.session(documents=[document["id"]]), text="Who counted the owls?")
    assert reply["text"] == "Ines Vorban counted 17 owls." and reply["cited"]
    (mark,) = reply["citations"]
    assert mark["document"] == document["id"] and mark["page"] == 1 and mark["found"]
    assert "Ines Vorban counted 17 owls" in mark["quote"]


def test_a_server_behind_that_is_gone_is_said(own_home: Path) -> None:
    upstream = Upstream(UpstreamClient("http://127.0.0.1:9"))
    with serving_models(upstream, page=Page()) as running:
        talk = Talk(running.client)
        assert talk.document()["state"] == "ready"
        answer = talk.client.post(SESSIONS, json={})
        assert answer.status_code >= 500 and answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_long_document_is_read_once_while_others_are_answered(tiny: Jamba, own_home: Path) -> None:
    lines = "\n".join(f"Line {i} of the ledger says {i * 7919 % 1000}." for i in range(450))
    with serving(tiny, store=True, page=Page()) as running:
        talk = Talk(running.client)
        document = talk.document(lines, "ledger.txt")
        name = talk.session()
        begun = talk.begin(name, text="What does line 3 say?", documents=[document["id"]], options={"max_tokens": 5})
        slowest, shown = 0.0, 0
        for event in talk.events(name, begun["from"]):
            if event["type"] == "status" and event["phase"] == "reading":
                shown += 1
                began = time.monotonic()
                talk.client.get("/v1/page/state").raise_for_status()
                slowest = max(slowest, time.monotonic() - began)
        assert shown >= 3 and slowest < 20
        stats = talk.ask(talk.session(), text="And line 4?", documents=[document["id"]], options={"max_tokens": 5})[
            "stats"
        ]
        assert stats["reused_tokens"] >= document["tokens"] and stats["read_tokens"] < 60
