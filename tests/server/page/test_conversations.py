"""Conversations of the page: the same sessions as the terminal's, replies that belong to the server, versions, branches."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jambacli.api import Jamba
from jambacli.engine.batch import BatchEngine
from jambacli.errors import JambaError
from jambacli.server.page.notes import NoteFiles
from jambacli.session import session_file
from tests.server.page.talking import HERONS, OWLS, SESSIONS, Talk


def test_a_question_about_a_document_is_answered_and_cited(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    begun = talk.begin(name, text="Who counted the owls?")
    events = list(talk.events(name, begun["from"]))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "begin" and kinds[-4:] == ["message", "citations", "stats", "done"]
    assert [e["id"] for e in events] == list(range(begun["from"], begun["from"] + len(events)))
    said = "".join(event["delta"] for event in events if event["type"] == "text")
    session = talk.get(name)
    question, reply = session["messages"]
    assert question["text"] == "Who counted the owls?" and question["documents"] == [document["id"]]
    assert "Ines Vorban" in reply["text"] and said.strip() == reply["text"]
    (mark,) = reply["citations"]
    assert mark["document"] == document["id"] and mark["found"] and mark["by"] == "model"
    assert mark["quote"] == OWLS[mark["place"][0] : mark["place"][1]] and "Ines Vorban counted 17 owls" in mark["quote"]
    assert reply["text"][mark["start"] : mark["end"]] == reply["text"].strip()
    assert session["title"] == "Who counted the owls?" and session["used"] == session["tokens"] > 0


def test_the_next_question_reads_only_itself(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    first = talk.ask(name, text="Who counted the owls?")["stats"]
    second = talk.ask(name, text="And where was that?")["stats"]
    assert second["reused_tokens"] >= first["prompt_tokens"] + first["written_tokens"] - 1
    assert second["read_tokens"] < 20


def test_a_new_conversation_about_a_known_document_reads_only_the_question(talk: Talk) -> None:
    document = talk.document()
    assert document["read"]["tokens_stored"] == 0
    talk.ask(talk.session(), text="Who counted the owls?", documents=[document["id"]])
    known = talk.ready(document["id"])
    assert known["read"]["tokens_stored"] == known["tokens"] > 50 and known["estimate_s"] == 0
    stats = talk.ask(talk.session(), text="What is the code word?", documents=[document["id"]])["stats"]
    assert stats["reused_tokens"] >= known["tokens"] and stats["read_tokens"] < 40


def test_the_terminal_goes_on_where_the_page_ended_and_back(talk: Talk, tiny: Jamba) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    talk.ask(name, text="Who counted the owls?")
    with tiny.session(resume=name) as session:
        said = "".join(session.send("And where was that?", temperature=0))
        assert session.stats.replayed_document_tokens == 0 and session.stats.prefilled_tokens < 20
    shown = talk.get(name)
    assert [m["role"] for m in shown["messages"]] == ["user", "assistant"] * 2
    assert shown["messages"][-1]["text"] == said.partition("<citations>")[0].strip()
    assert shown["messages"][-1]["citations"][0]["document"] == document["id"]  # of the documents of the first message
    stats = talk.ask(name, text="What is the code word?")["stats"]
    assert stats["read_tokens"] < 30


def test_a_chat_of_the_terminal_about_a_file_goes_on(talk: Talk, tiny: Jamba) -> None:
    with tiny.session(name="from-the-terminal") as session:
        list(session.send("Who counted the owls?", documents=[{"title": "owls.txt", "text": OWLS}], temperature=0))
    entry = next(s for s in talk.client.get(SESSIONS).json()["sessions"] if s["name"] == "from-the-terminal")
    assert entry["documents"] == [] and entry["messages"] == 2
    document = talk.document()  # the same text: its marks now lead to it
    shown = talk.get("from-the-terminal")
    assert shown["messages"][0]["documents"] == [document["id"]]
    assert talk.ask("from-the-terminal", text="And where was that?")["stats"]["read_tokens"] < 20


def test_a_session_that_is_open_in_the_terminal_is_shown_and_refused(talk: Talk, tiny: Jamba) -> None:
    name = talk.session()
    talk.ask(name, text="Hello")
    with tiny.session(resume=name) as session:
        shown = talk.get(name)
        assert shown["open_elsewhere"] and not shown["writable"] and "open in another process" in shown["reason"]
        answer = talk.client.post(f"{SESSIONS}/{name}/messages", json={"text": "Hello"})
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "open_elsewhere"
        assert talk.client.delete(f"{SESSIONS}/{name}").status_code == 409
        list(session.send("Again", temperature=0))
    assert not talk.get(name)["open_elsewhere"]


def test_the_terminal_cannot_open_a_session_while_it_is_answered(talk: Talk, tiny: Jamba) -> None:
    name = talk.session(options={"max_tokens": 400, "temperature": 1})
    begun = talk.begin(name, text="Tell me everything about herons, owls and all other birds.")
    try:
        with pytest.raises(JambaError, match="open in another process"):
            tiny.session(resume=name)
    finally:
        talk.client.post(f"{SESSIONS}/{name}/stop", json={})
    list(talk.events(name, begun["from"]))


def test_two_clients_and_a_later_one_get_the_same_events(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    begun = talk.begin(name, text="Who counted the owls?")
    found: list[list[dict]] = [[], []]  # type: ignore[type-arg]
    threads = [threading.Thread(target=lambda i=i: found[i].extend(talk.events(name, begun["from"]))) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    again = list(talk.events(name, begun["from"]))
    assert found[0] == found[1] == again and again[-1]["type"] == "done"
    middle = again[len(again) // 2]["id"]
    assert list(talk.events(name, middle)) == again[len(again) // 2 :]


def test_a_reload_attaches_where_the_reply_is(talk: Talk) -> None:
    name = talk.session(options={"max_tokens": 200})
    talk.begin(name, text="Hello")
    running = talk.get(name)["running"]
    events = list(talk.events(name, running["from"] if running else talk.get(name)["next"] - 1))
    assert events[-1]["type"] == "done"


@pytest.mark.parametrize("start", [0, 1, (1 << 53) - 1])
def test_events_that_are_not_kept_begin_with_a_reset(talk: Talk, start: int) -> None:
    name = talk.session()
    talk.ask(name, text="Hello")
    assert [event["type"] for event in talk.events(name, start)] == ["reset"]


def test_one_reply_at_a_time_and_stop_keeps_what_was_written(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    step, released, steps = BatchEngine.step, threading.Event(), itertools.count()

    def held(self: BatchEngine) -> bool:
        if next(steps) >= 6:  # some tokens are written; the reply is not at its end
            released.wait(120)
        return step(self)

    monkeypatch.setattr(BatchEngine, "step", held)
    name = talk.session(options={"temperature": 0})
    begun = talk.begin(name, text="Who are you?")
    stream = talk.events(name, begun["from"])
    for event in stream:
        if event["type"] == "text":
            break
    busy = talk.client.post(f"{SESSIONS}/{name}/messages", json={"text": "And?"})
    assert busy.status_code == 409 and busy.json()["error"]["code"] == "busy"
    assert talk.client.patch(f"{SESSIONS}/{name}", json={"title": "x"}).status_code == 409
    with ThreadPoolExecutor(1) as pool:  # the answer comes when the reply has ended, so the engine must go on meanwhile
        stopping = pool.submit(talk.client.post, f"{SESSIONS}/{name}/stop", json={})
        released.set()
        assert stopping.result().status_code == 200
    finish = next(event for event in stream if event["type"] == "done")["finish"]
    reply = talk.get(name)["messages"][-1]
    assert finish in ("stopped", "stop") and reply["role"] == "assistant" and reply["text"]
    assert not talk.client.post(f"{SESSIONS}/{name}/stop", json={}).json()["stopped"]


def test_versions_of_a_reply_and_of_a_message(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    first = talk.ask(name, text="Who counted the owls?")
    again = talk.ask(name, "regenerate", options={"temperature": 1, "seed": 5})
    assert again["siblings"] == {"at": 1, "count": 2} and again["stats"]["read_tokens"] == 0
    shown = talk.client.post(f"{SESSIONS}/{name}/select", json={"index": 1, "sibling": 0}).json()["messages"]
    assert shown[1]["text"] == first["text"] and shown[1]["citations"] == first["citations"]
    talk.ask(name, text="And where was that?")
    edited = talk.ask(name, "edit", index=0, text="What is the code word?")
    session = talk.get(name)
    assert len(session["messages"]) == 2 and session["messages"][0]["siblings"] == {"at": 1, "count": 2}
    assert session["messages"][0]["documents"] == [document["id"]] and "walnut" in edited["text"]
    assert edited["stats"]["read_tokens"] < 30  # not the document
    back = talk.client.post(f"{SESSIONS}/{name}/select", json={"index": 0, "sibling": 0}).json()["messages"]
    assert len(back) == 4 and back[1]["text"] == first["text"] and back[1]["siblings"]["count"] == 2
    assert talk.ask(name, text="Thank you")["role"] == "assistant"


def test_a_branch_goes_its_own_way(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    talk.ask(name, text="Who counted the owls?")
    talk.ask(name, text="And where was that?")
    branch = talk.client.post(f"{SESSIONS}/{name}/branch", json={"index": 1, "name": "other-way"})
    assert branch.status_code == 201 and len(branch.json()["messages"]) == 2 and branch.json()["parent"] == name
    stats = talk.ask("other-way", text="What is the code word?")["stats"]
    assert stats["read_tokens"] < 30
    assert len(talk.get(name)["messages"]) == 4
    taken = talk.client.post(f"{SESSIONS}/{name}/branch", json={"name": "other-way"})
    assert taken.status_code == 409


def test_lists_searches_titles_and_names(talk: Talk) -> None:
    name = talk.session(title="My birds")
    talk.ask(name, text="Hello there")
    other = talk.session()
    talk.ask(other, text="Something about zebras")
    listed = talk.client.get(SESSIONS).json()["sessions"]
    assert [s["name"] for s in listed] == [other, name] and listed[1]["title"] == "My birds"
    (found,) = talk.client.get(SESSIONS, params={"q": "ZEBRAS about"}).json()["sessions"]
    assert found["name"] == other and "zebras" in found["excerpt"]["text"]
    renamed = talk.client.patch(f"{SESSIONS}/{name}", json={"name": "birds", "title": "Birds"}).json()
    assert renamed["name"] == "birds" and renamed["title"] == "Birds" and len(renamed["messages"]) == 2
    assert talk.client.get(f"{SESSIONS}/{name}").status_code == 404
    assert session_file.exists("birds")
    assert talk.client.patch(f"{SESSIONS}/birds", json={"name": other}).status_code == 409
    assert talk.client.patch(f"{SESSIONS}/birds", json={"name": "../../x"}).status_code == 400


def test_options_and_a_system_message_of_a_conversation(talk: Talk) -> None:
    name = talk.session(options={"max_tokens": 3})
    assert talk.ask(name, text="Tell me about herons")["stats"]["written_tokens"] == 3
    changed = talk.client.patch(
        f"{SESSIONS}/{name}", json={"system": "Be brief.", "options": {"max_tokens": None}}
    ).json()
    assert changed["system"] == "Be brief." and "max_tokens" not in changed["options"]
    assert [m["index"] for m in changed["messages"]] == [0, 1] and changed["messages"][1]["stats"]
    talk.ask(name, text="And owls?", options={"max_tokens": 2})
    assert len(talk.get(name)["messages"]) == 4 and talk.get(name)["messages"][-1]["stats"]["written_tokens"] == 2
    for wrong in ({"temperature": -1}, {"top_p": 2}, {"think": "yes"}, {"unknown": 1}, "x"):
        assert talk.client.patch(f"{SESSIONS}/{name}", json={"options": wrong}).status_code == 400


def test_documents_of_later_messages_and_one_of_several(talk: Talk) -> None:
    owls, herons = talk.document(), talk.document(HERONS, "herons.txt")
    name = talk.session()
    talk.ask(name, text="Who counted the owls?", documents=[owls["id"]])
    reply = talk.ask(name, text="Who counted the herons?", documents=[herons["id"]])
    assert reply["citations"][0]["document"] == herons["id"]
    assert talk.get(name)["documents"] == [owls["id"], herons["id"]]
    talk.ask(name, text="Who counted the owls?", documents=[owls["id"]])
    question = talk.get(name)["messages"][-2]
    assert question["text"] == "Who counted the owls?" and question["documents"] == []
    saved = session_file.read(name)
    assert saved.turns[-2]["content"].endswith("Answer only from: owls.txt.")


def test_what_does_not_fit_is_said_and_the_question_is_kept(talk: Talk) -> None:
    text = "\n".join(f"Line {i} says nothing of {i * 7919}." for i in range(2500))
    document = talk.document(text, "long.txt")
    assert document["fits"] is False and document["tokens"] > 16384
    name = talk.session()
    begun = talk.begin(name, text=text)
    events = list(talk.events(name, begun["from"]))
    error = next(event for event in events if event["type"] == "error")
    assert error["code"] == "context_length_exceeded" and error["n_ctx"] == 16384 < error["n_prompt_tokens"]
    assert events[-1]["finish"] == "error"
    session = talk.get(name)
    assert session["messages"] == [] and session["unsent"]["text"] == text
    assert "maximum context length" in session["unsent"]["message"]


def test_deleting_a_conversation_deletes_what_was_stored_of_it_alone(talk: Talk) -> None:
    from jambacli.cache.prefix_store import PrefixStore

    document = talk.document()
    name = talk.session(documents=[document["id"]])
    talk.ask(name, text="Who counted the owls?")
    talk.ask(name, text="And where was that?")
    # Only what is this conversation's is looked at: the store may have more.
    own = {p.chain: p.position for p in session_file.read(name).prefixes}
    before = {p.chain for _, _, p in PrefixStore()._prefixes()}
    assert own.keys() <= before and max(own.values()) > document["tokens"] in own.values()
    assert talk.client.delete(f"{SESSIONS}/{name}").json()["deleted"]
    left = {p.chain for _, _, p in PrefixStore()._prefixes()}
    assert before - left == {chain for chain, position in own.items() if position > document["tokens"]}
    assert talk.client.get(f"{SESSIONS}/{name}").status_code == 404 and not session_file.exists(name)
    stats = talk.ask(talk.session(), text="Who counted the owls?", documents=[document["id"]])["stats"]
    assert stats["reused_tokens"] >= document["tokens"]


def test_who_looks_while_a_reply_is_kept_takes_none_of_its_notes_away(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = talk.session(documents=[talk.document()["id"]])
    before = NoteFiles(True).read(name)  # what is read just before the reply is kept
    talk.ask(name, text="Who counted the owls?")
    read, stale = NoteFiles.read, [before]
    monkeypatch.setattr(NoteFiles, "read", lambda self, name: stale.pop() if stale else read(self, name))
    talk.get(name)
    assert not stale
    shown = talk.get(name)
    assert shown["waiting_documents"] == [] and shown["messages"][-1]["stats"]["written_tokens"] > 0


def test_a_change_in_the_terminal_is_said(talk: Talk, tiny: Jamba) -> None:
    name = talk.session()
    talk.ask(name, text="Hello")
    start = talk.get(name)["next"]
    done = threading.Event()

    def change() -> None:
        with tiny.session(resume=name) as session:
            list(session.send("More", temperature=0))
        done.set()

    stream = talk.events(name, start, until="never")
    thread = threading.Timer(0.2, change)
    thread.start()
    event = next(stream)
    assert event["type"] == "changed"
    thread.join(30)
    assert done.wait(30)


def test_exports(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    reply = talk.ask(name, text="Who counted the owls?")
    text = talk.client.get(f"{SESSIONS}/{name}/export", params={"format": "md"})
    assert text.headers["content-disposition"].startswith("attachment")
    assert reply["text"] in text.text and "Documents: owls.txt" in text.text and "“Report 3 on owls" in text.text
    whole = talk.client.get(f"{SESSIONS}/{name}/export", params={"format": "json"}).json()
    assert whole["messages"] == talk.get(name)["messages"]
    assert talk.client.get(f"{SESSIONS}/{name}/export", params={"format": "exe"}).status_code == 400


def test_the_server_answers_others_while_it_generates(talk: Talk) -> None:
    name = talk.session(options={"max_tokens": 300, "temperature": 1.5, "min_p": 0})
    begun = talk.begin(name, text="Tell me everything.")
    other = talk.ask(talk.session(options={"max_tokens": 3}), text="Hello")
    assert other["stats"]["written_tokens"] <= 3
    began = time.monotonic()
    assert talk.client.get("/health").json()["status"] == "ok" and time.monotonic() - began < 5
    talk.client.post(f"{SESSIONS}/{name}/stop", json={})
    assert list(talk.events(name, begun["from"]))[-1]["type"] == "done"


def test_requests_at_the_same_time_do_not_take_each_other_for_another_process(talk: Talk) -> None:
    name = talk.session()
    talk.ask(name, text="Hello", options={"max_tokens": 2})

    def look(n: int) -> bool:
        session = talk.client.get(f"{SESSIONS}/{name}").raise_for_status().json()
        return bool(session["writable"]) and not session["open_elsewhere"]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(40)))
