"""Sessions and prefixes written by earlier versions still open: the files are built here by hand, from the documented format.

Nothing of the program writes them, so that renaming a Python field cannot change what is read.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.cache.reply_cache import ReplyCache, reply_key
from jambacli.session.conversation import render_plain
from tests.support.small_models import small_file

SEGMENT = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    return Jamba.load(small_file(tmp_path_factory.mktemp("models"), "f32"))


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def put_blob(home: Path, data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()[:40]
    (home / "prefixes" / "blobs" / name[:2]).mkdir(parents=True, exist_ok=True)
    (home / "prefixes" / "blobs" / name[:2] / name).write_bytes(data)
    return name


def put_prefix(home: Path, model: Jamba, ids: list[int], kv_type: str = "f16") -> dict[str, object]:
    """Compute the state after ``ids`` and store it as the format says; returns the prefix's JSON object.

    Earlier versions had one mode of decode, the precise one.
    """
    state = model.model.new_state(4096, kv_type, precise=True)
    logits = model.model.forward(torch.tensor(ids), state, logits="last")
    assert logits is not None
    segments = []
    for start in range(0, len(ids), SEGMENT):
        pairs = state.kv(start, min(start + SEGMENT, len(ids)))
        segments.append(put_blob(home, b"".join(raw(x) for pair in pairs for x in pair)))
    space = f"{model.fingerprint}-{kv_type}"
    chain = hashlib.blake2b(space.encode(), digest_size=20)
    chain.update(np.asarray(ids, dtype="<i4").tobytes())
    prefix = {
        "version": 1,
        "position": len(ids),
        "chain": chain.hexdigest(),
        "checkpoint": put_blob(home, raw(state.conv) + raw(state.ssm)),
        "segments": segments,
        "segment_tokens": SEGMENT,
        "logits": put_blob(home, logits[0].numpy().astype("<f4").tobytes()),
        "documents": ["a" * 40],
    }
    folder = home / "prefixes" / "index" / space
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{len(ids):08d}-{prefix['chain']}").write_text(json.dumps(prefix))
    return prefix


def packed(ids: list[int]) -> str:
    return base64.b64encode(np.asarray(ids, dtype="<i4").tobytes()).decode()


def test_a_stored_prefix_is_found_in_either_mode(model: Jamba, own_home: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 80
    ids = render_plain(model.tokenizer, text).ids
    assert len(ids) > SEGMENT
    put_prefix(own_home, model, ids)
    assert model.path is not None
    for loaded in (Jamba.load(model.path, precise=True), model):
        with loaded.session() as session:
            list(session.complete(text, max_tokens=2, temperature=0))
            assert (session.stats.reused_tokens, session.stats.prefilled_tokens) == (len(ids), 0)


@pytest.mark.parametrize("chat", [True, False])
def test_a_saved_session_opens_and_goes_on(model: Jamba, own_home: Path, chat: bool) -> None:
    question, answer = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "the fox"
    prompt = model.tokenizer.encode(question, markers="all")
    reply = model.tokenizer.encode(answer)
    prefix = put_prefix(own_home, model, prompt + reply)
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": answer, "ids": packed(reply)},
    ]
    value = {
        "version": 1,
        "name": "old",
        "model": model.name,
        "model_path": str(model.path),
        "fingerprint": model.fingerprint,
        "kv_type": "f16",
        "ctx": 4096,
        "created": 1.7e9,
        "updated": 1.7e9,
        "system": None,
        "parent": None,
        "chat": chat,
        "turns": turns if chat else [],
        "prompt": packed(prompt),
        "reply": packed(reply),
        "finish": "length",
        "random_state": dict(np.random.default_rng(3).bit_generator.state),
        "documents": ["a" * 40],
        "prefixes": [prefix],
    }
    (own_home / "sessions").mkdir()
    (own_home / "sessions" / "old.json").write_text(json.dumps(value))
    with model.session(resume="old") as session:
        assert session.sequence.tokens == prompt + reply and session.sequence.ctx == 4096
        list(session.extend(max_tokens=3, temperature=0))
        assert session.stats.prefilled_tokens == 0 and session.state.precise
        if chat:
            assert [t.role for t in session.conversation.turns] == ["user", "assistant"]
            assert session.conversation.turns[1].content.startswith(answer)
    again = json.loads((own_home / "sessions" / "old.json").read_text())
    assert (
        again.keys() == value.keys() | {"precise", "template_hash", "chat_template"}
        and again["precise"] is True
        and again["prefixes"][0].keys() == prefix.keys()
    )
    # A smaller context than the stored prefix: the session opens all the same, and is read again.
    with model.session(resume="old", ctx=len(prompt)) as session:
        assert session.sequence.tokens == []


def test_a_kept_reply_is_found(own_home: Path) -> None:
    values = ["weights", None, [1, 2, 3], 64, {"temperature": 0.0, "stop": []}, True]
    text = json.dumps(values, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:40]
    assert reply_key(*values[:-2], {"temperature": 0.0, "stop": ()}, True) == key
    folder = own_home / "prefixes" / "notes"
    folder.mkdir(parents=True)
    (folder / f"{key}.json").write_text(json.dumps({"numbers": [1], "text": "A fox.", "documents": ["a" * 40]}))
    found = ReplyCache(own_home / "prefixes").get(key)
    assert found is not None and (found["text"], found["numbers"]) == ("A fox.", [1])
    ReplyCache(own_home / "prefixes").clear(["a" * 40])
    assert not list(folder.iterdir())
