"""What a directory is read as: every entry is read, or counted with the reason why not."""

from __future__ import annotations

import os
from pathlib import Path
from time import process_time

import pytest

from jambacli.documents.gitignore import Globs
from jambacli.documents.load import read_documents
from jambacli.documents.paths import expand
from jambacli.errors import JambaError


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return folder


def names(folder: Path, **chosen: list[str]) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in expand([str(folder)], **chosen).paths if p)


def test_everything_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    tree(
        tmp_path, "a.md", "b.png", "c.zip", "d.zip", ".env", ".config/x.txt", "node_modules/x.js", "build/y.md", "z.log"
    )
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("build/\n*.log\n")
    if hasattr(os, "symlink"):
        (tmp_path / "linked").symlink_to(tmp_path / "build")
    sources = expand([str(tmp_path)])
    assert [p.name for p in sources.paths if p] == ["a.md"]
    text = sources.left_out_text()
    for said in (
        "3 of other kinds (.zip, .png)",
        "2 in .gitignore",
        "4 hidden",
        "1 in folders of generated",
        "1 in linked",
    ):
        assert said in text


def test_an_unreadable_folder_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a.md", "closed/b.md")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems: list[str] = []
    assert len(read_documents([str(tmp_path)], problem=problems.append)) == 1
    assert problems == [f"cannot read the folder {tmp_path}/closed: Permission denied; skipped"]
    with pytest.raises(JambaError, match=r"cannot read the folder .*closed"):
        expand([str(tmp_path / "closed")])


def test_patterns_choose_files_of_directories_and_globs(tmp_path: Path) -> None:
    tree(tmp_path, "a.md", "b.txt", "x.dat", "old/c.md", "old/deep/d.md", "new/c.md")
    assert names(tmp_path, include=["*.dat", "/a.*"]) == ["a.md", "x.dat"]
    assert names(tmp_path, exclude=["old/"]) == ["a.md", "b.txt", "new/c.md"]
    assert names(tmp_path, include=["*.md"], exclude=["deep"]) == ["a.md", "new/c.md", "old/c.md"]
    assert names(tmp_path, include=["old/**"]) == ["old/c.md", "old/deep/d.md"]
    assert names(tmp_path, include=["c.md"]) == ["new/c.md", "old/c.md"]
    found = expand([f"{tmp_path}/**/*.md"], exclude=["old/"])
    assert sorted(p.name for p in found.paths if p) == ["a.md", "c.md"] and found.left_out_text() == "2 not chosen"
    assert len(expand([str(tmp_path / "a.md")], exclude=["*.md"]).paths) == 1  # named: always read
    with pytest.raises(JambaError, match=r"no files of a supported kind \(left out: 6 not chosen\)"):
        expand([str(tmp_path)], include=["*.none"])


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*a*b", "xaxxb", True),
        ("*a*b", "xaxxbc", False),
        ("a**b", "aXb", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**", "a", False),
        ("a/**", "a/x/y", True),
        ("**/b", "b", True),
        ("**/a/**/b/*.c", "x/a/y/a/b/b/z.c", True),
        ("[]a]", "]", True),
        ("[!]a]", "b", True),
        ("[!]a]", "]", False),
        ("[[:digit:]x]*", "7up", True),
        ("[[:digit:]x]*", "up", False),
        ("[a-c-]", "-", True),
        ("[a", "[a", True),
        ("[\\]]", "]", True),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("?", "é", True),
        ("?", "ab", False),
        ("*", "", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert Globs([pattern])(path) == matches


@pytest.mark.parametrize(
    "text",
    ["a" + " " * 10**6 + "b", "[" * 10**6, ("[" * 4000 + "\n") * 100, ("**/" * 1000 + "b\n") * 100, "*a*b\n" * 4000],
)
def test_a_gitignore_of_a_megabyte_is_read_at_once(tmp_path: Path, text: str) -> None:
    tree(tmp_path, "a.md", "a" * 100)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text(text)
    before = process_time()
    expand([str(tmp_path)])
    assert process_time() - before < 10


def test_thousands_of_patterns_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a.md", "b/c.md", "d/e.md")
    for folder in ("", "b", "d"):  # those beside each other do not add up
        (tmp_path / folder / ".gitignore").write_text("*a*b\n" * 2400)
    assert len(expand([str(tmp_path)]).paths) == 3
    (tmp_path / "d/.gitignore").write_text("*a*b\n" * 2700)
    with pytest.raises(JambaError, match=r"d/\.gitignore: more than 5,000 patterns apply here; remove some of them"):
        expand([str(tmp_path)])


@pytest.mark.parametrize("pattern", ["*a" * 60 + "b", "**/a/" * 60 + "b", "[a-z]*" * 50 + "7", "?*" * 60 + "7"])
def test_a_pattern_that_backtracks_ends_at_once(tmp_path: Path, pattern: str) -> None:
    tree(tmp_path, "a" * 200, "/".join("a" * 60) + "/a.md")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text(f"{pattern}\n" * 5)
    before = process_time()
    expand([str(tmp_path)])
    assert process_time() - before < 5  # a backtracking matcher takes years
