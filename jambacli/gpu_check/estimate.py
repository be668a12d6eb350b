"""Predicts the time of a decode step on a GPU from the bytes and instructions of each kernel.

``python -m jambacli.gpu_check.estimate jamba-mini q4_k_m 262080`` prints the tables of docs/cuda.md. The counts follow
``runtime.cuda.decoder``; bytes are those of weights in planes. A kernel takes 2 microseconds to start and end, plus the longest
of four times: its bytes over the memory bandwidth, its operations over the multiprocessors' float32 rate, the latency of the
turns in which a warp loads and waits (the first turn is part of the 2 microseconds), and the cycles in which the L1 caches
deliver weights and activations. The activations' are known within a factor of four only, see ``L1_CYCLES``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.model.config import JambaConfig
from jambacli.units import format_bytes
from quant.formats import FORMATS

#: Seconds that a kernel in a graph is allowed beyond its work; the predictions add as much.
OVERHEAD = 2e-6
#: Seconds of one turn: a load from memory on a busy GPU, and the computation with it.
TURN = 0.7e-6
#: Instructions per weight in a matrix-vector product, counted in the loops of kernels compiled for sm_90 by Triton 3.9: 10,240
#: rows of 2,560 values after a norm, four rows per thread.
INSTRUCTIONS = {
    "f32": 2.3,
    "f16": 3.4,
    "bf16": 3.9,
    "i8": 4.8,
    "q8_0": 4.9,
    "q4_0": 4.3,
    "q4_k": 4.7,
    "q2_k": 5.9,
    "q6_k": 6.4,
    "q5_0": 7.0,
    "q5_1": 7.2,
    "q5_k": 7.4,
    "q3_k": 7.9,
    "iq4_xs": 9.5,
}
#: The same with activations of int8, compiled for sm_90 by Triton 3.6 to 3.9, four rows per thread; Q6_K without a norm. Other
#: formats are predicted as without int8.
INT8_INSTRUCTIONS = {"q8_0": 2.3, "q4_0": 2.8, "q4_k": 3.2, "q6_k": 3.3, "q5_k": 4.4}
# Formats of similar structure.
_SIMILAR = {"q4_1": "q4_k", "iq4_nl": "iq4_xs"}


#: L1 cycles of a warp's load of four activations per thread. Eight neighbouring threads read one line of 128 bytes, and four
#: such quarters of a warp read the same addresses: 1 cycle if the quarters are served at once, else 4.
L1_CYCLES = (1, 4)
#: Bytes that an L1 cache delivers per cycle.
L1_LINE = 128
#: Seconds of a step that the host adds: two fills, the graph's launch, reading the token back.
HOST = 0.12e-3


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory bytes per second, multiprocessors (of 128 float32 lanes), and their clock in Hz."""

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float

    @property
    def instructions(self) -> float:
        """Float32 instructions per second."""
        return self.multiprocessors * 128 * self.clock


#: In order of their bandwidth.
GPUS = (
    Gpu("RTX 3060", 360e9, 28, 1.8e9),
    Gpu("RTX A6000", 768e9, 84, 1.8e9),
    Gpu("RTX 4090", 1008e9, 128, 2.5e9),
    Gpu("H200", 4.8e12, 132, 1.75e9),
)


@dataclass(frozen=True)
class Kernel:
    """A kind of kernel in a step: how often it runs, and bytes, instructions, turns, and warps' loads of activations of one
    run."""

    name: str
    count: int
    nbytes: float
    instructions: float
    turns: int = 1
    loads: float = 0.0

    def seconds(self, gpu: Gpu, l1_cycles: int = L1_CYCLES[0]) -> float:
        """Predicted time of one run."""
        waiting = (self.turns - 1) * TURN
        delivering = (self.nbytes / L1_LINE + self.loads * l1_cycles) / (gpu.multiprocessors * gpu.clock)
        return max(self.nbytes / gpu.bandwidth, self.instructions / gpu.instructions, waiting, delivering) + OVERHEAD


def instructions(fmt: str) -> float:
    """Instructions per weight of a format; one that was not counted is taken for the counted one nearest to it in size."""
    fmt = _SIMILAR.get(fmt, fmt)
    if fmt not in INSTRUCTIONS:
        bits = FORMATS[fmt].bits_per_weight
        fmt = min(INSTRUCTIONS, key=lambda counted: abs(FORMATS[counted].bits_per_weight - bits))
    return INSTRUCTIONS[fmt]


def kernels(config: JambaConfig, quant: str, depth: int, *, int8: bool = False) -> list[Kernel]:
    """The kernels of one decode step after ``depth`` tokens, with all weights on the GPU and KV in f16. ``int8``: with
    activations of int8."""
    merged: dict[Kernel, int] = {}
    for step in _steps(config, quant, depth, int8):
        one = Kernel(step[0], 1, *step[1:])
        merged[one] = merged.get(one, 0) + 1
    return [replace(kernel, count=count) for kernel, count in merged.items()]


def _steps(c: JambaConfig, quant: str, depth: int, int8: bool) -> Iterator[tuple[Any, ...]]:
    from jambacli.kernels.triton.limits import INT8_ROWS, SPLIT, tile_shape, turns
    from jambacli.kernels.triton.repack import GROUP, LAYOUTS, packed_bytes

    found = choices(c, quant)

    def weight(*names: str, share: float = 1.0, norm: bool = False) -> tuple[float, float, int, float]:
        nbytes = ops = loads = 0.0
        waits = 1
        for name in names:
            choice = found[name]
            rows, n = 1, choice.tensor.shape[-1]
            for size in choice.tensor.shape[:-1]:
                rows *= size
            stored = choice.format if choice.format in LAYOUTS else "f16"  # as ``upload`` does
            nbytes += packed_bytes(stored, rows, n) * share
            rounded = int8 and stored in INT8_INSTRUCTIONS and choice.tensor.shape[-2] >= INT8_ROWS
            ops += rows * n * share * (INT8_INSTRUCTIONS[stored] if rounded else instructions(stored))
            groups = -(-n // GROUP)
            tile = tile_shape(choice.tensor.shape[-2], groups, gated=len(names) == 2, int8=rounded)
            waits = max(waits, turns(groups, tile[1]))
            # A warp loads eight chunks of x, and as many of the norm's weights, for 1,024 weights per row of its threads.
            loads += rows * n * share / (1024 * tile[0] * len(names)) * (16 if norm else 8)
        return nbytes, ops, waits, loads

    yield "token, position", 4.0, 0.0, 1
    yield "token, position", 4.0, 0.0, 1
    yield "embedding row", 4.0 * c.hidden, 0.0, 1
    for i in range(c.n_layers):
        b = f"blk.{i}."
        if c.layer_is_attention[i]:
            for part in "qkv":
                yield f"norm + {part}", *weight(b + f"attn_{part}.weight", norm=True)
            yield "append to KV", 4.0 * 2 * c.n_kv_heads * c.head_dim, 0.0, 1
            kv = 2.0 * 2 * c.n_kv_heads * c.head_dim * (depth + 1)
            splits = depth // SPLIT + 1
            partial = 4.0 * c.n_heads * splits * (c.head_dim + 2)
            # Products run on the matrix units; the rest is conversion, exponentials and sums.
            yield (
                f"attention, runs of {SPLIT} keys",
                kv + partial,
                2.0 * kv,
                min(4, depth // 64 + 1),
            )  # 64 keys at a time
            yield "attention, runs joined", partial, partial / 2, -(-splits // 64)
            yield "attention output + residual", *weight(b + "attn_output.weight")
        else:
            nbytes, ops, waits, loads = weight(b + "ssm_in.weight", norm=True)
            yield (
                "norm + in_proj + convolution step",
                nbytes + 4.0 * c.d_inner * 3 * c.d_conv,
                ops + 20.0 * c.d_inner,
                waits + 1,  # the convolution's weights and inputs
                loads,
            )
            yield "x_proj", *weight(b + "ssm_x.weight")
            nbytes, ops, waits, loads = weight(b + "ssm_dt.weight", norm=True)
            states = c.d_inner * c.d_state
            yield (
                "norms + dt_proj + scan step + gate",
                nbytes + 4.0 * 3 * states + 20.0 * c.d_inner,
                ops + 12.0 * states,
                waits + 1,  # the state
                loads,
            )
            yield "out_proj + residual", *weight(b + "ssm_out.weight")
        if c.layer_is_moe[i]:
            share = c.n_experts_used / c.n_experts
            yield "norm + router", 4.0 * c.n_experts * c.hidden, 2.0 * c.n_experts * c.hidden, 2
            yield (
                "experts' gate and up",
                *weight(b + "ffn_gate_exps.weight", b + "ffn_up_exps.weight", share=share, norm=True),
            )
            nbytes, ops, waits, loads = weight(b + "ffn_down_exps.weight", share=share)
            waits *= c.n_experts_used  # one expert after another
            yield "experts' down + weights + residual", nbytes, ops, waits, loads
        else:
            yield "norm + gate and up", *weight(b + "ffn_gate.weight", b + "ffn_up.weight", norm=True)
            yield "down + residual", *weight(b + "ffn_down.weight")
    yield "norm + output", *weight("token_embd.weight" if c.tied_embeddings else "output.weight", norm=True)


def table(shape: str, quant: str, depth: int) -> str:
    """The kernels of a step as a Markdown table, with totals for each GPU."""
    listed = kernels(shape_config(shape), quant, depth)
    lines = [
        "| kernel | per token | bytes | instructions | " + " | ".join(f"us on {c.name}" for c in GPUS) + " |",
        "| --- |" + " ---: |" * (3 + len(GPUS)),
    ]
    for k in listed:
        times = " | ".join(f"{k.seconds(gpu) * 1e6:.1f}" for gpu in GPUS)
        lines.append(f"| {k.name} | {k.count} | {format_bytes(k.nbytes)} | {k.instructions / 1e6:.1f} M | {times} |")
    count = sum(k.count for k in listed)
    nbytes = sum(k.count * k.nbytes for k in listed)
    totals = " | ".join(f"{sum(k.count * k.seconds(gpu) for k in listed) * 1e6:.0f}" for gpu in GPUS)
    ops = sum(k.count * k.instructions for k in listed)
    lines.append(f"| all | {count} | {format_bytes(nbytes)} | {ops / 1e6:.0f} M | {totals} |")
    rounded = kernels(shape_config(shape), quant, depth, int8=True)
    for name, steps, cycles in (
        ("tokens/s", listed, L1_CYCLES[0]),
        ("tokens/s if L1 is slow", listed, L1_CYCLES[1]),
        ("tokens/s with int8", rounded, L1_CYCLES[0]),
    ):
        rates = (1 / (HOST + sum(k.count * k.seconds(gpu, cycles) for k in steps)) for gpu in GPUS)
        lines.append(f"| {name} | | | | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    shape, quant = arguments[:2] + ["jamba-3b", "q4_k_m"][len(arguments) :]
    print(table(shape, quant, int(arguments[2]) if len(arguments) > 2 else 0))
