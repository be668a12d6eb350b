"""A tiny Jamba with random weights and a vocabulary of bytes, so that every command runs with nothing downloaded.

It stands in where no model has been pulled: its text means nothing, and it says so. Knows nothing of commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jambacli.files import jamba_home

NAME = "random-demo (random weights, says nothing sensible)"
_MARKERS = ["<|bom|>", "<|eom|>", "<|system|>", "<|user|>", "<|assistant|>"]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|bom|><|{{ m.role }}|> {{ m.content }}<|eom|>{% endfor %}"
    "{% if add_generation_prompt %}<|bom|><|assistant|>{% endif %}"
)
_SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_dt_rank": 32,
    "max_position_embeddings": 262_144,
}


def demo_model() -> Path:
    """The path of the demonstration model's GGUF, written under JAMBA_HOME the first time (about 5 MB)."""
    path = jamba_home() / "models" / "random-demo.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path)
    return path


def _vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and types: three specials, the chat markers, 256 bytes and the printable ASCII characters as pieces."""
    words = ["▁", *(chr(c) for c in range(33, 127))]
    tokens = ["<unk>", "<|startoftext|>", "<|endoftext|>", *_MARKERS, *(f"<0x{b:02X}>" for b in range(256)), *words]
    types = [2, 3, 3, *[4] * len(_MARKERS), *[6] * 256, *[1] * len(words)]
    return tokens, types


def _write(path: Path) -> None:
    from jambacli.evaluation.synthetic import synthetic_tensors
    from jambacli.model.config import JambaConfig
    from jambacli.weights import keys
    from jambacli.weights.writer import GGUFWriter

    tokens, types = _vocabulary()
    config = JambaConfig.from_hf({**_SHAPE, "vocab_size": len(tokens)}, NAME)
    tensors = dict(synthetic_tensors(config, "q8_0"))
    with GGUFWriter(path, force=True) as writer:
        for key, value, kind in keys.config_metadata(config):
            writer.add(key, value, kind)
        writer.add(keys.NAME, NAME, "str")
        writer.add(keys.FILE_TYPE, 7, "u32")
        writer.add(keys.TOKENIZER_MODEL, "llama", "str")
        writer.add("tokenizer.ggml.tokens", tokens, "arr[str]")
        writer.add("tokenizer.ggml.scores", [0.0] * len(tokens), "arr[f32]")
        writer.add("tokenizer.ggml.token_type", types, "arr[i32]")
        for name, token in (("unknown", 0), ("bos", 1), ("eos", 2), ("eot", tokens.index("<|eom|>"))):
            writer.add(f"tokenizer.ggml.{name}_token_id", token, "u32")
        writer.add("tokenizer.ggml.add_bos_token", True, "bool")
        writer.add("tokenizer.ggml.add_space_prefix", False, "bool")
        writer.add("tokenizer.chat_template", _TEMPLATE, "str")
        for name, tensor in tensors.items():
            writer.plan_tensor(name, tensor.shape, tensor.format)
        writer.begin()
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor.data.numpy())
