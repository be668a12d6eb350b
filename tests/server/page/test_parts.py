"""Tasks about documents larger than the context: a table, a comparison, and a stop among their parts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jambacli.api import Jamba
from jambacli.cache.reply_cache import ReplyCache
from jambacli.engine.batch import BatchEngine
from jambacli.server.page.page import Page
from tests.server.page.talking import HERONS, OWLS, SESSIONS, Talk
from tests.support.braked_server import dictate
from tests.support.servers import serving

LONG = "\n\n".join(f"{HERONS} On day {n} the sky was clear." for n in range(18))
OTHER = "\n\n".join(f"{OWLS} On day {n} the wind was cold." for n in range(18))


@pytest.fixture
def narrow(tiny: Jamba, own_home: Path) -> Iterator[Talk]:
    """A server whose context is small."""
    with serving(tiny, store=True, ctx=900, page=Page()) as running:
        yield Talk(running.client)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine is asked, in order."""
    asked: list[str] = []
    submit = BatchEngine.submit

    def seen(self: BatchEngine, request: Any, **callbacks: Any) -> Any:
        asked.append(self.model.tokenizer.decode(request.ids))
        return submit(self, request, **callbacks)

    monkeypatch.setattr(BatchEngine, "submit", seen)
    return asked


def test_a_table_of_what_does_not_fit_is_made_of_the_tables_of_its_parts(
    narrow: Talk, prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The demo model has learnt no JSON: what it says is dictated, and the schema decides whether it may be said.
    dictated = tmp_path / "rows.json"
    dictated.write_text(json.dumps({"rows": [{"Animal": "herons", "Number": 42}]}))
    monkeypatch.setattr(BatchEngine, "submit", BatchEngine.submit)  # put back at the end
    dictate(dictated)
    document = narrow.document(LONG, "long.txt")
    assert document["fits"] is False
    name = narrow.session(documents=[document["id"]])
    columns = [{"name": "Animal"}, {"name": "Number", "type": "number"}]
    reply = narrow.ask(name, "table", columns=columns)
    assert reply["parts"] == len(prompts) - 1 > 1
    assert reply["table"]["rows"] == [["herons", 42]]
    # Every part was asked for its rows, and the last prompt has the parts' rows in place of the document.
    assert all("counted 42" in prompt for prompt in prompts[:-1])
    assert "counted 42" not in prompts[-1] and prompts[-1].count('"herons"') == reply["parts"]
    question = narrow.get(name)["messages"][0]
    assert question["documents"] == [document["id"]] and question["parts"] == reply["parts"]
    csv = narrow.client.get(f"{SESSIONS}/{name}/tables/1", params={"format": "csv"}).raise_for_status().text
    assert csv.lstrip("\ufeff").splitlines() == ["Animal,Number", "herons,42"]


def test_two_documents_that_do_not_fit_together_are_compared_in_parts(narrow: Talk, prompts: list[str]) -> None:
    documents = [narrow.document(LONG, "herons.txt"), narrow.document(OTHER, "owls.txt")]
    ids = [document["id"] for document in documents]
    name = narrow.session(documents=ids)
    reply = narrow.ask(name, "compare", documents=ids, focus="the places", options={"max_tokens": 24})
    assert reply["parts"] == len(prompts) - 1 > 1 and reply["text"]
    assert all("herons.txt and owls.txt" in prompt and "the places" in prompt for prompt in prompts)
    assert any("Leila" in prompt for prompt in prompts[:-1]) and any("Ines" in prompt for prompt in prompts[:-1])
    question = narrow.get(name)["messages"][0]
    assert question["documents"] == ids and question["task"]["kind"] == "compare"
    assert {mark["document"] for mark in reply["citations"]} <= set(ids)


def test_a_stop_among_the_parts_keeps_the_question_and_what_parts_said(
    narrow: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, get, step = ReplyCache.put, ReplyCache.get, BatchEngine.step
    said, held, known = threading.Event(), threading.Event(), []

    def kept(self: ReplyCache, *args: Any, **more: Any) -> None:
        if not said.is_set():
            held.set()
        put(self, *args, **more)
        said.set()

    def found(self: ReplyCache, key: str) -> Any:
        entry = get(self, key)
        known.append(entry is not None)
        return entry

    def braked(self: BatchEngine) -> bool:
        # With the first part's reply the engine stands still, until it is to end something.
        while held.is_set() and not any(job.cancelled for job in self.jobs):
            time.sleep(0.005)
        held.clear()
        return step(self)

    monkeypatch.setattr(ReplyCache, "put", kept)
    monkeypatch.setattr(ReplyCache, "get", found)
    monkeypatch.setattr(BatchEngine, "step", braked)
    document = narrow.document(LONG, "long.txt")
    name = narrow.session(documents=[document["id"]])
    begun = narrow.begin(name, text="How many herons were there?")
    assert said.wait(60)
    assert narrow.client.post(f"{SESSIONS}/{name}/stop", json={}).json()["stopped"]
    assert list(narrow.events(name, begun["from"]))[-1]["finish"] == "stopped"
    stopped = narrow.get(name)
    assert stopped["running"] is None and stopped["messages"] == []
    assert stopped["unsent"]["text"] == "How many herons were there?"
    assert not any(known)
    reply = narrow.ask(name, text="How many herons were there?")
    assert reply["parts"] > 1 and "42" in reply["text"]
    assert any(known)  # what was said before the stop was not asked again
