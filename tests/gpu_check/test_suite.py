"""The bookkeeping of the GPU check: steps that fail or no longer fit, workers, the page, and refusing without a GPU."""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jambacli.evaluation.synthetic import shape_config, synthetic_bytes
from jambacli.evaluation.synthetic_gpu import GpuTensors
from jambacli.gpu_check import estimate, speed, suite
from jambacli.gpu_check.__main__ import main
from jambacli.gpu_check.estimate import GPUS, kernels
from jambacli.gpu_check.models import SHAPE, against
from jambacli.gpu_check.report import markdown
from jambacli.gpu_check.results import DeviceLostError, Suite
from jambacli.gpu_check.suite import CheckOptions
from jambacli.gpu_check.workers import LOST, Job, merged, watch
from jambacli.hardware import nvml
from jambacli.kernels.triton.repack import LAYOUTS
from jambacli.model.config import JambaConfig
from jambacli.runtime.loader import build
from quant.formats import QTensor

_CPU = torch.device("cpu")


def test_a_failing_step_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    suite = Suite(tmp_path / "deep" / "r.json", 100.0, True)

    def broken() -> None:
        raise RuntimeError("the GPU fell off\nand more")

    assert suite.attempt("first", 1, lambda: 7) == 7
    assert suite.attempt("second", 1, broken) is None
    assert suite.attempt("third", 1e6, lambda: 8) is None
    suite.results["kernels"] = [{"case": "gemv q4_k", "error": 0.5, "tolerance": 1e-5, "ok": False}]
    suite.save()
    kept = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert kept["failed"][0]["step"] == "second"
    assert kept["failed"][0]["error"] == "RuntimeError: the GPU fell off"
    assert kept["skipped"] == ["third"]
    page = markdown(kept)
    assert "FAILED second: RuntimeError: the GPU fell off" in page
    assert "skipped for lack of time: third" in page
    assert "FAILED gemv q4_k: error 5.00e-01 over 1e-05" in page


def test_models_that_do_not_fit_are_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 8 GB holds the 3B model; Mini is too big with its context, or its experts are too big for RAM."""
    suite = Suite(tmp_path / "r.json", 100.0, False)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(speed, "GpuTensors", lambda config, quant, device: GpuTensors(config, quant, _CPU))
    monkeypatch.setattr(speed, "free_memory", lambda device: 8 * 10**9)
    monkeypatch.setattr(speed, "devices", lambda: [SimpleNamespace(available=16 * 10**9)])
    monkeypatch.setattr(speed, "put_on_gpu", lambda *args, **options: pytest.fail("the model was made"))
    rows: list[dict[str, object]] = []
    mini, small = shape_config("jamba-mini"), shape_config("jamba-3b")
    speed._model(suite, rows, gpu, "jamba-mini", mini, "q4_k_m", speed.MOST)
    speed._model(suite, rows, gpu, "jamba-mini", mini, "q4_k_m", speed.Plan((0,), (), limit=24 * 10**9))
    reasons = {item["step"]: item["reason"] for item in suite.results["no_room"]}
    assert "on the GPU even with all experts in RAM" in reasons["jamba-mini q4_k_m"]
    assert reasons["jamba-mini q4_k_m in 24 GB"] == "the GPU has 8 GB free"
    monkeypatch.setattr(speed, "free_memory", lambda device: 24 * 10**9)
    speed._model(suite, rows, gpu, "jamba-mini", mini, "q8_0", speed.MOST)
    assert "of experts would stay in RAM, of which 16 GB is free" in suite.results["no_room"][-1]["reason"]
    make = GpuTensors(small, "q4_k_m", _CPU)
    assert speed._plan_or_skip(suite, "small", small, make, 262144, "f16", gpu, None) is not None
    assert rows == suite.results["failed"] == []
    assert "- skipped jamba-mini q4_k_m in 24 GB: the GPU has 8 GB free" in markdown(suite.results)


def test_as_many_workers_compile_as_fit_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    options = CheckOptions()
    counts = []
    for gigabytes in (8, 24, 48, 80):
        gpu = SimpleNamespace(free=gigabytes * 10**9)
        monkeypatch.setattr(nvml, "gpus", lambda gpu=gpu: [gpu])
        counts.append(suite._concurrent_warm_ups(options))
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] > 1
    assert counts[-1] * max(speed.warm_bytes("jamba-mini", quant) for quant in ("q8_0", "experts_int8")) < 80 * 10**9


def test_a_second_process_goes_on_after_the_step_that_ended_the_first(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    first = Suite(out, 100.0, False)
    assert first.attempt("rates", 1, lambda: 7) == 7
    assert first.begin("gemv q4_k", 1)  # and it never ends
    second = Suite(out, 100.0, False)
    second.resume("the process ended with status -11")
    ran: list[str] = []
    for name in ("rates", "gemv q4_k", "gemv q8_0"):
        second.attempt(name, 1, functools.partial(ran.append, name))
    assert ran == ["gemv q8_0"]
    kept = json.loads(out.read_text())
    assert kept["failed"] == [{"step": "gemv q4_k", "error": "the process ended with status -11"}]
    assert kept["skipped"] == []


def test_a_lost_gpu_ends_the_process_but_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    suite = Suite(tmp_path / "r.json", 100.0, False)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        suite.attempt("first", 1, broken)
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["done"] == ["first"]
    assert kept["failed"][0]["step"] == "first"


_WORKER = """
import json, os, sys, time
out, what = sys.argv[1:3]
failure = sys.argv[3] if len(sys.argv) > 3 else None
found = {"failed": [], "gemv": [1], "running": "second", "patience": 0.5}
if failure is None:
    open(out, "w").write(json.dumps(found))
    if what == "crashes":
        os.abort()
    if what == "hangs":
        time.sleep(60)
    if what == "loses its GPU":
        sys.exit(75)
open(out, "w").write(json.dumps(found | {"gemv": [1, 2], "failed": [failure] if failure else [], "ended": True}))
"""


def test_workers_that_crash_or_hang_are_restarted_with_the_reason(tmp_path: Path) -> None:
    kinds = ("crashes", "hangs", "loses its GPU", "works")
    places = [tmp_path / f"{i}.json" for i in range(len(kinds))]

    def worker(place: Path, kind: str) -> Job:
        command = [sys.executable, "-c", _WORKER, str(place), kind]
        return Job(lambda left, failure: command if failure is None else [*command, failure], place)

    jobs = [worker(place, kind) for place, kind in zip(places, kinds, strict=True)]
    assert LOST == 75
    watch(jobs, time.monotonic() + 60, lambda: None, pause=0.05)
    assert [job.starts for job in jobs] == [2, 2, 2, 1]
    results = merged(job.results() for job in jobs)
    assert results["gemv"] == [1, 2] * 4
    assert results["failed"][0].startswith("the process ended with status")
    assert results["failed"][1].startswith("there was no sign of progress for")
    assert len(results["failed"]) == 2
    assert "ended" not in results


def test_when_the_time_is_up_workers_are_stopped_and_their_results_kept(tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    place.write_text(json.dumps({"gemv": [1], "running": "second", "patience": 60}))
    job = Job(lambda left, failure: [sys.executable, "-c", "import time; time.sleep(60)"], place)
    watch([job], time.monotonic() + 0.3, lambda: None, pause=0.05)
    assert job.process is not None
    assert job.process.poll() is not None
    assert job.results()["gemv"] == [1]
    assert job.results()["failed"] == [{"step": "x: second", "error": "the time was up"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "there is no CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0"])
def test_the_estimate_reads_every_weight_once(quant: str) -> None:
    config = shape_config("jamba-3b")
    listed = kernels(config, quant, 0)
    read = sum(k.count * k.nbytes for k in listed)
    assert 0.98 * synthetic_bytes(config, quant) < read < 1.08 * synthetic_bytes(config, quant)
    assert sum(k.count for k in listed) == 3 + 26 * 6 + 2 * 9 + 1
    times = [sum(k.count * k.seconds(gpu) for k in listed) for gpu in GPUS]
    assert times == sorted(times, reverse=True)
    assert times[0] > read / GPUS[0].bandwidth
    # A cache that serves the quarters of a warp one after another does not limit these GPUs; bank conflicts would.
    slow, conflicts = ([sum(k.count * k.seconds(gpu, n) for k in listed) for gpu in GPUS] for n in (4, 32))
    assert slow[-1] == times[-1]
    assert conflicts[-1] > 1.5 * times[-1]


def test_the_estimate_knows_formats_that_were_not_counted_or_have_no_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape_config("jamba-3b")
    assert estimate.instructions("mxfp4") == estimate.INSTRUCTIONS["iq4_xs"]  # 4.25 bits both
    monkeypatch.delitem(LAYOUTS, "q4_k")
    read = sum(k.count * k.nbytes for k in kernels(config, "q4_k_m", 0))
    assert read > 2 * synthetic_bytes(config, "q4_k_m")  # most weights are f16 on the GPU


def test_the_comparison_accepts_bf16_rounding_and_rejects_a_lost_state() -> None:
    from jambacli.kernels import reference, reference_ops

    def rounded(x: torch.Tensor, w: QTensor) -> torch.Tensor:
        if len(x) == 1:
            return reference.linear(x, w)
        return x.bfloat16().float() @ reference.dequantize(w).bfloat16().float().T

    def loses_the_state(*arguments: torch.Tensor) -> torch.Tensor:
        y = reference.selective_scan(*arguments)
        arguments[-1].zero_()
        return y

    config = JambaConfig.from_hf(SHAPE)
    make = GpuTensors(config, "q8_0", torch.device("cpu"))
    tensors = {name: make(name) for name in make.shapes()}
    exact = reference_ops()
    cpu, near, wrong = (
        build(config, tensors.__getitem__, ops=ops)
        for ops in (exact, replace(exact, linear=rounded), replace(exact, selective_scan=loses_the_state))
    )
    found = against(cpu, near, 20, 10, 10)
    assert found["ok"]
    assert found["prefill_error"] > 0
    assert not against(cpu, wrong, 20, 10, 10)["ok"]


def test_a_deep_context_costs_reading_its_keys_and_values() -> None:
    config = shape_config("jamba-mini")
    shallow, deep = (sum(k.count * k.nbytes for k in kernels(config, "q4_k_m", depth)) for depth in (0, 262080))
    kv = config.kv_bytes_per_token("f16") * 262080
    assert kv < deep - shallow < 1.1 * kv
