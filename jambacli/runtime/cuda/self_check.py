"""Checks the kernels on the GPU they run on, when a model is loaded, and replaces those that are wrong.

A compiler may miscompile a kernel for one GPU only. Each kernel multiplies the model's own weights, in the sizes and tiles that
it will use, and is compared with slower ways: blocks dequantized on the CPU, float64 products, torch's operations. What is
wrong is replaced by the slower way, with a warning; if dequantizing itself is wrong, the model cannot be used.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch

from jambacli.errors import JambaError, first_line
from jambacli.kernels import reference
from jambacli.kernels.triton import dequant, gemm, gemv
from jambacli.kernels.triton.launch import rounds
from jambacli.kernels.triton.ops import TritonOps
from jambacli.kernels.triton.repack import Packed
from jambacli.model.jamba import JambaModel
from jambacli.model.mamba import Mamba
from jambacli.model.moe import MLP, MoE
from jambacli.runtime.cuda.decoder import CudaDecoder
from jambacli.runtime.cuda.model import GpuModel
from jambacli.runtime.loader import GetTensor
from quant.formats import QTensor

logger = logging.getLogger(__name__)

# Relative to the largest value expected: other orders of float32 sums; a level of x rounded the other way; operands in 16 bits;
# whole steps; whole steps with activations of int8 against float32.
_EXACT, _LEVEL, _HALF, _STEP, _INT8_STEP = 1e-4, 1e-3, 2e-2, 5e-2, 0.2
# Rows of a matrix that are compared, from its beginning and from its end.
_ROWS = 128
_TOKENS = 40
_SCAN_TOKENS = 300  # three chunks


def checked(model: JambaModel, tensor: GetTensor) -> JambaModel:
    """The model without the kernels that are wrong on this GPU. ``tensor`` as in ``loader.build``. Raises JambaError if
    weights are not dequantized correctly."""
    kernels = model.kernels if isinstance(model, GpuModel) else None
    if kernels is None:
        return model
    with torch.no_grad():
        _check_values(model, tensor)
        for name, found in _errors(model, kernels):
            if found is not None:
                kernels.without.add(name)
                logger.warning("the GPU kernel '%s' is wrong on this GPU (%s): a slower way replaces it", name, found)
        problem = _guarded(lambda: _step_error(model), _STEP) if model.decoder is not None else None
        if problem is None:
            _check_rounding(model, kernels)
    if problem is not None:
        logger.warning(
            "the kernels of a decode step are wrong on this GPU (%s): decode is slower without them", problem
        )
        return dataclasses.replace(model, decoder=None)
    if kernels.without & {"gemv", "experts"}:  # parts of the decode step
        return dataclasses.replace(model, decoder=None)
    return model


def _guarded(measure: Any, allowed: float) -> str | None:
    """What is wrong, None if ``measure()``, an error, is at most ``allowed``. A lack of memory is not the kernel's fault."""
    try:
        found = float(measure())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # errors of Triton's compiler share no base class
        return first_line(error)
    return None if found <= allowed else f"relative error {found:.1e}"


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected value; infinite if a value is not finite."""
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-20))


def _matrices(model: JambaModel) -> Iterator[tuple[str, Packed]]:
    """One matrix in planes of every format and shape, with its GGUF name."""
    seen = set()
    named: list[tuple[str, Any]] = [("token_embd.weight", model.embedding)]
    for i, layer in enumerate(model.layers):
        if isinstance(layer.mixer, Mamba):
            m = layer.mixer
            named += [(f"blk.{i}.ssm_in.weight", m.in_proj), (f"blk.{i}.ssm_x.weight", m.x_proj)]
            named += [(f"blk.{i}.ssm_out.weight", m.out_proj)]
        if isinstance(layer.ffn, MLP):
            named += [(f"blk.{i}.ffn_{part}.weight", getattr(layer.ffn, part)) for part in ("gate", "down")]
    for name, w in named:
        if isinstance(w, Packed) and (w.format.name, w.shape) not in seen:
            seen.add((w.format.name, w.shape))
            yield name, w


def _check_values(model: JambaModel, tensor: GetTensor) -> None:
    for name, w in _matrices(model):
        n = min(8, w.rows)
        blocks = tensor(name)
        if blocks.format.name != w.format.name:  # kept as f16
            continue
        whole = blocks.row_blocks()[:n]
        scale = None if blocks.scale is None else blocks.scale[:n]
        few = QTensor(whole.reshape(-1), blocks.format, (n, w.shape[-1]), scale)
        expected = reference.dequantize(few).view(n, -1).cpu()
        problem = _guarded(lambda w=w, e=expected, n=n: difference(_values(w, 0, n).cpu(), e), _EXACT)
        if problem is not None:
            raise JambaError(f"the GPU does not read {w.format.name} weights correctly ({problem})")


def _values(w: Packed, first: int, n: int) -> torch.Tensor:
    return dequant.dequantize(w, torch.float32, first, n)


def _randn(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def _errors(model: JambaModel, kernels: TritonOps) -> Iterator[tuple[str, str | None]]:
    """Each kernel's name and what is wrong with it."""
    device, half = model.device, kernels.dtype
    for _, w in _matrices(model):
        parts = {0, max(0, w.rows - _ROWS)}
        if rounds(w, w.shape[0]):
            yield "int8", _guarded(lambda w=w, parts=parts: max(_rounded_error(w, first) for first in parts), _LEVEL)
        yield "gemv", _guarded(lambda w=w, parts=parts: max(_product_error(w, first) for first in parts), _EXACT)
        if half != torch.float16:
            yield "gemm", _guarded(lambda w=w, parts=parts: max(_rows_error(w, first, half) for first in parts), _HALF)
    x, norm = _randn(_TOKENS, model.config.hidden, device=device), model.output_norm
    yield (
        "norm",
        _guarded(lambda: difference(kernels.rms_norm(x, norm, 1e-6), reference.rms_norm(x, norm, 1e-6)), _EXACT),
    )
    mixer = next((y.mixer for y in model.layers if isinstance(y.mixer, Mamba)), None)
    if mixer is not None:
        yield "convolution", _guarded(lambda: _conv_error(mixer, kernels), _EXACT)
        yield "scan", _guarded(lambda: _scan_error(mixer, kernels), _EXACT)
    moe = next((y.ffn for y in model.layers if isinstance(y.ffn, MoE) and isinstance(y.ffn.gate, Packed)), None)
    if moe is not None and half != torch.float16:
        yield "experts", _guarded(lambda: _experts_error(moe, kernels, x), _HALF)


def _product_error(w: Packed, first: int) -> float:
    x = _randn(1, w.shape[-1], device=w.data.device)
    n = min(_ROWS, w.rows - first)
    return difference(gemv.gemv(x, w)[:, first : first + n], x.double() @ _values(w, first, n).double().T)


def _rounded_error(w: Packed, first: int) -> float:
    x = _randn(1, w.shape[-1], device=w.data.device)
    n = min(_ROWS, w.rows - first)
    expected = rounded_to_int8(x) @ _values(w, first, n).double().T
    return difference(gemv.gemv(x, w, int8=True)[:, first : first + n], expected)


def rounded_to_int8(x: torch.Tensor) -> torch.Tensor:
    """x float32 [T, n], n a multiple of 32, as products with activations of int8 take it: float64."""
    groups = x.float().unflatten(-1, (-1, 32))
    top = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127.0 / top.clamp(min=1e-34))).round().double() * (top * (1.0 / 127.0)).double()).flatten(-2)


def _rows_error(w: Packed, first: int, dtype: torch.dtype) -> float:
    x = _randn(_TOKENS, w.shape[-1], device=w.data.device)
    n = min(_ROWS, w.rows - first)
    expected = x.to(dtype).double() @ _values(w, first, n).to(dtype).double().T
    got = gemm.gemm(x, w, dtype=dtype)
    if not torch.equal(got, gemm.gemm(x, w, dtype=dtype)):
        return float("inf")  # a race
    return difference(got[:, first : first + n], expected)


def _conv_error(m: Mamba, kernels: TritonOps) -> float:
    d_inner, taps = m.conv_weight.shape
    x, state = _randn(_TOKENS, d_inner, device=m.A.device), _randn(d_inner, taps - 1, device=m.A.device)
    own = state.clone()
    expected = reference.causal_conv(x, m.conv_weight, m.conv_bias, own)
    return max(difference(kernels.causal_conv(x, m.conv_weight, m.conv_bias, state), expected), difference(state, own))


def _scan_error(m: Mamba, kernels: TritonOps) -> float:
    channels, tokens, n_states = min(256, m.A.shape[0]), _SCAN_TOKENS, m.A.shape[1]
    x, z = (_randn(tokens, channels + i, device=m.A.device)[:, :channels].contiguous() for i in range(2))
    b, c = (_randn(tokens, n_states + i, device=m.A.device)[:, :n_states].contiguous() for i in range(2))
    state = _randn(channels, n_states, device=m.A.device)
    own = state.clone()
    given = (x, z, m.dt_bias[:channels], m.A[:channels], b, c, m.D[:channels], x)
    expected = reference.selective_scan(*given, own)
    return max(difference(kernels.selective_scan(*given, state), expected), difference(state, own))


def _experts_error(f: MoE, kernels: TritonOps, x: torch.Tensor) -> float:
    got = kernels.experts(x, f.router, f.gate, f.up, f.down, f.top_k)
    one_by_one = TritonOps(kernels.dtype)
    one_by_one.without = {"experts", "gemm"}
    return difference(got, one_by_one.experts(x, f.router, f.gate, f.up, f.down, f.top_k))


def _check_rounding(model: JambaModel, kernels: TritonOps) -> None:
    """Switch off decode with activations of int8 if a product or a step of it is wrong."""
    decoder = model.decoder
    if not isinstance(decoder, CudaDecoder) or not decoder.int8_products():
        return
    if "int8" in kernels.without:
        decoder.rounds = False
        return
    problem = _guarded(lambda: _step_error(model, precise=False), _INT8_STEP)
    if problem is not None:
        decoder.rounds = False
        kernels.without.add("int8")
        logger.warning("decode with activations of int8 is wrong on this GPU (%s): it uses float32", problem)


def _step_error(model: JambaModel, *, precise: bool = True) -> float:
    """The median difference between the logits of decode steps and of the same tokens through single operations, over the
    logits' deviation."""
    single = dataclasses.replace(model, decoder=None)
    states = model.new_state(8, precise=precise), single.new_state(8)
    worst = 0.0
    for token in (1, 2, 3):  # launched, recorded, replayed
        ids = torch.tensor([token % model.config.vocab_size])
        got, expected = model.forward(ids, states[0]), single.forward(ids, states[1])
        assert got is not None
        assert expected is not None
        if not bool(torch.isfinite(got).all()):
            return float("inf")
        worst = max(worst, float((got - expected).abs().median() / expected.std()))
    return worst
