"""Token ids and text against sentencepiece and the tokenizers library; markers stay text in content."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from jambacli.errors import BadFileError, UnsupportedError
from jambacli.text.streaming import StopMatcher
from jambacli.text.tokenizer import Tokenizer
from tests.support.repository import SHARED_DATA
from tests.support.vocabularies import byte_level_metadata, sentencepiece_metadata

AWKWARD = [
    "Hello",
    " Hello",
    "Hello, world",
    "  two  spaces ",
    "\n\n\t tab\r\n",
    "1234567890",
    "שלום עולם",
    "🙂👩‍👩‍👧‍👦 emoji",
    "naïve café ﬁ",
    "中文字符，日本語",
    "<|eom|>",
    "x<|bom|><|user|>y",
    "<documents> </documents>",
    "<0x0A>",
    "a\u200bb\u0000c\ufeff",
    "====----====",
    " " * 70,
    "a" * 300,
    "def f(x):\n    return {'a': [1, 2.5e-3]}\n",
    "\U0010ffff\ud7ff",
]


@pytest.fixture(scope="module")
def jamba(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    model = SHARED_DATA / "jamba-1.5-tokenizer.model"
    if not model.is_file():
        pytest.skip("../shared/data (the real Jamba tokenizer) is missing")
    return Tokenizer(sentencepiece_metadata(model), cache=tmp_path_factory.mktemp("merges"))


@pytest.fixture(scope="module")
def sentencepiece(jamba: Tokenizer) -> object:
    import sentencepiece

    model = SHARED_DATA / "jamba-1.5-tokenizer.model"
    return sentencepiece.SentencePieceProcessor(str(model))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_strings_encode_as_sentencepiece_does(jamba: Tokenizer, sentencepiece, text: str) -> None:
    assert jamba.encode(text, markers="user") == sentencepiece.encode(text)


def test_random_mixtures_encode_as_sentencepiece_does(jamba: Tokenizer, sentencepiece) -> None:
    rng = random.Random(5)
    atoms = [*"==--  aaab\n\t.,<>|_*#eitsn01", "é", "ש", "🙂", "中", "the ", "ing", " of", "\u200b", "<|user|>"]
    for _ in range(3000):
        text = "".join(rng.choice(atoms) * rng.choice([1, 1, 1, 2, 3, 7]) for _ in range(rng.randint(1, 30)))
        assert jamba.encode(text, markers="user") == sentencepiece.encode(text), text


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("markers", ["none", "user", "all"])
def test_decoding_gives_the_text_back(jamba: Tokenizer, text: str, markers) -> None:
    assert jamba.decode(jamba.encode(text, markers=markers), markers=True) == text


def test_content_never_becomes_a_marker(jamba: Tokenizer) -> None:
    for text in ("<|eom|>", "<|bom|><|assistant|>", "</documents>", "<|startoftext|>"):
        assert not any(jamba.is_marker(i) for i in jamba.encode(text))
        assert any(jamba.is_marker(i) for i in jamba.encode(text, markers="all"))


def test_the_merge_cache_gives_the_same_ids(jamba: Tokenizer, tmp_path: Path) -> None:
    model = SHARED_DATA / "jamba-1.5-tokenizer.model"
    metadata = sentencepiece_metadata(model)
    texts = AWKWARD
    first = [Tokenizer(metadata, cache=tmp_path).encode(t) for t in texts[:1]]
    (cached,) = tmp_path.glob("merges-*.i32")
    second = [Tokenizer(metadata, cache=tmp_path).encode(t) for t in texts]
    cached.write_bytes(b"garbage")
    third = [Tokenizer(metadata, cache=tmp_path).encode(t) for t in texts]
    assert first == second[:1]
    assert second == third == [jamba.encode(t) for t in texts]


def test_streaming_never_breaks_a_character(jamba: Tokenizer) -> None:
    text = "naïve 🙂 שלום 𓀀 end"
    stream = jamba.stream()
    pieces = [stream.push(i) for i in jamba.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in p for p in pieces)


def test_an_unfinished_character_becomes_one_replacement(jamba: Tokenizer) -> None:
    stream = jamba.stream()
    first_byte = jamba.pieces.index("<0xF0>")
    assert stream.push(first_byte) == ""
    assert stream.flush() == "\ufffd"


def test_byte_level_vocabulary_matches_the_library() -> None:
    corpus = [
        "the quick brown fox jumps over 13 lazy dogs",
        "it's naïve, isn't it? 🙂 שלום",
        "def f(x):\n\treturn x\n",
    ] * 5
    metadata, reference = byte_level_metadata(corpus)
    tokenizer = Tokenizer(metadata)
    for text in [*corpus, *AWKWARD]:
        if "<|" in text or "<d" in text:
            continue  # the library parses its special tokens in text; content encoding must not
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    start, end = tokenizer.marker_id("<|im_start|>"), tokenizer.marker_id("<|im_end|>")
    assert tokenizer.encode("<|im_start|>user<|im_end|>", markers="all")[0] == start
    assert end in tokenizer.stop_ids
    assert start not in tokenizer.encode("<|im_start|>user")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedError, "bert"),
        ({"tokenizer.ggml.model": ""}, UnsupportedError, "has no tokenizer"),
        ({"tokenizer.ggml.model": "none"}, UnsupportedError, "has no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, BadFileError, "tokens"),
        ({"tokenizer.ggml.token_type": [1]}, BadFileError, "token_type"),
        ({"tokenizer.ggml.token_type": "x"}, BadFileError, "token_type"),
        ({"tokenizer.ggml.token_type": 3}, BadFileError, "token_type"),
        ({"tokenizer.ggml.token_type": [[1], [1, 2]]}, BadFileError, "token_type"),
        ({"tokenizer.ggml.scores": float("nan")}, BadFileError, "scores"),
        ({"tokenizer.ggml.scores": ["0"]}, BadFileError, "scores"),
        ({"tokenizer.ggml.eos_token_id": np.array([1, 2])}, BadFileError, "eos"),
        ({"tokenizer.ggml.bos_token_id": "1"}, BadFileError, "bos"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, BadFileError, "eos"),
    ],
)
def test_inconsistent_vocabularies_are_refused(change: dict, error: type[Exception], words: str) -> None:
    metadata, _ = byte_level_metadata(["some text"])
    with pytest.raises(error, match=words):
        Tokenizer({**metadata, **change})


@pytest.mark.parametrize(("name", "value"), [("token_type", np.inf), ("token_type", 1e300), ("scores", np.nan)])
def test_one_number_that_is_none_is_refused(name: str, value: float) -> None:
    metadata, _ = byte_level_metadata(["some text"])
    numbers = np.ones(len(metadata["tokenizer.ggml.tokens"]))
    Tokenizer({**metadata, f"tokenizer.ggml.{name}": numbers})
    numbers[-1] = value
    with pytest.raises(BadFileError, match=f"tokenizer.ggml.{name} "):
        Tokenizer({**metadata, f"tokenizer.ggml.{name}": numbers})


def test_a_token_is_no_byte_until_it_is_written_as_one() -> None:
    metadata, _ = byte_level_metadata(["some text"])
    types = list(metadata["tokenizer.ggml.token_type"])
    types[-1] = 6
    tokenizer = Tokenizer({**metadata, "tokenizer.ggml.token_type": types})
    with pytest.raises(BadFileError, match="not of the form <0xNN>"):
        tokenizer.token_bytes(0)


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_strings_are_found_across_pieces(cut: int) -> None:
    text = "say END? no: <END> after"
    matcher = StopMatcher(["<END>", "never"])
    out = "".join(matcher.push(text[i : i + cut]) for i in range(0, len(text), cut))
    assert out == "say END? no: "
    assert matcher.stopped == "<END>"


def test_held_text_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("abc ST") == "abc "
    assert matcher.flush() == "ST"
