"""A small random model with a byte-level vocabulary and a chat template, for tests of the engine."""

from __future__ import annotations

import functools
from typing import Any

from jambacli.engine.api import Jamba
from tests.text.vocabularies import byte_level_metadata

TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if documents and loop.last -%}"
    "{{- '<|im_start|>system\n<documents>' -}}"
    "{%- for d in documents -%}{{ '\n' + d.text }}{%- endfor -%}"
    "{{- '</documents>' + (knobs.mode if knobs else '') + '<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 8,
    "mamba_dt_rank": 16,
}


@functools.cache
def small_model(template: str | None = TEMPLATE) -> Jamba:
    """A random-weight Jamba of a few hundred thousand parameters, in float32."""
    from jambacli.evaluation.synthetic import synthetic_model
    from jambacli.model.config import JambaConfig

    corpus = ["the quick brown fox jumps over the lazy dog. herons counted at the lake: 42."] * 3
    metadata, _ = byte_level_metadata(corpus, vocab_size=400)
    config = JambaConfig.from_hf({**SHAPE, "vocab_size": len(metadata["tokenizer.ggml.tokens"])}, "small")
    extra: dict[str, Any] = {"tokenizer.chat_template": template} if template else {}
    return Jamba(synthetic_model(config, "f32"), {**metadata, **extra, "general.name": "small"}, "small")
