"""Decode steps as objects: one per mixer, feed-forward network or output matrix, run together in one call of the library.

Steps keep the tensors of their weights alive and pass their addresses to decode/steps.cpp. A step includes its norm and
its addition to the residual stream. Steps are made once per model; a sequence's tensors are bound to them by
``Program.bind``, and ``Program.run_spans`` is one foreign call for a few tokens of one or several sequences. Products read
each weight once for all of them; convolution, scan and attention go sequence by sequence. Every value is computed by the same
operations in the same order whatever else is in the call, so a token's results do not depend on it.

Quantized weights are multiplied with activations rounded to int8, with a factor per 32 values; ``precise`` with activations of
15 bits, which takes two products for each weight. Weights in f32, f16 or bf16 are multiplied with float32 in both modes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import TYPE_CHECKING, Any, ClassVar

from jambacli.kernels.cpu.library import built_library
from jambacli.kernels.cpu.structs import KV_TYPES, Matrix, address, kv_type, matrix

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

#: Largest token count of a sequence for which a step is faster than the prefill kernels.
MOST_TOKENS = 16
#: Most tokens of all sequences in one call: beyond it activations no longer fit the cache beside the weights.
MOST_STEP_TOKENS = 64


class _Input(ctypes.Structure):
    _fields_ = [("norm", c_void_p), ("eps", c_float), ("reserved", c_int32)]


class _Mamba(ctypes.Structure):
    _fields_ = [
        ("input", _Input),
        *((name, Matrix) for name in ("in_", "x", "dt", "out")),
        *((n, c_void_p) for n in ("conv_weight", "conv_bias", "dt_norm", "b_norm", "c_norm", "dt_bias", "A", "D")),
        ("d_state", c_int64),
        ("d_conv", c_int64),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("input", _Input),
        *((name, Matrix) for name in ("q", "k", "v", "out")),
        *((name, c_int64) for name in ("n_heads", "n_kv_heads", "head_dim")),
        ("kv_type", c_int32),
        ("reserved", c_int32),
    ]


class _Mlp(ctypes.Structure):
    _fields_ = [("input", _Input), *((name, Matrix) for name in ("gate", "up", "down"))]


class _Experts(ctypes.Structure):
    _fields_ = [
        ("input", _Input),
        *((name, Matrix) for name in ("router", "gate", "up", "down")),
        ("n_experts", c_int64),
        ("top_k", c_int64),
    ]


class _Logits(ctypes.Structure):
    _fields_ = [("input", _Input), ("out", Matrix)]


class _Step(ctypes.Structure):
    _fields_ = [("kind", c_int64), ("step", c_void_p)]


class _State(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("conv", "ssm", "conv_history", "ssm_history", "k", "v")),
        *((name, c_int64) for name in ("token_stride", "head_stride", "capacity")),
    ]


class Span(ctypes.Structure):
    """``struct Span`` of decode/steps.h: ``tokens`` of one sequence after ``past`` others, logits of the last ``logits``.

    ``slot``: conv and ssm before token i are copied to slot ``slot + i`` of their histories; -1: not kept.
    """

    _fields_ = [(name, c_int64) for name in ("tokens", "past", "logits", "slot")]


class Step:
    """One step: its C struct and the tensors that the struct points to."""

    kind: ClassVar[int]

    def __init__(self, struct: ctypes.Structure, *keep: Any) -> None:
        self.struct = struct
        self._keep = keep
        lib = built_library()
        lib.check(lib.functions.decode_check_step(self.kind, ctypes.byref(struct)))


def _input(norm: torch.Tensor | None, eps: float) -> _Input:
    return _Input(None if norm is None else address(norm), eps, 0)


def _sized(x: torch.Tensor, *shape: int) -> int:
    if tuple(x.shape) != shape:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} where a step needs {shape}")
    return address(x)


class MambaStep(Step):
    """x += out(mamba(rms_norm(x))); shapes as in ``reference.causal_conv`` and ``reference.selective_scan``.

    in_proj [2 d_inner, hidden], x_proj [dt_rank + 2 d_state, d_inner], dt_proj [d_inner, dt_rank], out_proj [hidden,
    d_inner]; the norms of dt, B and C share ``eps`` with the step's own. ``norm`` None: the input is x itself.
    """

    kind = 0

    def __init__(
        self,
        norm: torch.Tensor | None,
        eps: float,
        *,
        in_proj: QTensor,
        conv_weight: torch.Tensor,
        conv_bias: torch.Tensor,
        x_proj: QTensor,
        dt_norm: torch.Tensor,
        b_norm: torch.Tensor,
        c_norm: torch.Tensor,
        dt_proj: QTensor,
        dt_bias: torch.Tensor,
        A: torch.Tensor,
        D: torch.Tensor,
        out_proj: QTensor,
    ) -> None:
        d_inner, d_state = A.shape
        struct = _Mamba(
            _input(norm, eps),
            matrix(in_proj),
            matrix(x_proj),
            matrix(dt_proj),
            matrix(out_proj),
            _sized(conv_weight, d_inner, conv_weight.shape[1]),
            _sized(conv_bias, d_inner),
            _sized(dt_norm, dt_proj.shape[1]),
            _sized(b_norm, d_state),
            _sized(c_norm, d_state),
            _sized(dt_bias, d_inner),
            _sized(A, d_inner, d_state),
            _sized(D, d_inner),
            d_state,
            conv_weight.shape[1],
        )
        keep = (
            norm,
            in_proj,
            conv_weight,
            conv_bias,
            x_proj,
            dt_norm,
            b_norm,
            c_norm,
            dt_proj,
            dt_bias,
            A,
            D,
            out_proj,
        )
        super().__init__(struct, *keep)


class AttentionStep(Step):
    """x += out(attention(q, k, v of rms_norm(x))), new keys and values stored in the cache first.

    ``kv_type`` is the caches' type: one of ``structs.KV_TYPES``. ``head_dim`` of blocks is a multiple of 32.
    """

    kind = 1

    def __init__(
        self,
        norm: torch.Tensor | None,
        eps: float,
        *,
        q: QTensor,
        k: QTensor,
        v: QTensor,
        out: QTensor,
        n_heads: int,
        n_kv_heads: int,
        kv_type: str,
    ) -> None:
        struct = _Attention(
            _input(norm, eps),
            matrix(q),
            matrix(k),
            matrix(v),
            matrix(out),
            n_heads,
            n_kv_heads,
            q.shape[0] // n_heads,
            KV_TYPES[kv_type],
            0,
        )
        super().__init__(struct, norm, q, k, v, out)


class MlpStep(Step):
    """x += down(silu(gate(h)) * up(h)), h = rms_norm(x)."""

    kind = 2

    def __init__(self, norm: torch.Tensor | None, eps: float, *, gate: QTensor, up: QTensor, down: QTensor) -> None:
        super().__init__(_Mlp(_input(norm, eps), matrix(gate), matrix(up), matrix(down)), norm, gate, up, down)


class ExpertsStep(Step):
    """x += the mixture of experts of rms_norm(x), as ``reference.experts`` defines it."""

    kind = 3

    def __init__(
        self,
        norm: torch.Tensor | None,
        eps: float,
        *,
        router: torch.Tensor,
        gate: QTensor,
        up: QTensor,
        down: QTensor,
        top_k: int,
    ) -> None:
        n_experts, hidden = router.shape
        if any(w.shape[0] != n_experts for w in (gate, up, down)):
            raise ValueError(f"the router has {n_experts} experts; gate, up and down do not")
        scores = Matrix(address(router), None, n_experts, hidden, hidden * 4, 0, 0, None)
        struct = _Experts(_input(norm, eps), scores, matrix(gate), matrix(up), matrix(down), n_experts, top_k)
        super().__init__(struct, norm, router, gate, up, down)


class LogitsStep(Step):
    """logits = out(rms_norm(x)) of the last tokens; the residual stream stays as it is."""

    kind = 4

    def __init__(self, norm: torch.Tensor | None, eps: float, out: QTensor) -> None:
        super().__init__(_Logits(_input(norm, eps), matrix(out)), norm, out)
        self.n_out = out.shape[0]


class Binding:
    """A sequence's tensors as a program's steps read them; made by ``Program.bind``, valid while they stay in place."""

    def __init__(self, states: ctypes.Array[_State], keep: tuple[Any, ...]) -> None:
        self.states = states
        self._keep = keep


class Program:
    """Steps that run one after another in one call, a whole model's between embedding and logits."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._library = built_library()
        self.steps = tuple(steps)
        self._array = (_Step * len(self.steps))(
            *(_Step(s.kind, ctypes.addressof(s.struct)) for s in self.steps),
        )
        last = self.steps[-1] if self.steps else None
        self.n_out = last.n_out if isinstance(last, LogitsStep) else 0

    def bind(self, parts: Sequence[tuple[torch.Tensor, ...] | None]) -> Binding:
        """Attach a sequence: per step (conv, ssm) of a MambaStep, (k, v) of an AttentionStep, None of the others.

        conv float32 [d_inner, d_conv - 1], ssm float32 [d_inner, d_state], k and v [capacity, n_kv_heads, row] as
        ``reference.attention`` reads them. A MambaStep may have two more, the histories of conv and ssm [slots, ...]. Bind
        again when a cache has moved to grow.
        """
        states = (_State * len(self.steps))()
        for step, part, state in zip(self.steps, parts, states, strict=True):
            if part is None:
                continue
            if isinstance(step, MambaStep):
                s = step.struct
                state.conv = _sized(part[0], s.out.cols, s.d_conv - 1)
                state.ssm = _sized(part[1], s.out.cols, s.d_state)
                if len(part) > 2:
                    slots = part[2].shape[0]
                    state.conv_history = _sized(part[2], slots, s.out.cols, s.d_conv - 1)
                    state.ssm_history = _sized(part[3], slots, s.out.cols, s.d_state)
            elif isinstance(step, AttentionStep):
                k, v = part
                if k.shape != v.shape or k.stride() != v.stride() or k.stride(-1) != 1:
                    raise ValueError("keys and values must be laid out alike, the values of a head side by side")
                if KV_TYPES[kv_type(k, step.struct.head_dim)] != step.struct.kv_type:
                    raise ValueError(f"a cache of {k.dtype} for a step of another KV type")
                state.k, state.v = k.data_ptr(), v.data_ptr()
                state.token_stride = k.stride(0) * k.element_size()
                state.head_stride = k.stride(1) * k.element_size()
                state.capacity = k.shape[0]
        return Binding(states, tuple(parts))

    def run(
        self,
        x: torch.Tensor,
        n_past: int,
        binding: Binding,
        logits: torch.Tensor | None = None,
        threads: int = 0,
        *,
        precise: bool = False,
    ) -> None:
        """Put m tokens of one sequence through the steps: x float32 [m, hidden], updated in place.

        ``logits`` float32 [n, n_out] receives those of the last n tokens. ``threads`` 0: as torch is set.
        """
        span = Span(x.shape[0], n_past, 0 if logits is None else logits.shape[0], -1)
        self.run_spans(x, [span], [binding], logits, threads, precise=precise)

    def run_spans(
        self,
        x: torch.Tensor,
        spans: Sequence[Span],
        bindings: Sequence[Binding],
        logits: torch.Tensor | None = None,
        threads: int = 0,
        *,
        precise: bool = False,
        out: torch.Tensor | None = None,
    ) -> None:
        """Put the tokens of several distinct sequences through the steps: x float32 [tokens, hidden], one span after another.

        x is updated in place; with ``out`` it stays as it is and out receives the last step's output. ``logits`` float32
        [sum of the spans' logits, n_out]. A span with a ``slot`` needs a binding with histories that have room for it.
        """
        if threads <= 0:
            import torch

            threads = torch.get_num_threads()
        status = self._library.functions.decode_steps(
            self._array,
            (c_void_p * len(bindings))(*(ctypes.addressof(b.states) for b in bindings)),
            (Span * len(spans))(*spans),
            x.data_ptr(),
            None if out is None else out.data_ptr(),
            None if logits is None else logits.data_ptr(),
            len(self.steps),
            len(spans),
            precise,
            threads,
        )
        self._library.check(status)


def run_single(
    step: Step, x: torch.Tensor, n_past: int = 0, part: Any = None, threads: int = 0, *, precise: bool = False
) -> torch.Tensor:
    """The output of one step for x float32 [m, hidden], not added to it: float32 [m, hidden]."""
    import torch

    program = Program([step])
    address(x)
    out = torch.empty_like(x)
    spans = [Span(x.shape[0], n_past, 0, -1)]
    program.run_spans(x, spans, [program.bind([part])], None, threads, precise=precise, out=out)
    return out


def linear(x: torch.Tensor, w: QTensor, *, precise: bool = True) -> torch.Tensor:
    """x @ w.T for a few tokens, x float32 [m, in] contiguous: float32 [m, out]. The weights are read once."""
    import torch

    m, n_in = x.shape
    n_out = w.shape[0]
    if n_in != w.shape[1]:
        raise ValueError(f"rows of {w.shape[1]} values cannot be multiplied with {n_in} values")
    lib, out = built_library(), torch.empty(m, n_out)
    status = lib.functions.decode_linear(
        ctypes.byref(matrix(w)), address(x), n_in, out.data_ptr(), n_out, m, precise, torch.get_num_threads()
    )
    lib.check(status)
    return out


def embed(ids: torch.Tensor, w: QTensor) -> torch.Tensor:
    """Rows ``ids`` (int64 [m]) of w [vocab, hidden] as float32 [m, hidden]; ValueError for ids outside."""
    import torch

    lib, ids = built_library(), ids.contiguous()
    out = torch.empty(len(ids), w.shape[1])
    lib.check(lib.functions.decode_embed(ctypes.byref(matrix(w)), ids.data_ptr(), out.data_ptr(), len(ids)))
    return out
