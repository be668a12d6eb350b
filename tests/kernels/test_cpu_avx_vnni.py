"""Level avxvnni on processors without its instructions: the same source, with plain functions in their place, equals avx2."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sys

import pytest
import torch

from jambacli.kernels import cpu
from jambacli.kernels.cpu.library import FUNCTIONS
from jambacli.kernels.cpu.structs import matrix
from quant.formats import get_format
from quant.native import build
from tests.support.weights import NATIVE, random_weight

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not cpu.available() or sys.platform != "linux" or "avx2" not in cpu.library().isa_names,  # type: ignore[union-attr]
        reason="needs a C++ compiler on an x86 processor",
    ),
]

_PLAIN = """
#include <immintrin.h>
static inline __attribute__((unused)) __m256i plain_bytes(__m256i sum, __m256i a, __m256i b) {
    int s[8]; unsigned char x[32]; signed char y[32];
    __builtin_memcpy(s, &sum, 32); __builtin_memcpy(x, &a, 32); __builtin_memcpy(y, &b, 32);
    for (int i = 0; i < 32; ++i) s[i / 4] += x[i] * y[i];
    __builtin_memcpy(&sum, s, 32);
    return sum;
}
static inline __attribute__((unused)) __m256i plain_words(__m256i sum, __m256i a, __m256i b) {
    int s[8]; short x[16], y[16];
    __builtin_memcpy(s, &sum, 32); __builtin_memcpy(x, &a, 32); __builtin_memcpy(y, &b, 32);
    for (int i = 0; i < 16; ++i) s[i / 2] += x[i] * y[i];
    __builtin_memcpy(&sum, s, 32);
    return sum;
}
#define DOT_BYTES plain_bytes
#define DOT_WORDS plain_words
"""


_EMULATED = ("decode-dot_avx2.avx2", "prefill-gemm_int8.avx2")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[ctypes.CDLL]:
    """The kernels with AVX2's products compiled as at level avxvnni, the new instructions as functions; the usual ones."""
    folder = tmp_path_factory.mktemp("avxvnni")
    build.build("_kernels", folder / "usual.so")
    objects = build.ROOT / "build" / "native" / "_kernels"
    (folder / "plain.h").write_text(_PLAIN)
    for name in _EMULATED:
        command = shlex.split((objects / f"{name}.command").read_text())
        command[command.index("-o") + 1] = str(folder / f"{name}.o")
        subprocess.run([*command, "-include", str(folder / "plain.h")], check=True)
    linked = [str((folder if p.stem in _EMULATED else objects) / p.name) for p in objects.glob("*.o")]
    subprocess.run(
        [build.compiler(), "-shared", "-pthread", *linked, "-o", str(folder / "emulated.so")],
        check=True,
    )
    loaded = [ctypes.CDLL(str(folder / name)) for name in ("emulated.so", "usual.so")]
    for library in loaded:
        for name in ("decode_linear", "prefill_linear"):
            getattr(library, name).argtypes = FUNCTIONS[name]
        library.native_set_isa(1)  # avx2
    return loaded


def test_products_equal_those_of_avx2(libraries: list[ctypes.CDLL]) -> None:
    for fmt in NATIVE:
        n = 768 if get_format(fmt).block == 256 else 352
        w, x = random_weight(fmt, (37, n)), torch.randn(9, n, generator=torch.Generator().manual_seed(n))
        for precise in (0, 1):
            outs = []
            for library in libraries:
                y = torch.empty(9, 37)
                status = library.decode_linear(
                    ctypes.byref(matrix(w)), x.data_ptr(), n, y.data_ptr(), 37, 9, precise, 1
                )
                assert status == 0
                outs.append(y)
            assert torch.equal(*outs), (fmt, precise)


@pytest.mark.parametrize("fmt", [f for f in NATIVE if f not in ("f32", "f16", "bf16")])
def test_prefill_equals_that_of_avx2(libraries: list[ctypes.CDLL], fmt: str) -> None:
    """AVX2's sums of Q3_K and Q6_K become floats later: they are equal to rounding, all others to the bit."""
    n = 768 if get_format(fmt).block == 256 else 352
    for tokens in (1, 3, 9, 22):
        w, x = random_weight(fmt, (37, n)), torch.randn(tokens, n, generator=torch.Generator().manual_seed(n))
        outs = []
        for library in libraries:
            y = torch.empty(tokens, 37)
            status = library.prefill_linear(
                ctypes.byref(matrix(w)), x.data_ptr(), n, y.data_ptr(), 37, tokens, False, 2
            )
            assert status == 0
            outs.append(y)
        if fmt in ("q3_k", "q6_k"):
            emulated, usual = outs
            assert torch.allclose(emulated, usual, rtol=1e-5, atol=float(usual.abs().max()) * 1e-5)
        else:
            assert torch.equal(*outs), tokens
