"""What a hostile web page, document, name or body may try: nothing happens, and texts stay texts."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jambacli.files import data_home
from jambacli.server.page import tables
from jambacli.server.page.static_files import POLICY
from tests.server.page.talking import DOCUMENTS, SESSIONS, Talk
from tests.support.pdf_files import pdf_of

SCRIPT = '<script>alert(1)</script><img src=x onerror="alert(1)">'
STATE = "/v1/page/state"


def policy_of(headers: Any) -> dict[str, str]:
    return {
        name: value
        for name, _, value in (part.partition(" ") for part in headers["content-security-policy"].split("; "))
    }


@pytest.mark.parametrize(
    "path", ["/", "/static/app.css", STATE, DOCUMENTS, SESSIONS, f"{DOCUMENTS}/none", "/static/none"]
)
def test_every_answer_of_the_page_has_its_headers(talk: Talk, path: str) -> None:
    answer = talk.client.get(path, headers={"Accept": "text/html"})
    headers = answer.headers
    assert headers["content-security-policy"] == POLICY and headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    policy = policy_of(headers)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
@pytest.mark.parametrize("path", ["/", STATE, DOCUMENTS, SESSIONS])
def test_other_origins_and_hosts_are_refused(talk: Talk, headers: dict[str, str], path: str) -> None:
    assert talk.client.get(path, headers={**headers, "Accept": "text/html"}).status_code == 403
    if path in (DOCUMENTS, SESSIONS):
        assert talk.client.post(path, json={"text": "x"}, headers=headers).status_code == 403
        assert talk.client.get(path).json()[path.rpartition("/")[2]] == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_of_another_page_could_send_is_refused(talk: Talk, kind: str) -> None:
    name = talk.session()
    for path in (SESSIONS, f"{SESSIONS}/{name}/messages", f"{SESSIONS}/{name}/stop", DOCUMENTS, "/v1/page/login"):
        answer = talk.client.post(path, content=b'{"text": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 415 and answer.json()["error"]["code"] == "content_type"
    assert talk.client.post(DOCUMENTS, files={"file": ("a.txt", b"text")}).status_code == 415
    assert talk.get(name)["messages"] == [] and talk.client.get(DOCUMENTS).json()["documents"] == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (f"{SCRIPT}.txt", 'script><img src=x onerror="alert(1)">.txt'),
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini.txt", "boot.ini.txt"),
        ("a\r\nSet-Cookie: x=1.txt", "a Set-Cookie: x=1.txt"),
        ("\u202etxt.exe.txt", "txt.exe.txt"),
        ("/", "pasted text"),
    ],
)
def test_names_are_no_paths_no_headers_and_no_markup(talk: Talk, given: str, shown: str) -> None:
    document = talk.document("Harmless text.", given)
    assert document["name"] in (shown, f"{shown}.txt")
    assert not any(".." in str(path) or "passwd" in path.name for path in data_home().rglob("*"))
    talk.client.delete(f"{DOCUMENTS}/{document['id']}")


def test_script_in_the_text_of_a_pdf_stays_text(talk: Talk) -> None:
    document = talk.upload(pdf_of([[(SCRIPT, 20, 700, 8), ("The word is walnut.", 20, 600, 12)]]), "evil.pdf")
    answer = talk.client.get(f"{DOCUMENTS}/{document['id']}/pages/1")
    assert answer.headers["content-type"] == "application/json" and "<script>alert(1)</script>" in answer.json()["text"]
    found = talk.client.get(f"{DOCUMENTS}/{document['id']}/locate", params={"quote": SCRIPT[:25]}).json()
    assert found["found"] and found["boxes"]
    talk.ask(talk.session(), text=SCRIPT, documents=[document["id"]], options={"max_tokens": 3})


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/%00",
        "/static/",
        "/static/js",
        f"{DOCUMENTS}/..%2f..%2fsessions",
        f"{DOCUMENTS}/file-{'0' * 32}",
        f"{DOCUMENTS}/doc-{'0' * 32}",
        f"{SESSIONS}/..%2fx",
        f"{SESSIONS}/%00",
        f"{SESSIONS}/{'x' * 500}",
    ],
)
def test_paths_and_ids_that_are_none_are_not_found(talk: Talk, path: str) -> None:
    for method in ("GET", "DELETE"):
        assert raw(talk, method, path) in (404, 405)


def raw(talk: Talk, method: str, path: str) -> int:
    """The status of a request whose path is sent as it is."""
    url = urlsplit(str(talk.client.base_url))
    with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        return int(connection.recv(64).split()[1])


def test_ids_of_other_kinds_are_not_taken(talk: Talk) -> None:
    upload = talk.client.post("/v1/files", files={"file": ("a.txt", b"secret")}).json()["id"]
    name = talk.session()
    document = talk.document()
    for one in (upload, name, document["id"].replace("doc", "file"), "doc-", None, 5, {"id": document["id"]}):
        answer = talk.client.post(f"{SESSIONS}/{name}/messages", json={"text": "Hello", "documents": [one]})
        assert answer.status_code in (400, 404), one
    assert talk.client.get(f"{DOCUMENTS}/{name}").status_code == 404
    assert talk.client.get(f"{SESSIONS}/{document['id']}").status_code == 404


@pytest.mark.parametrize("number", ["-1", "1e9", "9" * 30, "NaN", "0x10", "1;2", "٣"])
def test_event_numbers_that_are_none_are_refused(talk: Talk, number: str) -> None:
    name = talk.session()
    for query in ({"params": {"from": number}}, {"headers": {"Last-Event-ID": number.encode()}}):
        assert talk.client.get(f"{SESSIONS}/{name}/events", **query).status_code == 400  # type: ignore[arg-type]


def test_line_breaks_in_texts_add_no_events(talk: Talk) -> None:
    evil = 'x\n\nid: 1\ndata: {"type":"done"}\n\nevent: evil\r\rdata: y\u2028\u2029'
    document = talk.document("Text.", "a\n\ndata: {}\n\n.txt")
    name = talk.session(title=evil)
    begun = talk.begin(name, text=evil, documents=[document["id"]], options={"max_tokens": 2})
    query = {"from": begun["from"], "until": "done"}
    body = talk.client.get(f"{SESSIONS}/{name}/events", params=query).content
    blocks = [block for block in body.split(b"\n\n") if block and not block.startswith(b":")]
    for block in blocks:
        lines = block.split(b"\n")
        assert (
            len(lines) == 2 and lines[0].startswith(b"id: ") and lines[1].startswith(b"data: {") and b"\r" not in block
        )
    events = [json.loads(block.partition(b"data: ")[2]) for block in blocks]
    assert [event["type"] for event in events].count("done") == 1
    assert next(e for e in events if e["type"] == "message")["message"]["text"] == evil


@pytest.mark.parametrize("length", [f"Content-Length: {2 << 30}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("looks", [True, False], ids=["looks for an answer", "only sends"])
def test_an_enormous_upload_is_refused_while_it_comes(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, length: str, looks: bool
) -> None:
    monkeypatch.setattr("jambacli.server.page.library.MAX_DOCUMENT", 8 << 20)
    sent = 0
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="big.pdf"\r\n\r\n'
    url = urlsplit(str(talk.client.base_url))
    piece = b"\0" * (1 << 20)
    chunked = "chunked" in length
    framed = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(
            f"POST {DOCUMENTS} HTTP/1.1\r\nHost: {url.netloc}\r\nX-Jamba: 1\r\n{length}\r\n"
            "Content-Type: multipart/form-data; boundary=B\r\n\r\n".encode()
            + (b"%x\r\n%s\r\n" % (len(head), head) if chunked else head)
        )
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Another client sends on without looking, until the connection ends.
            while sent < 2 << 30 and not (looks and select.select([connection], [], [], 0)[0]):
                connection.sendall(framed)
                sent += len(piece)
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(4096)
    assert sent < 100 << 20
    assert (not looks and not answer) or b" 413 " in answer.split(b"\r\n")[0]
    assert talk.client.get(DOCUMENTS).json()["documents"] == []
    assert sum(path.stat().st_size for path in data_home().rglob("*") if path.is_file()) < 1 << 20


def test_the_library_refuses_what_it_has_no_room_for(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    first = talk.document()
    monkeypatch.setattr("jambacli.server.page.library.MOST_DOCUMENTS", 1)
    answer = talk.client.post(DOCUMENTS, json={"name": "b.txt", "text": "b"})
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "library_full"
    assert [d["id"] for d in talk.client.get(DOCUMENTS).json()["documents"]] == [
        first["id"]
    ]  # nothing went to make room


EVIL_COLUMN = {"name": f"=cmd|'/c calc'!A1 {SCRIPT}"[:60], "type": "text", "description": "x\n}} ignore\u202e"}


def test_a_hostile_column_is_a_name_in_the_schema_and_a_text_in_the_files(talk: Talk) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    message = talk.ask(name, "table", columns=[EVIL_COLUMN], options={"max_tokens": 60})
    assert message["table"]["columns"][0]["name"] == EVIL_COLUMN["name"]
    assert "\u202e" not in json.dumps(message["task"], ensure_ascii=False)
    files = {form: talk.client.get(f"{SESSIONS}/{name}/tables/1", params={"format": form}) for form in tables.FORMATS}
    for answer in files.values():
        assert answer.headers["content-disposition"].startswith("attachment;")
    assert files["csv"].text.lstrip("\ufeff").lstrip('"').startswith("'=cmd")
    assert "<script>" not in files["md"].text
    assert isinstance(files["json"].json(), list)
    assert talk.client.get(f"{SESSIONS}/{name}/tables/1", params={"format": "html"}).status_code == 400
    assert talk.client.get(f"{SESSIONS}/{name}/tables/0").status_code == 404


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1", '=HYPERLINK("http://x")', "\xa0=1"]
)
def test_formulas_in_cells_are_texts(cell: str) -> None:
    table = {"columns": [{"name": "a"}], "rows": [[cell]]}
    text = tables.as_csv(table).decode("utf-8-sig").split("\r\n", 1)[1]
    assert text.lstrip('"').startswith("'")


def test_numbers_in_cells_stay_numbers() -> None:
    table = {"columns": [{"name": "a"}], "rows": [[-5], [None], [True], ["plain"]]}
    assert tables.as_csv(table).decode("utf-8-sig") == 'a\r\n-5\r\n""\r\nTrue\r\nplain\r\n'


@pytest.mark.parametrize(
    "columns",
    [None, [], "x", [{}], [{"name": ""}], [{"name": "x" * 99}], [{"name": 5}], [{"name": "a"}, {"name": "A"}],
     [{"name": "a", "type": "$ref"}], [{"name": "a", "description": "x" * 999}], [{"name": "a"}] * 99, [["a"]]],
)  # fmt: skip
def test_columns_that_are_none_are_refused(talk: Talk, columns: Any) -> None:
    document = talk.document()
    name = talk.session(documents=[document["id"]])
    answer = talk.client.post(f"{SESSIONS}/{name}/table", json={"columns": columns})
    assert answer.status_code == 400 and talk.get(name)["messages"] == []


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("messages", {"text": ""}),
        ("messages", {"text": 5}),
        ("messages", {"text": "x", "documents": "doc"}),
        ("messages", {"text": "x", "options": {"temperature": "hot"}}),
        ("edit", {"index": 0, "text": "x"}),
        ("edit", {"index": -1, "text": "x"}),
        ("edit", {"index": True, "text": "x"}),
        ("edit", {"index": 10**30, "text": "x"}),
        ("regenerate", {}),
        ("summarize", {"length": "endless"}),
        ("summarize", {"length": {"a": 1}}),
        ("summarize", {"focus": "x" * 500}),
        ("compare", {"documents": []}),
        ("table", {"preset": "none"}),
        ("table", {"preset": "paper"}),
        ("select", {"index": 0, "sibling": 0}),
        ("branch", {"index": "0"}),
        ("branch", {"name": "../x"}),
    ],
)
def test_bodies_that_are_wrong_change_nothing(talk: Talk, what: str, body: dict[str, Any]) -> None:
    name = talk.session()
    answer = talk.client.post(f"{SESSIONS}/{name}/{what}", json=body)
    assert answer.status_code in (400, 404), answer.text
    session = talk.get(name)
    assert session["messages"] == [] and session["running"] is None and session["unsent"] is None
    assert len(talk.client.get(SESSIONS).json()["sessions"]) == 1


def test_notes_that_are_damaged_are_left_out(talk: Talk) -> None:
    name = talk.session()
    talk.ask(name, text="Hello", options={"max_tokens": 3})
    (path,) = (data_home() / "library" / "sessions").glob("*.json")
    for damage in (
        b"",
        b"[]",
        b"{",
        b'{"messages": {"a": 5}}',
        b'{"versions": {"x": {}}}',
        b"\xff\xfe",
        b'{"title": 5}',
    ):
        Path(path).write_bytes(damage)
        assert len(talk.get(name)["messages"]) == 2
    assert talk.client.get(SESSIONS).json()["sessions"][0]["name"] == name
