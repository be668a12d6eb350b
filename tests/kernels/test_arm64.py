"""The arm64 kernels under emulation: products of every format at every level against the exact ones.

Needs a cross compiler and qemu's user mode (Debian: g++-aarch64-linux-gnu, qemu-user). On arm64 itself the other tests of this
folder do more. The whole program is run where JAMBA_ARM64_FOLDER is a folder of tools/arm64.py's.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quant.formats import QTensor
from quant.native import build
from tests.support.weights import NATIVE, random_weight, values

CXX, QEMU = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FOLDER = Path(__file__).parent
#: (rows, cols, tokens, threads): odd numbers of rows, and columns that are no multiple of 512.
SHAPES = ((1, 256, 1, 1), (37, 768, 3, 2), (21, 256, 17, 3), (70, 512, 70, 2))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CXX is None or QEMU is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"),
]


@dataclass
class Product:
    """One case: what is multiplied, and what decode, precise decode and prefill computed at each level."""

    w: QTensor
    x: torch.Tensor
    threads: int
    found: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def bytes(self) -> bytes:
        """The case as arm64_products.cpp reads it."""
        rows, cols = self.w.shape
        scale = b"" if self.w.scale is None else self.w.scale.numpy().tobytes()
        numbers = (self.w.format.ggml_type, rows, cols, self.w.format.row_bytes(cols), len(scale) // 4)
        head = struct.pack("<7q", *numbers, len(self.x), self.threads)
        return head + self.w.data.numpy().tobytes() + scale + self.x.numpy().tobytes()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """arm64_products.cpp with the library that it calls, compiled for arm64."""
    assert CXX
    folder = tmp_path_factory.mktemp("arm64")
    library, program = folder / "libkernels.so", folder / "products"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", CXX)
        build.build("_kernels", library, work=folder)
    source, include = FOLDER / "arm64_products.cpp", build.ROOT / build.FOLDERS["_kernels"]
    flags = ["-std=c++17", "-O1", f"-I{include}", f"-I{build.ROOT}", f"-Wl,-rpath,{folder}"]
    subprocess.run([CXX, *flags, str(source), str(library), "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def products(program: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    """Every format and shape, computed in one run of the emulator at all levels of a processor with all extensions."""
    generator = torch.Generator().manual_seed(2)
    cases = [
        Product(random_weight(name, shape[:2]), torch.randn(shape[2], shape[1], generator=generator), shape[3], {})
        for name in NATIVE
        for shape in SHAPES
    ]
    read_products(emulate(program, tmp_path_factory.mktemp("products"), cases, "max"), cases)
    return cases


def emulate(program: Path, folder: Path, cases: list[Product], cpu: str) -> bytes:
    """What the program writes for the cases on a processor as qemu names it."""
    assert QEMU
    (folder / "in").write_bytes(b"".join(case.bytes() for case in cases))
    qemu = [QEMU, "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu]
    subprocess.run([*qemu, str(program), str(folder / "in"), str(folder / "out")], check=True, timeout=500)
    return (folder / "out").read_bytes()


def read_products(data: bytes, cases: list[Product]) -> None:
    """Fill the cases' ``found`` from the program's output."""
    at = 0

    def take(m: int, rows: int) -> torch.Tensor:
        nonlocal at
        at += m * rows * 4
        return torch.frombuffer(bytearray(data[at - m * rows * 4 : at]), dtype=torch.float32).view(m, rows)

    while at < len(data):
        level = data[at : at + 16].rstrip(b"\0").decode()
        at += 16
        for case in cases:
            shape = len(case.x), case.w.shape[0]
            case.found[level] = (take(*shape), take(*shape), take(*shape))


def error(product: Product, y: torch.Tensor) -> float:
    """Distance from the product of the dequantized weights in float64, in parts of what such products have for a size."""
    x, w = product.x.double(), values(product.w).double()
    size = torch.outer(x.norm(dim=1), w.norm(dim=1)) / x.shape[1] ** 0.5
    return float((y - x @ w.T).norm() / size.norm())


def test_levels_of_arm64_have_run(products: list[Product]) -> None:
    expected = [name for name, level in build.levels().items() if level.processors in ("any", "arm")]
    assert list(products[0].found) == expected


def test_every_level_computes_every_format(products: list[Product]) -> None:
    for product in products:
        for level, (decode, precise, prefill) in product.found.items():
            where = (product.w.format.name, product.w.shape, len(product.x), level)
            assert error(product, decode) < 1.2e-2, where
            assert error(product, precise) < 1e-4, where
            assert error(product, prefill) < 1.2e-2, where


def test_levels_agree(products: list[Product]) -> None:
    """The integers are the same at every level; only the order of the float additions differs."""
    for product in products:
        scalar, scalar_precise, _ = product.found["scalar"]
        for level, (decode, precise, _) in product.found.items():
            where = (product.w.format.name, product.w.shape, level)
            assert (decode - scalar).norm() < 2e-6 * scalar.norm(), where
            assert (precise - scalar_precise).norm() < 2e-6 * scalar.norm(), where


def test_dot_products_and_matrix_products_are_equal_to_the_bit(products: list[Product]) -> None:
    for product in products:
        for neon, i8mm in zip(product.found["neon"], product.found["i8mm"], strict=True):
            assert torch.equal(neon, i8mm), (product.w.format.name, product.w.shape)


@pytest.mark.parametrize(("cpu", "levels"), [("cortex-a76", ["scalar", "neon"]), ("cortex-a53", ["scalar"])])
def test_a_processor_runs_no_level_it_lacks(
    program: Path, products: list[Product], tmp_path: Path, cpu: str, levels: list[str]
) -> None:
    """qemu stops at an instruction that the processor has not; the results are those of the processor that has them all."""
    cases = [Product(case.w, case.x, case.threads, {}) for case in products if case.w.shape[0] == 21]
    read_products(emulate(program, tmp_path, cases, cpu), cases)
    for case, full in zip(cases, [p for p in products if p.w.shape[0] == 21], strict=True):
        assert list(case.found) == levels
        for level, found in case.found.items():
            assert all(map(torch.equal, found, full.found[level])), (case.w.format.name, level)


@pytest.mark.timeout(1200)
@pytest.mark.skipif("JAMBA_ARM64_FOLDER" not in os.environ, reason="needs JAMBA_ARM64_FOLDER")
@pytest.mark.parametrize("level", ["neon", "i8mm"])
def test_the_demo_model_says_what_it_says_on_x86(tmp_path: Path, level: str) -> None:
    prompt = "The report says that Leila Haddad counted 42 herons at Lake Tuz. Who counted the herons?"
    jamba = ["-m", "jambacli", "run", "--temp", "0", "-n", "24", prompt]

    def says(command: list[str], isa: str) -> str:
        environment = {**os.environ, "JAMBA_HOME": str(tmp_path / isa), "JAMBA_CPU_ISA": isa}
        return subprocess.run(
            [sys.executable, *command], env=environment, cwd=build.ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    emulated = ["-m", "tools.arm64", os.environ["JAMBA_ARM64_FOLDER"]]
    features = "from jambacli.kernels.cpu import cpu_features as f; print(f()['machine'], f()['isa'])"
    assert says([*emulated, "-c", features], level).split() == ["aarch64", level]
    text = says(jamba, "avx2")
    assert "Leila Haddad" in text
    assert says([*emulated, *jamba], level) == text
