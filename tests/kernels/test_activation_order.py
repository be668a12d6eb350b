"""The order in which decode keeps its activations: a warp's load of them touches one cache line, whatever the format."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.gpu_check.estimate import L1_CYCLES
from jambacli.kernels.triton.interleave import interleaved, natural, padded
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.repack import LAYOUTS
from tests.support.warp_loads import WarpLoad, of_a_product, wavefronts


@pytest.mark.parametrize("n", [1, 31, 160, 256, 300, 2560])
def test_the_order_is_undone(n: int) -> None:
    x = torch.arange(2 * n, dtype=torch.float32).view(2, n) + 1
    y = interleaved(x)
    assert y.shape == (2, padded(n))
    assert torch.equal(natural(y, n), x)
    assert int((y == 0).sum()) == 2 * (padded(n) - n)  # the padding is zero


def test_each_value_is_where_the_kernels_look_for_it() -> None:
    x = interleaved(torch.arange(512, dtype=torch.float32))
    for group, value in ((0, 0), (0, 5), (3, 17), (7, 31), (8, 4), (15, 31)):
        at = group // 8 * 256 + value // 4 * 32 + group % 8 * 4 + value % 4
        assert x[at] == group * 32 + value


@pytest.mark.skipif(not interpreted(), reason="addresses are recorded by Triton's interpreter")
@pytest.mark.parametrize("fmt", LAYOUTS)
def test_a_warp_reads_activations_from_one_line(fmt: str) -> None:
    # Eight chunks of x and of the norm's weight for each group.
    assert of_a_product(fmt, 2, 2, interleaved=False) == WarpLoad(16, 8, 8, 32)
    found = of_a_product(fmt, 2, 2, interleaved=True)
    assert found == WarpLoad(16, 1, 1, 4)
    assert (found.wavefronts, found.by_quarters) == L1_CYCLES


def test_banks_deliver_one_word_at_a_time() -> None:
    import numpy as np

    line = np.arange(0, 128, 4)
    assert wavefronts(line) == 1
    assert wavefronts(np.concatenate([line, line])) == 1
    assert wavefronts(line * 2) == 2
    assert wavefronts(np.arange(8) * 128) == 8
