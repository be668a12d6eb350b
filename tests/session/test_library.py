"""The library of saved sessions: what lists and searches show, and changes of names that never touch an open session."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jambacli.errors import JambaError, UsageError
from jambacli.session import library, session_file
from tests.support.saved_sessions import aged, saved


def test_a_summary_says_what_a_list_shows() -> None:
    saved(
        "notes",
        "\n  What  does it\tsay?\nmore",
        "Nothing.",
        "And now?",
        prompt=[1, 2, 3],
        reply=[4],
        documents=["a", "b", "a"],
    )
    found = library.summary("notes")
    path = session_file.session_path("notes")
    assert (found.name, found.title, found.model) == ("notes", "What does it say?", "small")
    assert (found.messages, found.turns, found.tokens, found.documents) == (3, 2, 4, 2)
    assert (found.size, found.modified) == (path.stat().st_size, path.stat().st_mtime)


def test_a_title_is_one_short_line() -> None:
    saved("long", "word " * 100)
    title = library.summary("long").title
    assert len(title) <= library.TITLE and title.endswith("word…")
    saved("plain", chat=False, turns=[])
    assert library.summary("plain").title == ""


def test_a_list_is_sorted_by_use_and_leaves_out_what_is_damaged(caplog: pytest.LogCaptureFixture) -> None:
    for i, name in enumerate(["a", "b", "c"]):
        saved(name, f"hello {name}")
        aged(name, 100 * i)
    session_file.session_path("bad").write_bytes(b"{")
    with caplog.at_level(logging.WARNING, "jambacli"):
        assert [s.name for s in library.summaries()] == ["a", "b", "c"]
    assert [r.getMessage().split(": ")[0][-8:] for r in caplog.records] == ["bad.json"]
    caplog.clear()
    assert [found.summary.name for found in library.search("HELLO")] == ["a", "b", "c"] and len(caplog.records) == 1


def test_a_summary_follows_the_file() -> None:
    saved("a", "one")
    assert library.summary("a").messages == 1
    saved("a", "one", "two", "three")
    assert (library.summary("a").messages, library.summary("a").title) == (3, "one")


def test_a_search_finds_every_word_in_one_message_and_shows_where() -> None:
    saved("fish", "Tell me of herons", "x " * 200 + "The HERON stands in cold\nwater. " + "y " * 200)
    saved("heron-list", "unrelated")
    saved("other", "cold tea", "and a heron")
    found = {f.summary.name: f for f in library.search("heron  cold")}
    assert list(found) == ["fish"]
    assert (found["fish"].role, found["fish"].matches) == ("assistant", 1)
    excerpt = found["fish"].excerpt
    assert "The HERON stands in cold water. y" in excerpt and len(excerpt) < library.EXCERPT + 10
    assert excerpt.startswith("…") and excerpt.endswith("…") and "\n" not in excerpt
    by_name = {f.summary.name: f for f in library.search("HERON-L")}
    assert list(by_name) == ["heron-list"] and by_name["heron-list"].excerpt == ""


def test_a_search_is_plain_text_in_any_script_and_bounded() -> None:
    saved("a", "a.c costs [5] (é)")
    saved("b", "abc costs")
    assert [f.summary.name for f in library.search("a.c [5] E\u0301")] == ["a"]
    assert list(library.search("  ")) == []
    assert len(list(library.search("costs", limit=1))) == 1


def test_a_renamed_session_keeps_its_family_and_its_time() -> None:
    saved("old", "hello")
    saved("branch", "hello", parent="old")
    aged("old", 5000)
    aged("branch", 6000)
    before = [library.summary(name).modified for name in ("old", "branch")]
    library.rename("old", "new")
    assert sorted(session_file.names()) == ["branch", "new"] and session_file.read("new").name == "new"
    assert session_file.family("branch") == ["new", "branch"]
    assert [library.summary(name).modified for name in ("new", "branch")] == before
    assert not list(session_file.sessions_folder().glob("old*"))


def test_a_copy_is_a_session_of_its_own_of_the_same_family() -> None:
    first = saved("a", "hello", "hi", prompt=[1, 2])
    library.copy("a", "b")
    second = session_file.read("b")
    assert (second.turns, second.prompt, second.parent) == (first.turns, [1, 2], "a")
    assert session_file.family("a") == ["a", "b"]
    library.remove("a")
    assert session_file.read("b").turns == first.turns


@pytest.mark.parametrize("change", [library.rename, library.copy])
def test_a_taken_or_invalid_name_is_refused(change: object) -> None:
    saved("a", "one")
    saved("b", "two")
    before = session_file.session_path("b").read_bytes()
    with pytest.raises(JambaError, match="a session named 'b' already exists; choose another name"):
        change("a", "b")  # type: ignore[operator]
    assert session_file.session_path("b").read_bytes() == before
    with pytest.raises(UsageError, match="is not valid"):
        change("a", "../b")  # type: ignore[operator]
    with pytest.raises(JambaError, match="no session 'aa'; did you mean a"):
        change("aa", "c")  # type: ignore[operator]


def test_an_open_session_is_not_touched_but_can_be_copied() -> None:
    saved("a", "one")
    saved("free", "two")
    code = "import sys; from jambacli.session import session_file as f; l = f.acquire('a'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        for act in (lambda: library.rename("a", "b"), lambda: library.remove("a")):
            with pytest.raises(JambaError, match=rf"'a' is open in another process \({other.pid}\)"):
                act()
        library.copy("a", "copied")
        assert session_file.read("copied").turns == session_file.read("a").turns
        other.stdin.close()
    library.rename("a", "b")


def test_old_sessions_are_those_not_saved_for_long() -> None:
    for i, name in enumerate(["a", "b", "c"]):
        saved(name, "hello")
        aged(name, 86400 * i + 10)
    assert library.older_than(86400) == ["b", "c"]
    assert library.older_than(0) == ["a", "b", "c"]


def test_a_session_is_named_by_its_file() -> None:
    saved("a", "hello")
    path = session_file.session_path("a")
    Path(path.parent / "by-hand.json").write_bytes(path.read_bytes())
    assert sorted(s.name for s in library.summaries()) == ["a", "by-hand"]


def test_the_library_imports_no_torch() -> None:
    code = "import sys; from jambacli.session import library; list(library.summaries()); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
