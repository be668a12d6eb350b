"""The demo model: its sizes, its tokenizer, and its export from a training run to an HF checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from jambacli.data import reports as grammar
from jambacli.files import atomic_write
from jambacli.model.config import JambaConfig
from jambacli.training.model import Attention, FeedForward, Mamba, TrainableJamba
from jambacli.training.tokenizer import BOS, EOS, MARKERS, PAD, UNKNOWN, Encoder, train_tokenizer

NAME = "Tiny Jamba (demonstration model)"
#: The model's config.json. Layers 1 and 3 are attention and MoE layers.
CONFIG: dict[str, Any] = {
    "architectures": ["JambaForCausalLM"],
    "model_type": "jamba",
    "vocab_size": 1536,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 16384,
    "pad_token_id": MARKERS.index(PAD),
    "bos_token_id": MARKERS.index(BOS),
    "eos_token_id": MARKERS.index(EOS),
    "use_cache": True,
    "torch_dtype": "bfloat16",
}


_CARD = f"""---
license: apache-2.0
model_name: {NAME}
language: en
tags: [jamba, demonstration]
---

A tiny Jamba that reads short field reports and nothing else. Made by examples/train_tiny.py of the jamba command-line toolkit.
"""


def demo_config() -> JambaConfig:
    """CONFIG as a JambaConfig."""
    return JambaConfig.from_hf(CONFIG)


def make_tokenizer(path: Path, seed: int = 1, samples: int = 3000) -> None:
    """Write a tokenizer.json trained on ``samples`` samples of the corpus."""
    random = Random(f"tokenizer {seed}")

    def texts() -> Iterator[str]:
        for _ in range(samples):
            reports = grammar.make_reports(random, random.randint(1, 6))
            layout = random.choice(["text", "documents", "cite"])
            spans = grammar.chat(random, reports, 4, layout) + grammar.told(random) + grammar.plain(random, reports, 2)
            yield from (span.text for span in spans if not span.marker)

    _write_text(path, json.dumps(train_tokenizer(texts(), CONFIG["vocab_size"]), ensure_ascii=False))


def export(model: TrainableJamba, folder: Path, tokenizer_json: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write an HF checkpoint in ``dtype`` to ``folder``: config, weights, tokenizer, chat template and model card."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config)
    tensors = {name: t.detach().to(dtype).contiguous().clone() for name, t in hub_tensors(model)}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if tokenizer_json.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    template = (files("jambacli.training") / "chat_template.jinja").read_text(encoding="utf-8")
    _write_text(folder / "chat_template.jinja", template)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
            "model_max_length": CONFIG["max_position_embeddings"],
        },
    )
    stops = [MARKERS.index(EOS), MARKERS.index("<|eom|>")]
    # Greedy: a model this small gains nothing from sampling.
    generation = {"bos_token_id": MARKERS.index(BOS), "eos_token_id": stops, "do_sample": True, "top_k": 1}
    _write_json(folder / "generation_config.json", generation)
    _write_text(folder / "README.md", _CARD)


def hub_tensors(model: TrainableJamba) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of published Jamba checkpoints."""
    yield "model.embed_tokens.weight", model.embed
    yield "model.final_layernorm.weight", model.norm.weight
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", layer.mixer_norm.weight  # type: ignore[union-attr, misc]
        yield at + "pre_ff_layernorm.weight", layer.ffn_norm.weight  # type: ignore[union-attr, misc]
        mixer, ffn = layer.mixer, layer.ffn
        if isinstance(mixer, Attention):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{at}self_attn.{name}.weight", getattr(mixer, name).weight
        elif isinstance(mixer, Mamba):
            for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
                yield f"{at}mamba.{name}.weight", getattr(mixer, name).weight
            yield at + "mamba.dt_proj.bias", mixer.dt_bias
            yield at + "mamba.conv1d.weight", mixer.conv_weight[:, None]
            yield at + "mamba.conv1d.bias", mixer.conv_bias
            yield at + "mamba.A_log", mixer.A_log
            yield at + "mamba.D", mixer.D
            for name in ("dt", "b", "c"):
                yield f"{at}mamba.{name}_layernorm.weight", getattr(mixer, f"{name}_norm").weight
        assert isinstance(ffn, FeedForward)
        yield from _feed_forward(at + "feed_forward.", ffn)


def _feed_forward(at: str, ffn: FeedForward) -> Iterator[tuple[str, Tensor]]:
    gate, up = ffn.gate_up.weight.chunk(2, 0)
    parts = zip(
        gate.chunk(ffn.n_experts, 0), up.chunk(ffn.n_experts, 0), ffn.down.weight.chunk(ffn.n_experts, 1), strict=True
    )
    if ffn.router is not None:
        yield at + "router.weight", ffn.router.weight
    for e, (g, u, d) in enumerate(parts):
        prefix = f"{at}experts.{e}." if ffn.router is not None else at
        yield from ((prefix + "gate_proj.weight", g), (prefix + "up_proj.weight", u), (prefix + "down_proj.weight", d))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def make_held_out(tokenizer_json: Path, documents: int = 48, tokens: int = 500) -> str:
    """The held-out split (jambacli/data/heldout.txt): reports, questions and answers without markup, with names that
    training never shows. Documents are separated by form feeds."""
    encoder = Encoder(tokenizer_json)
    texts: list[str] = []
    for i in range(documents):
        random = Random(f"held out split {i}")
        reports = grammar.make_reports(random, random.randint(2, 10), held_out=True)
        room = tokens - sum(len(encoder.text(r.text)) + 2 for r in reports)
        spans = grammar.plain(random, reports, max(2, room // 26))
        texts.append("".join(span.text for span in spans))
    return "\f\n".join(texts)
