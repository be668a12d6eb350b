"""config.json, generation_config.json and the model card of a checkpoint, from a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jambacli.convert.model_card import SAMPLING
from jambacli.convert.vocabulary import EOM_ID
from jambacli.errors import UnsupportedError
from jambacli.gguf import jamba_metadata as keys
from jambacli.model.config import JambaConfig, period_and_offset

_TORCH_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def config_json(config: JambaConfig, metadata: Mapping[str, Any], kind: str, path: object) -> dict[str, Any]:
    """config.json, as transformers' JambaConfig reads it; ``kind`` is the type of the matrices.

    Raises UnsupportedError, naming ``path``, for sizes that a JambaConfig cannot express.
    """
    c = config
    heads = max(c.n_heads, 1)
    if c.hidden % heads or (c.n_attention_layers and c.head_dim != c.hidden // heads):
        raise UnsupportedError(
            f"{path}: heads of {c.head_dim} values in {c.n_heads} heads; a checkpoint has {c.hidden} in all"
        )
    if c.d_inner % c.hidden:
        raise UnsupportedError(f"{path}: {keys.INNER_SIZE} {c.d_inner} is not a multiple of {c.hidden}")
    attention = _period(metadata, keys.ATTENTION_PERIOD, keys.ATTENTION_OFFSET, c.layer_is_attention, "attention", path)
    experts = c.n_experts if c.n_moe_layers else 1
    moe = (
        _period(metadata, keys.EXPERT_PERIOD, keys.EXPERT_OFFSET, c.layer_is_moe, "expert", path)
        if experts > 1
        else (2, 1)
    )
    ids = {
        name: metadata.get(key) for name, key in (("bos", keys.BOS_ID), ("eos", keys.EOS_ID), ("pad", keys.PADDING_ID))
    }
    return {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.n_layers,
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": moe[0],
        "expert_layer_offset": moe[1],
        "num_attention_heads": heads,
        "num_key_value_heads": c.n_kv_heads or heads,
        "num_experts": experts,
        "num_experts_per_tok": min(c.n_experts_used, experts),
        "mamba_d_state": c.d_state,
        "mamba_d_conv": c.d_conv,
        "mamba_expand": c.d_inner // c.hidden,
        "mamba_dt_rank": c.dt_rank,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": _short(c.rms_eps),
        "tie_word_embeddings": c.tied_embeddings,
        "max_position_embeddings": c.context_length,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "use_mamba_kernels": True,
        "use_cache": True,
        **{f"{name}_token_id": value for name, value in ids.items()},
        "torch_dtype": _TORCH_TYPES[kind],
    }


def _period(
    metadata: Mapping[str, Any], period_key: str, offset_key: str, flags: Sequence[bool], what: str, path: object
) -> tuple[int, int]:
    """The period and offset of the marked layers: the file's where they say the same as its tensors."""
    period, offset = metadata.get(period_key), metadata.get(offset_key)
    given = (period, offset) if isinstance(period, int) and isinstance(offset, int) and 0 <= offset < period else None
    if given and all(flag == (i % given[0] == given[1]) for i, flag in enumerate(flags)):
        return given
    if not any(flags):
        return len(flags) + 1, len(flags)
    found = period_and_offset(flags)
    if found is None:
        where = ", ".join(str(i) for i, flag in enumerate(flags) if flag)
        raise UnsupportedError(
            f"{path}: its {what} layers ({where[:80]}) follow no period, which a checkpoint's config needs"
        )
    return found


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the ids that start, end and pad a text, and the file's sampling defaults."""
    found: dict[str, Any] = {}
    for name, key in (("bos_token_id", keys.BOS_ID), ("pad_token_id", keys.PADDING_ID)):
        if isinstance(metadata.get(key), int):
            found[name] = metadata[key]
    ends = [metadata.get(key) for key in (keys.EOS_ID, keys.EOT_ID, EOM_ID)]
    if stops := list(dict.fromkeys(i for i in ends if isinstance(i, int))):
        found["eos_token_id"] = stops
    for field, (key, kind, _, _) in SAMPLING.items():
        value = metadata.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found["do_sample"] = True
            found[field] = _short(value) if kind == "f32" else value
    return found


def model_card(metadata: Mapping[str, Any]) -> str:
    """README.md: what the GGUF says of name, licence, base models, tags and languages, as YAML front matter."""
    lines = ["---", "library_name: transformers"]
    named = (
        ("model_name", keys.NAME),
        ("license", keys.LICENSE),
        ("license_name", "general.license.name"),
        ("license_link", "general.license.link"),
        ("model_creator", "general.author"),
        ("tags", "general.tags"),
        ("language", "general.languages"),
    )
    for field, key in named:
        value = metadata.get(key)
        if isinstance(value, list):
            value = [text for text in value if isinstance(text, str)]
        if value and isinstance(value, (str, list)):
            lines.append(f"{field}: {json.dumps(value, ensure_ascii=False)}")
    if base := _base_models(metadata):
        lines.append(f"base_model: {json.dumps(base, ensure_ascii=False)}")
    title = metadata.get(keys.NAME)
    name = title if isinstance(title, str) and title else "A Jamba model"
    return "\n".join([*lines, "---", "", f"# {' '.join(name.split())}", "", "Exported from a GGUF file.", ""])


def _base_models(metadata: Mapping[str, Any]) -> list[str]:
    count = metadata.get("general.base_model.count")
    found: list[str] = []
    for i in range(min(count, 100) if isinstance(count, int) else 0):
        url, name = (metadata.get(f"general.base_model.{i}.{field}") for field in ("repo_url", "name"))
        text = url.removeprefix("https://huggingface.co/") if isinstance(url, str) else name
        if isinstance(text, str) and text:
            found.append(text)
    return found


def _short(value: float) -> float:
    """The shortest decimal number that is ``value`` in float32, in which GGUF holds it."""
    import numpy as np

    return float(str(np.float32(value)))
