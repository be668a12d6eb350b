"""What the tests of the CPU kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jambacli.kernels import cpu
from tests.support.isa_levels import runnable_levels


@pytest.fixture(params=runnable_levels(cpu.library()) or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine runs in turn; the best one again afterwards."""
    if not cpu.available():
        pytest.skip("the C++ kernels were not built")
    yield cpu.set_isa(request.param)
    cpu.set_isa(None)
