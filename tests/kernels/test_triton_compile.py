"""Every Triton kernel compiles for common GPUs, without one: decode step and prefill of a whole tiny model."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from tests.support.triton_model import tiny_config, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

# In a process of its own: Triton chooses between compiler and interpreter when a kernel is defined.
_SCRIPT = """
import sys
import torch
from tests.kernels.test_triton_compile import compile_everything
compile_everything(int(sys.argv[1]), sys.argv[2])
"""


def compile_everything(capability: int, formats: str) -> None:
    """Compile everything that a model in a mixture of formats launches; prints one line per kernel."""
    from jambacli.kernels.triton import gemm, launch
    from jambacli.kernels.triton.attention import DecodeScratch, append, decode
    from jambacli.kernels.triton.launch import interpreted
    from jambacli.kernels.triton.scan import selective_scan
    from jambacli.runtime.cuda.load import put_on_gpu
    from jambacli.runtime.cuda.placement import Placement
    from tests.support.gpu_compile import compile_for

    assert not interpreted()
    dtype = torch.bfloat16 if capability >= 80 else torch.float16
    config = tiny_config()
    tensors = tiny_tensors(config, formats)
    for module in (launch, gemm):  # without a GPU
        module.capability = lambda device: divmod(capability, 10)  # type: ignore[attr-defined]
    with compile_for(capability) as done:
        plan = Placement(0, 0, 0, 0, frozenset(), 2)
        model = put_on_gpu(config, tensors.__getitem__, torch.device("cpu"), plan, dtype=dtype)
        # torch quantizes many tokens to q8_0, and would refuse the results of kernels that never ran.
        for kv_type, n in (("f16", 1), ("f16", 5), ("q8_0", 1)):
            model.forward(torch.zeros(n, dtype=torch.int64), model.new_state(64, kv_type))
        x = torch.zeros(300, 256)
        selective_scan(x, x, x[0], x[:256, :8], x[:, :8], x[:, :8], x[0], x, torch.zeros(256, 8))
        q, kv, at = torch.zeros(20, 128), torch.zeros(64, 1, 128, dtype=dtype), torch.zeros(1, dtype=torch.int32)
        append(q[0], q[0], kv, kv, at, 128)
        decode(q, kv, kv, at, DecodeScratch(20, 128, 64, q.device), torch.empty_like(q), dtype)
        wide = kv.float()
        decode(q, wide, wide, at, DecodeScratch(20, 128, 64, q.device), torch.empty_like(q), torch.float32)
    for kernel in done:
        print(kernel.name, kernel.shared, kernel.warps, len(kernel.asm["cubin"]))
        assert kernel.asm["cubin"]
        assert kernel.shared <= (48 << 10), kernel.name
        if kernel.name == "_split_vector_kernel":  # its tiles are in registers
            assert "STL" not in kernel.asm["sass"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "formats"), [(75, "small"), (80, "legacy"), (86, "float"), (90, "k"), (90, "int8")]
)
def test_every_kernel_compiles(capability: int, formats: str) -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _SCRIPT, str(capability), formats]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    names = {line.split()[0] for line in ran.stdout.splitlines()}
    assert {
        "_gemv_kernel",
        "_split_vector_kernel",
        "_step_kernel",
        "_up_kernel",
        "_down_kernel",
        "_chunk_kernel",
    } <= names
    assert ("_split_kernel" in names) == (capability >= 80)  # no matrix units for it on Turing


_PRODUCT = """
import torch
from jambacli.evaluation.synthetic import random_weight
from jambacli.gpu_check.parity import packed_on
from jambacli.kernels.triton.gemv import gemv
from tests.support.gpu_compile import compile_for
w = packed_on(random_weight("q4_k", (16, 2048)), torch.device("cpu"))
with compile_for(86) as done:
    gemv(torch.zeros(1, 2048), w, norm=torch.zeros(2048), eps=1e-6)
    gemv(torch.zeros(1, 2048), w, norm=torch.zeros(2048), eps=1e-6, interleaved=True, placed=16)
for kernel in done:
    ptx = kernel.asm["ptx"]
    print(ptx.count("ld.global.v4"), ptx.count("st.shared"), ptx.count("shfl"))
"""


def test_a_product_reads_wide_and_exchanges_nothing_in_its_loop() -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _PRODUCT]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    found = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(found) == 2  # with activations in their usual order, and in that of decode
    for wide, stores, shuffles in found:
        assert wide == 1 + 8 + 8  # a row's nibbles, x and the norm's weight
        # Only at the end, where warps combine their sums: the product and the squares, over warps and over eight threads each.
        assert stores <= 4
        assert shuffles <= 2 * (3 + 3) + 2


_ASYNCHRONOUS = """
import torch
from jambacli.evaluation.synthetic import random_weight
from jambacli.gpu_check.parity import packed_on
from jambacli.kernels.triton import gemm
from tests.support.gpu_compile import compile_for
gemm.capability = lambda device: (9, 0)
w = packed_on(random_weight("q4_k", (64, 2048)), torch.device("cpu"))
for version in ((3, 8), (3, 9)):
    gemm.triton_version = lambda: version
    with compile_for(90) as done:
        gemm.gemm(torch.zeros(40, 2048), w)
    print(done[0].asm["ptx"].count("wgmma.mma_async"))
"""


def test_where_the_compiler_may_reuse_registers_early_hopper_multiplies_synchronously() -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _ASYNCHRONOUS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    old, new = map(int, ran.stdout.split())
    assert old == 0
    assert new > 0


_WIDEST = """
import dataclasses, torch
from jambacli.evaluation.synthetic import random_weight
from jambacli.gpu_check.parity import packed_on
from jambacli.kernels.triton.gemm import gemm
from tests.support.gpu_compile import compile_for
for fmt in ("f32", "bf16"):
    # Nothing runs, so a few rows of planes are enough.
    w = dataclasses.replace(packed_on(random_weight(fmt, (8, 4096)), torch.device("cpu")), shape=(14336, 4096))
    with compile_for(86) as done:
        gemm(torch.zeros(64, 4096), w, up=w)
    print(done[0].shared)
"""


def test_the_widest_product_fits_into_the_shared_memory_of_small_gpus() -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _WIDEST]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    sizes = [int(line) for line in ran.stdout.split()]
    assert len(sizes) == 2
    assert max(sizes) <= 99 << 10


_LENGTHS = """
import torch
from jambacli.evaluation.synthetic import random_weight
from jambacli.gpu_check.parity import packed_on
from jambacli.kernels.triton.attention import DecodeScratch, append, decode
from jambacli.kernels.triton.conv import causal_conv
from jambacli.kernels.triton.dequant import embed
from jambacli.kernels.triton.gemm import gemm
from jambacli.kernels.triton.scan import selective_scan
from tests.support.gpu_compile import compile_for
cpu, half = torch.device("cpu"), torch.float16
w = packed_on(random_weight("q4_0", (64, 64)), cpu)
A, x, wide = torch.zeros(64, 16), torch.zeros(4096, 64), torch.zeros(4096, 128)
with compile_for(86) as done:
    for t in (2, 16, 17, 200, 300, 304, 4096):
        causal_conv(wide[:t, :64], A[:, :4], A[:, 0], torch.zeros(64, 3))
        selective_scan(x[:t], x[:t], x[0], A, x[:t, :16], x[:t, :16], x[0], wide[:t, 64:], A.clone())
        embed(torch.zeros(t, dtype=torch.int64), w)
    for t in (2, 3, 16):
        gemm(x[:t], w, dtype=half)
    for capacity in (256, 512, 1000, 4096, 8192):
        k, q = torch.zeros(capacity, 1, 64, dtype=half), torch.zeros(4, 64)
        at = torch.zeros(1, dtype=torch.int32)
        append(q[0], q[0], k, k, at, 64)
        decode(q, k, k, at, DecodeScratch(4, 64, capacity, cpu), torch.empty_like(q), half)
for kernel in done:
    print(kernel.name, kernel.asm["ptx"].count("ld.global.v4"))
"""


def test_other_lengths_of_prompt_and_context_compile_nothing_new() -> None:
    import subprocess
    import sys
    from collections import Counter

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _LENGTHS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.split() for line in ran.stdout.splitlines()]
    # The scan's runs with and without outputs; its way of joining chunks and attention's of joining runs share a name.
    assert Counter(name for name, _ in lines) == {
        "_conv_kernel": 1, "_chunk_kernel": 2, "_join_kernel": 2, "_dequant_kernel": 1, "_gemm_kernel": 1,
        "_append_kernel": 1, "_split_kernel": 1,
    }  # fmt: skip
    # Unspecialized arguments do not make loads narrower.
    wide = {"_conv_kernel", "_chunk_kernel", "_join_kernel", "_dequant_kernel", "_split_kernel"}
    assert all(int(count) > 0 for name, count in lines if name in wide), lines


_SCAN = """
import torch
from jambacli.kernels.triton.scan import selective_scan
from tests.support.gpu_compile import compile_for
x, bc = torch.zeros(300, 128), torch.zeros(300, 16)
with compile_for(86) as done:
    selective_scan(x, x, x[0], torch.zeros(128, 16), bc, bc, x[0], x, torch.zeros(128, 16))
for kernel in done:
    ptx = kernel.asm["ptx"]
    print(kernel.name, ptx.count("bar.sync"), ptx.count("st.shared"), ptx.count("shfl"), ptx.count("ld.global.v4"))
"""


def test_a_step_of_the_scan_exchanges_nothing_between_threads() -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _SCAN]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    found = {tuple(line.split()[:1] + line.split()[4:]): line.split()[1:4] for line in ran.stdout.splitlines()}
    # A and the state of a channel are sixteen values, four at a time; so are B and C of every step. The program that joins
    # chunks has four of them.
    assert set(found) == {("_chunk_kernel", "8"), ("_join_kernel", "3"), ("_chunk_kernel", "16")}
    assert set(map(tuple, found.values())) == {("0", "0", "0")}


_TILES = """
from types import SimpleNamespace
from jambacli.kernels.triton.launch import gemv_tile
for rows, values in ((10240, 2560), (2560, 5120), (192, 5120), (8192, 2560), (2560, 8192), (2560, 2560), (128, 2560),
                     (16384, 4096), (4096, 8192), (288, 8192), (14336, 4096), (4096, 14336), (1024, 4096)):
    tile = gemv_tile(SimpleNamespace(groups=values // 32), rows)
    turns = -(-values // 32 // (8 * tile.warps))
    print(rows, turns, tile.warps, -(-rows // tile.height) * tile.warps)
"""


def test_small_matrices_are_read_in_few_turns_and_large_ones_with_few_idle_warps() -> None:
    import subprocess
    import sys

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", _TILES], env=environment, capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    for rows, turns, _, warps in found:
        # A warp waits for memory once a turn: 3.35 TB/s leave time for three in a matrix of 4 to 8 MB.
        assert turns <= (7 if rows >= 4096 else 4), (rows, turns)
        # With enough rows, each of 132 multiprocessors has a few warps that take turns.
        assert warps >= (1024 if rows >= 1024 else 128), (rows, warps)
