"""A small random model with a byte-level vocabulary and a chat template, for tests of the engine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jambacli.api import Jamba
from tests.support.vocabularies import byte_level_metadata

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

CORPUS = ["the quick brown fox jumps over the lazy dog. herons counted at the lake: 42."] * 3

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


def small_file(
    folder: Path,
    quant: str,
    experts: int = 4,
    vocabulary: Mapping[str, Any] | None = None,
    template: str = TEMPLATE,
) -> Path:
    """The same model as a GGUF file in a type whose rows fit it (256 wide, so that K-quants do); 1 expert: dense.

    ``vocabulary``: another tokenizer's metadata.
    """
    from jambacli.evaluation.synthetic import synthetic_tensors
    from jambacli.gguf import jamba_metadata as keys
    from jambacli.gguf.writer import GGUFWriter
    from jambacli.model.config import JambaConfig

    metadata = {**(vocabulary or byte_level_metadata(CORPUS, vocab_size=400)[0]), "tokenizer.chat_template": template}
    shape = {**SHAPE, "hidden_size": 256, "intermediate_size": 256, "mamba_dt_rank": 32, "num_experts": experts}
    config = JambaConfig.from_hf({**shape, "vocab_size": len(metadata["tokenizer.ggml.tokens"])}, "small")
    tensors = dict(synthetic_tensors(config, quant))
    path = folder / f"small-{experts}-{quant}.gguf"
    kinds = {str: "str", bool: "bool", int: "u32"}
    lists = {"tokenizer.ggml.token_type": "arr[i32]", "tokenizer.ggml.scores": "arr[f32]"}
    with GGUFWriter(path) as writer:
        for key, value, kind in keys.config_metadata(config):
            writer.add(key, value, kind)
        writer.add("general.name", f"small {quant}", "str")
        for key, value in metadata.items():
            writer.add(key, value, lists.get(key, "arr[str]") if isinstance(value, list) else kinds[type(value)])
        for name, tensor in tensors.items():
            writer.plan_tensor(name, tensor.shape, tensor.format)
        writer.begin()
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor.data.numpy())
    return path


@functools.cache
def small_model(template: str | None = TEMPLATE) -> Jamba:
    """A random-weight Jamba of a few hundred thousand parameters, in float32."""
    from jambacli.evaluation.synthetic import synthetic_model
    from jambacli.model.config import JambaConfig

    metadata, _ = byte_level_metadata(CORPUS, vocab_size=400)
    config = JambaConfig.from_hf({**SHAPE, "vocab_size": len(metadata["tokenizer.ggml.tokens"])}, "small")
    extra: dict[str, Any] = {"tokenizer.chat_template": template} if template else {}
    return Jamba(synthetic_model(config, "f32"), {**metadata, **extra, "general.name": "small"}, "small")
