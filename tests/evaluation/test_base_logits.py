"""Log probabilities in a file: what is read is what was written, and a damaged file is named, field by field."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import BadFileError, JambaError
from jambacli.evaluation.base_logits import BaseLogits, Chunks, bos_of, chunks_of, encoded, write_base
from jambacli.evaluation.kl import by_position, by_text, compare, statistics
from tests.support.small_models import small_file

TEXT = "herons counted at the lake: 42. the quick brown fox jumps over the lazy dog. " * 6
CTX = 32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Jamba]:
    folder = tmp_path_factory.mktemp("base")
    return {kind: Jamba.load(small_file(folder, kind)) for kind in ("q8_0", "q2_k")}


@pytest.fixture(scope="module")
def chunks(models: dict[str, Jamba]) -> Chunks:
    return chunks_of(models["q8_0"], TEXT, CTX, 3 * CTX)


@pytest.fixture(scope="module")
def saved(models: dict[str, Jamba], chunks: Chunks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.kld"
    write_base(path, models["q8_0"], chunks)
    return path


def test_a_text_is_cut_into_whole_chunks_of_which_the_second_half_is_scored(models: dict[str, Jamba]) -> None:
    model = models["q8_0"]
    chunks = chunks_of(model, TEXT + "\n", CTX)
    start = [model.tokenizer.bos_id] if model.tokenizer.add_bos else []
    ids = [*start, *model.tokenizer.encode(TEXT)]
    assert [i for row in chunks.ids for i in row] == ids[: len(chunks.ids) * CTX]
    assert len(ids) - len(chunks.ids) * CTX < CTX
    window = chunks.windows(7)[1]
    assert window.ids == [7, *ids[CTX + 1 : 2 * CTX]] and window.first == CTX // 2 + 1
    assert chunks.windows(None)[1].ids == ids[CTX : 2 * CTX]
    with pytest.raises(JambaError, match="fewer than one window of 4096"):
        chunks_of(model, TEXT, 4096)


def test_what_is_read_is_what_was_written(saved: Path, models: dict[str, Jamba], chunks: Chunks) -> None:
    model, base = models["q8_0"], BaseLogits(saved)
    assert base.chunks == chunks and base.n_vocab == model.config.vocab_size
    window = chunks.windows(bos_of(model))[2]
    expected = model.logits(window.ids[:-1], kv_type="f16")[window.first - 1 :].double().log_softmax(-1)
    got = base.log_probabilities(2, 0, len(expected))
    span = (expected.amax(-1) - expected.amin(-1)).clamp_max(16.0)
    assert bool(((got - expected).abs() <= span[:, None] / 65535 + 1e-6).all())
    assert torch.equal(base.log_probabilities(2, 3, 4), got[3:7])


def test_a_wide_row_keeps_sixteen_nats() -> None:
    row = torch.tensor([[0.0, -5.0, -15.9, -16.1, -40.0]])
    out = encoded(row, "it")
    assert out.shape == (1, 4 + 6) and out[0, 4] == 65535 and out[0, 7] == out[0, 8] == 0
    flat = encoded(torch.zeros(1, 4), "it")
    assert not flat[0, 4:].any() and flat[0, :2].view("<f4")[0] == 0
    with pytest.raises(JambaError, match="not finite"):
        encoded(torch.tensor([[0.0, float("nan")]]), "it")


def test_a_comparison_with_the_file_is_one_with_the_model(saved: Path, models: dict[str, Jamba]) -> None:
    base = BaseLogits(saved)
    windows = base.chunks.windows(bos_of(models["q8_0"]))
    far = statistics(compare(models["q2_k"], base, windows))
    direct = statistics(compare(models["q2_k"], models["q8_0"], windows))
    assert far.mean == pytest.approx(direct.mean, rel=1e-3, abs=1e-6)
    assert far.ln_ratio == pytest.approx(direct.ln_ratio, rel=1e-3, abs=1e-5)
    assert far.rms_p == pytest.approx(direct.rms_p, rel=1e-3)
    assert abs(statistics(compare(models["q8_0"], base, windows)).mean) < 1e-6


def test_figures_by_text_and_by_position_are_parts_of_the_whole(saved: Path, models: dict[str, Jamba]) -> None:
    base = BaseLogits(saved)
    figures = compare(models["q2_k"], base, base.chunks.windows(bos_of(models["q8_0"])))
    total = statistics(figures)
    texts = by_text(figures, [1, 2])
    assert [row.tokens for row in texts] == [CTX // 2 - 1, CTX - 2]
    assert sum(r.mean * r.tokens for r in texts) == pytest.approx(total.mean * total.tokens)
    ranges = by_position(figures)
    assert ranges[0].first == CTX // 2 + 1 and ranges[-1].last == CTX - 1
    assert [r.first for r in ranges[1:]] == [r.last + 1 for r in ranges[:-1]]
    assert sum(r.divergence.mean * r.divergence.tokens for r in ranges) == pytest.approx(total.mean * total.tokens)


def changed(saved: Path, target: Path, offset: int, value: bytes) -> Path:
    raw = bytearray(saved.read_bytes())
    raw[offset : offset + len(value)] = value
    target.write_bytes(raw)
    return target


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, b"GGUF", "does not begin with _logits_"),
        (8, struct.pack("<i", -1), "n_ctx is -1"),
        (8, struct.pack("<i", 1 << 30), "n_ctx is"),
        (12, struct.pack("<i", 0), "n_vocab is 0"),
        (12, struct.pack("<i", 1 << 23), "cut off"),
        (16, struct.pack("<i", 0), "0 windows"),
        (16, struct.pack("<i", -5), "-5 windows"),
        (16, struct.pack("<i", (1 << 31) - 1), "cut off"),
        (20, struct.pack("<i", 1 << 20), "outside the vocabulary"),
        (20, struct.pack("<i", -2), "outside the vocabulary"),
    ],
)
def test_a_damaged_header_is_named(saved: Path, tmp_path: Path, offset: int, value: bytes, said: str) -> None:
    with pytest.raises(BadFileError, match=said):
        BaseLogits(changed(saved, tmp_path / "bad.kld", offset, value))


def test_damaged_rows_are_named(saved: Path, chunks: Chunks, tmp_path: Path) -> None:
    rows = 20 + 4 * CTX * len(chunks.ids)
    for value, said in (
        (struct.pack("<2f", float("nan"), -1), "not a valid number"),
        (struct.pack("<2f", -1.0, -1.0), "not a valid number"),
        (struct.pack("<2f", 1.0, -1.0), "above 1"),
    ):
        base = BaseLogits(changed(saved, tmp_path / "bad.kld", rows, value))
        with pytest.raises(BadFileError, match=said):
            base.log_probabilities(0, 0, 1)


def test_files_that_end_early_and_other_kinds_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.kld"
    for size in (0, 7, 19, 40, saved.stat().st_size - 1):
        path.write_bytes(saved.read_bytes()[:size])
        with pytest.raises(BadFileError):
            BaseLogits(path)
    for other in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(JambaError, match="cannot read"):
            BaseLogits(other)


def test_errors_of_figures_are_those_of_their_definitions(saved: Path, models: dict[str, Jamba]) -> None:
    base = BaseLogits(saved)
    figures = compare(models["q2_k"], base, base.chunks.windows(bos_of(models["q8_0"])))
    got, n = statistics(figures), len(figures.kl)
    assert got.mean_error == pytest.approx(np.sqrt((np.mean(figures.kl**2) - got.mean**2) / (n - 1)))
    assert got.rms_p == pytest.approx(np.sqrt(np.mean(figures.p_change**2)))
    covariance = np.cov(figures.nll, figures.reference_nll) / n
    assert got.ln_ratio_error == pytest.approx(np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    assert got.ratio == pytest.approx(np.exp(got.nll - got.reference_nll))
