"""Importance matrices against llama-imatrix's on the same file and text, and quantized files made with either."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jambacli.api import Jamba
from jambacli.convert.to_gguf import convert
from jambacli.convert.to_hf import export
from jambacli.data import calibration_text, held_out_text
from jambacli.gguf.reader import GGUFFile
from jambacli.hub.demo import demo_model_path
from jambacli.quantize import imatrix_collect as c
from jambacli.quantize.imatrix import read_imatrix
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import RecipeOptions, get_recipe
from tests.support.checkpoints import make_checkpoint

IMATRIX, QUANTIZE = shutil.which("llama-imatrix"), shutil.which("llama-quantize")
MODELS = ("demo", "dense", "tied", "moe4", "expert_every_layer")
CHUNKS, CHUNK = 6, 256
pytestmark = [pytest.mark.peer, pytest.mark.skipif(IMATRIX is None, reason="llama-imatrix is not in PATH")]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in f32: the demo model, or a random checkpoint of that shape."""
    folder = tmp_path_factory.mktemp("imatrix")
    if request.param == "demo":
        checkpoint = folder / "checkpoint"
        with GGUFFile.open(demo_model_path()) as file:
            export(file, checkpoint)
    else:
        checkpoint = make_checkpoint(folder / "checkpoint", request.param)
    return convert(checkpoint, folder / "model.gguf", type="f32").paths[0]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(held_out_text()[:4000] + calibration_text()[:8000], encoding="utf-8")
    return path


def run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def theirs(model: Path, text: Path, output: Path, *more: object) -> c.Sums:
    size = ["-c", CHUNK, "-b", CHUNK, "--chunks", CHUNKS]
    # Keys and values in f32, which flash attention rounds: a value between two of f16 now and then falls to the other side.
    exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    run(IMATRIX, "-m", model, "-f", text, "-o", output, *size, *exact, "--no-ppl", *more)
    return c.read_sums(output)


def ours(model: Path, text: Path, output_matrix: bool = False) -> c.Sums:
    loaded = Jamba.load(model)
    chunks, _ = c.chunks_of(loaded.tokenizer, [text.read_text(encoding="utf-8")], CHUNK)
    return c.collect(loaded.model, chunks[:CHUNKS], datasets=[str(text)], output_matrix=output_matrix, kv_type="f32")


def equal(mine: c.Sums, other: c.Sums) -> None:
    """Squares to 1e-4 of each; sums, which cancel, to 1e-4 of the largest; counts exactly."""
    assert mine.squares.keys() == other.squares.keys()
    assert (mine.datasets, mine.chunks, mine.chunk) == (other.datasets, other.chunks, other.chunk)
    for name, squares in other.squares.items():
        np.testing.assert_array_equal(mine.counts[name], other.counts[name], err_msg=name)
        np.testing.assert_allclose(mine.squares[name], squares, rtol=1e-4, atol=0, err_msg=name)
        bound = 1e-4 * float(np.abs(other.sums[name]).max())
        np.testing.assert_allclose(mine.sums[name], other.sums[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("output_matrix", [False, True])
def test_the_sums_are_llama_imatrixs(model: Path, text: Path, tmp_path: Path, output_matrix: bool) -> None:
    other = theirs(model, text, tmp_path / "theirs.gguf", *(["--process-output"] if output_matrix else []))
    equal(ours(model, text, output_matrix), other)


def test_merged_files_are_llama_imatrixs(model: Path, text: Path, tmp_path: Path) -> None:
    c.write_gguf(ours(model, text), tmp_path / "mine.gguf")
    c.write_legacy(ours(model, text), tmp_path / "mine.dat")
    for earlier in ("mine.gguf", "mine.dat"):
        merged = theirs(model, text, tmp_path / "merged.gguf", "--in-file", tmp_path / earlier)
        sums = c.merge([c.read_sums(tmp_path / earlier, CHUNK), ours(model, text)])
        assert merged.squares.keys() == sums.squares.keys()
        for name, squares in merged.squares.items():
            np.testing.assert_allclose(sums.squares[name], squares, rtol=1e-4, err_msg=name)
            np.testing.assert_array_equal(sums.counts[name], merged.counts[name], err_msg=name)


@pytest.mark.skipif(QUANTIZE is None, reason="llama-quantize is not in PATH")
def test_either_programs_file_quantizes_to_the_same_bytes_in_both(model: Path, text: Path, tmp_path: Path) -> None:
    mine = ours(model, text)
    theirs(model, text, tmp_path / "theirs.gguf")
    theirs(model, text, tmp_path / "theirs.dat", "--output-format", "dat")
    c.write_gguf(mine, tmp_path / "mine.gguf")
    c.write_legacy(mine, tmp_path / "mine.dat")
    for name in ("mine.gguf", "mine.dat", "theirs.gguf", "theirs.dat"):
        run(QUANTIZE, "--imatrix", tmp_path / name, model, tmp_path / "a.gguf", "q4_k_m")
        with GGUFFile.open(model) as file:
            request = Request(
                get_recipe("q4_k_m"), RecipeOptions(has_imatrix=True), read_imatrix(tmp_path / name), force=True
            )
            quantize(plan(file, request), tmp_path / "b.gguf")
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes(), name
