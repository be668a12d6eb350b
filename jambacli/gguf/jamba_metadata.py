"""The GGUF metadata and tensor names of a Jamba model, from and to a JambaConfig.

Names and meanings are llama.cpp's for the architecture "jamba". The kinds of the layers come from the head_count_kv array
and from the tensors in the file. The layer_period keys are written for other readers and not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf.values import Metadata, shown
from jambacli.model.config import MAX_LAYERS, JambaConfig, period_and_offset

ARCHITECTURE = "general.architecture"
ARCH = "jamba"
TYPE = "general.type"
NAME = "general.name"
FILE_TYPE = "general.file_type"
LICENSE = "general.license"
BLOCK_COUNT = "jamba.block_count"
CONTEXT_LENGTH = "jamba.context_length"
EMBEDDING_LENGTH = "jamba.embedding_length"
FEED_FORWARD_LENGTH = "jamba.feed_forward_length"
HEAD_COUNT = "jamba.attention.head_count"
HEAD_COUNT_KV = "jamba.attention.head_count_kv"
KEY_LENGTH = "jamba.attention.key_length"
RMS_EPS = "jamba.attention.layer_norm_rms_epsilon"
CONV_KERNEL = "jamba.ssm.conv_kernel"
INNER_SIZE = "jamba.ssm.inner_size"
STATE_SIZE = "jamba.ssm.state_size"
TIME_STEP_RANK = "jamba.ssm.time_step_rank"
EXPERT_COUNT = "jamba.expert_count"
EXPERT_USED_COUNT = "jamba.expert_used_count"
ATTENTION_PERIOD = "jamba.attention.layer_period"
ATTENTION_OFFSET = "jamba.attention.layer_offset"
EXPERT_PERIOD = "jamba.expert.layer_period"
EXPERT_OFFSET = "jamba.expert.layer_offset"
#: Whether the heads of keys and values are rotated (quantize.fold); only for information.
ROTATED_HEADS = "jamba.attention.rotated_heads"

TOKENIZER_MODEL = "tokenizer.ggml.model"
TOKENIZER_PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TOKEN_TYPES = "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
BOS_ID = "tokenizer.ggml.bos_token_id"
EOS_ID = "tokenizer.ggml.eos_token_id"
EOT_ID = "tokenizer.ggml.eot_token_id"
UNKNOWN_ID = "tokenizer.ggml.unknown_token_id"
PADDING_ID = "tokenizer.ggml.padding_token_id"
SEPARATOR_ID = "tokenizer.ggml.seperator_token_id"  # so spelt in the GGUF specification
CLS_ID = "tokenizer.ggml.cls_token_id"
MASK_ID = "tokenizer.ggml.mask_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"
ADD_EOS = "tokenizer.ggml.add_eos_token"
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
CHAT_TEMPLATE = "tokenizer.chat_template"

TOKEN_EMBD = "token_embd.weight"
OUTPUT_NORM = "output_norm.weight"
OUTPUT = "output.weight"
# llama.cpp adds these where a file has them; Jamba has none.
_ATTENTION_BIASES = (".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_qkv.bias")


class HasShape(Protocol):
    """Something with a shape in torch order: a TensorInfo, an array, a torch tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """The dimensions, the row last."""


def expected_tensors(config: JambaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model with ``config``: GGUF name to shape in torch order, layer by layer.

    With tied embeddings there is no ``output.weight``.
    """
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    out: dict[str, tuple[int, ...]] = {TOKEN_EMBD: (c.vocab_size, c.hidden)}
    for i in range(c.n_layers):
        layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (c.hidden,)}
        if c.layer_is_attention[i]:
            layer |= {
                "attn_q.weight": (q, c.hidden),
                "attn_k.weight": (kv, c.hidden),
                "attn_v.weight": (kv, c.hidden),
                "attn_output.weight": (c.hidden, q),
            }
        else:
            layer |= {
                "ssm_in.weight": (2 * c.d_inner, c.hidden),
                "ssm_conv1d.weight": (c.d_inner, c.d_conv),
                "ssm_conv1d.bias": (c.d_inner,),
                "ssm_x.weight": (c.dt_rank + 2 * c.d_state, c.d_inner),
                "ssm_dt.weight": (c.d_inner, c.dt_rank),
                "ssm_dt.bias": (c.d_inner,),
                "ssm_a": (c.d_inner, c.d_state),
                "ssm_d": (c.d_inner,),
                "ssm_dt_norm.weight": (c.dt_rank,),
                "ssm_b_norm.weight": (c.d_state,),
                "ssm_c_norm.weight": (c.d_state,),
                "ssm_out.weight": (c.hidden, c.d_inner),
            }
        layer["ffn_norm.weight"] = (c.hidden,)
        if c.layer_is_moe[i]:
            layer |= {
                "ffn_gate_inp.weight": (c.n_experts, c.hidden),
                "ffn_gate_exps.weight": (c.n_experts, c.ffn, c.hidden),
                "ffn_up_exps.weight": (c.n_experts, c.ffn, c.hidden),
                "ffn_down_exps.weight": (c.n_experts, c.hidden, c.ffn),
            }
        else:
            layer |= {
                "ffn_gate.weight": (c.ffn, c.hidden),
                "ffn_up.weight": (c.ffn, c.hidden),
                "ffn_down.weight": (c.hidden, c.ffn),
            }
        out |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    out[OUTPUT_NORM] = (c.hidden,)
    if not c.tied_embeddings:
        out[OUTPUT] = (c.vocab_size, c.hidden)
    return out


def jamba_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, HasShape], *, path: object | None = None
) -> JambaConfig:
    """The config that a GGUF's ``metadata`` and ``tensors`` describe; the shape of every expected tensor is checked.

    ``path`` names the file in errors (default: the metadata's own). Raises UnsupportedError for another architecture, and
    BadFileError, naming the key or tensor, where one is missing or has an invalid value or shape.
    """
    keys = _Keys(metadata, path if path is not None else getattr(metadata, "path", "metadata"))
    if metadata.get(TYPE) == "adapter":
        raise UnsupportedError(
            f"{keys.path} is a LoRA adapter, not a model", remedy="load its model, and it with {lora}"
        )
    check_architecture(metadata, keys.path)
    n_layers = keys.count(BLOCK_COUNT, maximum=MAX_LAYERS)
    hidden = keys.count(EMBEDDING_LENGTH)
    attention, n_kv_heads = _attention_layers(keys, tensors, n_layers)
    moe = tuple(
        any(f"blk.{i}.{name}.weight" in tensors for name in ("ffn_gate_inp", "ffn_gate_exps")) for i in range(n_layers)
    )
    n_experts = max(keys.count(EXPERT_COUNT, minimum=0, default=1, maximum=1 << 16), 1)
    if any(moe) and n_experts == 1:
        raise keys.bad(f"{EXPERT_COUNT} is missing or 1, but layer {moe.index(True)} has expert tensors")
    n_used = keys.count(EXPERT_USED_COUNT, minimum=0, default=None if any(moe) else 1, maximum=1 << 16)
    if any(moe) and not 1 <= n_used <= n_experts:
        raise keys.bad(f"{EXPERT_USED_COUNT} is {n_used}, out of {n_experts} experts")
    n_heads = keys.uniform(HEAD_COUNT, n_layers)
    if n_kv_heads and (n_heads == 0 or n_heads % n_kv_heads):
        raise keys.bad(f"{HEAD_COUNT} is {n_heads}, not a multiple of the {n_kv_heads} key-value heads")
    head_dim = keys.count(KEY_LENGTH, default=hidden // n_heads if n_heads else 1)
    config = JambaConfig(
        n_layers=n_layers,
        hidden=hidden,
        ffn=keys.uniform(FEED_FORWARD_LENGTH, n_layers),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_experts=n_experts,
        n_experts_used=max(1, min(n_used, n_experts)),
        d_inner=keys.count(INNER_SIZE),
        d_state=keys.count(STATE_SIZE),
        d_conv=keys.count(CONV_KERNEL),
        dt_rank=keys.count(TIME_STEP_RANK),
        rms_eps=keys.epsilon(),
        vocab_size=_vocab_size(keys, tensors),
        context_length=keys.count(CONTEXT_LENGTH),
        tied_embeddings=OUTPUT not in tensors,
        layer_is_attention=attention,
        layer_is_moe=moe,
    )
    check_tensors(config, tensors, keys.path)
    return config


def attention_rows(metadata: Mapping[str, Any], layer: int, path: object) -> tuple[int, int, int]:
    """Values per row of a layer's projections, rows of q, rows of k and of v (0 in a Mamba layer), as the metadata say.

    Raises BadFileError naming the key where one is missing or invalid.
    """
    keys = _Keys(metadata, path)
    n_layers = keys.count(BLOCK_COUNT, maximum=MAX_LAYERS)
    hidden, n_heads = keys.count(EMBEDDING_LENGTH), keys.uniform(HEAD_COUNT, n_layers)
    if layer >= n_layers:
        raise keys.bad(f"{BLOCK_COUNT} is {n_layers}, but there are tensors of layer {layer}")
    if hasattr(keys.value(HEAD_COUNT_KV), "__len__"):
        n_kv_heads = keys.counts(HEAD_COUNT_KV, n_layers)[layer]
    else:
        n_kv_heads = keys.count(HEAD_COUNT_KV, minimum=0)
    head_dim = keys.count(KEY_LENGTH, default=hidden // n_heads if n_heads else 1)
    return hidden, n_heads * head_dim, n_kv_heads * head_dim


def factor_name(name: str) -> str:
    """The name of the factors that a weight (``….weight``) is multiplied by, as llama.cpp writes them for NVFP4."""
    return name.removesuffix("weight") + "scale"


def check_architecture(metadata: Mapping[str, Any], path: object) -> None:
    """Raise BadFileError without an architecture in ``metadata``, UnsupportedError for one that is not jamba."""
    arch = metadata.get(ARCHITECTURE)
    if not isinstance(arch, str):
        raise BadFileError(path, f"{ARCHITECTURE} is missing; this is not a model file")
    if arch != ARCH:
        raise UnsupportedError(f"{path}: the architecture is {shown(arch, 40)}; only jamba models are supported")


def check_tensors(config: JambaConfig, tensors: Mapping[str, HasShape], path: object) -> None:
    """Raise BadFileError for the first tensor of ``config`` that is missing from ``tensors`` or has another shape there."""
    for name in tensors:
        if name.endswith(_ATTENTION_BIASES):
            raise UnsupportedError(f"{path}: tensor {shown(name)}: attention with biases is not supported")
    for name, shape in expected_tensors(config).items():
        if name not in tensors:
            raise BadFileError(path, f"tensor {name} is missing")
        found = tuple(tensors[name].shape)
        if found != shape:
            raise BadFileError(path, f"tensor {name} has shape {list(found)}, but the metadata requires {list(shape)}")


def config_metadata(config: JambaConfig) -> list[tuple[str, Any, str]]:
    """The ``(key, value, type)`` rows that describe ``config`` in a GGUF, general.architecture first.

    The layer_period keys are included where the layers follow a period.
    """
    kv = [config.n_kv_heads if attention else 0 for attention in config.layer_is_attention]
    rows: list[tuple[str, Any, str]] = [
        (ARCHITECTURE, ARCH, "str"),
        (BLOCK_COUNT, config.n_layers, "u32"),
        (CONTEXT_LENGTH, config.context_length, "u32"),
        (EMBEDDING_LENGTH, config.hidden, "u32"),
        (FEED_FORWARD_LENGTH, config.ffn, "u32"),
        (HEAD_COUNT, config.n_heads, "u32"),
        (HEAD_COUNT_KV, kv, "arr[i32]"),
        (CONV_KERNEL, config.d_conv, "u32"),
        (INNER_SIZE, config.d_inner, "u32"),
        (STATE_SIZE, config.d_state, "u32"),
        (TIME_STEP_RANK, config.dt_rank, "u32"),
        (RMS_EPS, config.rms_eps, "f32"),
        (EXPERT_COUNT, config.n_experts, "u32"),
        (EXPERT_USED_COUNT, min(config.n_experts_used, config.n_experts), "u32"),
    ]
    if config.n_heads * config.head_dim != config.hidden:
        rows.append((KEY_LENGTH, config.head_dim, "u32"))
    for flags, period_key, offset_key in (
        (config.layer_is_attention, ATTENTION_PERIOD, ATTENTION_OFFSET),
        (config.layer_is_moe, EXPERT_PERIOD, EXPERT_OFFSET),
    ):
        if found := period_and_offset(flags):
            rows += [(period_key, found[0], "u32"), (offset_key, found[1], "u32")]
    return rows


def _attention_layers(keys: _Keys, tensors: Mapping[str, HasShape], n_layers: int) -> tuple[tuple[bool, ...], int]:
    """Which layers are attention, and their number of key-value heads (0 without attention layers)."""
    has_q = tuple(f"blk.{i}.attn_q.weight" in tensors for i in range(n_layers))
    value = keys.value(HEAD_COUNT_KV)
    if isinstance(value, int) and not isinstance(value, bool):
        # A single number does not say which layers are attention; the tensors do.
        return has_q, keys.count(HEAD_COUNT_KV, minimum=1 if any(has_q) else 0) if any(has_q) else 0
    counts = keys.counts(HEAD_COUNT_KV, n_layers)
    kinds = sorted({n for n in counts if n})
    if len(kinds) > 1:
        raise keys.bad(f"{HEAD_COUNT_KV} differs between attention layers ({kinds[0]} and {kinds[-1]})")
    for i, (n, q) in enumerate(zip(counts, has_q, strict=True)):
        if bool(n) != q:
            kind, other = ("attention", "no blk.{}.attn_q.weight") if n else ("Mamba", "a blk.{}.attn_q.weight")
            raise keys.bad(f"{HEAD_COUNT_KV} says layer {i} is {kind}, but there is {other.format(i)}")
    return has_q, kinds[0] if kinds else 0


def _vocab_size(keys: _Keys, tensors: Mapping[str, HasShape]) -> int:
    if TOKEN_EMBD not in tensors:
        raise keys.bad(f"tensor {TOKEN_EMBD} is missing")
    return int(tensors[TOKEN_EMBD].shape[0])


class _Keys:
    """Reads metadata values with their type and bounds checked; errors name the file and the key."""

    def __init__(self, metadata: Mapping[str, Any], path: object) -> None:
        self.metadata = metadata
        self.path = path

    def bad(self, problem: str) -> BadFileError:
        return BadFileError(self.path, problem)

    def value(self, key: str) -> Any:
        if key not in self.metadata:
            raise self.bad(f"metadata key {key} is missing")
        if isinstance(self.metadata, Metadata) and self.metadata.type_name(key).startswith("arr["):
            return self.metadata.listed(key)  # importing numpy would take longer than everything else
        return self.metadata[key]

    def count(self, key: str, *, minimum: int = 1, maximum: int = (1 << 31) - 1, default: int | None = None) -> int:
        """An integer from ``minimum`` to ``maximum``; ``default`` where the key is absent (None: the key is required)."""
        if default is not None and key not in self.metadata:
            return default
        return self._checked(key, self.value(key), minimum, maximum)

    def counts(self, key: str, n_layers: int) -> list[int]:
        """A non-negative integer per layer."""
        value = self.value(key)
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise self.bad(f"{key} must be an array of one integer per layer")
        if len(value) != n_layers:
            raise self.bad(f"{key} has {len(value)} entries for {n_layers} layers")
        items = value.tolist() if hasattr(value, "tolist") else list(value)
        return [self._checked(key, item, 0, 1 << 16) for item in items]

    def uniform(self, key: str, n_layers: int) -> int:
        """An integer stored once, or once per layer, where all values that are not 0 must be equal."""
        if not hasattr(self.value(key), "__len__"):
            return self.count(key, minimum=0 if key == HEAD_COUNT else 1)
        found = sorted({n for n in self.counts(key, n_layers) if n})
        if len(found) > 1:
            raise self.bad(f"{key} differs between layers ({found[0]} and {found[-1]})")
        return found[0] if found else self._checked(key, 0, 0 if key == HEAD_COUNT else 1, 0)

    def epsilon(self) -> float:
        value = self.value(RMS_EPS)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not (math.isfinite(value) and 0 <= value < 1)
        ):
            raise self.bad(f"{RMS_EPS} is {shown(str(value))}; it must be a small positive number")
        return float(value)

    def _checked(self, key: str, value: Any, minimum: int, maximum: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.bad(f"{key} is {shown(str(value))}; it must be an integer from {minimum} to {maximum}")
        return value
