"""The GPU suite's bookkeeping: parts that fail or no longer fit, the page it makes, and refusing without a card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jambacli.evaluation.gpu_estimate import CARDS, kernels
from jambacli.evaluation.gpu_report import markdown
from jambacli.evaluation.gpu_suite import Suite, main
from jambacli.evaluation.synthetic import shape_config, synthetic_bytes


def test_a_failing_part_is_listed_and_the_others_stay(tmp_path: Path) -> None:
    suite = Suite(tmp_path / "deep" / "r.json", 100.0, True)

    def broken() -> None:
        raise RuntimeError("the card fell off\nand more")

    assert suite.attempt("first", 1, lambda: 7) == 7
    assert suite.attempt("second", 1, broken) is None
    assert suite.attempt("third", 1e6, lambda: 8) is None
    suite.results["kernels"] = [{"case": "gemv q4_k", "error": 0.5, "tolerance": 1e-5, "ok": False}]
    suite.save()
    kept = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert kept["failed"][0]["step"] == "second"
    assert kept["failed"][0]["error"] == "RuntimeError: the card fell off"
    assert kept["skipped"] == ["third"]
    page = markdown(kept)
    assert "FAILED second: RuntimeError: the card fell off" in page
    assert "skipped for lack of time: third" in page
    assert "FAILED gemv q4_k: error 5.00e-01 over 1e-05" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "there is no CUDA card" in capsys.readouterr().err


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0"])
def test_the_estimate_reads_every_weight_once(quant: str) -> None:
    config = shape_config("jamba-3b")
    listed = kernels(config, quant, 0)
    read = sum(k.count * k.nbytes for k in listed)
    assert 0.98 * synthetic_bytes(config, quant) < read < 1.08 * synthetic_bytes(config, quant)
    assert sum(k.count for k in listed) == 3 + 26 * 7 + 2 * 9 + 1
    slow, fast = (sum(k.count * k.seconds(card) for k in listed) for card in CARDS)
    assert fast < slow
    assert slow > read / CARDS[0].bandwidth


def test_a_deep_context_costs_the_reading_of_its_keys() -> None:
    config = shape_config("jamba-mini")
    shallow, deep = (sum(k.count * k.nbytes for k in kernels(config, "q4_k_m", depth)) for depth in (0, 262080))
    kv = config.kv_bytes_per_token("f16") * 262080
    assert kv < deep - shallow < 1.1 * kv
