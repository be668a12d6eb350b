"""The selective scan of a Mamba layer: many tokens in chunks, or one token fused with its surroundings.

The recurrence is split into chunks that run in parallel. The first pass computes what a chunk adds to a state of zeros, and how
much an earlier state decays (exp(A * sum of dt), so one number per channel). A short second pass combines the chunks. The third
runs each chunk from its true initial state and writes the outputs. A short sequence is one chunk and needs only the third pass.
The length of a chunk depends on the number of tokens alone.

A thread holds a channel with all its states, so a step exchanges nothing between threads. Channels are the first dimension, one
per thread, and up to sixteen states are up to four tensors [channels, 4], so that no version of Triton has another layout to
choose.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels import reference
from jambacli.kernels.triton.gemv import silu
from jambacli.kernels.triton.interleave import place
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.launch import cdiv, constants, gemv_tile, power_of_two
from jambacli.kernels.triton.limits import SCAN_CHUNK
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.stream import add_products, load_groups, mean_square, over_the_row, rows_of, threads
from jambacli.kernels.triton.tiles import row_factor

#: States per channel that a thread holds.
MAX_STATES = 16


@triton.jit
def softplus(x):
    """log(1 + exp(x)), and x itself above torch's threshold.

    For small e = exp(x), 1 + e loses digits: log(u) * e / (u - 1) with the rounded u = 1 + e keeps them (Goldberg 1991,
    theorem 4).
    """
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    near = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x > 20.0, x, near)


@triton.jit
def _four(start, c_in, k: tl.constexpr, N: tl.constexpr):
    """Values 4 k .. 4 k + 3 of the N that begin at each address ``start`` [BC], float32 [BC, 4]; 0 beyond them."""
    n = 4 * k + tl.arange(0, 4)[None, :]
    return tl.load(start[:, None] + n, mask=c_in[:, None] & (n < N), other=0)


@triton.jit
def _store_four(start, value, c_in, k: tl.constexpr, N: tl.constexpr):
    """Store a tensor of ``_four``."""
    n = 4 * k + tl.arange(0, 4)[None, :]
    tl.store(start[:, None] + n, value, mask=c_in[:, None] & (n < N))


@triton.jit
def _advanced(h, a, step, added):
    """The states [BC, 4] after one step: they decay by exp(step * a), and ``added`` [BC, 4] is added."""
    return tl.exp(step[:, None] * a) * h + added


@triton.jit(do_not_specialize=["T", "chunk"])
def _chunk_kernel(
    x, dt, dt_bias, A, B, C, D, z, start, end, decay, out, T, CH, x_stride, dt_stride, b_stride, c_stride, z_stride,
    chunk, N: tl.constexpr, NP: tl.constexpr, BC: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """One chunk of BC channels. With OUTPUTS it starts from start[chunk] and writes out (and the state after the last chunk);
    else it starts from zeros and writes end[chunk] and decay[chunk], the sum of dt."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    number = tl.program_id(1)
    c_in = c < CH
    states = number.to(tl.int64) * CH * N + c * N
    bias = tl.load(dt_bias + c, mask=c_in, other=0)
    d = tl.zeros((BC,), tl.float32)
    a0 = _four(A + c * N, c_in, 0, N)
    a1, a2, a3 = a0, a0, a0
    h0 = tl.zeros((BC, 4), tl.float32)
    h1, h2, h3 = h0, h0, h0
    if NP > 4:
        a1 = _four(A + c * N, c_in, 1, N)
    if NP > 8:
        a2, a3 = _four(A + c * N, c_in, 2, N), _four(A + c * N, c_in, 3, N)
    if OUTPUTS:
        d = tl.load(D + c, mask=c_in, other=0)
        h0 = _four(start + states, c_in, 0, N)
        if NP > 4:
            h1 = _four(start + states, c_in, 1, N)
        if NP > 8:
            h2, h3 = _four(start + states, c_in, 2, N), _four(start + states, c_in, 3, N)
    elapsed = tl.zeros((BC,), tl.float32)
    first = number.to(tl.int64) * chunk
    steps = tl.minimum(chunk, T - number * chunk)
    every = c >= 0
    for i in range(0, steps):
        t = first + i
        xt = tl.load(x + t * x_stride + c, mask=c_in, other=0)
        step = softplus(tl.load(dt + t * dt_stride + c, mask=c_in, other=0) + bias)
        moved = (step * xt)[:, None]
        at = c * 0  # the same values for every channel
        b = B + t * b_stride + at
        h0 = _advanced(h0, a0, step, moved * _four(b, every, 0, N))
        if NP > 4:
            h1 = _advanced(h1, a1, step, moved * _four(b, every, 1, N))
        if NP > 8:
            h2 = _advanced(h2, a2, step, moved * _four(b, every, 2, N))
            h3 = _advanced(h3, a3, step, moved * _four(b, every, 3, N))
        if OUTPUTS:
            weights = C + t * c_stride + at
            y = h0 * _four(weights, every, 0, N)
            if NP > 4:
                y += h1 * _four(weights, every, 1, N)
            if NP > 8:
                y += h2 * _four(weights, every, 2, N)
                y += h3 * _four(weights, every, 3, N)
            total = tl.sum(y, 1) + d * xt
            gate = tl.load(z + t * z_stride + c, mask=c_in, other=0)
            tl.store(out + t * CH + c, total * silu(gate), mask=c_in)
        else:
            elapsed += step
    if OUTPUTS:
        if first + steps == T:
            _store_four(end + c * N, h0, c_in, 0, N)
            if NP > 4:
                _store_four(end + c * N, h1, c_in, 1, N)
            if NP > 8:
                _store_four(end + c * N, h2, c_in, 2, N)
                _store_four(end + c * N, h3, c_in, 3, N)
    else:
        _store_four(end + states, h0, c_in, 0, N)
        if NP > 4:
            _store_four(end + states, h1, c_in, 1, N)
        if NP > 8:
            _store_four(end + states, h2, c_in, 2, N)
            _store_four(end + states, h3, c_in, 3, N)
        tl.store(decay + number.to(tl.int64) * CH + c, elapsed, mask=c_in)


@triton.jit(do_not_specialize=["chunks"])
def _join_kernel(A, state, end, decay, chunks, CH, N: tl.constexpr, BC: tl.constexpr):
    """Replace end[chunk], what each chunk added, by the state before that chunk; ``state`` is the one before the first.
    Program (i, k): four states of BC channels."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    n = tl.program_id(1) * 4 + tl.arange(0, 4)[None, :]
    cell = c[:, None] * N + n
    both = (c < CH)[:, None] & (n < N)
    a = tl.load(A + cell, mask=both, other=0)
    h = tl.load(state + cell, mask=both, other=0)
    for number in range(0, chunks):
        at = end + tl.cast(number, tl.int64) * CH * N + cell
        added = tl.load(at, mask=both, other=0)
        elapsed = tl.load(decay + tl.cast(number, tl.int64) * CH + c, mask=c < CH, other=0)
        tl.store(at, h, mask=both)
        h = _advanced(h, a, elapsed, added)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
    *,
    chunk: int = SCAN_CHUNK,
) -> torch.Tensor:
    """See ``reference.selective_scan``; x, dt, B, C and z may be columns of wider rows. More than 16 states per channel, which
    no released model has, go through torch."""
    n_tokens, d_inner = x.shape
    d_state = A.shape[1]
    if d_state > MAX_STATES:
        return reference.selective_scan(x, dt, dt_bias, A, B, C, D, z, state)
    out = torch.empty(n_tokens, d_inner, device=x.device)
    chunk = chunk if n_tokens > 2 * chunk else n_tokens
    chunks = cdiv(n_tokens, chunk)
    bc = min(128, power_of_two(d_inner)) if interpreted() else 64
    sizes = {"N": d_state, "NP": max(4, power_of_two(d_state)), "BC": bc}
    programs = cdiv(d_inner, bc)
    start, decay = state, state
    strides = x.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0)
    warps = max(1, bc // 32)
    if chunks > 1:
        start = torch.empty(chunks, d_inner, d_state, device=x.device)
        decay = torch.empty(chunks, d_inner, device=x.device)
        _chunk_kernel[programs, chunks](
            x, dt, dt_bias, A, B, C, D, z, start, start, decay, out, n_tokens, d_inner, *strides, chunk,
            **sizes, OUTPUTS=False, num_warps=warps,
        )  # fmt: skip
        _join_kernel[programs, cdiv(d_state, 4)](
            A, state, start, decay, chunks, d_inner, N=d_state, BC=bc, num_warps=warps
        )
    _chunk_kernel[programs, chunks](
        x, dt, dt_bias, A, B, C, D, z, start, state, decay, out, n_tokens, d_inner, *strides, chunk,
        **sizes, OUTPUTS=True, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _norm_of(x, weight, n, eps, N: tl.constexpr):
    """The RMS norm of N values, at most as many as n has: float32 [n]."""
    value = tl.load(x + n, mask=n < N, other=0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / N + eps)
    return value * scale * tl.load(weight + n, mask=n < N, other=0)


@triton.jit
def _step_kernel(
    x, dtbc, dt_norm, b_norm, c_norm, eps, q, h, s, d, dt_bias, A, D, z, state, out, CH, R,
    K: tl.constexpr, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr,
    SCALES: tl.constexpr, N: tl.constexpr, NP: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One token for RL * BR channels: the three norms, dt_proj, the recurrence and the gate. x, out, the values of dt and their
    norm's weight are interleaved."""
    own, lane = threads(GL, RL, KW)
    row, last = tl.program_id(0) * (RL * BR) + lane, CH - 1
    squares = tl.zeros((GL * RL * KW,), tl.float32)
    t0, t1, t2, t3 = squares, squares, squares, squares
    for start in range(0, G, GL * KW):
        x0, x1, x2, x3, x4, x5, x6, x7, first, second, more = load_groups(
            dtbc, dt_norm, start, own, K, G, GL, KW, True, True
        )
        squares += more
        t0, t1, t2, t3 = add_products(
            t0, t1, t2, t3, x0, x1, x2, x3, x4, x5, x6, x7, first, second, q, h, s, d, row, last, 0, start + own, R,
            G, LEVELS, HIGH, ZERO, SCALES, GL, RL, KW, BR,
        )  # fmt: skip
    row = rows_of(tl.program_id(0), RL, BR)
    row_in, rows = row < CH, tl.minimum(row, last).to(tl.int64)
    dt = over_the_row(t0, t1, t2, t3, GL, RL, KW, BR) * row_factor(d, rows, row_in, SCALES)
    dt /= tl.sqrt(mean_square(squares, K, GL, RL, KW) + eps)
    dt, c = tl.reshape(dt, (RL * BR,)), tl.reshape(row, (RL * BR,))
    c_in = c < CH
    dt = softplus(dt + tl.load(dt_bias + c, mask=c_in, other=0))
    n = tl.arange(0, NP)
    bc = dtbc + (K + 255) // 256 * 256
    b = _norm_of(bc, b_norm, n, eps, N)
    c_values = _norm_of(bc + N, c_norm, n, eps, N)
    both = c_in[:, None] & (n < N)[None, :]
    cell = c[:, None] * N + n[None, :]
    xt = tl.load(x + place(c), mask=c_in, other=0)
    decay = tl.exp(dt[:, None] * tl.load(A + cell, mask=both, other=0))
    new = decay * tl.load(state + cell, mask=both, other=0) + (dt * xt)[:, None] * b[None, :]
    tl.debug_barrier()  # threads may share a state: all read it before one writes
    tl.store(state + cell, new, mask=both)
    y = tl.sum(new * c_values[None, :], 1) + tl.load(D + c, mask=c_in, other=0) * xt
    tl.store(out + place(c), y * silu(tl.load(z + c, mask=c_in, other=0)), mask=c_in)


def scan_step(
    x: torch.Tensor,
    dtbc: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    eps: float,
    dt_proj: Packed,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """One token from the convolution's output to out_proj's input, in one kernel.

    x, out float32 [padded(d_inner)], interleaved; z float32 [d_inner]; dtbc float32 [padded(dt_rank) + 2 * d_state], x_proj's
    output with dt_rank values interleaved; ``norms``: weights of the norms of dt (interleaved), B and C; dt_proj
    [d_inner, dt_rank]; the rest as in ``reference.selective_scan``.
    """
    d_inner, d_state = A.shape
    tile = gemv_tile(dt_proj, d_inner)
    _step_kernel[(cdiv(d_inner, tile.height),)](
        x, dtbc, *norms, eps, *dt_proj.planes(), dt_bias, A, D, z, state, out, d_inner, dt_proj.rows,
        K=dt_proj.shape[1], **constants(dt_proj), N=d_state, NP=power_of_two(d_state), **tile.constants(),
    )  # fmt: skip
