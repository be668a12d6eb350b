"""Random Jamba GGUF files of any shape, written with the gguf package, not with this program's writer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A Jamba's sizes; names as in the GGUF metadata. ``heads`` and ``kv_heads`` apply to the layers in ``attention``."""

    layers: int = 8
    hidden: int = 256
    ffn: int = 512
    experts: int = 16
    attention: Collection[int] = (4,)
    moe: Collection[int] | None = None
    """Layers with experts; the odd ones by default."""
    heads: int = 4
    kv_heads: int = 2
    dt_rank: int = 32
    d_state: int = 16
    vocab: int = 128
    tied: bool = False
    extra_metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def inner(self) -> int:
        return 2 * self.hidden

    def moe_layers(self) -> Collection[int]:
        if self.experts <= 1:
            return ()
        return range(1, self.layers, 2) if self.moe is None else self.moe


# One Mini block at a fraction of its width, and the 3B at a tenth: its rows of 2560, 8192, 5120 and 160 are all
# multiples of what these are multiples of, but for the 160, which is kept.
MOE = Shape()
SMALL_3B = Shape(
    layers=28, hidden=256, ffn=768, experts=1, attention=(7, 21), heads=2, kv_heads=1, dt_rank=160, vocab=256, tied=True
)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape (torch order) in the order that a converter walks the layers."""
    hidden, inner, head = shape.hidden, shape.inner, shape.hidden // shape.heads
    yield "token_embd.weight", (shape.vocab, hidden)
    for n in range(shape.layers):
        prefix = f"blk.{n}."
        yield prefix + "attn_norm.weight", (hidden,)
        yield prefix + "ffn_norm.weight", (hidden,)
        if n in shape.attention:
            yield prefix + "attn_q.weight", (hidden, hidden)
            yield prefix + "attn_k.weight", (head * shape.kv_heads, hidden)
            yield prefix + "attn_v.weight", (head * shape.kv_heads, hidden)
            yield prefix + "attn_output.weight", (hidden, hidden)
        else:
            yield prefix + "ssm_in.weight", (2 * inner, hidden)
            yield prefix + "ssm_conv1d.weight", (inner, 4)
            yield prefix + "ssm_conv1d.bias", (inner,)
            yield prefix + "ssm_x.weight", (shape.dt_rank + 2 * shape.d_state, inner)
            yield prefix + "ssm_dt.weight", (inner, shape.dt_rank)
            yield prefix + "ssm_dt.bias", (inner,)
            yield prefix + "ssm_dt_norm.weight", (shape.dt_rank,)
            yield prefix + "ssm_b_norm.weight", (shape.d_state,)
            yield prefix + "ssm_c_norm.weight", (shape.d_state,)
            yield prefix + "ssm_a", (inner, shape.d_state)
            yield prefix + "ssm_d", (inner,)
            yield prefix + "ssm_out.weight", (hidden, inner)
        if n in shape.moe_layers():
            yield prefix + "ffn_gate_inp.weight", (shape.experts, hidden)
            yield prefix + "ffn_gate_exps.weight", (shape.experts, shape.ffn, hidden)
            yield prefix + "ffn_up_exps.weight", (shape.experts, shape.ffn, hidden)
            yield prefix + "ffn_down_exps.weight", (shape.experts, hidden, shape.ffn)
        else:
            yield prefix + "ffn_gate.weight", (shape.ffn, hidden)
            yield prefix + "ffn_up.weight", (shape.ffn, hidden)
            yield prefix + "ffn_down.weight", (hidden, shape.ffn)
    yield "output_norm.weight", (hidden,)
    if not shape.tied:
        yield "output.weight", (shape.vocab, hidden)


def stays_f32(name: str, dims: tuple[int, ...]) -> bool:
    """Whether converters store a tensor in F32 whatever the file's type."""
    return len(dims) == 1 or "_norm" in name or "ffn_gate_inp" in name or "ssm_conv1d" in name or "ssm_a" in name


def weights(name: str, dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights as trained ones are spread: near normal, rows of different scale, a few far out."""
    values = rng.standard_normal(dims, dtype=np.float32)
    if name.endswith("ssm_a"):
        return np.asarray(-np.exp(values))  # decay rates: any other sign would blow the state up
    if len(dims) > 1:
        values *= np.exp(0.5 * rng.standard_normal((*dims[:-1], 1), dtype=np.float32)) / np.sqrt(dims[-1])
        values[rng.random(dims, dtype=np.float32) < 1e-3] *= 8
    return values


def write(path: Path, shape: Shape = MOE, *, kind: str = "bf16", seed: int | None = 0, shuffled: bool = False) -> Path:
    """Write the model with its matrices as ``kind`` (f32, f16, bf16); ``seed`` None makes all weights zero."""
    import gguf

    dtype = gguf.GGMLQuantizationType[kind.upper()]
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "jamba")
    writer.add_name("random jamba")
    writer.add_block_count(shape.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv([shape.kv_heads if n in shape.attention else 0 for n in range(shape.layers)])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(shape.inner)
    writer.add_ssm_state_size(shape.d_state)
    writer.add_ssm_time_step_rank(shape.dt_rank)
    if shape.experts > 1:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[kind])
    for key, value in shape.extra_metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.add_token_list([f"<{i}>" for i in range(shape.vocab)])
    listed = list(tensors(shape))
    if shuffled:
        np.random.default_rng(1).shuffle(listed)
    for name, dims in listed:
        values = np.zeros(dims, np.float32) if seed is None else weights(name, dims, rng)
        if stays_f32(name, dims):
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
