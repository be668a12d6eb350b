"""The page's screens, and a library to show on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.support.page import Page, PageServer, until
from tests.support.reports import COLUMNS, rows_of


@dataclass(frozen=True)
class Shown:
    """``session``: a conversation with answers that cite; ``table``: one with a table; ``documents``: those that
    are asked."""

    session: str
    table: str
    documents: tuple[str, ...]
    texts: tuple[str, ...]


def filled(server: PageServer, paths: Sequence[Path], questions: Sequence[str], counts: str) -> Shown:
    """Put documents into the library of a server (the last one may be refused), ask the questions, and extract a table of the
    reports in the text ``counts``."""
    with server.client() as client:
        return _filled(client, server, paths, questions, counts)


def _filled(
    client: httpx.Client, server: PageServer, paths: Sequence[Path], questions: Sequence[str], counts: str
) -> Shown:
    ids = []
    for path in paths:
        answer = client.post(
            "/v1/library/documents", files={"file": (path.name, path.read_bytes())}, headers={"X-Jamba": "1"}
        )
        ids.append(answer.raise_for_status().json()["id"])
    for each in ids:
        until(partial(_settled, client, each), "a document is read")
    ready = [each for each in ids if client.get(f"/v1/library/documents/{each}").json()["state"] == "ready"]
    session = _session(client, ready)
    for text in questions:
        _reply(client, session, "messages", {"text": text})
    # Not among the documents that are asked: added last, it would be the first in the library.
    body = {"name": "Counts of the year.txt", "text": counts}
    extracted = client.post("/v1/library/documents", json=body).raise_for_status().json()["id"]
    until(partial(_settled, client, extracted), "a document is read")
    server.dictate(rows_of(counts))
    table = _session(client, [extracted])
    types = ["number" if name == "Number" else "text" for name in COLUMNS]
    _reply(client, table, "table", {"columns": [{"name": n, "type": t} for n, t in zip(COLUMNS, types, strict=True)]})
    return Shown(session, table, tuple(ready), tuple(questions))


def _settled(client: httpx.Client, document: str) -> bool:
    now = client.get(f"/v1/library/documents/{document}").json()
    return bool(now["state"] == "refused" or (now["state"] == "ready" and now["tokens"] is not None))


def _session(client: httpx.Client, documents: Sequence[str]) -> str:
    body = {"documents": list(documents), "options": {"temperature": 0}}
    return str(client.post("/v1/library/sessions", json=body).raise_for_status().json()["name"])


def _reply(client: httpx.Client, session: str, route: str, body: dict[str, Any]) -> None:
    path = f"/v1/library/sessions/{session}"
    client.post(f"{path}/{route}", json=body).raise_for_status()
    until(lambda: client.get(path).raise_for_status().json()["running"] is None, "a reply is whole")


# Each opens one screen.


def _empty(page: Page, shown: Shown, server: PageServer) -> None:
    page.open()
    page.one(".beginning .drop")


def _sources(page: Page, shown: Shown, server: PageServer) -> None:
    page.open()
    _gather(page, shown.documents)
    page.one(".suggestions .card")


def _conversation(page: Page, shown: Shown, server: PageServer) -> None:
    page.open(f"/#c={shown.session}")
    page.one(".message.assistant .citation")


def _reading(page: Page, shown: Shown, server: PageServer) -> None:
    text = "\n".join(f"On day {n} the sky was clear and the wind was cold." for n in range(200))
    with server.client() as client:
        notes = {"name": "Field notes.txt", "text": f"Notes {time.time_ns()}.\n{text}"}
        document = client.post("/v1/library/documents", json=notes).raise_for_status().json()["id"]
        until(lambda: _settled(client, document), "a document is read")
        # What an earlier screen left is read before the engine is held.
        until(lambda: client.get("/health").json()["active"] == 0, "the engine rests")
    # Here the question reads it, not the page before.
    page.driver.execute_script("localStorage.setItem('ahead', 'off')")
    page.open()
    page.driver.execute_script("localStorage.removeItem('ahead')")
    server.hold(1)  # one piece of the reading
    _gather(page, [document])
    page.fill("#composer", shown.texts[0])
    page.press("\ue007")
    page.one(".live .status.reading", " of ")


def _gather(page: Page, documents: Sequence[str]) -> None:
    page.driver.execute_async_script(
        """const [documents, done] = arguments;
        import("/static/js/store.js").then(({ set }) => { set({ gathered: documents }); done(); })""",
        list(documents),
    )


def _picture(page: Page, shown: Shown, server: PageServer) -> None:
    _conversation(page, shown, server)
    page.click(".citation")
    until(
        lambda: page.driver.execute_script("return document.querySelector('.sheet img')?.naturalWidth > 100"),
        "the picture",
    )
    page.one(".sheet .box")


def _text(page: Page, shown: Shown, server: PageServer) -> None:
    _picture(page, shown, server)
    page.chord("KeyO", "o")
    page.one(".sheet-text mark")


def _table(page: Page, shown: Shown, server: PageServer) -> None:
    page.open(f"/#c={shown.table}")
    page.one(".extracted tbody tr")


def _columns(page: Page, shown: Shown, server: PageServer) -> None:
    _conversation(page, shown, server)
    page.chord("KeyT", "t")
    page.click("dialog .chip")
    page.one("dialog .column")


def _library(page: Page, shown: Shown, server: PageServer) -> None:
    _conversation(page, shown, server)
    if page.driver.execute_script("return innerWidth") <= 900:
        page.click("button", "Show the library")
    page.fill("#search", "counted")
    page.one("[aria-labelledby=found-documents] .row")


def _settings(page: Page, shown: Shown, server: PageServer) -> None:
    _conversation(page, shown, server)
    page.chord("Comma", ",")
    page.one("dialog .grid")


def _keyboard(page: Page, shown: Shown, server: PageServer) -> None:
    _conversation(page, shown, server)
    page.driver.execute_script("document.activeElement.blur()")
    page.press("?")
    page.one("dialog .shortcuts")


SCREENS: dict[str, Callable[[Page, Shown, PageServer], None]] = {
    "empty": _empty,
    "sources": _sources,
    "reading": _reading,
    "conversation": _conversation,
    "citation": _picture,
    "text": _text,
    "columns": _columns,
    "table": _table,
    "search": _library,
    "settings": _settings,
    "keyboard": _keyboard,
}
