"""The divergence of one file from one base, measured here and by llama-perplexity, in both directions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jambacli.api import Jamba
from jambacli.data import held_out_text
from jambacli.evaluation.base_logits import BaseLogits, bos_of, chunks_of, write_base
from jambacli.evaluation.kl import Divergence, compare, statistics
from jambacli.gguf.reader import GGUFFile
from jambacli.hub.demo import demo_model_path
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import get_recipe

TOOL = shutil.which("llama-perplexity")
pytestmark = [pytest.mark.peer, pytest.mark.skipif(TOOL is None, reason="llama-perplexity is not in PATH")]
WINDOWS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    (folder / "text.txt").write_text(held_out_text())
    for kind in ("q2_k", "q4_k_m"):
        with GGUFFile.open(demo_model_path()) as file:
            quantize(plan(file, Request(get_recipe(kind))), folder / f"{kind}.gguf")
    return folder


def run(*arguments: str | Path) -> str:
    command = [TOOL or "", "-c", "512", "-b", "512", "--chunks", str(WINDOWS), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True)
    return (done.stdout + done.stderr).decode()


def theirs(model: Path, base: Path) -> dict[str, float]:
    text = run("-m", model, "--kl-divergence", "--kl-divergence-base", base)
    lines = {
        "mean": r"Mean +KLD: +(\S+)",
        "median": r"Median +KLD: +(\S+)",
        "p99": r"99.0% +KLD: +(\S+)",
        "p999": r"99.9% +KLD: +(\S+)",
        "ln_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +(\S+)",
        "ln_ratio_error": r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +\S+ ± +(\S+)",
        "rms_p": r"RMS Δp +: +(\S+)",
        "top1": r"Same top p: +(\S+)",
    }
    found = {name: re.search(pattern, text) for name, pattern in lines.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    assert len(values) == len(lines), text
    return {**values, "rms_p": values["rms_p"] / 100, "top1": values["top1"] / 100}


def ours(model: Path, base: Path) -> Divergence:
    loaded, file = Jamba.load(model), BaseLogits(base)
    return statistics(compare(loaded, file, file.chunks.windows(bos_of(loaded))))


@pytest.mark.parametrize("kind", ["q2_k", "q4_k_m"])
@pytest.mark.parametrize("writer", ["llama.cpp", "jamba"])
def test_figures_are_equal_within_their_errors(folder: Path, kind: str, writer: str) -> None:
    base = folder / f"{writer}.kld"
    if not base.exists():
        if writer == "jamba":
            model = Jamba.load(demo_model_path())
            write_base(base, model, chunks_of(model, held_out_text(), 512, 512 * WINDOWS))
        else:
            run("-m", demo_model_path(), "-f", folder / "text.txt", "--save-all-logits", base)
    got, expected = ours(folder / f"{kind}.gguf", base), theirs(folder / f"{kind}.gguf", base)
    assert got.tokens == WINDOWS * 255
    for name in ("mean", "median", "p99", "p999", "ln_ratio", "rms_p", "top1"):
        error = getattr(got, f"{name}_error")
        slack = 3 * error if name.startswith("p9") else error + 1e-5  # of a percentile both samples have an error
        assert abs(getattr(got, name) - expected[name]) <= slack, (name, got, expected)
    assert got.ln_ratio_error == pytest.approx(expected["ln_ratio_error"], rel=0.15)


class Replayed:
    """A model that predicts what a file says: llama.cpp's own predictions."""

    def __init__(self, path: Path) -> None:
        self.base, self.name, self.window = BaseLogits(path), path.name, -1
        self.config, self.model = SimpleNamespace(vocab_size=self.base.n_vocab), self

    def new_state(self, n_tokens: int, kv_type: str) -> None:
        self.window += 1

    def forward(self, ids: torch.Tensor, state: None, *, logits: str) -> torch.Tensor:
        rows = self.base.log_probabilities(self.window, 0, 255).float()
        return torch.cat([torch.zeros(len(ids) - len(rows), self.base.n_vocab), rows])


def test_figures_of_the_same_predictions_are_the_same(folder: Path) -> None:
    base, model = folder / "base.kld", folder / "q2_k.gguf"
    run("-m", demo_model_path(), "-f", folder / "text.txt", "--save-all-logits", base)
    run("-m", model, "-f", folder / "text.txt", "--save-all-logits", folder / "model.kld")
    reference = BaseLogits(base)
    replayed: Any = Replayed(folder / "model.kld")
    got = statistics(compare(replayed, reference, reference.chunks.windows(None)))
    expected = theirs(model, base)
    # The model's predictions are stored in 16 bits too, which cover 16 nats: that changes what is smaller or less probable.
    for name, precision in (("mean", 2e-3), ("p99", 2e-3), ("p999", 0.02), ("rms_p", 2e-3), ("top1", 1e-4)):
        assert getattr(got, name) == pytest.approx(expected[name], rel=precision), name


def test_both_programs_cut_the_text_into_the_same_tokens(folder: Path) -> None:
    base = folder / "tokens.kld"
    run("-m", demo_model_path(), "-f", folder / "text.txt", "--save-all-logits", base)
    model = Jamba.load(demo_model_path())
    assert BaseLogits(base).chunks == chunks_of(model, held_out_text(), 512, 512 * WINDOWS)
