"""Fixtures of the quantization tests: each instruction set in turn, each backend in turn, torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quant import native
from quant.formats import FORMATS

ISA_NAMES = ("scalar", "avx2", "avx512")  # those that the codecs are compiled for


@pytest.fixture(params=ISA_NAMES)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The C++ of each instruction set in turn; skips those that this processor lacks."""
    lib = native.library()
    if lib is None:
        pytest.skip("the C++ library is not built")
    try:
        if lib.set_isa(request.param) != request.param:
            pytest.skip(f"this processor does not run {request.param}")
        yield request.param
    finally:
        lib.set_isa(None)


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
    fmt = getattr(request.node, "callspec", None) and request.node.callspec.params.get("fmt")
    if request.param == "native" and fmt and not FORMATS[fmt].native:
        pytest.skip(f"{fmt} has no C++ yet")
    return str(request.param)
