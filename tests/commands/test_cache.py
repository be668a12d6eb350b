"""`jamba cache`: it shows all that lies on the disk, and clears nothing that a user has made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jambacli.cache.ocr_cache import OcrCache, Recognized
from jambacli.cache.prefix_store import Prefix, PrefixStore, blob_name
from jambacli.cache.reply_cache import ReplyCache
from jambacli.session import session_file
from tests.support.cli_runner import jamba
from tests.support.saved_sessions import saved
from tests.support.terminal import in_terminal


def store_prefix(position: int, age: float) -> str:
    """Store a prefix last used so many seconds ago; the name of its blob."""
    store, data = PrefixStore(), os.urandom(1000)
    name = blob_name(data)
    with store.writing():
        store.put_blob(data, name)
        store.put_prefix("space", Prefix(position, f"{position:040d}", name, [], 512))
    path = store.root / "index" / "space" / f"{position:08d}-{position:040d}"
    os.utime(path, (time.time() - age,) * 2)
    return name


@pytest.fixture
def filled(own_home: Path) -> Path:
    """A home in which there is something of everything."""
    saved("mine", "hello")
    (own_home / "sessions" / ".history").write_text("+typed\n")
    for name, text in {
        "presets/legal.toml": "system = 'x'",
        "config.toml": "threads = 2",
        "aliases.json": "{}",
        "files/file-1.data": "uploaded",
        "models/blobs/ab/weights.gguf": "w" * 5000,
        "models/blobs/ab/next.gguf.part": "w" * 300,
        "converted/c.gguf": "c" * 400,
        "weights.json": "{}",
    }.items():
        path = own_home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for age in (10, 86400 * 40):
        store_prefix(int(age), age)
        ReplyCache(own_home / "prefixes").put(f"reply{age}", "text", [])
        OcrCache(own_home / "prefixes").add(f"page{age}", "eng", 1, Recognized("text", 90))
        for folder, ending in (("notes", "json"), ("ocr", "jsonl")):
            for path in (own_home / "prefixes" / folder).glob(f"*{age}*.{ending}"):
                os.utime(path, (time.time() - age,) * 2)
    return own_home


def stats() -> dict[str, Any]:
    return {place["name"]: place for place in json.loads(jamba("cache", "stats", "--json").stdout)["places"]}


def test_stats_shows_everything_once(filled: Path) -> None:
    jamba("cache", "stats")  # it makes what it needs
    told = json.loads(jamba("cache", "stats", "--json").stdout)
    places = {place["name"]: place for place in told["places"]}
    files = {path: path.stat().st_size for path in filled.rglob("*") if path.is_file() and path.suffix != ".lock"}
    locks = sum(path.stat().st_size for path in filled.rglob("*.lock")) + (filled / "prefixes" / "lock").stat().st_size
    assert told["total_bytes"] == sum(files.values()) - (filled / "prefixes" / "lock").stat().st_size
    assert locks < 50  # what is left out is nothing
    assert (places["models"]["bytes"], places["unfinished"]["bytes"], places["converted"]["bytes"]) == (5000, 300, 400)
    assert {name: p["files"] for name, p in places.items() if name in ("replies", "ocr", "sessions", "history")} == {
        "replies": 2,
        "ocr": 2,
        "sessions": 1,
        "history": 1,
    }
    assert (told["prefixes"], told["models"], places["prefixes"]["bytes"] > 2000) == (2, 1, True)
    shown = jamba("cache", "stats").stdout.decode()
    for name, place in places.items():
        assert f"  {name} " in shown and place["path"] in shown
    assert "(jamba rm --unfinished)" in shown


def test_clearing_leaves_what_is_the_users_own(filled: Path) -> None:
    before = {name: place["bytes"] for name, place in stats().items() if place["yours"]}
    assert len(before) == 5 and all(before.values())
    done = jamba("cache", "clear", "--json")
    assert json.loads(done.stdout)["freed_bytes"] == 2000
    after = stats()
    assert {name: after[name]["bytes"] for name in before} == before
    assert [after[name]["files"] for name in ("prefixes", "replies", "ocr")] == [0, 0, 0]
    assert session_file.read("mine").turns[0]["content"] == "hello"


def test_only_what_is_old_is_cleared(filled: Path) -> None:
    done = jamba("cache", "clear", "--older-than", "30d")
    assert (done.returncode, done.stderr) == (0, b"freed 1 kB\n")
    left = stats()
    assert [left[name]["files"] for name in ("prefixes", "replies", "ocr")] == [2, 1, 1]  # a blob and its prefix
    assert jamba("cache", "clear", "--older-than", "30d").stderr == b"freed 0 B\n"
    refused = jamba("cache", "clear", "--older-than", "soon")
    assert refused.returncode == 2 and b"--older-than 'soon' is not a duration" in refused.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals on this platform")
def test_clearing_asks_on_a_terminal(filled: Path) -> None:
    code, seen = in_terminal(["cache", "clear"], "\n")
    assert code == 1 and "Delete prefixes, replies and recognized pages (2 kB are stored)? [y/N]" in seen
    assert seen.endswith("nothing was deleted\n") and "error" not in seen and stats()["prefixes"]["files"] == 4
    code, seen = in_terminal(["cache", "clear"], "yes\n")
    assert code == 0 and seen.endswith("freed 2 kB\n") and stats()["prefixes"]["files"] == 0
