"""The page's screens, and a library to show on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.page import Page, PageServer, until


@dataclass(frozen=True)
class Shown:
    """``session``: a conversation with answers that cite; ``table``: one with a table; ``document``: the cited one."""

    session: str
    table: str
    document: str
    texts: tuple[str, ...]


def filled(
    client: httpx.Client, paths: Sequence[Path], questions: Sequence[str], columns: Sequence[str] = ("Animal", "Number")
) -> Shown:
    """Put documents into the library of a server (the last one may be refused), ask the questions, and extract a table."""
    ids = []
    for path in paths:
        answer = client.post(
            "/v1/library/documents", files={"file": (path.name, path.read_bytes())}, headers={"X-Jamba": "1"}
        )
        ids.append(answer.raise_for_status().json()["id"])
    for each in ids:
        until(lambda each=each: _settled(client, each), "a document is read")
    ready = [each for each in ids if client.get(f"/v1/library/documents/{each}").json()["state"] == "ready"]
    session = _session(client, ready)
    for text in questions:
        _reply(client, session, "messages", {"text": text})
    table = _session(client, ready[:1])
    types = ["text" if i != 1 else "number" for i in range(len(columns))]
    _reply(client, table, "table", {"columns": [{"name": n, "type": t} for n, t in zip(columns, types, strict=True)]})
    return Shown(session, table, ready[0], tuple(questions))


def _settled(client: httpx.Client, document: str) -> bool:
    now = client.get(f"/v1/library/documents/{document}").json()
    return bool(now["state"] == "refused" or (now["state"] == "ready" and now["tokens"] is not None))


def _session(client: httpx.Client, documents: Sequence[str]) -> str:
    body = {"documents": list(documents), "options": {"temperature": 0}}
    return str(client.post("/v1/library/sessions", json=body).raise_for_status().json()["name"])


def _reply(client: httpx.Client, session: str, route: str, body: dict[str, Any]) -> None:
    client.post(f"/v1/library/sessions/{session}/{route}", json=body).raise_for_status()
    until(lambda: client.get(f"/v1/library/sessions/{session}").json()["running"] is None, "a reply is whole")


# Each opens one screen.


def _empty(page: Page, shown: Shown, server: PageServer) -> None:
    page.open()
    page.one(".beginning .drop")


def _sources(page: Page, shown: Shown, server: PageServer) -> None:
    page.open()
    page.driver.execute_async_script(
        """const done = arguments[arguments.length - 1];
        import("/static/js/store.js").then(({ set, state }) => {
            set({ gathered: state.documents.filter((d) => d.state === "ready").map((d) => d.id) }); done(); })"""
    )
    page.one(".suggestions .card")


def _conversation(page: Page, shown: Shown, server: PageServer) -> None:
    page.open(f"/#c={shown.session}")
    page.one(".message.assistant .citation")


def _reading(page: Page, shown: Shown, server: PageServer) -> None:
    page.open()
    server.hold()
    _sources(page, shown, server)
    page.fill("#composer", shown.texts[0])
    page.press("\ue007")
    page.one(".live .status")


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
    page.one(".extracted table")


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
