"""Checkpoints as trainers and tools leave them: the same logits as transformers computes from the same directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jambacli.api import Jamba
from jambacli.convert.to_gguf import convert
from tests.support.checkpoints import load_f32, make_checkpoint

Tensors = dict[str, torch.Tensor]
ONE = "model-00001-of-00001.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name, {"format": "pt"})


def write_index(folder: Path, names: list[str]) -> None:
    (folder / "model.safetensors").rename(folder / ONE)
    places = {"metadata": {}, "weight_map": dict.fromkeys(names, ONE)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def shards_of_another_model(folder: Path) -> None:
    old = make_checkpoint(folder.parent / "old", seed=5, max_shard_size="600KB")
    for path in old.glob("model*"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def another_head(folder: Path) -> None:
    tensors = read(folder)
    write(folder, tensors | {HEAD: torch.randn_like(tensors[EMBEDDING]) * 0.3})


def head_alone(folder: Path) -> None:
    tensors = read(folder)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    write(folder, tensors)


def without_prefix(folder: Path) -> None:
    write(folder, {k.removeprefix("model."): v for k, v in read(folder).items()})


def another_prefix(folder: Path) -> None:
    write(folder, {f"model.{k}": v for k, v in read(folder).items()})


def half_variant(folder: Path) -> None:
    write(folder, {k: v.half() * 2 for k, v in read(folder).items()}, "model.fp16.safetensors")


def two_copies_of_a_tensor(folder: Path) -> None:
    tensors = read(folder)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    parts = [{n: tensors[n] for n in names[i::2]} for i in range(2)]
    files = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    places = {name: file for part, file in zip(parts, files, strict=True) for name in part}
    parts[1][names[0]] = torch.randn_like(tensors[names[0]])
    for part, file in zip(parts, files, strict=True):
        write(folder, part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def in_a_subfolder(folder: Path) -> None:
    (folder / "weights").mkdir()
    write_index(folder, list(read(folder)))
    (folder / ONE).rename(folder / "weights" / ONE)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(ONE, f"weights/{ONE}"))


def without_conv_bias(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mamba_conv_bias": False}))


def several_dtypes(folder: Path) -> None:
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.float32]
    write(folder, {k: v.to(dtypes[i % 4]) for i, (k, v) in enumerate(read(folder).items())})


CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "old shards beside a new file": ("moe4", shards_of_another_model, "left out: model-00001-of"),
    "another head in a tied model": ("tied", another_head, "lm_head.weight is another matrix"),
    "the head alone in a tied model": ("tied", head_alone, ""),
    "an equal head in a tied model": ("tied", lambda f: write(f, (t := read(f)) | {HEAD: t[EMBEDDING].clone()}), ""),
    "names without model.": ("moe4", without_prefix, ""),
    "names without model., tied": ("tied", without_prefix, ""),
    "names with model. twice": ("moe4", another_prefix, ""),
    "names with model. twice, tied": ("tied", another_prefix, ""),
    "an index that names a tied head": ("tied", lambda f: write_index(f, [*read(f), HEAD]), ""),
    "an index that lacks a tensor": ("moe4", lambda f: write_index(f, [k for k in read(f) if k != HEAD]), ""),
    "an index into a folder": ("moe4", in_a_subfolder, ""),
    "a tensor in two indexed files": ("moe4", two_copies_of_a_tensor, "several files hold"),
    "biases that the config denies": ("moe4", without_conv_bias, "mamba_conv_bias is false"),
    "tensors of several dtypes": ("moe4", several_dtypes, ""),
    "a half variant beside": ("moe4", half_variant, "left out: model.fp16.safetensors"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    shape, change, said = CASES[name]
    folder = make_checkpoint(tmp_path / "model", shape)
    change(folder)
    path = tmp_path / "m.gguf"
    convert(folder, path, type="f32")
    assert said in caplog.text and (said or not caplog.text)
    ids = torch.randint(0, 512, (24,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = load_f32(folder)(ids[None]).logits[0]
    got = Jamba.load(path).logits(ids.tolist())
    assert expected.std() > 0.5
    assert (got - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("settings", "template"),
    [
        ({"eos_token": "<|eom|>"}, "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"),
        ({}, "{{ bos_token }}{% if pad_token %}<P>{% endif %}{{ unk_token }}{{ pad_token }}{{ messages[0].content }}"),
        ({}, "{{ '-' * 3 }}{{ 2 * 'ab' }}{{ ([1] * 2) | length }}{{ '=' * -1 }}{{ messages[0].content }}"),
        (
            {"sep_token": "<|eom|>", "cls_token": "<|bom|>", "mask_token": "<|mask_0|>"},
            "{{ cls_token }}{{ mask_token }}{{ messages[0].content }}{{ sep_token }}",
        ),
        (
            {"mask_token": "<|eom|>"},
            "{{ cls_token }}{{ mask_token }}{{ sep_token is defined }}{{ messages[0].content }}",
        ),
        ({"unk_token": None}, "{{ sep_token }}{{ cls_token is defined }}{{ messages[0].content }}"),
    ],
)
def test_templates_render_as_in_transformers(tmp_path: Path, settings: dict[str, str | None], template: str) -> None:
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "model", "tied")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": template, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    convert(folder, tmp_path / "m.gguf")
    messages = [{"role": "user", "content": "Herons?"}]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    model = Jamba.load(tmp_path / "m.gguf")
    assert model.template is not None
    assert model.template.render(messages) == theirs
    assert {model.tokenizer.pieces[i] for i in model.tokenizer.stop_ids} >= {"<|endoftext|>"}


@pytest.mark.parametrize("newer", [False, True])
def test_a_map_of_special_tokens_counts_as_in_transformers(tmp_path: Path, newer: bool) -> None:
    """special_tokens_map.json decides in a tokenizer without added_tokens_decoder, where nothing else does in newer ones."""
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "model", "tied")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ eos_token }}{{ pad_token }}{{ messages[0].content }}"
    if newer:
        entry = {"content": "<|eom|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        config["added_tokens_decoder"] = {"6": entry | {"special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|eom|>", "pad_token": "<|eom|>"}))
    convert(folder, tmp_path / "m.gguf")
    messages = [{"role": "user", "content": "Herons?"}]
    model = Jamba.load(tmp_path / "m.gguf")
    assert model.template is not None
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert model.template.render(messages) == theirs


@pytest.mark.parametrize("name", ["bos_token", "pad_token"])
def test_a_tokenizer_without_a_token_has_none_as_in_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "model", "tied")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {name: None, "chat_template": "{{ bos_token }}{{ pad_token }}{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "m.gguf")
    model, theirs = Jamba.load(tmp_path / "m.gguf"), AutoTokenizer.from_pretrained(folder)
    ids = model.template.encode_text("the herons") if model.template is not None else []
    assert ids == theirs("the herons").input_ids
    messages = [{"role": "user", "content": "Herons?"}]
    assert model.template is not None
    assert model.template.render(messages) == theirs.apply_chat_template(messages, tokenize=False)
