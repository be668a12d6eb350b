"""Each Triton kernel against the torch reference over odd shapes: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from jambacli.gpu_check import parity
from jambacli.kernels.triton.repack import LAYOUTS
from quant.formats import FORMATS

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = list(parity.cases())


# Native formats whose weights become f16 on the GPU, because they have no planes there yet.
WITHOUT_PLANES: frozenset[str] = frozenset()


def test_every_format_with_planes_is_covered() -> None:
    native = {f.name for f in FORMATS.values() if f.native}
    assert native - set(LAYOUTS) == WITHOUT_PLANES
    for kind in ("gemv", "gemm", "dequantize", "embed"):
        assert set(LAYOUTS) <= {c.name.split()[1] for c in CASES if c.name.startswith(kind + " ")}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_kernel_equals_reference(case: parity.Case) -> None:
    assert case.run(DEVICE) <= case.tolerance
