"""Random Jamba checkpoints as transformers writes them, with a tokenizer.

``make_checkpoint`` writes a directory that ``from_pretrained`` loads; ``SHAPES`` names the layouts every test of
loading, conversion and logits should pass: with and without experts, tied, any period and offset.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

# Small enough for a second of work, wide enough that every tensor kind and ragged row length occurs.
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SHAPES: dict[str, dict[str, Any]] = {
    "moe16": {"num_experts": 16},
    "moe4": {},
    "dense": {"num_experts": 1, "num_experts_per_tok": 2},  # as the 3B's config says: top-2 of one
    "tied": {"num_experts": 1, "tie_word_embeddings": True},
    "attention14_7": {"num_hidden_layers": 15, "attn_layer_period": 14, "attn_layer_offset": 7,
                      "num_key_value_heads": 1},
    "attention4_1": {"num_hidden_layers": 6, "attn_layer_period": 4, "attn_layer_offset": 1},
    "attention_first": {"num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 0},
    "expert_every_layer": {
        "num_hidden_layers": 5,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 4,
        "attn_layer_offset": 3,
    },
    "expert3_2": {"num_hidden_layers": 6, "expert_layer_period": 3, "expert_layer_offset": 2},
    "wide_head": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 3},
    "quantizable": {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 4, "attn_layer_period": 4,
                    "attn_layer_offset": 2, "mamba_dt_rank": 32},
}  # fmt: skip

SPECIAL = ["<|eom|>", "<|bom|>", "<|system|>", "<|user|>", "<|assistant|>", "<documents>", "</documents>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|bom|><|{{ m.role }}|> {{ m.content }}<|eom|>{% endfor %}"
    "{% if add_generation_prompt %}<|bom|><|assistant|>{% endif %}"
)


@functools.cache
def tiny_tokenizer_model(vocab_size: int = 512, **options: Any) -> bytes:
    """A SentencePiece BPE model with byte fallback, laid out as Jamba's: pad 0, bos 1, eos 2, unk 3, then markers.

    ``options`` (hashable) go to SentencePiece's trainer.
    """
    import sentencepiece

    words = [
        "the",
        "herons",
        "of",
        "Lake",
        "Tuz",
        "counted",
        "forty-two",
        "dort",
        "été",
        "שלום",
        "мир",
        "def",
        "return",
    ]
    lines = [" ".join(words[(i * k + k) % len(words)] for i in range(3 + k)) + f" {k}, (x_{k})" for k in range(60)]
    out = io.BytesIO()
    arguments: dict[str, Any] = {
        "vocab_size": vocab_size,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "pad_piece": "<|pad|>",
        "bos_piece": "<|startoftext|>",
        "eos_piece": "<|endoftext|>",
        "unk_piece": "<|unk|>",
        "control_symbols": ["<|mask_0|>", "<|reserved_0|>"],
        "user_defined_symbols": [*SPECIAL, ","],
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **(arguments | options))
    return out.getvalue()


def write_tokenizer(folder: Path, model: Path | bytes | None = None) -> None:
    """Put tokenizer.model (a file, its bytes, or a tiny one) and tokenizer_config.json into ``folder``."""
    if isinstance(model, Path):
        shutil.copyfile(model, folder / "tokenizer.model")
    else:
        (folder / "tokenizer.model").write_bytes(model or tiny_tokenizer_model())
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|unk|>",
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def random_model(shape: str = "moe4", seed: int = 0, **config: Any) -> Any:
    """A JambaForCausalLM (f32, eval) of a named shape with every tensor random: also norms, biases, A_log and D."""
    import torch
    from transformers import JambaConfig, JambaForCausalLM

    torch.manual_seed(seed)
    model = JambaForCausalLM(JambaConfig(**(BASE | SHAPES[shape] | config))).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("A_log"):
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif name.endswith("dt_proj.bias"):
                tensor.copy_(torch.randn_like(tensor) - 2)
            elif tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif "conv1d" in name:
                tensor.copy_(torch.randn_like(tensor) * 0.5)
            elif "embed_tokens" in name or "lm_head" in name:
                tensor.copy_(torch.randn_like(tensor) * 0.3)
            else:
                tensor.copy_(torch.randn_like(tensor) / tensor.shape[-1] ** 0.5)
    return model


def make_checkpoint(
    folder: Path,
    shape: str = "moe4",
    *,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: Path | bytes | None = None,
    max_shard_size: str = "50GB",
    **config: Any,
) -> Path:
    """Write a random checkpoint of ``SHAPES[shape]`` (overrides in ``config``) with its tokenizer into ``folder``.

    ``tokenizer`` is the path or the bytes of a tokenizer.model (its size must not exceed ``vocab_size``); by default a
    tiny one of 512 pieces. ``max_shard_size="200KB"`` gives several files and an index.
    """
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(shape, seed, **config).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = [2, 518] if model.config.vocab_size > 518 else [2, 6]
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder, tokenizer)
    return folder


def load_f32(folder: Path) -> Any:
    """The checkpoint as transformers runs it in f32 (the truth for logits)."""
    import torch
    from transformers import JambaForCausalLM

    return JambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
