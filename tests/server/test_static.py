"""The page's files: what is vendored is what it says, and nothing in them needs another host or a looser policy."""

from __future__ import annotations

import gzip
import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest

STATIC = Path(str(files("jambacli.server"))) / "static"
VENDOR = STATIC / "vendor"
OWN = sorted(path for path in STATIC.rglob("*.js") if VENDOR not in path.parents)


def _vendored() -> dict[str, str]:
    rows = re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", (VENDOR / "VENDORED.md").read_text(), re.MULTILINE)
    return dict(rows)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_vendored_files_have_the_sums_that_are_written_down() -> None:
    assert {path.name: _sum(path.read_bytes()) for path in VENDOR.glob("*.js")} == _vendored()


def test_the_only_edit_of_a_vendored_file_can_be_undone() -> None:
    edited = (VENDOR / "hooks.js").read_bytes()
    assert _sum(edited.replace(b'from"./preact.js"', b'from"preact"')) in (VENDOR / "VENDORED.md").read_text()


def test_each_vendored_package_has_its_licence_beside_it() -> None:
    packages = set(re.findall(r"^\| \S+\.js \| (\S+) ", (VENDOR / "VENDORED.md").read_text(), re.MULTILINE))
    assert packages == {"preact", "htm", "marked"}
    for package in packages:
        assert "copyright" in (VENDOR / f"{package}.LICENSE.txt").read_text().lower()


def test_the_first_view_is_under_150_kb_compressed() -> None:
    shipped = [path for path in STATIC.rglob("*") if path.suffix in {".js", ".css", ".html", ".svg"}]
    assert sum(len(gzip.compress(path.read_bytes())) for path in shipped) < 150_000


def test_the_document_loads_every_module_at_once_and_nothing_else() -> None:
    document = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="/static/([^"]+)"', document))
    assert named == {
        str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.suffix in {".js", ".css", ".svg"}
    }
    assert "<style" not in document and not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=", document)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_module_parses_html_or_runs_text_or_names_another_host(path: Path) -> None:
    text = re.sub(r"^\s*(//|/?\*).*$", "", path.read_text(), flags=re.MULTILINE)
    unwanted = re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|\beval\(|Function\(", text
    )
    assert unwanted is None, unwanted
    assert not re.search(r"https?://[a-z0-9.]", text)
    imported = re.findall(r'\bfrom "([^"]+)"', text)
    assert all(name.startswith(("./", "../vendor/")) for name in imported)


def test_the_style_sheet_loads_nothing() -> None:
    assert not re.search(r"url\(|@import", (STATIC / "app.css").read_text())
