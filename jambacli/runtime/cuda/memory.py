"""How many bytes a model takes on a GPU: its weights in planes, and its working memory.

The working memory holds, at the same time,
- keys and values of the whole context, the Mamba state and the checkpoints of it;
- the partial sums of decode attention, 256 keys per run, for every attention layer;
- with experts in host memory, two slots through which their blocks are streamed;
- CUDA's libraries, kernels and recorded graphs;
and the largest of three that do not coincide: the temporaries of prefill (``prefill_bytes``), the old keys of a layer while its
cache grows, and the temporaries of repacking weights during upload.

The counts follow ``Layer.forward`` and ``kernels.triton.ops`` line by line. tests/runtime/test_gpu_memory.py compares them with
every allocation of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from jambacli.kernels.triton.limits import (
    CONVERT_VALUES,
    DEQUANTIZED_PANEL_VALUES,
    FEW_ROWS,
    MASK_VALUES,
    REPACK_VALUES,
    SCAN_CHUNK,
    SPLIT,
)
from jambacli.kernels.triton.repack import FLOAT, GROUP, LAYOUTS, packed_bytes
from jambacli.model.config import CHECKPOINT_BYTES, JambaConfig
from quant.formats import FORMATS

#: Alignment of the tensors in a slot.
ALIGNED = 256
#: Size of a process's CUDA context. It is no longer part of the free memory once torch has used the GPU.
CONTEXT_BYTES = 450_000_000
# Allocated later: cuBLAS with its workspace, compiled kernels, recorded graphs.
_LIBRARY_BYTES = 250_000_000

# The tensors that kernels multiply with; all others are small.
_MATRICES = (
    "token_embd",
    "output",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ssm_in",
    "ssm_x",
    "ssm_dt",
    "ssm_out",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
)


def is_matrix(name: str) -> bool:
    """Whether the tensor with this GGUF name is a matrix that kernels multiply with."""
    return name.endswith(".weight") and name.removesuffix(".weight").rsplit(".", 1)[-1] in _MATRICES


def expert_layer(name: str) -> int | None:
    """The layer whose experts the tensor with this GGUF name belongs to; None for any other tensor."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2].startswith("ffn_") and parts[2].endswith("_exps"):
        return int(parts[1])
    return None


@dataclass
class GpuSizes:
    """Bytes of a model's tensors on a GPU: ``experts`` by layer, ``fixed`` for all others.

    Also by layer, for streaming one expert: ``slot`` for its three matrices as GGUF blocks, ``repacked`` for their planes
    (0 for formats whose blocks the kernels read as they are).
    """

    fixed: int = 0
    experts: dict[int, int] = field(default_factory=dict)
    slot: dict[int, int] = field(default_factory=dict)
    repacked: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return self.fixed + sum(self.experts.values())


def gpu_sizes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> GpuSizes:
    """The sizes of tensors given as (format, shape) by GGUF name."""
    found = GpuSizes()
    for name, (fmt, shape) in tensors.items():
        if not shape:  # a scalar is not a weight of the model
            continue
        rows, n = math.prod(shape[:-1]), shape[-1]
        layer = expert_layer(name)
        stored = fmt if fmt in LAYOUTS else "f16"
        if layer is None:
            found.fixed += packed_bytes(stored, rows, n) if is_matrix(name) else rows * n * 4
            continue
        found.experts[layer] = found.experts.get(layer, 0) + packed_bytes(stored, rows, n)
        one = rows // max(1, shape[0])
        found.slot[layer] = found.slot.get(layer, 0) + matrix_slot_bytes(fmt, one, n)
        in_place = fmt in LAYOUTS and n % GROUP == 0 and (fmt == "i8" or LAYOUTS[fmt].levels == FLOAT)
        found.repacked[layer] = found.repacked.get(layer, 0) + (0 if in_place else packed_bytes(stored, one, n))
    return found


def estimated_sizes(config: JambaConfig, weights: int, experts: int) -> GpuSizes:
    """Estimated sizes for a file with ``weights`` bytes of weights, ``experts`` of them in experts.

    Assumes that planes take 3% more than blocks and that all layers are alike.
    """
    layers = [i for i, flag in enumerate(config.layer_is_moe) if flag]
    each = int(1.03 * experts / max(1, len(layers)))
    one = each // max(1, config.n_experts)
    return GpuSizes(
        int(1.03 * (weights - experts)),
        dict.fromkeys(layers, each),
        dict.fromkeys(layers, one),
        dict.fromkeys(layers, one),
    )


def matrix_slot_bytes(fmt: str, rows: int, n: int) -> int:
    """Bytes of a matrix in a slot: its blocks, and for ExpertsInt8 and NVFP4 the factors of its rows, both aligned."""
    form = FORMATS[fmt]
    data = _aligned(rows * n // form.block * form.block_bytes)
    return data + (_aligned(4 * rows) if fmt in ("i8", "nvfp4") else 0)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def working_memory(
    config: JambaConfig,
    sizes: GpuSizes,
    ctx: int,
    kv_type: str,
    chunk: int,
    host_layers: list[int],
    *,
    cpu_kv: bool = False,
) -> int:
    """Bytes on a GPU besides the weights, for ``ctx`` tokens and a prefill of ``chunk`` tokens at a time.

    ``host_layers``: layers whose experts stay in host memory. ``cpu_kv``: keys and values stay there too.
    """
    c = config
    kv = ctx * c.kv_bytes_per_token(kv_type)
    runs = -(-ctx // SPLIT) * c.n_heads * (c.head_dim + 2) * 4 * c.n_attention_layers
    permanent = c.state_bytes() + CHECKPOINT_BYTES + _LIBRARY_BYTES + _step_bytes(c)
    permanent += 0 if cpu_kv else kv + runs
    permanent += 2 * slot_bytes(sizes, host_layers)
    repacked = max((sizes.repacked[i] for i in host_layers), default=0)
    growing = 0 if cpu_kv else kv // (2 * max(1, c.n_attention_layers))
    repacking = 8 * REPACK_VALUES + 4 * REPACK_VALUES
    prefill = prefill_bytes(c, ctx, kv_type, min(chunk, ctx), repacked if host_layers else None, cpu_kv=cpu_kv)
    return permanent + max(prefill, growing, repacking)


def slot_bytes(sizes: GpuSizes, host_layers: list[int]) -> int:
    """Bytes of one slot for experts of the layers ``host_layers``."""
    return max((sizes.slot[i] for i in host_layers), default=0)


def _step_bytes(c: JambaConfig) -> int:
    """The buffers of a decode step, a second copy of its logits, and the float64 temporaries of sampling."""
    return 4 * (6 * c.hidden + 8 * c.d_inner + (c.n_experts_used + 2) * c.ffn) + (8 + 64) * c.vocab_size


def prefill_bytes(
    config: JambaConfig, ctx: int, kv_type: str, n: int, repacked: int | None, *, cpu_kv: bool = False
) -> int:
    """The peak of temporaries while the last ``n`` of ``ctx`` tokens go through a layer, and the copy of the Mamba state that
    undoes the pass.

    ``repacked``: bytes of a streamed expert in planes, None without experts in host memory. Values take 4 bytes, operands of
    matrix products 2. A product (``_product``) holds the dequantized weight or a panel of it, x as an operand, and the result.

    Mamba           x and its norm; xz (2 d_inner); conv output, dt and y (d_inner each); then the scan's states, 16 per
                    channel and 128 tokens, or the product of y
    attention       x and its norm; q; keys and values, if they are converted or come from host memory; q and the result in
                    2 bytes (4 with an f32 cache); the result in float32, possibly twice
    dense network   x before and after the mixer, its norm; gate and up (ffn each) and the second product
    experts         the same, and the gathered rows and results, top_k per token, assuming that the router sends all tokens
                    to one expert; then twice the results while they are weighted
    """
    c, h, d, f = config, config.hidden, config.d_inner, config.ffn
    peak = 0
    if c.n_mamba_layers:
        held = 4 * n * (2 * h + 5 * d)
        scan = 4 * d * (c.d_state + 1) * -(-n // SCAN_CHUNK)
        peak = max(4 * n * 2 * h + _product(n, h, 2 * d), held + max(scan, _product(n, d, h)))
    if c.n_attention_layers:
        width = c.n_heads * c.head_dim
        one = 4 if kv_type == "f32" else 2
        row = c.n_kv_heads * c.head_dim
        keys = 0
        if kv_type == "q8_0":
            keys += 2 * 2 * ctx * row + 12 * min(CONVERT_VALUES, ctx * row)
        if cpu_kv:
            keys += ctx * c.kv_bytes_per_token(kv_type) // c.n_attention_layers
        attention = 3 * one * n * width + 2 * 4 * n * width + 5 * MASK_VALUES
        peak = max(peak, 4 * n * (2 * h + width) + max(keys + attention, _product(n, width, h)))
    beside = 4 * n * 3 * h
    if c.n_moe_layers < c.n_layers:
        peak = max(peak, beside + _mlp(n, h, f))
    if c.n_moe_layers:
        peak = max(peak, beside + _experts(c, n, repacked))
    return peak + c.state_bytes()


def _product(n: int, n_in: int, n_out: int) -> int:
    """Temporaries and result, float32 [n, n_out], of many rows times a dequantized matrix.

    With float16 operands x is scaled in float32 first and the result scaled back. A GPU without products into float32 also
    holds the result in 2 bytes. If the matrix has several panels, a panel's product is in memory in addition to the result.
    """
    rows = min(n_out, max(1, DEQUANTIZED_PANEL_VALUES // n_in))
    panel = 2 * rows * n_in + max(6 * n * n_in, 2 * n * n_in + 6 * n * rows, 8 * n * rows)
    return panel + (4 * n * n_out if rows < n_out else 0)


def _mlp(n: int, h: int, f: int) -> int:
    """A gated network on n rows: the gate's result is kept while up is computed."""
    return 4 * n * f + max(_product(n, h, f), _product(n, f, h))


def _experts(c: JambaConfig, n: int, repacked: int | None) -> int:
    """A layer's experts on n tokens: grouped, one by one, or streamed (``repacked``)."""
    h, f, k = c.hidden, c.ffn, c.n_experts_used
    few = min(n, FEW_ROWS * c.n_experts // k)
    peak = 4 * few * k * (f + 3 * h) + 4 * few * h
    rows = 2 * 4 * n * k * h
    if n > few:
        peak = max(peak, rows + _mlp(n, h, f), 2 * rows + 4 * n * h)
    if repacked is not None:
        peak = max(peak, rows + repacked + max(_mlp(n, h, f), 8 * REPACK_VALUES), 2 * rows + 4 * n * h)
    return peak
