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


def half_variant(folder: Path) -> None:
    write(folder, {k: v.half() * 2 for k, v in read(folder).items()}, "model.fp16.safetensors")


CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "old shards beside a new file": ("moe4", shards_of_another_model, "left out: model-00001-of"),
    "another head in a tied model": ("tied", another_head, "lm_head.weight is another matrix"),
    "the head alone in a tied model": ("tied", head_alone, ""),
    "an equal head in a tied model": ("tied", lambda f: write(f, (t := read(f)) | {HEAD: t[EMBEDDING].clone()}), ""),
    "names without model.": ("moe4", without_prefix, ""),
    "names without model., tied": ("tied", without_prefix, ""),
    "an index that names a tied head": ("tied", lambda f: write_index(f, [*read(f), HEAD]), ""),
    "an index that lacks a tensor": ("moe4", lambda f: write_index(f, [k for k in read(f) if k != HEAD]), ""),
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
