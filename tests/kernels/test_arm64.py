"""The arm64 kernels under emulation: products of every format at every level against the exact ones.

Needs a cross compiler and qemu's user mode (Debian: g++-aarch64-linux-gnu, qemu-user). On arm64 itself the other tests of this
folder do more.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
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
    """One case: what is multiplied, and what decode and prefill computed at each level."""

    w: QTensor
    x: torch.Tensor
    threads: int
    found: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def bytes(self) -> bytes:
        """The case as arm64_products.cpp reads it."""
        rows, cols = self.w.shape
        scale = b"" if self.w.scale is None else self.w.scale.numpy().tobytes()
        numbers = (self.w.format.ggml_type, rows, cols, self.w.format.row_bytes(cols), len(scale) // 4)
        head = struct.pack("<7q", *numbers, len(self.x), self.threads)
        return head + self.w.data.numpy().tobytes() + scale + self.x.numpy().tobytes()


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    """Every format and shape, computed in one run of the emulator at all levels of a processor with all extensions."""
    assert CXX and QEMU
    folder = tmp_path_factory.mktemp("arm64")
    library, program = folder / "libkernels.so", folder / "products"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", CXX)
        build.build("_kernels", library, work=folder)
    source, include = FOLDER / "arm64_products.cpp", build.ROOT / build.FOLDERS["_kernels"]
    flags = ["-std=c++17", "-O1", f"-I{include}", f"-I{build.ROOT}", f"-Wl,-rpath,{folder}"]
    subprocess.run([CXX, *flags, str(source), str(library), "-o", str(program)], check=True)

    generator = torch.Generator().manual_seed(2)
    cases = [
        Product(random_weight(name, shape[:2]), torch.randn(shape[2], shape[1], generator=generator), shape[3], {})
        for name in NATIVE
        for shape in SHAPES
    ]
    (folder / "in").write_bytes(b"".join(case.bytes() for case in cases))
    command = [
        QEMU,
        "-L",
        "/usr/aarch64-linux-gnu",
        "-cpu",
        "max",
        str(program),
        str(folder / "in"),
        str(folder / "out"),
    ]
    subprocess.run(command, check=True, timeout=500)
    data, at = (folder / "out").read_bytes(), 0

    def take(m: int, rows: int) -> torch.Tensor:
        nonlocal at
        at += m * rows * 4
        return torch.frombuffer(bytearray(data[at - m * rows * 4 : at]), dtype=torch.float32).view(m, rows)

    while at < len(data):
        level = data[at : at + 16].rstrip(b"\0").decode()
        at += 16
        for case in cases:
            shape = len(case.x), case.w.shape[0]
            case.found[level] = (take(*shape), take(*shape))
    return cases


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
        for level, (decode, prefill) in product.found.items():
            where = (product.w.format.name, product.w.shape, len(product.x), level)
            assert error(product, decode) < 4e-4, where
            assert error(product, prefill) < 4e-3, where


def test_levels_agree(products: list[Product]) -> None:
    for product in products:
        scalar, _ = product.found["scalar"]
        for level, (decode, _) in product.found.items():
            assert (decode - scalar).norm() < 4e-4 * scalar.norm(), (product.w.format.name, product.w.shape, level)
