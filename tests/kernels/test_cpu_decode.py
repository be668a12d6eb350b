"""Products of a few tokens on every instruction set this machine has, against sums over the gguf package's values."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from jambacli.kernels import cpu
from quant import dequantize, quantize
from quant.formats import QTensor, get_format
from tests.support.isa_levels import runnable_levels
from tests.support.repository import REPO
from tests.support.weights import NATIVE, random_weight, values

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built here")

FLOATS = ("f32", "f16", "bf16")
BLOCKS_32 = tuple(name for name in NATIVE if get_format(name).block == 32)
BLOCKS_256 = tuple(name for name in NATIVE if get_format(name).block == 256)
LEVELS = runnable_levels(cpu.library())


def weight(fmt: str, *shape: int) -> tuple[QTensor, torch.Tensor]:
    """A random weight and its exact values, float64."""
    w = random_weight(fmt, shape)
    return w, values(w).double()


def run_linear(x: torch.Tensor, w: QTensor, threads: int, *, precise: bool = True) -> torch.Tensor:
    """decode.linear on a given number of threads."""
    from jambacli.kernels.cpu import decode

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return decode.linear(x, w, precise=precise)
    finally:
        torch.set_num_threads(before)


def tokens(m: int, n: int) -> torch.Tensor:
    """Activations with outliers, as real ones have."""
    generator = torch.Generator().manual_seed(m * 100003 + n)
    x = torch.randn(m, n, generator=generator)
    return x * (1 + 20 * (torch.rand(m, n, generator=generator) < 0.01))


def compare_with_ggml_s_activations(fmt: str, w: QTensor, exact: torch.Tensor, most: float) -> None:
    """int8 activations give at most ``most`` times the error that ggml's give, precise ones a fiftieth."""
    m, n = 64, w.shape[1]
    x = tokens(m, n).double()
    group = 256 if fmt in BLOCKS_256 else 32
    groups = x.view(m, -1, group)
    step = groups.abs().amax(-1, keepdim=True) / 127
    theirs = (groups / step).round() * (step if group == 256 else step.half().double())
    expected = x @ exact.T
    their_error = (theirs.reshape(m, n) @ exact.T - expected).norm()
    precise, fast = (run_linear(x.float(), w, 1, precise=mode).double() for mode in (True, False))
    assert (precise - expected).norm() <= 0.02 * their_error
    assert (fast - expected).norm() <= most * their_error


def lengths(fmt: str) -> list[int]:
    if fmt in BLOCKS_256:
        return [256, 1280]
    return [32, 160, 288, 1024] if fmt in BLOCKS_32 else [1, 33, 300, 1024]


@pytest.mark.parametrize("fmt", NATIVE)
def test_products_stay_within_the_rounding_of_activations(isa: str, fmt: str) -> None:
    """Every output within what rounding each 32 activations to 15 bits can cost; float weights lose nothing at all."""
    for n in lengths(fmt):
        w, exact = weight(fmt, 37, n)
        x = tokens(17, n)
        y = run_linear(x, w, 2).double()
        expected = x.double() @ exact.T
        rounding = 1e-6 * (x.double().abs() @ exact.abs().T)
        if fmt not in FLOATS:
            padded = torch.nn.functional.pad(x.double().abs(), (0, -n % 32)).view(17, -1, 32)
            step = (padded.amax(-1, keepdim=True) / (127 * 128)).expand_as(padded).reshape(17, -1)[:, :n]
            rounding = 20 * rounding + (step / 2) @ exact.abs().T
        assert ((y - expected).abs() <= rounding).all(), (fmt, n)


@pytest.mark.parametrize("fmt", NATIVE)
def test_products_with_int8_stay_within_the_rounding_of_activations(isa: str, fmt: str) -> None:
    """The step of a group is its largest value over 127; for formats of 256 values the least multiple, of up to 127, of the
    256 values' step with which the group fits 127 levels."""
    for n in lengths(fmt):
        w, exact = weight(fmt, 37, n)
        x = tokens(17, n)
        y = run_linear(x, w, 2, precise=False).double()
        expected = x.double() @ exact.T
        if fmt in FLOATS:
            assert torch.equal(y, run_linear(x, w, 2, precise=True).double())
            continue
        padded = torch.nn.functional.pad(x.double().abs(), (0, -n % 256)).view(17, -1, 8, 32)
        tops = padded.amax(-1)
        unit = tops.amax(-1, keepdim=True) / 127
        levels = (tops / unit - 1e-6).ceil() * unit if fmt in BLOCKS_256 else tops
        step = (levels / 127)[..., None].expand_as(padded).reshape(17, -1)[:, :n]
        rounding = 2e-5 * (x.double().abs() @ exact.abs().T) + (step / 2) @ exact.abs().T
        assert ((y - expected).abs() <= rounding).all(), (fmt, n)


@pytest.mark.parametrize("precise", (True, False), ids=("precise", "int8"))
@pytest.mark.parametrize("fmt", NATIVE)
def test_a_value_that_is_no_number_makes_all_products_of_its_token_so(isa: str, fmt: str, precise: bool) -> None:
    """A damaged weight must end in an error, not in a rounded activation."""
    w, _ = weight(fmt, 37, 768)
    x = tokens(9, 768)
    x[2, 40], x[5, 700], x[8] = float("nan"), float("inf"), float("nan")
    for m in (1, 3, 9):
        good = run_linear(x[9 - m :].contiguous(), w, 2, precise=precise).isfinite()
        assert not good[[t + m - 9 for t in (2, 5, 8) if t >= 9 - m]].any(), m
        assert good[[t + m - 9 for t in (0, 1, 3, 4, 6, 7) if t >= 9 - m]].all(), m


def test_sums_of_the_largest_integers_do_not_overflow(isa: str) -> None:
    """Every level and scale of the block at its largest, every activation too."""
    n = 512
    for fmt in BLOCKS_256:
        w = random_weight(fmt, (3, n))
        blocks = torch.full_like(w.data.view(-1, w.format.block_bytes), 0xFF)
        one = torch.tensor([1.0]).half().view(torch.uint8)
        for scales in (0x7F, 0x80) if fmt == "q6_k" else (0xFF,):
            for place in {"q6_k": [208], "q3_k": [108], "iq4_xs": [0], "q2_k": [80, 82]}.get(fmt, [0, 2]):
                blocks[:, place : place + 2] = one
            if fmt == "q6_k":
                blocks[:, 192:208] = scales
            extreme = QTensor(blocks.flatten().clone(), w.format, w.shape)
            x = torch.ones(1, n)
            assert torch.allclose(run_linear(x, extreme, 1, precise=False), x @ values(extreme).T, rtol=1e-5), fmt


@pytest.mark.parametrize("fmt", (*BLOCKS_32, *BLOCKS_256))
def test_error_is_a_fraction_of_that_with_ggml_s_activations(isa: str, fmt: str) -> None:
    """ggml rounds activations to Q8_0 (an f16 factor per 32) or, for K-quants, with one factor per 256 values."""
    # Blocks of random bytes: those of Q4_1 and Q5_1 have large means.
    w, exact = weight(fmt, 64, 1024)
    compare_with_ggml_s_activations(
        fmt, w, exact, 0.9 if fmt in BLOCKS_256 else 0.65 if fmt in ("q4_1", "q5_1") else 1.0005
    )


@pytest.mark.parametrize("fmt", ("q4_1", "q5_1"))
def test_error_is_no_larger_than_with_ggml_s_activations_where_weights_have_no_means(isa: str, fmt: str) -> None:
    exact = torch.randn(256, 1024, generator=torch.Generator().manual_seed(4))
    data = quantize(exact, fmt)
    w = QTensor(data.flatten(), get_format(fmt), (256, 1024))
    compare_with_ggml_s_activations(fmt, w, dequantize(data, fmt).view(256, 1024).double(), 1.005)


@pytest.mark.parametrize("precise", (True, False), ids=("precise", "int8"))
@pytest.mark.parametrize("fmt", NATIVE)
def test_bits_do_not_depend_on_threads_or_company(isa: str, fmt: str, precise: bool) -> None:
    """One token alone on one thread gives the bits it gives among 2 to 19 on up to seven threads."""
    n = 768 if fmt in BLOCKS_256 else 352
    w, _ = weight(fmt, 101, n)
    x = tokens(19, n)
    alone = torch.cat([run_linear(x[t : t + 1].contiguous(), w, 1, precise=precise) for t in range(19)])
    for m, threads in ((2, 7), (4, 2), (5, 1), (6, 3), (7, 1), (8, 2), (16, 2), (19, 3)):
        assert torch.equal(run_linear(x[:m].contiguous(), w, threads, precise=precise), alone[:m])


@pytest.mark.parametrize("fmt", NATIVE)
def test_embedding_rows_are_the_exact_values(fmt: str) -> None:
    from jambacli.kernels.cpu import decode

    for n in lengths(fmt):
        w, exact = weight(fmt, 9, n)
        ids = torch.tensor([8, 0, 3, 3])
        assert torch.equal(decode.embed(ids, w), exact[ids].float())
        with pytest.raises(ValueError, match="token id"):
            decode.embed(torch.tensor([9]), w)
        with pytest.raises(ValueError, match="token id"):
            decode.embed(torch.tensor([-1]), w)


@pytest.mark.parametrize("fmt", BLOCKS_32)
def test_a_broken_row_spoils_only_itself(isa: str, fmt: str) -> None:
    """Rows that are no multiple of 256 are read beyond their end: a NaN factor there must not leak in."""
    w, _ = weight(fmt, 12, 160)
    row_bytes = w.format.row_bytes(160)
    data = w.data.clone()
    for block in range(5):
        at = 6 * row_bytes + block * w.format.block_bytes
        data[at : at + 2] = torch.tensor([0xFF, 0x7F], dtype=torch.uint8)  # an f16 NaN
    for precise, m in itertools.product((True, False), (3, 8)):
        x = tokens(m, 160)
        y = run_linear(x, QTensor(data, w.format, w.shape), 1, precise=precise)
        assert torch.isnan(y[:, 6]).all()
        kept = [r for r in range(12) if r != 6]
        assert torch.equal(y[:, kept], run_linear(x, w, 1, precise=precise)[:, kept])


def test_zero_and_extreme_activations(isa: str) -> None:
    w, exact = weight("q4_k", 8, 256)
    x = tokens(1, 256)
    for precise, factor in itertools.product((True, False), (0.0, 1e-38, 1e-30, 1e30)):
        y = run_linear(x * factor, w, 1, precise=precise).double()
        if factor < 1e-30:
            assert (y.abs() <= 1e-34).all()
            continue
        y /= factor
        assert torch.allclose(y, x.double() @ exact.T, rtol=0, atol=0.05 * y.abs().max().item())


_GUARDED = """
import ctypes, mmap, sys
import numpy as np, torch
sys.path.insert(0, {repo!r})
from jambacli.kernels import cpu
from jambacli.kernels.cpu import decode
from quant.formats import QTensor
from tests.support.isa_levels import runnable_levels
from tests.support.weights import NATIVE, random_weight

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
for fmt in NATIVE:
    for n in (256, 1280) if fmt in {large!r} else (32, 160, 416):
        w = random_weight(fmt, (5, n))
        size = w.data.numel()
        pages = -(-size // page)
        area = mmap.mmap(-1, (pages + 1) * page)
        whole = np.frombuffer(area, np.uint8)
        whole[pages * page - size : pages * page] = w.data.numpy()
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + pages * page), ctypes.c_size_t(page), 0) == 0
        data = torch.from_numpy(whole)[pages * page - size : pages * page]
        at_the_edge = QTensor(data, w.format, w.shape, w.scale)
        x = torch.randn(5, n)
        for level in {levels!r}:
            cpu.set_isa(level)
            for precise in (True, False):
                pair = [decode.linear(x, one, precise=precise) for one in (at_the_edge, w)]
                assert torch.equal(*pair), (fmt, n, level)
        decode.embed(torch.arange(5), at_the_edge)
print("nothing read past the end")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
def test_nothing_is_read_past_the_end_of_a_weight() -> None:
    """Weights that end where a page ends, with an unreadable page behind: as the last tensor of a mapped file may lie."""
    code = _GUARDED.format(repo=str(REPO), levels=LEVELS, large=BLOCKS_256)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nothing read past the end" in done.stdout, done.stderr


def test_wrong_shapes_and_formats_are_refused() -> None:
    from jambacli.kernels.cpu import decode

    w, _ = weight("q4_k", 8, 256)
    with pytest.raises(ValueError, match="format"):
        decode.linear(torch.zeros(1, 256), QTensor(w.data, get_format("iq3_s"), (8, 256)))
    with pytest.raises(ValueError, match="contiguous float32"):
        decode.linear(torch.zeros(1, 256, dtype=torch.float64), w)
    with pytest.raises(ValueError, match="contiguous float32"):
        decode.linear(torch.zeros(256, 2).T, w)
    with pytest.raises(ValueError, match="values"):
        decode.linear(torch.zeros(1, 128), w)


@pytest.mark.parametrize("pool", ("torch", "own"))
def test_teams_wait_for_each_other(pool: str) -> None:
    """No thread passes a barrier early, in either pool, with more threads than cores too."""
    code = f"""
import sys; sys.path.insert(0, {str(REPO)!r})
from jambacli.kernels import cpu
lib = cpu.library()
sizes = [lib.functions.native_check_team(threads, 200) for threads in (1, 2, 3, 7)]
assert sizes == [1, 2, 3, 7], sizes
"""
    env = dict(os.environ, JAMBA_CPU_POOL=pool)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_environment_lowers_the_instruction_set() -> None:
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from jambacli.kernels import cpu; print(cpu.cpu_features())"
    env = dict(os.environ, JAMBA_CPU_ISA="scalar")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'isa': 'scalar'" in done.stdout
