"""The printed arguments make llama-quantize write the file that was chosen here, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jambacli.gguf.reader import GGUFFile
from jambacli.hub.demo import demo_model_path
from jambacli.quantize.allocate import tensor_type_patterns
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import get_recipe

TOOL = shutil.which("llama-quantize")
pytestmark = [pytest.mark.peer, pytest.mark.skipif(TOOL is None, reason="llama-quantize is not in PATH")]


@pytest.mark.parametrize("kind", ["q3_k", "q4_k"])
def test_files_are_equal(tmp_path: Path, kind: str) -> None:
    with GGUFFile.open(demo_model_path()) as file:
        chosen = plan(file, Request(get_recipe(f"{kind}_x")))
        quantize(chosen, tmp_path / "ours.gguf")
    arguments = [word for pattern in tensor_type_patterns(chosen.choices) for word in ("--tensor-type", pattern)]
    command = [TOOL or "", *arguments, str(demo_model_path()), str(tmp_path / "theirs.gguf"), f"{kind}_m".upper()]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
