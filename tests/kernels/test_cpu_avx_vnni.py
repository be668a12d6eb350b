"""Level avxvnni on processors without its instructions: the same source, with plain functions in their place, equals avx2."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sys
from pathlib import Path

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


def emulated_library(folder: Path) -> Path:
    """The kernels with the AVX2 products compiled as at level avxvnni, the new instructions as functions."""
    build.build("_kernels", folder / "usual.so")
    objects = build.ROOT / "build" / "native" / "_kernels"
    (folder / "plain.h").write_text(_PLAIN)
    command = shlex.split((objects / "decode-dot_avx2.avx2.command").read_text())
    command[command.index("-o") + 1] = str(folder / "dot.o")
    subprocess.run([*command, "-include", str(folder / "plain.h")], check=True)
    others = [str(p) for p in objects.glob("*.o") if p.name != "decode-dot_avx2.avx2.o"]
    subprocess.run(
        [build.compiler(), "-shared", "-pthread", *others, str(folder / "dot.o"), "-o", str(folder / "emulated.so")],
        check=True,
    )
    return folder / "emulated.so"


def test_products_equal_those_of_avx2(tmp_path: Path) -> None:
    libraries = [ctypes.CDLL(str(p)) for p in (emulated_library(tmp_path), tmp_path / "usual.so")]
    for library in libraries:
        library.decode_linear.argtypes = FUNCTIONS["decode_linear"]
        library.native_set_isa(1)  # avx2
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
