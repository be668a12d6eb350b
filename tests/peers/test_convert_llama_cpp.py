"""Converted files in llama.cpp: they load, their logits are transformers' and their tokens sentencepiece's."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jambacli.convert.to_gguf import convert
from jambacli.gguf.reader import GGUFFile
from tests.support.awkward import awkward_strings
from tests.support.checkpoints import SHAPES, load_f32, make_checkpoint, write_tokenizer

pytestmark = pytest.mark.peer
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

POSITIONS = 64
F32 = 0  # ggml's type id, for a KV cache that rounds nothing


def llama(path: Path, **options: Any) -> Any:
    return llama_cpp.Llama(str(path), verbose=False, n_ctx=256, n_threads=2, type_k=F32, type_v=F32, **options)


def relative_errors(path: Path, folder: Path, tokens: list[int], batch: int = 256) -> np.ndarray:
    """Per position: the distance of llama.cpp's logits from transformers' f32, over the length of these."""
    model = llama(path, n_batch=batch, logits_all=True)
    model.eval(tokens)
    got = np.array(model.scores[: len(tokens)])
    model.close()
    with torch.no_grad():
        want = load_f32(folder)(torch.tensor([tokens])).logits[0].numpy()
    assert got.shape == want.shape
    return np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_logits_are_transformers(tmp_path: Path, shared_data: Path, shape: str, dtype: str) -> None:
    tokenizer = shared_data / "jamba-1.5-tokenizer.model"
    folder = make_checkpoint(tmp_path / "model", shape, dtype=dtype, tokenizer=tokenizer, vocab_size=65536)
    convert(folder, tmp_path / "m.gguf", type="f32")
    tokens = torch.randint(0, 65536, (POSITIONS,), generator=torch.Generator().manual_seed(1)).tolist()
    errors = relative_errors(tmp_path / "m.gguf", folder, tokens)
    assert errors.max() < 2e-4


def test_split_files_and_padded_vocabularies_load(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "moe4", dtype="bfloat16")
    done = convert(folder, tmp_path / "m.gguf", type="f32", split_max_size=500_000)
    assert len(done.paths) > 3
    errors = relative_errors(done.paths[0], folder, list(range(7, 7 + POSITIONS)))
    assert errors.max() < 2e-4


@pytest.mark.parametrize(("kind", "bound"), [("bf16", 0.05), ("f16", 0.01), ("q8_0", 0.15)])
def test_smaller_types_load_and_stay_near(tmp_path: Path, kind: str, bound: float) -> None:
    folder = make_checkpoint(tmp_path / "model", "quantizable", dtype="float32")
    convert(folder, tmp_path / "m.gguf", type=kind)
    # Token by token: llama.cpp's AMX path crashes on batches of any Q8_0 file, its own included (build of 0.3.36).
    errors = relative_errors(tmp_path / "m.gguf", folder, list(range(7, 7 + POSITIONS)), batch=1)
    assert np.median(errors) < bound


@pytest.mark.parametrize("shape", ["quantizable", "moe16", "tied"])
def test_q8_0_is_what_llama_cpp_quantizes_to(tmp_path: Path, shape: str) -> None:
    folder = make_checkpoint(tmp_path / "model", shape)
    convert(folder, tmp_path / "f32.gguf", type="f32")
    convert(folder, tmp_path / "ours.gguf", type="q8_0")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    paths = [str(tmp_path / name).encode() for name in ("f32.gguf", "theirs.gguf")]
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)) == 0
    with GGUFFile.open(tmp_path / "ours.gguf") as ours, GGUFFile.open(tmp_path / "theirs.gguf") as theirs:
        assert set(ours.tensors) == set(theirs.tensors)
        for name, info in ours.tensors.items():
            if info.shape[-1] % 32 == 0:  # narrower rows: the converter makes them f16, the quantizer leaves f32
                assert info.format == theirs.tensors[name].format, name
                assert bytes(ours.data(name)) == bytes(theirs.data(name)), name


def only_vocabulary(folder: Path, vocab_size: int = 65536) -> None:
    """A checkpoint around the tokenizer that is in ``folder`` already."""
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    make_checkpoint(folder, "tied", vocab_size=vocab_size, num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    (folder / "tokenizer.model").unlink()
    for name, data in kept.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A converted file with the real tokenizer, its checkpoint beside it in model/."""
    folder = tmp_path_factory.mktemp("real") / "model"
    folder.mkdir()
    write_tokenizer(folder, shared_data / "jamba-1.5-tokenizer.model")
    only_vocabulary(folder)
    convert(folder, folder.parent / "m.gguf")
    return folder.parent / "m.gguf"


def disagreements(path: Path, encode: Any) -> list[str]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    texts = awkward_strings()
    assert len(texts) >= 200
    return [t for t in texts if model.tokenize(t.encode(), add_bos=False, special=False) != encode(t)]


def test_tokens_of_awkward_strings_are_sentencepieces(real: Path) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(real.parent / "model" / "tokenizer.model"))
    assert disagreements(real, processor.encode) == []


def test_tokens_from_a_tokenizer_json_are_the_hf_tokenizers(tmp_path: Path, shared_data: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import LlamaTokenizer

    write_tokenizer(tmp_path, shared_data / "jamba-1.5-tokenizer.model")
    LlamaTokenizer.from_pretrained(tmp_path, add_prefix_space=False, legacy=False).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    only_vocabulary(tmp_path)
    convert(tmp_path, tmp_path / "m.gguf")
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True  # control pieces in plain text are text
    assert disagreements(tmp_path / "m.gguf", lambda t: reference.encode(t, add_special_tokens=False).ids) == []


def test_tokens_of_a_byte_level_tokenizer_are_the_hf_tokenizers(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(awkward_strings(), vocab_size=2000, show_progress=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}')
    only_vocabulary(tmp_path, 2048)
    convert(tmp_path, tmp_path / "m.gguf")
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True
    assert disagreements(tmp_path / "m.gguf", lambda t: reference.encode(t, add_special_tokens=False).ids) == []


CHATS = [
    [{"role": "user", "content": "Hello, who counted the 42 herons?"}],
    [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "שלום, 1,234 ways\n\n  to   write code: `x = y`"},
        {"role": "assistant", "content": "No. 😀"},
        {"role": "user", "content": "Why?\n"},
    ],
]


@pytest.mark.parametrize("chat", CHATS, ids=["one turn", "four messages"])
def test_templated_text_is_tokenized_as_the_hf_tokenizer_does(real: Path, shared_data: Path, chat: Any) -> None:
    from transformers import LlamaTokenizer

    folder = real.parent / "model"
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_prefix_space=False, legacy=False)
    template = (shared_data / "jamba-mini-1.7-chat-template.jinja").read_text()
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    model = llama_cpp.Llama(str(real), vocab_only=True, verbose=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert model.tokenize(text.encode(), add_bos=False, special=True) == ids
    assert ids[0] == 1 and 518 in ids and ids.count(1) == 1


def test_llama_cpp_knows_what_ends_a_turn(real: Path) -> None:
    model = llama_cpp.Llama(str(real), vocab_only=True, verbose=False)
    assert (model.token_bos(), model.token_eos()) == (1, 2)
    assert llama_cpp.llama_vocab_eot(llama_cpp.llama_model_get_vocab(model.model)) == 518
    assert llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(model.model), 518)
    assert json.loads(model.metadata["general.file_type"]) == 0
    assert model.metadata["tokenizer.ggml.add_space_prefix"] == "false"
