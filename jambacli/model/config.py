"""The sizes of one Jamba model and the arithmetic that follows from them. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jambacli.errors import UnsupportedError, UsageError
from jambacli.kernels.kv_blocks import BLOCK, BLOCK_BYTES

# Bytes per value of the KV cache by type.
KV_TYPES: dict[str, Fraction] = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "bf16": Fraction(2),
    **{name: Fraction(size, BLOCK) for name, size in BLOCK_BYTES.items()},
}
#: The types that models on a GPU take.
GPU_KV_TYPES = ("f32", "f16", "bf16", "q8_0")
#: Maximum bytes of checkpoints (copies of the Mamba part of the state) that one sequence keeps in memory.
CHECKPOINT_BYTES = 256 << 20
#: Prompt tokens that the CPU takes through the layers at a time.
CPU_PREFILL_CHUNK = 512
#: Most tokens of a draft; a backend's step may hold fewer. A state keeps a copy of its Mamba part before each and before the
#: token that they follow.
MAX_DRAFT = 7


def check_kv_type(kv_type: str) -> None:
    """Raises UsageError for a name that is not in KV_TYPES."""
    if kv_type not in KV_TYPES:
        raise UsageError(f"is not one of {', '.join(KV_TYPES)}", field="kv_type", value=kv_type)


def check_gpu_kv_type(kv_type: str) -> None:
    """Raises UsageError for a name that is not in KV_TYPES, UnsupportedError for one that has no kernels on GPUs."""
    check_kv_type(kv_type)
    if kv_type not in GPU_KV_TYPES:
        raise UnsupportedError(
            f"KV type {kv_type} is not supported on a GPU", remedy="use {kv_type} q8_0 there, or {device} cpu"
        )


@dataclass(frozen=True)
class JambaConfig:
    """One model's sizes, named as in the Jamba and Mamba papers.

    A dense model has ``n_experts`` and ``n_experts_used`` of 1 and no MoE layer. If ``layer_is_attention[i]`` is False,
    layer i is a Mamba layer; if ``layer_is_moe[i]`` is False, its feed-forward network is a gated MLP.
    """

    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_experts_used: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    rms_eps: float
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    layer_is_attention: tuple[bool, ...]
    layer_is_moe: tuple[bool, ...]

    @property
    def n_attention_layers(self) -> int:
        """Layers with a KV cache."""
        return sum(self.layer_is_attention)

    @property
    def n_mamba_layers(self) -> int:
        """Layers with a recurrent state."""
        return self.n_layers - self.n_attention_layers

    @property
    def n_moe_layers(self) -> int:
        """Layers with a router and experts."""
        return sum(self.layer_is_moe)

    def state_bytes(self) -> int:
        """Bytes of one sequence's Mamba state: ssm [d_inner, d_state] and conv [d_inner, d_conv - 1] per layer, f32."""
        return self.n_mamba_layers * self.d_inner * (self.d_state + self.d_conv - 1) * 4

    def draft_bytes(self) -> int:
        """Bytes of the copies of one sequence's Mamba state that drafted tokens are taken back with, once there were drafts."""
        return (1 + MAX_DRAFT) * self.state_bytes()

    @property
    def kv_types(self) -> list[str]:
        """The KV_TYPES that fit this model's heads: a block is 32 values of one head."""
        fits = self.head_dim % BLOCK == 0 or not self.n_attention_layers
        return [name for name in KV_TYPES if fits or name not in BLOCK_BYTES]

    def check_kv_type(self, kv_type: str) -> None:
        """Raises UnsupportedError if ``kv_type``, one of KV_TYPES, does not fit this model's heads."""
        if kv_type not in self.kv_types:
            raise UnsupportedError(
                f"KV type {kv_type} needs heads whose size is a multiple of 32; this model's have {self.head_dim}",
                remedy="use {kv_type} f16",
            )

    def kv_bytes_per_token(self, kv_type: str = "f16") -> int:
        """Bytes of keys and values that one token adds over all attention layers; ``kv_type`` is one of KV_TYPES."""
        return int(self.n_attention_layers * 2 * self.n_kv_heads * self.head_dim * KV_TYPES[kv_type])

    def params(self) -> int:
        """All parameters; a tied output matrix is not counted twice."""
        return self._count(self.n_experts)

    def active_params(self) -> int:
        """Parameters that one token uses: as ``params`` with only the chosen experts."""
        return self._count(self.n_experts_used)

    def _count(self, experts: int) -> int:
        h, d, r, s = self.hidden, self.d_inner, self.dt_rank, self.d_state
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = 2 * h * q + 2 * h * kv
        conv = d * (self.d_conv + 1)
        mamba = 2 * d * h + conv + (r + 2 * s) * d + r + 2 * s + d * (r + 1) + d * s + d + h * d
        mlp = 3 * h * self.ffn
        return (
            self.vocab_size * h * (1 if self.tied_embeddings else 2)
            + h
            + self.n_layers * 2 * h
            + self.n_attention_layers * attention
            + self.n_mamba_layers * mamba
            + (self.n_layers - self.n_moe_layers) * mlp
            + self.n_moe_layers * (experts * mlp + self.n_experts * h)
        )

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: object = "config.json") -> JambaConfig:
        """The sizes in a Hugging Face ``config.json`` of model_type "jamba"; missing keys take transformers' defaults.

        Raises UnsupportedError, naming ``source`` and the key, for another architecture, Mamba projection biases or
        invalid sizes.
        """
        if (kind := values.get("model_type", "jamba")) != "jamba":
            raise UnsupportedError(f"{source}: the architecture is {kind!r}; only jamba is supported")
        if values.get("mamba_proj_bias"):
            raise UnsupportedError(
                f"{source}: mamba_proj_bias is true; Mamba projections with biases are not supported"
            )
        if (act := values.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise UnsupportedError(f"{source}: hidden_act is {act!r}; only silu is supported")

        def size(key: str, default: int, least: int = 1) -> int:
            value = values.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
                raise UnsupportedError(f"{source}: {key} is {value!r}; it must be an integer of at least {least}")
            return value

        n_layers, hidden, n_heads = (
            size("num_hidden_layers", 32),
            size("hidden_size", 4096),
            size("num_attention_heads", 32),
        )
        if n_layers > MAX_LAYERS:
            raise UnsupportedError(f"{source}: num_hidden_layers is {n_layers}; at most {MAX_LAYERS} are supported")
        n_kv_heads = n_heads if values.get("num_key_value_heads", 8) is None else size("num_key_value_heads", 8)
        if hidden % n_heads or n_heads % n_kv_heads:
            raise UnsupportedError(
                f"{source}: hidden_size {hidden}, num_attention_heads {n_heads} and num_key_value_heads {n_kv_heads} "
                "do not divide evenly"
            )
        attention = _periodic(n_layers, size("attn_layer_period", 8), size("attn_layer_offset", 4, 0))
        n_experts = size("num_experts", size("num_local_experts", 16))
        moe = _periodic(n_layers, size("expert_layer_period", 2), size("expert_layer_offset", 1, 0))
        rank = values.get("mamba_dt_rank", "auto")
        eps = values.get("rms_norm_eps", 1e-6)
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
            raise UnsupportedError(f"{source}: rms_norm_eps is {eps!r}; it must be a small positive number")
        return cls(
            n_layers=n_layers,
            hidden=hidden,
            ffn=size("intermediate_size", 14336),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=hidden // n_heads,
            n_experts=n_experts,
            n_experts_used=min(size("num_experts_per_tok", 2), n_experts),
            d_inner=size("mamba_expand", 2) * hidden,
            d_state=size("mamba_d_state", 16),
            d_conv=size("mamba_d_conv", 4),
            dt_rank=math.ceil(hidden / 16) if rank in ("auto", None) else size("mamba_dt_rank", 1),
            rms_eps=float(eps),
            vocab_size=size("vocab_size", 65536),
            context_length=size("max_position_embeddings", 262144),
            tied_embeddings=bool(values.get("tie_word_embeddings", False)),
            layer_is_attention=attention,
            layer_is_moe=moe if n_experts > 1 else (False,) * n_layers,
        )


MAX_LAYERS = 4096


def _periodic(n_layers: int, period: int, offset: int) -> tuple[bool, ...]:
    return tuple(i % period == offset for i in range(n_layers))


def period_and_offset(flags: Sequence[bool]) -> tuple[int, int] | None:
    """The (period, offset) with ``flags[i] == (i % period == offset)``, None if there is none.

    For a single True every longer period fits; the number of layers is returned.

    >>> period_and_offset([False, True, False, True])
    (2, 1)
    """
    marked = [i for i, flag in enumerate(flags) if flag]
    if not marked:
        return None
    offset = marked[0]
    period = marked[1] - offset if len(marked) > 1 else len(flags)
    return (period, offset) if offset < period and tuple(flags) == _periodic(len(flags), period, offset) else None
