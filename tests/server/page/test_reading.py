"""Documents that are read before anything is asked, in parts, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jambacli.api import Jamba
from jambacli.server.page.page import Page
from tests.server.page.talking import HERONS, OWLS, SESSIONS, Talk
from tests.support.pdf_files import pdf_of
from tests.support.servers import serving

READING = "/v1/library/reading"
BROKEN = b"%PDF-1.7\nnothing else"


@pytest.fixture
def narrow(tiny: Jamba, own_home: Path) -> Iterator[Talk]:
    """A server whose context is small."""
    with serving(tiny, store=True, ctx=900, page=Page()) as running:
        yield Talk(running.client)


def _read(talk: Talk, **body: Any) -> dict[str, Any]:
    """Read documents ahead, and wait until that has ended."""
    begun = talk.client.post(READING, json=body)
    assert begun.status_code == 202, begun.text
    until = time.monotonic() + 60
    while True:
        state: dict[str, Any] = talk.client.get(f"{READING}/{begun.json()['id']}").raise_for_status().json()
        if state["state"] not in ("waiting", "reading"):
            return state
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_was_read_ahead_is_not_read_again_by_the_first_question(talk: Talk) -> None:
    owls, herons = talk.document(), talk.document(HERONS, "herons.txt")
    state = _read(talk, documents=[owls["id"], herons["id"]])
    assert state["state"] == "done" and state["done"] == state["total"] > 50
    assert [one["id"] for one in state["documents"]] == [owls["id"], herons["id"]]
    reply = talk.ask(talk.session(documents=[owls["id"], herons["id"]]), text="How many herons were there?")
    assert "42" in reply["text"]
    assert reply["stats"]["reused_tokens"] >= state["total"]


def test_documents_that_wait_in_a_conversation_are_read_after_its_messages(talk: Talk) -> None:
    owls, herons = talk.document(), talk.document(HERONS, "herons.txt")
    name = talk.session(documents=[owls["id"]])
    talk.ask(name, text="How many owls were there?")
    talk.client.patch(f"{SESSIONS}/{name}", json={"documents": [herons["id"]]}).raise_for_status()
    state = _read(talk, session=name, documents=[owls["id"], herons["id"]])
    assert state["state"] == "done" and [one["id"] for one in state["documents"]] == [herons["id"]]
    reply = talk.ask(name, text="How many herons were there?")
    assert "42" in reply["text"] and reply["stats"]["reused_tokens"] >= state["total"]


def test_reading_ahead_can_be_stopped_and_is_not_lost(talk: Talk) -> None:
    document = talk.document("\n".join(f"On day {n} the sky was clear. {HERONS}" for n in range(12)), "long.txt")
    begun = talk.client.post(READING, json={"documents": [document["id"]]}).json()
    stopped = talk.client.delete(f"{READING}/{begun['id']}").raise_for_status().json()
    assert stopped["state"] == "cancelled"
    assert _read(talk, documents=[document["id"]])["state"] == "done"
    assert talk.client.get(f"{READING}/read-none").status_code == 404


def test_documents_larger_than_the_context_are_asked_in_parts(narrow: Talk) -> None:
    # The demo model does not say that a part says nothing, so each part has the fact.
    text = "\n\n".join(f"{HERONS} On day {n} the sky was clear." for n in range(26))
    document = narrow.document(text, "long.txt")
    assert document["fits"] is False
    name = narrow.session(documents=[document["id"]])
    assert _read(narrow, session=name, documents=[document["id"]])["state"] == "too_large"
    begun = narrow.begin(name, text="How many herons were there?")
    events = list(narrow.events(name, begun["from"]))
    told = [event for event in events if event["type"] == "status" and event.get("parts")]
    assert told and told[-1]["parts"] > 1
    question, reply = narrow.get(name)["messages"]
    assert question["documents"] == [document["id"]] and question["parts"] == reply["parts"] == told[-1]["parts"]
    assert "42 herons" in reply["text"]
    # A mark names the page of the document, not what a part said.
    assert {mark["document"] for mark in reply["citations"]} <= {document["id"]}
    # The next question is about the whole document too, and so is an edited one.
    again = narrow.ask(name, text="Where was Leila Haddad?")
    assert again["parts"] == reply["parts"] and "Lake Tuz" in again["text"]
    edited = narrow.ask(name, "edit", index=2, text="What is the code word of Leila Haddad?")
    assert edited["parts"] == reply["parts"] and "amber" in edited["text"]


def test_a_summary_of_what_does_not_fit_is_made_of_its_parts(narrow: Talk) -> None:
    document = narrow.document("\n\n".join([HERONS, OWLS] * 12), "long.txt")
    reply = narrow.ask(narrow.session(documents=[document["id"]]), "summarize", style="bullets", length="short")
    assert reply["parts"] > 1 and reply["text"]


def test_a_file_that_cannot_be_read_does_not_spoil_the_next_question(talk: Talk) -> None:
    name = talk.session(documents=[talk.document()["id"]])
    talk.ask(name, text="How many owls were there?")
    good = talk.document(HERONS, "herons.txt")
    broken = talk.client.post(
        "/v1/library/documents", files={"file": ("broken.pdf", BROKEN)}, headers={"X-Jamba": "1"}
    ).json()
    for waiting in ([broken["id"]], [broken["id"], good["id"]]):
        talk.client.patch(f"{SESSIONS}/{name}", json={"documents": waiting}).raise_for_status()
    talk.ready(broken["id"])
    talk.client.patch(f"{SESSIONS}/{name}", json={"documents": [broken["id"], good["id"]]}).raise_for_status()
    assert broken["id"] in talk.get(name)["waiting_documents"]
    reply = talk.ask(name, text="How many herons were there?")
    assert "42" in reply["text"] and reply["left_out"] == ["broken.pdf"]
    assert talk.get(name)["waiting_documents"] == []


def test_the_pages_of_a_pdf_are_counted_before_they_are_read(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2", reason="the extra `docs` is not installed")
    from jambacli.server.page.extraction import Extracting

    seen: list[tuple[int, int | None]] = []
    piece = Extracting.piece

    def told(state: Extracting, part: Any) -> None:
        piece(state, part)
        seen.append((state.done, state.total))

    monkeypatch.setattr(Extracting, "piece", told)
    talk.upload(pdf_of([[(f"Page {n}.", 72.0, 700.0)] for n in range(1, 8)]), "seven.pdf")
    assert seen == [(n, 7) for n in range(1, 8)]
