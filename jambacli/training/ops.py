"""The operations for training a Jamba: torch references, and C++ kernels with their gradients.

Each function exists twice with one signature: ``*_reference`` is differentiable torch and runs on any device; the other uses
the C++ kernels for tensors on the CPU if they can be built, else the reference. The kernels are a library of their own,
built at first use (a minute, with a C++ compiler) or by ``make native TRAIN=1``. Activations (x, dt, z, gate_up) are float32
or bfloat16; parameters, B, C and route are float32.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from jambacli.kernels.cpu.library import train_library
from quant.native.build import BuildError, build
from quant.native.shared_library import SharedLibrary

logger = logging.getLogger(__name__)

_D_STATE, _D_CONV = 16, 4  # what the kernels are compiled for
_NORM_PARTS = 16


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x [..., n] divided by its root mean square, times weight [n]; float32 in, ``dtype`` out."""
    return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps) * weight).to(dtype)


def causal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu of the depthwise causal convolution of x [batch, tokens, d_inner] with weight [d_inner, d_conv]."""
    taps = weight.shape[1]
    y = F.conv1d(F.pad(x.float().transpose(1, 2), (taps - 1, 0)), weight[:, None], bias, groups=weight.shape[0])
    return F.silu(y).transpose(1, 2).to(x.dtype)


def selective_scan_reference(
    x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, chunk: int = 32
) -> Tensor:
    """Mamba's selective scan (Gu and Dao 2023, algorithm 2) from a zero state, with its gate: [batch, tokens, d_inner].

    x, dt, z [batch, tokens, d_inner]; B, C [batch, tokens, d_state]; A [d_inner, d_state], negative; dt before softplus.
    Within a chunk the recurrence takes log2(chunk) parallel steps, which suits a GPU.
    """
    step = F.softplus(dt.float() + dt_bias)
    x32 = x.float()
    state = x32.new_zeros(x.shape[0], 1, x.shape[2], A.shape[1])
    outputs = []
    for t in range(0, x.shape[1], chunk):
        now = slice(t, t + chunk)
        decay = torch.exp(step[:, now, :, None] * A)
        h = (step[:, now] * x32[:, now])[..., None] * B[:, now, None, :].float()
        h = torch.cat([h[:, :1] + decay[:, :1] * state, h[:, 1:]], 1)
        shift = 1
        while shift < h.shape[1]:
            h = torch.cat([h[:, :shift], h[:, shift:] + decay[:, shift:] * h[:, :-shift]], 1)
            decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], 1)
            shift *= 2
        state = h[:, -1:]
        outputs.append(torch.einsum("btds,bts->btd", h, C[:, now].float()))
    y = torch.cat(outputs, 1) + D * x32
    return (y * F.silu(z.float())).to(x.dtype)


def gate_reference(gate_up: Tensor, route: Tensor | None) -> Tensor:
    """silu(gate) * up for gate_up [rows, 2, n]; each expert's n / experts values times its column of route [rows, experts]."""
    gate, up = gate_up.float().unbind(1)
    y = F.silu(gate) * up
    if route is not None:
        y = (y.unflatten(1, (route.shape[1], -1)) * route[..., None]).flatten(1)
    return y.to(gate_up.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``rms_norm_reference`` by the C++ kernel when it applies."""
    if kernels() is None or not _fits(x, x.shape[-1]) or x.dtype != torch.float32:
        return rms_norm_reference(x, weight, eps, dtype)
    return _RmsNorm.apply(x, weight, eps, dtype)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``causal_conv_reference`` by the C++ kernel when it applies."""
    if kernels() is None or not _fits(x, x.shape[-1]) or weight.shape[1] != _D_CONV:
        return causal_conv_reference(x, weight, bias)
    return _CausalConv.apply(x, weight, bias)


def selective_scan(
    x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """``selective_scan_reference`` by the C++ kernel when it applies."""
    same = x.dtype == dt.dtype == z.dtype
    if kernels() is None or not same or not _fits(x, x.shape[-1]) or A.shape[1] != _D_STATE:
        return selective_scan_reference(x, dt, z, B, C, dt_bias, A, D)
    return _SelectiveScan.apply(x, dt, z, B, C, dt_bias, A, D)


def gate(gate_up: Tensor, route: Tensor | None) -> Tensor:
    """``gate_reference`` by the C++ kernel when it applies."""
    n, experts = gate_up.shape[-1], 1 if route is None else route.shape[1]
    if kernels() is None or n % experts or not _fits(gate_up, n // experts):
        return gate_reference(gate_up, route)
    return _Gate.apply(gate_up, route)


def _fits(x: Tensor, channels: int) -> bool:
    return x.device.type == "cpu" and channels % 16 == 0 and x.dtype in (torch.float32, torch.bfloat16)


_P, _I = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """A ctypes mirror of a struct of train/train.h: ``name:i`` is an int64, ``name:f`` a float, anything else a pointer."""
    kinds = {"i": _I, "f": ctypes.c_float, "": _P}
    parts = [field.partition(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(field, kinds[kind]) for field, _, kind in parts]})


_Scan = _struct(
    "TrainScan",
    "x dt z x_stride:i dt_stride:i z_stride:i B C dt_bias A D states y dy dx ddt dz dB dC dA dD dbias tokens:i d_inner:i",
)
_Conv = _struct("TrainConv", "x x_stride:i weight bias y dy dx dweight dbias tokens:i d_inner:i")
_Norm = _struct("TrainNorm", "x x_stride:i weight eps:f y dy dx dweight n:i")
_GateArgs = _struct("TrainGate", "gate_up route y dy dgate_up droute n:i experts:i")


@functools.cache
def kernels() -> SharedLibrary | None:
    """The library of the training kernels, built where it is missing; None, with a warning, where that fails."""
    if (lib := train_library()) is not None:
        return lib
    try:
        logger.info("building the C++ kernels for training, once")
        build("_train")
    except (BuildError, OSError) as error:
        logger.warning("training runs without its C++ kernels, several times slower: %s", error)
        return None
    train_library.cache_clear()
    return train_library()


def _run(name: str, kind: type[ctypes.Structure], counts: tuple[int, ...], backward: bool, **values: Any) -> None:
    lib = kernels()
    assert lib is not None
    arguments = kind(**{k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in values.items()})
    half = any(isinstance(v, Tensor) and v.dtype == torch.bfloat16 for v in values.values())
    function = getattr(lib.functions, f"train_{name}")
    lib.check(function(ctypes.byref(arguments), *counts, half, backward, torch.get_num_threads()))


def _rows(x: Tensor) -> Tensor:
    """x with unit stride in the last dimension and evenly spaced rows; copied if necessary."""
    even = x.stride(-1) == 1 and all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2))
    return x if even else x.contiguous()


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = _rows(x)
        y = torch.empty(x.shape, dtype=dtype)
        n = x.shape[-1]
        _run(
            "norm", _Norm, (y.numel() // n, _NORM_PARTS), False,
            x=x, x_stride=x.stride(-2), weight=weight, eps=eps, y=y, n=n,
        )  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        n = x.shape[-1]
        dx, dweight = torch.empty(x.shape), torch.empty(_NORM_PARTS, n)
        _run(
            "norm", _Norm, (dx.numel() // n, _NORM_PARTS), True,
            x=x, x_stride=x.stride(-2), weight=weight, eps=ctx.eps, dy=dy.contiguous(), dx=dx, dweight=dweight, n=n,
        )  # fmt: skip
        return dx, dweight.sum(0), None, None


class _CausalConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, taps = _rows(x), weight.t().contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        _run(
            "conv", _Conv, (x.shape[0],), False,
            x=x, x_stride=x.stride(1), weight=taps, bias=bias, y=y, tokens=x.shape[1], d_inner=x.shape[2],
        )  # fmt: skip
        ctx.save_for_backward(x, taps, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, taps, bias = ctx.saved_tensors
        batch, tokens, d_inner = x.shape
        dx, dweight, dbias = (
            torch.empty(x.shape, dtype=x.dtype),
            torch.empty(batch, _D_CONV, d_inner),
            torch.empty(batch, d_inner),
        )
        _run(
            "conv", _Conv, (batch,), True,
            x=x, x_stride=x.stride(1), weight=taps, bias=bias, dy=dy.contiguous(), dx=dx, dweight=dweight, dbias=dbias,
            tokens=tokens, d_inner=d_inner,
        )  # fmt: skip
        return dx, dweight.sum(0).t(), dbias.sum(0)


class _SelectiveScan(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
    ) -> Tensor:
        lib = kernels()
        assert lib is not None
        lanes, chunk = lib.functions.train_lanes(), lib.functions.train_chunk()
        x, dt, z, B, C = _rows(x), _rows(dt), _rows(z), B.float().contiguous(), C.float().contiguous()
        batch, tokens, d_inner = x.shape
        turned = A.unflatten(0, (-1, lanes)).transpose(1, 2).contiguous()  # [d_inner / lanes, d_state, lanes]
        states = torch.empty(batch, -(-tokens // chunk), *turned.shape)
        y = torch.empty(x.shape, dtype=x.dtype)
        ctx.fixed = {
            "x_stride": x.stride(1), "dt_stride": dt.stride(1), "z_stride": z.stride(1),
            "tokens": tokens, "d_inner": d_inner,
        }  # fmt: skip
        inputs = {"x": x, "dt": dt, "z": z, "B": B, "C": C, "dt_bias": dt_bias, "A": turned, "D": D, "states": states}
        _run("scan", _Scan, (batch,), False, **inputs, y=y, **ctx.fixed)
        ctx.names = list(inputs)
        ctx.save_for_backward(*inputs.values())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        inputs = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        x, B, turned = inputs["x"], inputs["B"], inputs["A"]
        batch, d_inner = x.shape[0], x.shape[2]
        dx, ddt, dz = (torch.empty(x.shape, dtype=x.dtype) for _ in range(3))
        dB, dC, dA = torch.empty_like(B), torch.empty_like(B), torch.empty(batch, *turned.shape)
        dD, dbias = torch.empty(batch, d_inner), torch.empty(batch, d_inner)
        _run(
            "scan", _Scan, (batch,), True, **inputs, dy=dy.contiguous(), **ctx.fixed,
            dx=dx, ddt=ddt, dz=dz, dB=dB, dC=dC, dA=dA, dD=dD, dbias=dbias,
        )  # fmt: skip
        return dx, ddt, dz, dB, dC, dbias.sum(0), dA.sum(0).transpose(1, 2).flatten(0, 1), dD.sum(0)


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, route: Tensor | None) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, _, n = gate_up.shape
        kept = None if route is None else route.contiguous()
        y = torch.empty(rows, n, dtype=gate_up.dtype)
        ctx.experts = 1 if kept is None else kept.shape[1]
        _run("gate", _GateArgs, (rows,), False, gate_up=gate_up, route=kept, y=y, n=n, experts=ctx.experts)
        ctx.save_for_backward(gate_up, kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        gate_up, route = ctx.saved_tensors
        rows, _, n = gate_up.shape
        dgate_up, droute = torch.empty_like(gate_up), None if route is None else torch.empty_like(route)
        _run(
            "gate", _GateArgs, (rows,), True,
            gate_up=gate_up, route=route, dy=dy.contiguous(), dgate_up=dgate_up, droute=droute, n=n, experts=ctx.experts,
        )  # fmt: skip
        return dgate_up, droute
