"""Export: transformers loads the checkpoint, and converting it again gives every float tensor's bits."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import quant
from jambacli import Jamba
from jambacli.cli import main
from jambacli.convert.to_gguf import convert
from jambacli.convert.to_hf import a_log, export
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.reader import GGUFFile
from jambacli.hub.demo import demo_model_path
from jambacli.quantize import quantize_file, recipes
from jambacli.text.tokenizer import Tokenizer
from quant.rows import Rows
from tests.support.checkpoints import make_checkpoint
from tests.support.repository import REPO
from tests.support.vocabularies import byte_level_metadata, sentencepiece_metadata

TEXTS = [
    "",
    "Boat 12 left at noon.",
    "  two  spaces\n\n\ttab",
    "naïve café 日本 \U0001f600",
    "<|eom|> stays",
    "x" * 300,
]


def exported(path: Path, folder: Path, **options: Any) -> Any:
    with GGUFFile.open(path) as file:
        return export(file, folder, **options)


def values(file: GGUFFile, name: str) -> torch.Tensor:
    weight = file.qtensor(name)
    return torch.from_numpy(quant.dequantize(Rows(weight.data.numpy(), weight.format, weight.shape[-1]))).view(
        weight.shape
    )


def same_tensors(first: Path, second: Path, only_floats: bool = False) -> int:
    count = 0
    with GGUFFile.open(first) as a, GGUFFile.open(second) as b:
        assert sorted(a.tensors) == sorted(b.tensors)
        for name, info in a.tensors.items():
            if only_floats and info.format.name not in ("f32", "f16", "bf16"):
                continue
            assert b.tensors[name].format.name == info.format.name, name
            assert (a.data(name) == b.data(name)).all(), name
            count += 1
    return count


@pytest.mark.parametrize("shape", ["dense", "moe4", "moe16"])
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_converting_the_export_gives_the_same_bits(tmp_path: Path, shape: str, kind: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "a", shape, dtype="float32" if kind == "f32" else "bfloat16")
    path = convert(checkpoint, tmp_path / "a.gguf", type=kind).paths[0]
    done = exported(path, tmp_path / "b", shard_bytes=100_000)
    assert done.type == kind
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    back = convert(tmp_path / "b", tmp_path / "b.gguf").paths[0]
    assert same_tensors(path, back) == len(GGUFFile.open(path).tensors)


@pytest.mark.parametrize("shape", ["dense", "moe16"])
def test_transformers_loads_it_and_computes_the_same(tmp_path: Path, shape: str) -> None:
    from transformers import AutoModelForCausalLM

    path = convert(make_checkpoint(tmp_path / "a", shape), tmp_path / "a.gguf", type="f32").paths[0]
    exported(path, tmp_path / "b")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    ids = [1, 5, 9, 200, 17, 3, 44, 100]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([ids])).logits[0]
    found = torch.as_tensor(Jamba.load(path, precise=True).logits(ids))
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_demo_model_says_the_same_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported(demo_model_path(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "Boat Anna left pier 4 with 3 crates. Where was boat Anna?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    ours = Jamba.load(demo_model_path(), precise=True).session(store=False)
    text = "".join(ours.send(chat[0]["content"], temperature=0.0, max_tokens=24))
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()


@pytest.mark.parametrize("vocabulary", ["demo", "sentencepiece", "prefix", "bytes", "real"])
def test_the_tokenizer_gives_the_same_ids(tmp_path: Path, vocabulary: str) -> None:
    from tokenizers import Tokenizer as Backend

    from jambacli.convert.tokenizer_export import tokenizer_files

    metadata: dict[str, Any]
    if vocabulary == "demo":
        with GGUFFile.open(demo_model_path()) as file:
            metadata = dict(file.metadata.items())
    elif vocabulary == "bytes":
        metadata = byte_level_metadata(["the boat left the pier at noon " * 20, "naïve café 日本"])[0]
    else:
        model = REPO.parent / "shared" / "data" / "jamba-1.5-tokenizer.model"
        if vocabulary == "real" and not model.exists():
            pytest.skip("needs ../shared/data")
        if vocabulary != "real":
            from tests.support.checkpoints import tiny_tokenizer_model

            model = tmp_path / "tiny.model"
            model.write_bytes(tiny_tokenizer_model())
        metadata = sentencepiece_metadata(model)
        del metadata["tokenizer.ggml.eot_token_id"]
        metadata["tokenizer.ggml.add_space_prefix"] = vocabulary == "prefix"
    ours = Tokenizer(metadata)
    files = tokenizer_files(metadata, "test", 4096)
    theirs = Backend.from_str(files["tokenizer.json"])
    for text in TEXTS[:4] + TEXTS[5:]:
        bos = [ours.bos_id] if ours.add_bos and ours.bos_id is not None else []
        ids = theirs.encode(text).ids
        assert ids == bos + ours.encode(text, "user"), text
        assert theirs.decode(ids) == text
    if vocabulary == "prefix":
        return  # there, tokenizers also puts a space after every marker
    marked = theirs.encode("a<|eom|>b", add_special_tokens=False).ids
    assert marked == ours.encode("a<|eom|>b", "all")


def test_quantized_weights_become_bf16_and_floats_keep_their_bits(tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    with GGUFFile.open(demo_model_path()) as file:
        quantize_file.quantize(quantize_file.plan(file, quantize_file.Request(recipes.get_recipe("q4_k_m"))), small)
    done = exported(small, tmp_path / "b")
    assert done.type == "bf16"
    assert set(done.dequantized) == {"q4_k", "q6_k"}
    back = convert(tmp_path / "b", tmp_path / "b.gguf").paths[0]
    assert same_tensors(small, back, only_floats=True) > 30
    with GGUFFile.open(small) as a, GGUFFile.open(back) as b:
        for name in ("blk.0.ssm_in.weight", "blk.1.ffn_down_exps.weight", "token_embd.weight"):
            exact, found = values(a, name), values(b, name)
            assert torch.equal(exact.to(torch.bfloat16).float(), found), name


def test_a_log_is_what_was_converted() -> None:
    torch.manual_seed(1)
    for values in (torch.randn(4096) * 3, torch.randn(4096).to(torch.bfloat16).float(), torch.tensor([-torch.inf])):
        a = -torch.exp(values)
        assert torch.equal(-torch.exp(a_log(a)), a)


def test_the_head_is_always_there_and_the_index_is_complete(tmp_path: Path) -> None:
    exported(demo_model_path(), tmp_path, shard_bytes=1_000_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    assert found == index["weight_map"]
    assert "lm_head.weight" in found
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


def test_an_interrupted_export_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def progress(title: str, total: int | None, unit: str = "bytes") -> Any:
        import contextlib

        seen = 0

        def advance(n: int) -> None:
            nonlocal seen
            seen += n
            if seen > 5_000_000:
                raise KeyboardInterrupt

        return contextlib.nullcontext(advance)

    with pytest.raises(KeyboardInterrupt):
        exported(demo_model_path(), folder, shard_bytes=1_000_000, progress=progress)
    assert not folder.exists()
    folder.mkdir()
    (folder / "model-00001-of-00007.safetensors").write_bytes(b"left by a killed export")
    exported(demo_model_path(), folder)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "notes.txt"])
def test_what_is_there_is_not_replaced_without_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(JambaError, match=f"is not empty: it holds {name}"):
        exported(demo_model_path(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    exported(demo_model_path(), tmp_path, force=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "jamba"


def changed(tmp_path: Path, name: str, value: float) -> Path:
    """The demo model with the first float32 of a tensor replaced."""
    data = bytearray(demo_model_path().read_bytes())
    with GGUFFile.open(demo_model_path()) as file:
        struct.pack_into("<f", data, file.tensors[name].offset, value)
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    return path


def test_a_matrix_that_no_a_log_gives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"blk\.0\.ssm_a has values above 0"):
        exported(changed(tmp_path, "blk.0.ssm_a", 1.0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_f16_that_overflows_is_refused(tmp_path: Path) -> None:
    path = convert(make_checkpoint(tmp_path / "a"), tmp_path / "a.gguf", type="f32").paths[0]
    with GGUFFile.open(path) as file:
        offset = file.tensors["token_embd.weight"].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, offset, 1e6)
    path.write_bytes(data)
    with pytest.raises(JambaError, match="beyond the range of f16"):
        exported(path, tmp_path / "out", type="f16")
    assert not (tmp_path / "out").exists()


def test_layers_without_a_period_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from jambacli.convert.hf_settings import config_json
    from jambacli.gguf import jamba_metadata as keys

    with GGUFFile.open(demo_model_path()) as file:
        config = keys.jamba_config(file.metadata, file.tensors)
    odd = replace(config, layer_is_attention=(True, True, False, False, True))
    with pytest.raises(UnsupportedError, match=r"attention layers \(0, 1, 4\) follow no period"):
        config_json(odd, {}, "bf16", "model.gguf")
    with pytest.raises(UnsupportedError, match="is not a multiple of"):
        config_json(replace(config, d_inner=config.hidden + 1), {}, "bf16", "model.gguf")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, code, text in (
        ([demo_model_path(), tmp_path / "out", "--json"], 0, "bf16"),
        ([demo_model_path(), tmp_path / "out"], 1, "use --force"),
        ([tmp_path / "nowhere.gguf", tmp_path / "b"], 1, "nowhere.gguf"),
        ([demo_model_path(), tmp_path / "b", "--shard-size", "0"], 2, "--shard-size"),
        ([demo_model_path(), tmp_path / "out" / "config.json"], 1, "it is a file"),
    ):
        monkeypatch.setattr("sys.argv", ["jamba", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert int(left.value.code or 0) == code, err
        assert text in out + err
        if code == 0:
            assert json.loads(out)["tensors"] == 92
    assert not (tmp_path / "b").exists()


def test_values_are_rounded_once(tmp_path: Path) -> None:
    exported(demo_model_path(), tmp_path / "h", type="f32")
    with safe_open(tmp_path / "h" / "model.safetensors", "np") as file, GGUFFile.open(demo_model_path()) as source:
        assert np.array_equal(file.get_tensor("model.embed_tokens.weight"), values(source, "token_embd.weight").numpy())
