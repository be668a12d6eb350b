"""The C++ training kernels against their torch references: values and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from jambacli.training import ops
from quant.native.shared_library import SharedLibrary

LEVELS = ["scalar", "avx2", "avx512", "neon"]


@pytest.fixture(scope="module")
def kernels() -> SharedLibrary:
    """The training kernels, built here where nobody has yet."""
    lib = ops.kernels()
    if lib is None:
        pytest.skip("the training kernels cannot be built on this machine")
    return lib


def _both(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor | None], tolerance: float
) -> None:
    """Compare values and gradients of both, for the same inputs and the same gradient of the result."""
    results = []
    for f in (fast, plain):
        own = [None if x is None else x.clone().requires_grad_() for x in inputs]
        y = f(*own)
        y.backward(torch.sin(torch.arange(float(y.numel()))).view(y.shape).to(y.dtype))
        results.append([y.detach(), *(x.grad for x in own if x is not None)])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert got is not None and expected is not None and got.shape == expected.shape and got.dtype == expected.dtype
        error = (got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-3)
        assert float(error) < tolerance, f"result {i} differs by {float(error):.2e}"


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, kernels: SharedLibrary) -> Iterator[str]:
    try:
        if kernels.set_isa(request.param) != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        kernels.set_isa(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_the_scan_and_its_gradients(level: str, dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(tokens)
    r = torch.randn
    x, dt, z = (r(3, tokens, 48).to(dtype) for _ in range(3))
    inputs = [x, dt, z, r(3, tokens, 16), r(3, tokens, 16), r(48), -8 * torch.rand(48, 16), r(48)]
    _both(ops.selective_scan, ops.selective_scan_reference, inputs, 1e-5 if dtype == torch.float32 else 8e-3)


def test_the_reference_scan_is_the_recurrence_token_by_token() -> None:
    torch.manual_seed(0)
    r = torch.randn
    x, dt, z, B, C = (r(2, 70, n) for n in (5, 5, 5, 3, 3))
    bias, A, D = r(5), -torch.rand(5, 3), r(5)
    h, rows = torch.zeros(2, 5, 3), []
    for t in range(70):
        step = torch.nn.functional.softplus(dt[:, t] + bias)[..., None]
        h = torch.exp(step * A) * h + step * B[:, t, None] * x[:, t, :, None]
        rows.append(((h * C[:, t, None]).sum(-1) + D * x[:, t]) * torch.nn.functional.silu(z[:, t]))
    torch.testing.assert_close(ops.selective_scan_reference(x, dt, z, B, C, bias, A, D), torch.stack(rows, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_the_convolution_and_its_gradients(level: str, dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(tokens)
    inputs = [torch.randn(2, tokens, 32).to(dtype), torch.randn(32, 4), torch.randn(32)]
    _both(ops.causal_conv, ops.causal_conv_reference, inputs, 1e-5 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_and_its_gradients(level: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.randn(5, 7, 96)

    def of_a_part(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w: f(x[..., 16:80], w, 1e-5, dtype)  # rows that are not contiguous

    inputs = [wide, torch.randn(64)]
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    _both(of_a_part(ops.rms_norm), of_a_part(ops.rms_norm_reference), inputs, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", [0, 4])
def test_the_gate_and_its_gradients(level: str, dtype: torch.dtype, experts: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(21, 2, 128).to(dtype), torch.rand(21, experts) if experts else None]
    _both(ops.gate, ops.gate_reference, inputs, 1e-5 if dtype == torch.float32 else 8e-3)


def test_threads_do_not_change_a_bit(kernels: SharedLibrary) -> None:
    torch.manual_seed(0)
    r = torch.randn
    inputs = [*(r(4, 40, 64) for _ in range(3)), r(4, 40, 16), r(4, 40, 16), r(64), -torch.rand(64, 16), r(64)]
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            own = [x.clone().requires_grad_() for x in inputs]
            y = ops.selective_scan(*own)
            y.sum().backward()
            grads.append([y.detach(), *(x.grad for x in own)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
