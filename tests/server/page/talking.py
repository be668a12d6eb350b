"""A client of the page's routes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

DOCUMENTS, SESSIONS = "/v1/library/documents", "/v1/library/sessions"
OWLS = "Report 3 on owls: Ines Vorban counted 17 owls at Cape Drel on Friday. The code word of Ines Vorban is walnut."
HERONS = (
    "Report 1 on herons: Leila Haddad counted 42 herons at Lake Tuz on Monday. The code word of Leila Haddad is amber."
)


class Talk:
    """Asks the page of a server."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def document(self, text: str = OWLS, name: str = "owls.txt") -> dict[str, Any]:
        """Add a pasted text, and wait until it has been read."""
        answer = self.client.post(DOCUMENTS, json={"name": name, "text": text}).raise_for_status()
        return self.ready(answer.json()["id"])

    def upload(self, data: bytes, name: str) -> dict[str, Any]:
        """Add a file, and wait until it has been read or refused."""
        answer = self.client.post(DOCUMENTS, files={"file": (name, data)}, headers={"X-Jamba": "1"}).raise_for_status()
        return self.ready(answer.json()["id"])

    def ready(self, name: str) -> dict[str, Any]:
        """A document once it has been read or refused."""
        until = time.monotonic() + 60
        while True:
            document: dict[str, Any] = self.client.get(f"{DOCUMENTS}/{name}").raise_for_status().json()
            if document["state"] != "extracting":
                return document
            assert time.monotonic() < until
            time.sleep(0.02)

    def session(self, **fields: Any) -> str:
        """A new conversation, whose replies are always the same."""
        options = {"temperature": 0, **fields.pop("options", {})}
        answer = self.client.post(SESSIONS, json={"options": options, **fields}).raise_for_status()
        assert answer.status_code == 201
        return str(answer.json()["name"])

    def get(self, name: str) -> dict[str, Any]:
        """A conversation."""
        return dict(self.client.get(f"{SESSIONS}/{name}").raise_for_status().json())

    def begin(self, name: str, what: str = "messages", **body: Any) -> dict[str, Any]:
        """Start a reply."""
        answer = self.client.post(f"{SESSIONS}/{name}/{what}", json=body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def events(self, name: str, start: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """The events of the running reply, each with its number."""
        chosen = {"until": "done", **({} if start is None else {"from": start}), **query}
        with self.client.stream("GET", f"{SESSIONS}/{name}/events", params=chosen) as stream:
            assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
            number = None
            for line in stream.iter_lines():
                key, _, value = line.partition(": ")
                if key == "id":
                    number = int(value)
                elif key == "data":
                    yield {**json.loads(value), "id": number}

    def ask(self, name: str, what: str = "messages", **body: Any) -> dict[str, Any]:
        """The message of a whole reply."""
        begun = self.begin(name, what, **body)
        events = list(self.events(name, begun["from"]))
        assert events[-1]["type"] == "done", events[-3:]
        assert events[-1]["finish"] in ("stop", "length"), [e for e in events if e["type"] == "error"]
        return dict(self.get(name)["messages"][-1])
