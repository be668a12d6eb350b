"""Both CPU backends for the tests of this folder, on one thread: tiny models gain nothing from more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from jambacli.kernels import Ops, cpu, cpu_ops, reference_ops


@pytest.fixture(scope="module", params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    """Plain torch, then the C++ library (skipped where it was not built)."""
    if request.param == "reference":
        return reference_ops()
    if not cpu.available():
        pytest.skip("the C++ kernels were not built")
    return cpu_ops()


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Torch on one thread while this folder's tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
