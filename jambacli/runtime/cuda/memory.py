"""What a model takes on a card: its tensors in planes, and all that lies beside them. Knows nothing of what is free.

Beside the weights a card holds, all at once
- keys and values of the whole context, the Mamba state, and copies of that state to go back to;
- a decode step's partial sums of attention, 256 keys a run, for every attention layer;
- where experts stay in RAM, two slots for one expert's blocks each, which it visits the card in;
- CUDA's libraries, kernels and recorded graphs;
and, one after the other, so that only the largest counts: the temporaries of reading ``chunk`` tokens (``prefill_bytes``), the
old copy of a layer's keys while they move to grow, and what repacking weights takes while they are uploaded.

The counts follow ``Layer.forward`` and ``kernels.triton.ops`` line by line; a test holds them to what tensors really take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from jambacli.kernels.triton.limits import (
    CONVERT_VALUES,
    FEW_ROWS,
    MASK_VALUES,
    PANEL_VALUES,
    REPACK_VALUES,
    SCAN_CHUNK,
    SPLIT,
)
from jambacli.kernels.triton.repack import FLOAT, GROUP, LAYOUTS, packed_bytes
from jambacli.model.config import CHECKPOINT_BYTES, JambaConfig
from quant.formats import FORMATS

#: A slot's tensors begin at multiples of this.
ALIGNED = 256
#: What a process's CUDA context takes before anything of its own: gone from what is free once torch has been there.
CONTEXT_BYTES = 450_000_000
# What comes later: cuBLAS with its workspace, compiled kernels, recorded graphs.
_LIBRARY_BYTES = 250_000_000

# Matrices that kernels read; every other tensor is a few values.
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
    """Whether the tensor of that GGUF name is one that kernels multiply with, not a few values."""
    return name.endswith(".weight") and name.removesuffix(".weight").rsplit(".", 1)[-1] in _MATRICES


def expert_layer(name: str) -> int | None:
    """The layer whose experts the tensor of that GGUF name belongs to; None for any other tensor."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2].startswith("ffn_") and parts[2].endswith("_exps"):
        return int(parts[1])
    return None


@dataclass
class CardSizes:
    """Bytes that a model's tensors take on a card: ``fixed`` but for the experts', those by layer in ``experts``.

    By layer too, for an expert that visits the card: ``slot`` for its three matrices as they lie in the file, and ``copy``
    for them in planes beside that (nothing for formats that lie there as they are read).
    """

    fixed: int = 0
    experts: dict[int, int] = field(default_factory=dict)
    slot: dict[int, int] = field(default_factory=dict)
    copy: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return self.fixed + sum(self.experts.values())


def card_sizes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> CardSizes:
    """What tensors, by GGUF name (format, shape), take on a card."""
    found = CardSizes()
    for name, (fmt, shape) in tensors.items():
        if not shape:  # not one of a model's own
            continue
        rows, n = math.prod(shape[:-1]), shape[-1]
        layer = expert_layer(name)
        kept = fmt if fmt in LAYOUTS else "f16"
        if layer is None:
            found.fixed += packed_bytes(kept, rows, n) if is_matrix(name) else rows * n * 4
            continue
        found.experts[layer] = found.experts.get(layer, 0) + packed_bytes(kept, rows, n)
        one = rows // max(1, shape[0])
        found.slot[layer] = found.slot.get(layer, 0) + slot_bytes(fmt, one, n)
        as_read = fmt in LAYOUTS and n % GROUP == 0 and (fmt == "i8" or LAYOUTS[fmt].levels == FLOAT)
        found.copy[layer] = found.copy.get(layer, 0) + (0 if as_read else packed_bytes(kept, one, n))
    return found


def guessed_sizes(config: JambaConfig, weights: int, experts: int) -> CardSizes:
    """The same of a model known by the bytes of its file's weights, ``experts`` of them the experts': planes take up to
    3% more, layers are alike."""
    layers = [i for i, flag in enumerate(config.layer_is_moe) if flag]
    each = int(1.03 * experts / max(1, len(layers)))
    one = each // max(1, config.n_experts)
    return CardSizes(
        int(1.03 * (weights - experts)),
        dict.fromkeys(layers, each),
        dict.fromkeys(layers, one),
        dict.fromkeys(layers, one),
    )


def slot_bytes(fmt: str, rows: int, n: int) -> int:
    """Bytes of a matrix on its way to the card: its blocks, and its rows' factors where it has any, both aligned."""
    form = FORMATS[fmt]
    data = _aligned(rows * n // form.block * form.block_bytes)
    return data + (_aligned(4 * rows) if fmt == "i8" else 0)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def beside_weights(
    config: JambaConfig,
    sizes: CardSizes,
    ctx: int,
    kv_type: str,
    chunk: int,
    behind: list[int],
    *,
    cpu_kv: bool = False,
) -> int:
    """Bytes on a card beside the weights, for ``ctx`` tokens read ``chunk`` at a time; experts of layers ``behind`` in RAM."""
    c = config
    kv = ctx * c.kv_bytes_per_token(kv_type)
    runs = -(-ctx // SPLIT) * c.n_heads * (c.head_dim + 2) * 4 * c.n_attention_layers
    stays = c.state_bytes() + CHECKPOINT_BYTES + _LIBRARY_BYTES + _step_bytes(c)
    stays += 0 if cpu_kv else kv + runs
    stays += 2 * slot(sizes, behind)
    copy = max((sizes.copy[i] for i in behind), default=0)
    moving = 0 if cpu_kv else kv // (2 * max(1, c.n_attention_layers))
    repacking = 8 * REPACK_VALUES + 4 * REPACK_VALUES
    peak = prefill_bytes(c, ctx, kv_type, min(chunk, ctx), copy if behind else None, cpu_kv=cpu_kv)
    return stays + max(peak, moving, repacking)


def slot(sizes: CardSizes, behind: list[int]) -> int:
    """Bytes of one slot for experts of the layers ``behind``."""
    return max((sizes.slot[i] for i in behind), default=0)


def _step_bytes(c: JambaConfig) -> int:
    """What a decode step keeps its values in, and its logits once more; choosing a token sorts them in float64."""
    return 4 * (6 * c.hidden + 8 * c.d_inner + (c.n_experts_used + 2) * c.ffn) + (8 + 64) * c.vocab_size


def prefill_bytes(
    config: JambaConfig, ctx: int, kv_type: str, n: int, copy: int | None, *, cpu_kv: bool = False
) -> int:
    """The most that temporaries take while ``n`` tokens go through a layer, the last of ``ctx`` tokens among them.

    ``copy``: bytes of a visiting expert in planes, None where no experts stay behind. The residual stream is there before a
    half layer and after the last one, and its norm: 4 bytes a value, as every value but for the operands of products, 2.
    A product (``_product``) has the expanded weight, at most a panel of it, x's copy as an operand, and the result.

    mixer of Mamba      x and its norm; xz twice d_inner; the convolution's result, dt, y: d_inner each; then the scan's states,
                        16 a channel and 128 tokens, or the product of y
    mixer of attention  x and its norm; q; keys and values converted where they are stored otherwise, or fetched from RAM;
                        q and the result as 2 bytes (4 with an f32 cache), the result in float32, perhaps twice
    dense network       x before and after the mixer, its norm; gate and up, ffn wide each, beside the product of the second
    experts             the same beside the tokens' rows and their results, top_k a token, for the worst of routers: all tokens
                        through one expert; afterwards twice the results again while they are weighted
    """
    c, h, d, f = config, config.hidden, config.d_inner, config.ffn
    most = 0
    if c.n_mamba_layers:
        held = 4 * n * (2 * h + 5 * d)
        scan = 4 * d * (c.d_state + 1) * -(-n // SCAN_CHUNK)
        most = max(4 * n * 2 * h + _product(n, h, 2 * d), held + max(scan, _product(n, d, h)))
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
        most = max(most, 4 * n * (2 * h + width) + max(keys + attention, _product(n, width, h)))
    beside = 4 * n * 3 * h
    if c.n_moe_layers < c.n_layers:
        most = max(most, beside + _mlp(n, h, f))
    if c.n_moe_layers:
        most = max(most, beside + _experts(c, n, copy))
    return most


def _product(n: int, n_in: int, n_out: int) -> int:
    """Temporaries and result, float32 [n, n_out], of many rows times an expanded matrix.

    In float16 x is scaled in float32 first, and the result scaled back; a card without products into float32 has the result
    in 2 bytes too. A matrix of several panels has the panel's product beside the result.
    """
    rows = min(n_out, max(1, PANEL_VALUES // n_in))
    panel = 2 * rows * n_in + max(6 * n * n_in, 2 * n * n_in + 6 * n * rows, 8 * n * rows)
    return panel + (4 * n * n_out if rows < n_out else 0)


def _mlp(n: int, h: int, f: int) -> int:
    """A gated network on n rows: the gate lies there while up is computed, and takes their product."""
    return 4 * n * f + max(_product(n, h, f), _product(n, f, h))


def _experts(c: JambaConfig, n: int, copy: int | None) -> int:
    """A layer's experts on n tokens, in groups or one by one, or visiting the card (``copy``)."""
    h, f, k = c.hidden, c.ffn, c.n_experts_used
    few = min(n, FEW_ROWS * c.n_experts // k)
    most = 4 * few * k * (f + 3 * h) + 4 * few * h
    rows = 2 * 4 * n * k * h
    if n > few:
        most = max(most, rows + _mlp(n, h, f), 2 * rows + 4 * n * h)
    if copy is not None:
        most = max(most, rows + copy + max(_mlp(n, h, f), 8 * REPACK_VALUES), 2 * rows + 4 * n * h)
    return most
