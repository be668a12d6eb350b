"""The C++ libraries under sanitizers: the tests of kernels and block formats, at every instruction set of this machine.

Building the libraries takes ten minutes the first time, half an hour on a busy machine; objects are kept in build/native.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from quant.native import build
from tests.support.repository import REPO

#: What runs under address and undefined: all that the libraries export. Under thread: the steps of decode, in teams.
MEMORY = [
    *("kernels/test_cpu_decode.py", "kernels/test_cpu_decode_steps.py", "kernels/test_cpu_prefill.py"),
    *("kernels/test_attention.py", "kernels/test_conv.py", "kernels/test_scan.py", "model/test_spans.py"),
    *(
        "quant/test_iq4.py",
        "quant/test_k_quants.py",
        "quant/test_legacy.py",
        "quant/test_fp4.py",
        "quant/test_api.py",
    ),
]
THREADS = ["kernels/test_cpu_decode_steps.py", "model/test_spans.py"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="the sanitizers' runtimes are preloaded as on Linux"
    ),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"),
]


def run_under(sanitize: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the libraries of a sanitizer, which are built first. Skips where its runtime is missing."""
    try:
        environment = build.sanitizer_environment(sanitize)
        for name in build.DEFAULT:
            build.build(name, sanitize=sanitize)
    except build.BuildError as error:
        pytest.skip(str(error))
    return subprocess.run(
        (sys.executable, *arguments),
        env={**os.environ, **environment, "PYTHONPATH": str(REPO)},
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )


def run_tests(sanitize: str, modules: list[str]) -> None:
    """Those test modules, but for their slow tests, under a sanitizer."""
    paths = [f"tests/{name}" for name in modules]
    marks = ("-m", "not slow and not gpu and not peer")
    done = run_under(sanitize, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *marks, *paths)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50, done.stdout[-2000:]
    assert not re.search(r"runtime error|ERROR: AddressSanitizer|WARNING: ThreadSanitizer", done.stdout + done.stderr)


def test_nothing_is_read_or_written_out_of_bounds_and_nothing_is_undefined() -> None:
    run_tests("address,undefined", MEMORY)


def test_no_data_races_in_steps() -> None:
    run_tests("thread", THREADS)


def test_the_sanitized_library_is_the_one_that_runs() -> None:
    """A weight of 64 values is read as 4,096."""
    code = """if True:
        import torch
        from jambacli.kernels.cpu.library import built_library
        weight, x, out = torch.zeros(64), torch.zeros(1, 4096), torch.zeros(1, 4096)
        function = built_library().functions.prefill_rms_norm
        function(weight.data_ptr(), x.data_ptr(), 4096, out.data_ptr(), 1, 4096, 1e-5, 1)
    """
    done = run_under("address,undefined", "-c", code)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "rms_norm" in done.stderr
