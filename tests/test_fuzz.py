"""Every parser of files from elsewhere, fed with damaged ones (tests/support/fuzzing.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.errors import JambaError
from tests.support.fuzz_cases import _DOCUMENTS, cases, document_cases
from tests.support.fuzzing import ODD_VALUES, Case, place_for, places, replaced, run
from tests.support.repository import REPO


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    return cases(tmp_path_factory.mktemp("valid"))


@pytest.fixture(scope="module")
def documents() -> Iterator[Mapping[str, Case]]:
    with Sandbox() as sandbox:
        yield {case.name: case for case in document_cases(sandbox)}


NAMES = (
    "gguf", "manifest", "session", "resumed", "archive", "safetensors", "config", "tokenizer", "batch", "schema", "gitignore",
    "template", "imatrix", "aliases", "used", "speeds", "index", "sentencepiece", "tokenizer files", "vocabulary",
    "given template", "prefix", "reply", "weights", "ocr", "part file", "registry", "tool calls", "tool call", "cited",
)  # fmt: skip
#: Of the server: only where its extra is installed.
REQUESTS = ("openai", "completions", "anthropic", "ollama", "converse", "invoke", "responses", "multipart", "upstream")
PACKAGES = ("docx", "xlsx", "xlsb", "pptx", "ods", "odp", "odt", "epub")


@pytest.mark.parametrize("name", NAMES + REQUESTS)
def test_a_damaged_file_is_read_or_refused(parsers: Mapping[str, Case], tmp_path: Path, name: str) -> None:
    if name in REQUESTS:
        pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    case = parsers[name]
    assert run(case, tmp_path, seed=1, seconds=1.0, most=int(100 * case.times)) > 0


@pytest.mark.parametrize("name", [*_DOCUMENTS, *PACKAGES])
def test_a_damaged_document_is_read_or_refused(documents: Mapping[str, Case], tmp_path: Path, name: str) -> None:
    assert run(documents[name], tmp_path, seed=1, seconds=1.0, most=40) > 0


@pytest.mark.parametrize("values", [[[], {"": None}, -1], pytest.param(ODD_VALUES, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("name", [n for n in REQUESTS if n not in ("multipart", "upstream")])
def test_every_field_of_a_request_may_have_any_value(
    parsers: Mapping[str, Case], tmp_path: Path, name: str, values: list[Any]
) -> None:
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    case = parsers[name]
    path = place_for(case, tmp_path)
    for source in case.sources:
        body = json.loads(source)
        for at in list(places(body))[1:]:
            for value in values:
                path.write_text(json.dumps(replaced(body, at, value)))
                try:
                    case.parse(path)
                except (JambaError, *case.refusals) as error:
                    assert str(error).strip(), (at, value)


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused() -> None:
    """JAMBA_FUZZ_SEED chooses other files, JAMBA_FUZZ_COUNT how many; a million take half an hour of one core."""
    count, seed = os.environ.get("JAMBA_FUZZ_COUNT", "20000"), os.environ.get("JAMBA_FUZZ_SEED", "2")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzzing", count, seed],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert report["count"] >= int(count)
