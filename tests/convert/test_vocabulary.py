"""Tokenizer files to tokenizer.* metadata: pieces, scores, types, special ids, flags; from either kind of file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from jambacli.convert.sentencepiece import read_sentencepiece
from jambacli.convert.tokenizer_json import read_tokenizer_json
from jambacli.convert.vocabulary import tokenizer_metadata
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from tests.support.checkpoints import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer_model, write_tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
G = "tokenizer.ggml."


def metadata(folder: Path, rows: int = 512, template: str | None = None, **config: Any) -> dict[str, Any]:
    return {key: value for key, value, _ in tokenizer_metadata(folder, config, rows, template)}


def settings(folder: Path, **values: Any) -> None:
    path = folder / "tokenizer_config.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (old | values).items() if v is not None}))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def as_json(folder: Path) -> Any:
    """Replace tokenizer.model by the tokenizer.json that transformers makes of it; returns that tokenizer."""
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(folder, add_prefix_space=False, legacy=False)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    return tokenizer


def edit_json(folder: Path, edit: Any) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def assert_same_as_library(path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model = read_sentencepiece(path)
    assert model.pieces == [p.piece for p in proto.pieces]
    assert model.scores == [p.score for p in proto.pieces]
    assert model.types == [p.type for p in proto.pieces]
    spec = proto.trainer_spec
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (
        spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id
    )  # fmt: skip
    assert model.add_dummy_prefix == proto.normalizer_spec.add_dummy_prefix


def test_the_real_tokenizer_model_is_read_as_sentencepiece_reads_it(shared_data: Path) -> None:
    assert_same_as_library(shared_data / "jamba-1.5-tokenizer.model")


@pytest.mark.parametrize(
    "options",
    [{}, {"pad_id": -1}, {"add_dummy_prefix": True}, {"unk_id": 0, "pad_id": 3}, {"bos_id": -1, "pad_id": 1}],
    ids=str,
)
def test_other_tokenizer_models_too(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_tokenizer_model(**options))
    assert_same_as_library(tmp_path / "tokenizer.model")


def test_the_real_vocabulary_in_gguf_terms(tmp_path: Path, shared_data: Path) -> None:
    write_tokenizer(tmp_path, shared_data / "jamba-1.5-tokenizer.model")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 518]}')
    meta = metadata(tmp_path, 65536, CHAT_TEMPLATE)
    types, pieces = meta[G + "token_type"], meta[G + "tokens"]
    assert len(pieces) == len(types) == len(meta[G + "scores"]) == 65536
    assert {t: types.count(t) for t in set(types)} == {NORMAL: 63736, UNKNOWN: 1, CONTROL: 1526, USER: 17, BYTE: 256}
    assert [types[i] for i in (0, 1, 2, 3, 518, 519, 522, 524, 1543, 1544)] == [3, 3, 3, 2, 4, 4, 4, 4, 4, 6]
    assert {k.removeprefix(G): v for k, v in meta.items() if not isinstance(v, list)} == {
        "model": "llama",
        "pre": "default",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "eot_token_id": 518,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": False,
    }


def test_a_smaller_vocabulary_is_filled_up_with_unused_pieces(tiny: Path) -> None:
    real = len(read_sentencepiece(tiny / "tokenizer.model").pieces)
    meta = metadata(tiny, 500)
    assert real < 500 == len(meta[G + "tokens"])
    assert meta[G + "tokens"][real:] == [f"[PAD{i}]" for i in range(real, 500)]
    assert meta[G + "token_type"][real:] == [UNUSED] * (500 - real)
    with pytest.raises(BadFileError, match=f"has {real} pieces, but the embedding has only 300 rows"):
        metadata(tiny, 300)


def test_the_space_prefix_is_the_tokenizers_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, tiny_tokenizer_model(add_dummy_prefix=True))
    assert metadata(tmp_path)[G + "add_space_prefix"] is True


def test_bos_is_added_unless_the_config_says_no(tiny: Path) -> None:
    assert metadata(tiny)[G + "add_bos_token"] is True
    settings(tiny, add_bos_token=False, add_eos_token=True)
    assert metadata(tiny)[G + "add_bos_token"] is False and metadata(tiny)[G + "add_eos_token"] is True
    settings(tiny, add_bos_token=None)
    assert metadata(tiny)[G + "add_bos_token"] is True


def test_a_tokenizer_model_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_tokenizer_model())
    meta = metadata(tmp_path)
    assert [meta[G + f"{n}_token_id"] for n in ("bos", "eos", "unknown", "padding")] == [1, 2, 3, 0]


def test_special_ids_the_tokenizers_word_before_the_configs(tiny: Path) -> None:
    settings(tiny, bos_token={"content": "<|mask_0|>", "lstrip": False}, pad_token=None, eos_token="not a piece")
    (tiny / "special_tokens_map.json").write_text('{"pad_token": "<|reserved_0|>"}')
    meta = metadata(tiny, bos_token_id=1, eos_token_id=6, pad_token_id=0)
    assert meta[G + "bos_token_id"] == 4 and meta[G + "padding_token_id"] == 5 and meta[G + "eos_token_id"] == 6


@pytest.mark.parametrize(
    ("generation", "config", "template", "eot", "eom"),
    [
        ([2, 6], 2, None, 6, None),
        (6, 2, None, 6, None),
        (2, [2, 6], None, 6, None),
        ([2, 7, 6], 2, None, 7, 6),
        ([2, 7, 6], 2, CHAT_TEMPLATE.replace("<|bom|>", ""), 6, 7),  # what the template writes ends the turn
        (2, 2, CHAT_TEMPLATE, 6, None),  # named nowhere but in the template
        (2, 2, "no markers", None, None),
        ([2, 9999, -1, "x"], None, None, None, None),
    ],
)
def test_what_ends_generation(tiny: Path, generation: Any, config: Any, template: Any, eot: Any, eom: Any) -> None:
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    meta = metadata(tiny, template=template, eos_token_id=config)
    assert (meta[G + "eos_token_id"], meta.get(G + "eot_token_id"), meta.get(G + "eom_token_id")) == (2, eot, eom)


def test_added_tokens_extend_and_retype_the_vocabulary(tiny: Path) -> None:
    n = len(read_sentencepiece(tiny / "tokenizer.model").pieces)
    decoder = {
        "5": {"content": "<|renamed|>", "special": True},  # a reserved control piece put to use
        "6": {"content": "<|eom|>", "special": True},  # user-defined in the model: stays so
        str(n): {"content": "<|im_end|>", "special": True},
        str(n + 3): {"content": "<think>", "special": False},
    }
    settings(tiny, added_tokens_decoder=decoder, additional_special_tokens=["the"])
    (tiny / "added_tokens.json").write_text(json.dumps({"<think>": n + 3, "</think>": n + 4}))
    meta = metadata(tiny)
    pieces, types = meta[G + "tokens"], meta[G + "token_type"]
    assert (pieces[5], types[5], types[6]) == ("<|renamed|>", CONTROL, USER)
    assert types[pieces.index("the")] == CONTROL
    assert pieces[n : n + 5] == ["<|im_end|>", f"[PAD{n + 1}]", f"[PAD{n + 2}]", "<think>", "</think>"]
    assert types[n : n + 5] == [CONTROL, UNUSED, UNUSED, USER, USER]
    settings(tiny, added_tokens_decoder={str(pieces.index("herons") if "herons" in pieces else 300): {"content": "x"}})
    with pytest.raises(BadFileError, match="in the vocabulary, but 'x' as an added token"):
        metadata(tiny)
    settings(tiny, added_tokens_decoder={"123456789": {"content": "x"}})
    with pytest.raises(BadFileError, match="far beyond the vocabulary"):
        metadata(tiny)
    settings(tiny, added_tokens_decoder={str(n): {"content": "the"}})
    with pytest.raises(BadFileError, match="'the' twice"):
        metadata(tiny)


def test_a_tokenizer_json_means_the_same_as_the_model_it_was_made_from(tiny: Path) -> None:
    of_model = metadata(tiny)
    as_json(tiny)
    of_json = metadata(tiny)
    for key in ("model", "pre", "tokens", "token_type", "bos_token_id", "eos_token_id", "add_space_prefix"):
        assert of_json[G + key] == of_model[G + key], key
    # Scores differ in value but must put merges in the same order.
    merged = [i for i, (p, t) in enumerate(zip(of_model[G + "tokens"], of_model[G + "token_type"], strict=True))
              if t == NORMAL and len(p) > 1 and set(p) != {"▁"}]  # fmt: skip
    assert len(merged) > 50
    orders = [sorted(merged, key=lambda i, s=meta[G + "scores"]: -s[i]) for meta in (of_model, of_json)]
    assert orders[0] == orders[1]


def test_the_real_tokenizer_as_json(tmp_path: Path, shared_data: Path) -> None:
    write_tokenizer(tmp_path, shared_data / "jamba-1.5-tokenizer.model")
    of_model = metadata(tmp_path, 65536)
    as_json(tmp_path)
    of_json = metadata(tmp_path, 65536)
    assert of_json[G + "tokens"] == of_model[G + "tokens"]
    assert of_json[G + "token_type"] == of_model[G + "token_type"]


def test_both_files_together_agree_or_the_json_wins(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = (tiny / "tokenizer.model").read_bytes()
    scores = metadata(tiny)[G + "scores"]
    as_json(tiny)
    (tiny / "tokenizer.model").write_bytes(model)
    assert metadata(tiny)[G + "scores"] == scores
    assert caplog.text == ""

    def swap(data: Any) -> None:
        vocab = data["model"]["vocab"]
        a, b = [text for text, i in vocab.items() if i > 280][:2]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    edit_json(tiny, swap)
    pieces = metadata(tiny)[G + "tokens"]
    assert pieces != read_sentencepiece(tiny / "tokenizer.model").pieces + pieces[len(pieces) :]
    assert "tokenizer.model and tokenizer.json differ" in caplog.text


def test_a_post_processor_that_adds_bos_is_heeded(tiny: Path) -> None:
    as_json(tiny)
    settings(tiny, add_bos_token=None)
    bos = {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}]}
    edit_json(tiny, lambda data: data.update(post_processor={"type": "Sequence", "processors": [template]}))
    assert metadata(tiny)[G + "add_bos_token"] is True
    edit_json(tiny, lambda data: data.update(post_processor=None))
    assert metadata(tiny)[G + "add_bos_token"] is False


@pytest.mark.parametrize(
    ("key", "component", "prefix"),
    [
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, False),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}, True),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}, False),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}, True),
        ("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, False),
    ],
)
def test_where_a_tokenizer_json_keeps_its_space_prefix(tiny: Path, key: str, component: Any, prefix: bool) -> None:
    as_json(tiny)
    edit_json(tiny, lambda data: data.update({"normalizer": None, "pre_tokenizer": None, key: component}))
    assert metadata(tiny)[G + "add_space_prefix"] is prefix


def byte_level(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([CHAT_TEMPLATE * 3, "the herons of lake tuz"], vocab_size=400, show_progress=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings(folder, eos_token="<|im_end|>", bos_token="<|endoftext|>")


def test_a_byte_level_tokenizer_becomes_gpt2(tmp_path: Path) -> None:
    byte_level(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    meta = metadata(tmp_path)
    assert meta[G + "model"] == "gpt2" and meta[G + "pre"] == "gpt-2"
    assert meta[G + "merges"] == [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    assert G + "scores" not in meta
    end = len(data["model"]["vocab"])
    assert meta[G + "tokens"][end : end + 3] == ["<|endoftext|>", "<|im_end|>", "<think>"]
    assert meta[G + "token_type"][end - 1 : end + 3] == [NORMAL, CONTROL, CONTROL, USER]
    assert meta[G + "eos_token_id"] == end + 1 and meta[G + "add_bos_token"] is False


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("steps", "pre"),
    [
        ([{"type": "ByteLevel", "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}], "starcoder"),
        ([{"type": "Split", "pattern": {"Regex": QWEN}}, {"type": "ByteLevel", "use_regex": False}], "qwen2"),
        (
            [
                {"type": "Split", "pattern": {"Regex": QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)}},
                {"type": "ByteLevel"},
            ],
            "llama-bpe",
        ),
        ([{"type": "Split", "pattern": {"Regex": r"\w+"}}, {"type": "ByteLevel", "use_regex": False}], "default"),
    ],
)
def test_pre_tokenizers_by_llama_cpps_names(
    tmp_path: Path, steps: Any, pre: str, caplog: pytest.LogCaptureFixture
) -> None:
    byte_level(tmp_path)
    edit_json(tmp_path, lambda data: data.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))
    assert metadata(tmp_path)[G + "pre"] == pre
    assert ("has no name for" in caplog.text) == (pre == "default")


def write_bytes(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


def json_with(edit: Any) -> Any:
    def change(folder: Path) -> None:
        as_json(folder)
        edit_json(folder, edit)

    return change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda f: (f / "tokenizer.model").unlink(), JambaError, "there is no tokenizer"),
        (write_bytes("tokenizer.model", b""), BadFileError, "it has no pieces"),
        (write_bytes("tokenizer.model", b"{}"), BadFileError, "not a SentencePiece model"),
        (write_bytes("tokenizer.model", b"version https://git-lfs.github.com/spec/v1"), BadFileError, "LFS pointer"),
        (write_bytes("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\x7f"), BadFileError, "runs past its end"),
        (write_bytes("tokenizer.model", b"\xff" * 40), BadFileError, "endless number"),
        (
            write_bytes("tokenizer.model", tiny_tokenizer_model(300, model_type="char", byte_fallback=False)),
            UnsupportedError,
            "char model; only BPE",
        ),
        (write_bytes("tokenizer_config.json", b"{"), BadFileError, "tokenizer_config.json: .*not valid JSON"),
        (write_bytes("tokenizer_config.json", b"\xff"), BadFileError, "not UTF-8"),
        (json_with(lambda d: d["model"].update(type="WordPiece")), UnsupportedError, "'WordPiece' vocabulary"),
        (json_with(lambda d: d["model"].update(byte_fallback=False)), UnsupportedError, "not byte-level"),
        (json_with(lambda d: d.pop("model")), BadFileError, "model.vocab is missing"),
        (json_with(lambda d: d["model"]["vocab"].update(x=-1)), BadFileError, "'x' has the invalid id"),
        (json_with(lambda d: d["model"]["vocab"].update(x=10**9)), BadFileError, "'x' has the invalid id"),
        (json_with(lambda d: d["model"]["vocab"].update(x=5)), BadFileError, "share the id 5"),
        (json_with(lambda d: d["model"].update(merges=[["a"]])), BadFileError, "not a list of pairs"),
        (json_with(lambda d: d["model"].update(merges=3)), BadFileError, "not a list of pairs"),
        (json_with(lambda d: d.update(added_tokens=[{"id": "x"}])), BadFileError, "invalid entry"),
    ],
)
def test_bad_tokenizers(tiny: Path, change: Any, kind: type[JambaError], message: str) -> None:
    change(tiny)
    with pytest.raises(kind, match=message) as caught:
        metadata(tiny)
    assert "\n" not in str(caught.value) and str(tiny) in str(caught.value)


def test_damaged_tokenizer_models_never_crash(tmp_path: Path) -> None:
    """Cut anywhere or with bytes changed: a vocabulary or a clean error, nothing else."""
    good = tiny_tokenizer_model()
    rng, path = random.Random(3), tmp_path / "tokenizer.model"
    clean = 0
    for n in range(400):
        data = bytearray(good[: rng.randrange(len(good))] if n % 2 else good)
        for _ in range(rng.randint(0, 8)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_sentencepiece(path)
        except JambaError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            clean += 1
    assert clean > 100


def test_pieces_a_json_skips_are_unused(tiny: Path) -> None:
    as_json(tiny)

    def drop(data: Any) -> None:
        del data["model"]["vocab"]["<|mask_0|>"]
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in ("<|mask_0|>", SPECIAL[0])]

    edit_json(tiny, drop)
    settings(tiny, extra_special_tokens=None, additional_special_tokens=None, added_tokens_decoder=None)
    meta = metadata(tiny)
    assert (meta[G + "tokens"][4], meta[G + "token_type"][4]) == ("[PAD4]", UNUSED)
    assert meta[G + "token_type"][6] == NORMAL  # no longer declared as added


def test_reading_the_parts_of_a_tokenizer_json(tiny: Path) -> None:
    tokenizer = as_json(tiny)
    data = read_tokenizer_json(tiny / "tokenizer.json")
    assert {i: t for t, i in tokenizer.get_vocab().items()} == data.pieces
    assert data.kind == "llama" and data.is_byte("<0x0A>") and not data.is_byte("<0xA>")
