"""The order of the GPU check's parts, what is skipped after a wrong kernel, another Python, and a cache that grows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jambacli.gpu_check import needs, parity, speed, suite
from jambacli.gpu_check.models import models
from jambacli.gpu_check.report import markdown
from jambacli.gpu_check.results import Suite
from jambacli.gpu_check.suite import PARTS, REPEATED, CheckOptions, all_good, run_in_workers
from jambacli.hardware import nvml
from jambacli.kernels.triton.repack import LAYOUTS

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

CPU = torch.device("cpu")
# Notes what it is asked for, and finds one kernel wrong.
_WORKER = """
import json, sys
out, parts, wrong, python = sys.argv[1:5]
found = {"failed": [], "ended": True, "asked": [[parts, wrong, python]]}
if parts == "kernels":
    found["kernels"] = [{"case": "gemv q8_0", "error": 1.0, "tolerance": 0.1, "ok": False}]
open(out, "w").write(json.dumps(found))
"""


def test_every_case_belongs_to_a_kernel() -> None:
    known = {kernel for _, kernel in needs._BEGINNINGS} | {*needs.ROUNDED}
    names = [case.name for case in (*parity.cases(), *parity.device_cases())]
    found = [needs.kernel_of(name) for name in names]
    assert {name.rpartition(" ")[0] if name.split()[-1] in LAYOUTS else name for name in found} == known
    assert needs.kernel_of("real size: norm q4_k, 4 rows a thread, 2 warps") == "gemv q4_k"
    assert needs.kernel_of("twenty times 40 rows times q6_k in bf16, gated") == "gemm q6_k"
    assert needs.kernel_of("real size: experts of 40 tokens in bf16") == "experts"
    assert needs.kernel_of("real size: int8 norm q4_k, 4 rows a thread, 2 warps") == "int8 q4_k"
    assert needs.kernel_of("experts one token i8") == "experts step i8"
    assert needs.kernel_of("scan step, 96 of dt in q8_0") == "scan step"
    used = {*needs.DECODE, *needs.PREFILL, *needs.DECODE_EXPERTS, *needs.PREFILL_EXPERTS}
    assert used <= known


def test_a_wrong_kernel_blocks_what_uses_it_with_the_same_format() -> None:
    rows = [{"case": "gemv q8_0", "ok": False}, {"case": "scan 1x6", "ok": False}, {"case": "gemv q4_k", "ok": True}]
    wrong = needs.wrong_kernels(rows)
    assert wrong == ["gemv q8_0", "scan"]
    assert needs.blocked_by(("gemv",), ("q4_k", "q6_k"), wrong) is None
    assert needs.blocked_by(("gemv",), ("q4_k", "q8_0"), wrong) == "gemv q8_0"
    assert needs.blocked_by(("scan",), (), wrong) == "scan"


def test_after_three_wrong_cases_the_others_of_a_kernel_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [parity.Case(f"gemv q4_k {i}", 0.1, lambda device: 1.0) for i in range(9)]
    cases += [parity.Case("gemv q8_0", 0.1, lambda device: 0.0)]
    monkeypatch.setattr(parity, "cases", lambda: iter(cases))
    kept = Suite(tmp_path / "r.json", 100.0, False)
    suite._kernels(kept, CPU)
    assert [row["case"] for row in kept.results["kernels"]] == [*(f"gemv q4_k {i}" for i in range(3)), "gemv q8_0"]
    assert kept.results["no_room"] == [
        {"step": "further cases of gemv q4_k", "reason": "the kernel 'gemv q4_k' is wrong"}
    ]
    assert json.loads((tmp_path / "r.json").read_text())["kernels"] == kept.results["kernels"]


def test_models_and_measurements_without_a_wrong_kernel_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Suite(tmp_path / "r.json", 100.0, True)
    models(kept, CPU, wrong=["gemv q8_0"])
    assert kept.results["models"] == []
    assert len(kept.results["no_room"]) == 2
    monkeypatch.setattr(speed, "_prefill", lambda *a: {"test": "prefill"})
    monkeypatch.setattr(speed, "_decode", lambda *a: pytest.fail("decode was measured with a wrong kernel"))
    monkeypatch.setattr(speed, "put_on_gpu", lambda *a: SimpleNamespace())
    speed.bench(kept, CPU, ["tiny"], ["q8_0"], ["gemv q8_0"])
    assert [row["test"] for row in kept.results["bench"]] == ["prefill", "prefill"]
    assert kept.results["no_room"][-1]["step"] == "tiny q8_0 decode"
    assert kept.results["failed"] == []


def workers(tmp_path: Path, options: CheckOptions) -> dict[str, Any]:
    def command(chosen: CheckOptions, out: Path, failure: str | None) -> list[str]:
        assert failure is None
        python = "other" if chosen.also else "own"
        return [sys.executable, "-c", _WORKER, str(out), ",".join(chosen.parts), ",".join(chosen.wrong), python]

    return run_in_workers(options, tmp_path / "r.json", command)


def test_parts_run_in_order_and_later_ones_know_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    monkeypatch.setattr(suite.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(suite, "_cannot_run", lambda python: None)
    results = workers(tmp_path, CheckOptions(also="/other/python"))
    assert [parts for parts, _, _ in results["asked"]] == [
        "rates", "kernels", "warm", "products", "models", "bench,growth,gemv,limits,rest"
    ]  # fmt: skip
    assert {part for parts, _, _ in results["asked"] for part in parts.split(",")} == {*PARTS, "warm"}
    assert [wrong for _, wrong, _ in results["asked"]] == ["", "", "", *["gemv q8_0"] * 3]
    assert results["also"]["asked"] == [[",".join(REPEATED), "", "other"]]
    assert not all_good(results)
    assert json.loads((tmp_path / "r.json").read_text())["also"] == results["also"]


def test_another_python_that_does_not_start_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    results = workers(tmp_path, CheckOptions(parts=("rates",), also=str(tmp_path / "python")))
    assert [item["step"] for item in results["failed"]] == [f"--also {tmp_path / 'python'}"]
    assert "No such file" in results["failed"][0]["error"]
    assert results["asked"] == [["rates", "", "own"]]


def test_a_part_takes_its_share_of_the_time(tmp_path: Path) -> None:
    kept = Suite(tmp_path / "r.json", 100.0, False)
    kept.begin_part(0.3)
    assert 29 < kept.left <= 30
    kept.begin_part(1.0)
    assert 99 < kept.left <= 100


def test_a_step_is_split_into_kernels_and_gaps() -> None:
    found = speed.kernel_times([("b", 12.0, 15.0), ("a", 0.0, 4.0), ("b", 5.0, 11.0), ("c", 14.0, 16.0)])
    assert found == {"kernels": {"a": [1, 4.0], "b": [2, 9.0], "c": [1, 2.0]}, "span": 16.0, "gaps": 2.0}
    assert speed.kernel_times([]) == {"kernels": {}, "span": 0.0, "gaps": 0.0}


def test_the_page_shows_products_growth_and_the_other_python() -> None:
    row = {"format": "q4_k", "kind": "norm", "way": "interleaved", "rows": 4, "rate": 5e11}
    grown = {"test": "logits around a growth", "ok": False, "error": 0.5, "old_caches_held": 2}
    step = {"model": "jamba-3b q4_k_m", "kernels": {"a": [3, 4.0]}, "span": 9.0, "gaps": 5.0}
    one = {"failed": [], "skipped": [], "products": [row]}
    page = markdown({**one, "growth": [grown], "steps": [step], "also": {**one, "machine": {"name": "H200 again"}}})
    assert "| q4_k, norm, interleaved |  |  | 500.0 |" in page
    assert "logits around a growth: FAILED (error 5.0e-01, 2 old caches held)" in page
    assert "one step of jamba-3b q4_k_m: 3 kernels, 9 us, 5 of them in gaps" in page
    assert page.index("The same with another Python") < page.index("# H200 again")


def test_a_worker_gets_what_its_command_line_says(tmp_path: Path) -> None:
    from jambacli.gpu_check import __main__ as command

    options = CheckOptions(parts=("bench", "growth"), formats=("q4_k",), wrong=("gemv q8_0", "scan"), budget=70.0)
    line = command._worker_command(options, tmp_path / "r.json", "it hung")
    assert line[0] == sys.executable
    parsed = command._parser().parse_args(line[3:])
    assert parsed.failure == "it hung"
    assert command._options(parsed) == options
    other = command._worker_command(CheckOptions(formats=("q4_k",), also="/other/python"), tmp_path / "r.json", None)
    assert other[0] == "/other/python"
    assert "--also" not in other
