"""Each Triton kernel against the torch reference over odd shapes: on a card where there is one, else interpreted."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'jambacli[cuda]'")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from jambacli.evaluation import gpu_parity

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = list(gpu_parity.cases())


def test_every_native_format_is_covered() -> None:
    from jambacli.kernels.triton.repack import LAYOUTS
    from quant.formats import FORMATS

    native = {f.name for f in FORMATS.values() if f.native}
    assert set(LAYOUTS) == native
    for kind in ("gemv", "gemm", "dequantize", "embed"):
        assert native <= {c.name.split()[1] for c in CASES if c.name.startswith(kind + " ")}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_kernel_equals_reference(case: gpu_parity.Case) -> None:
    from jambacli.kernels.triton.interpret import interpreted

    if DEVICE.type == "cpu" and not interpreted():
        pytest.skip("the kernels were imported before the interpreter was chosen")
    assert case.run(DEVICE) <= case.tolerance
