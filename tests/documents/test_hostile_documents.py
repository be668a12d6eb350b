"""Hostile files of every kind: each ends in bounded time and memory with its text or one clear line, and nothing else happens.

No socket is opened, no file outside is read or written, no process and no file is left.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract.formats import FORMATS
from jambacli.documents.extract.worker import MEMORY
from tests.support.confined import SECRET, Confined, confined
from tests.support.hostile_documents import Hostile, good, hostile_documents
from tests.support.hostile_packages import WORD

for library in ("defusedxml", "pypdfium2", "PIL", "olefile", "python_calamine"):
    pytest.importorskip(library)

FILES = hostile_documents()
#: Files that keep a library busy without end: the sandbox ends it.
STUCK = frozenset(("pdf: forms", "pdf: form of itself"))
#: Over a second each on an idle machine.
LONG = STUCK | {
    *("pdf: flate bomb", "pdf: flate in flate", "pdf: image bomb", "pdf: image fax", "pdf: many annotations"),
    *("pdf: page repeated", "pdf: scan repeated", "docx: large note", "docx: million runs", "mbox: separators"),
    *("xlsx: shared rows", "xlsx: shared string", "pptx: slide twice", "epub: deep", "msg: lzfu bomb"),
}
#: Seconds of the processor for one file, and how much more memory this process may hold while one is read.
PROCESSOR, PARENT = 20.0, 512 << 20


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    yield from confined(tmp_path_factory.mktemp("hostile"), 40.0)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    """Waits for three seconds only."""
    yield from confined(tmp_path_factory.mktemp("hasty"), 3.0)


def cases() -> list[object]:
    """The names; the long ones marked."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in FILES]


@pytest.mark.parametrize("name", cases())
def test_a_hostile_file_is_read_or_refused_and_nothing_else_happens(
    reader: Confined, request: pytest.FixtureRequest, name: str
) -> None:
    file: Hostile = FILES[name]
    one: Confined = request.getfixturevalue("hasty") if name in STUCK else reader
    outcome = one.read(file.make(str(one.outside)), f"file.{file.suffix}")
    assert bool(outcome.error) != bool(outcome.text.strip())
    if outcome.error:
        assert "file." in outcome.error and "\n" not in outcome.error and len(outcome.error) < 1000
        assert not any(word in outcome.error for word in ("crashed", "internal", "Traceback", "\x1b"))
        assert ("no progress" in outcome.error) == (name in STUCK)
    assert not any("\n" in remark or "\x1b" in remark for remark in outcome.remarks)
    assert SECRET not in outcome.text + outcome.error + "".join(outcome.remarks)
    assert outcome.noted == [] and outcome.left == []
    assert outcome.processor < PROCESSOR
    assert outcome.worker < MEMORY and outcome.parent < PARENT


def test_there_are_hostile_files_of_every_kind() -> None:
    kinds = Counter(file.kind for file in FILES.values())
    assert sum(kinds.values()) > 500 and min(kinds.values()) >= 10
    assert {*FORMATS, "text"} - {"outlook"} <= set(kinds) and "msg" in kinds


@pytest.mark.parametrize("suffix", ["docx", "xlsx", "xlsb", "pptx", "ods", "odp", "odt", "epub", "pdf", "xls", "msg"])
def test_the_same_files_undamaged_are_read(reader: Confined, suffix: str) -> None:
    assert WORD in reader.read(good(suffix), f"file.{suffix}").text


def test_the_guard_sees_what_is_forbidden(reader: Confined, tmp_path: Path) -> None:
    def run(code: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", code], env=reader.environment, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False
        ).returncode

    log = Path(reader.environment["GUARD_LOG"])
    for code in ("open('written', 'w')", f"open('{reader.outside}/secret.txt')", "import os; os.mkdir('made')"):
        assert run(code) == 0 and len(log.read_text().splitlines()) == 1, code
        log.write_text("")
    died = run("import socket; socket.socket()") != 0
    assert died or log.read_text()
    log.write_text("")


def test_nothing_is_left_when_the_sandbox_is_closed(tmp_path: Path) -> None:
    one = Confined(tmp_path, 40.0)
    assert WORD in one.read(good("eml"), "file.eml").text
    assert one.close() == []
