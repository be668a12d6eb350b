"""Fixtures of the quantization tests: each instruction set in turn, each backend in turn, torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quant import native


@pytest.fixture(params=native.ISA_NAMES)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set's C++ in turn; skips those that this processor lacks."""
    if native.library() is None:
        pytest.skip("the C++ library is not built")
    try:
        if native.set_isa(request.param) != request.param:
            pytest.skip(f"this processor does not run {request.param}")
        yield request.param
    finally:
        native.set_isa(None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: these tensors are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest, one_thread: None) -> str:
    """Both implementations in turn; skips C++ where it is not built."""
    if request.param == "native" and native.library() is None:
        pytest.skip("the C++ library is not built")
    return str(request.param)
