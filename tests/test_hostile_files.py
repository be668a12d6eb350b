"""Files made to do harm where the program reads its own: one line each, and never one that says internal."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli.api import Jamba
from jambacli.cache.prefix_store import PrefixStore
from jambacli.errors import BadFileError, JambaError
from jambacli.files import open_regular
from jambacli.gguf.layout import copied_metadata
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.hub.demo import demo_model_path
from jambacli.hub.store import Store
from jambacli.session import session_file
from jambacli.text.merges import scored_merges
from jambacli.text.template import FENCE_OPEN, ChatTemplate
from quant.formats import get_format
from tests.support.cli_runner import jamba
from tests.support.rewritten import Stored, rewritten
from tests.support.small_models import small_file, small_model

MANIFEST: dict[str, Any] = {
    "format": 1, "name": "me:x", "source": {"kind": "hub"}, "quant": "Q4", "context": 5, "params": 1, "pulled": 1.5,
    "files": [{"name": "a.gguf", "size": 5, "sha256": "0", "path": None}], "set_id": "sha256-" + "0" * 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("model"), "f32")


def manifest(name: str, content: str) -> Path:
    path = Store().root / "manifests" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"params": "1e999"}, {"params": "-1e999"}, {"context": "1e999"}, {"context": "NaN"}, {"context": "-1"},
        {"pulled": "1e999"},
        {"pulled": "NaN"}, {"params": "1e300"}, {"context": "9" * 50}, {"files": "5"}, {"files": "[[]]"}, {"source": "5"},
        {"set_id": "5"}, {"name": '"\\u0000"'}, {"files": '[{"name": "a", "size": 1e999, "sha256": "0", "path": null}]'},
        {"files": '[{"name": "a", "size": true, "sha256": "0", "path": null}]'},
        {"files": '[{"name": "a", "size": 99999999999999999999999, "sha256": "0", "path": null}]'},
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_left_out_with_one_warning_and_the_others_are_listed(changed: dict[str, str]) -> None:
    manifest("good", json.dumps({**MANIFEST, "name": "good:x"}))
    fields = {key: json.dumps(value) for key, value in MANIFEST.items()} | changed
    bad = manifest("bad", "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}")
    done = jamba("list")
    assert done.returncode == 0 and b"good:x" in done.stdout
    said = done.stderr.decode()
    assert said.count(f"{bad} is damaged and was skipped") == 1 and "internal" not in said


@pytest.mark.parametrize("value", ["1e999", "NaN", "-1e999", "9" * 400, "1e300", "-5", "true", "[]"])
def test_times_of_use_that_are_none_are_left_out(value: str) -> None:
    manifest("good", json.dumps({**MANIFEST, "name": "good:x"}))
    (Store().root / "used.json").write_text(f'{{"last": 5, "times": {{"good:x": {value}, "b": 5}}}}')
    done = jamba("list")
    assert done.returncode == 0 and b"good:x" in done.stdout and b"internal" not in done.stderr
    assert Store().use_times().get("b") == 5


def test_a_pipe_in_the_place_of_a_file_of_the_program_does_not_wait(tmp_path: Path) -> None:
    store = PrefixStore()
    with store.writing():
        name = "ab" + "0" * 38
        (store.root / "blobs" / "ab").mkdir()
        os.mkfifo(store.root / "blobs" / "ab" / name)
    assert store.get_blob(name) is None
    os.mkfifo(session_file.session_path("s"))
    os.mkfifo(manifest("good", json.dumps({**MANIFEST, "name": "good:x"})).with_name("pipe.json"))
    os.mkfifo(Store().root / "used.json")
    for command in (["list"], ["sessions", "list"], ["cache", "stats"]):
        done = jamba(*command)
        assert done.returncode == 0 and b"internal" not in done.stderr, command
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path)


def saved(name: str, turns: list[dict[str, Any]], weights: Jamba, **changes: Any) -> None:
    now = time.time()
    session = session_file.SavedSession(
        name, "small", str(weights.path), weights.weights.name, "f16", 512, now, now, turns=[]
    )
    value = json.loads(session_file.to_json(session))
    session_file.session_path(name).write_text(json.dumps({**value, "turns": turns, **changes}))


FENCES = f"{FENCE_OPEN}c0{FENCE_OPEN}"


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user"},
        {"content": "Hi"},
        {"role": "user", "content": None},
        {"role": "user", "content": "Hi", "pinned": [3, FENCES]},
        {"role": "user", "content": "Hi", "pinned": [-3, "x"]},
        {"role": "user", "content": "Hi", "pinned": [True, "x"]},
        {"role": "user", "content": "Hi", "pinned": [10**30, "x"]},
        {"role": "user", "content": "Hi", "extra": {"content": 5}},
        {"role": "user", "content": "Hi", "extra": {"role": []}},
        {"role": "user", "content": "Hi", "ids": 5},
        {"role": "assistant", "content": "Hi", "ids": "////fw=="},
        {"role": "assistant", "content": "Hi", "thought_ids": "/////w=="},
    ],
)
def test_a_session_with_a_damaged_turn_is_refused_by_one_line(model: Path, turn: dict[str, Any]) -> None:
    loaded = Jamba.load(model)
    saved("s", [turn], loaded)
    with pytest.raises(JambaError, match="is damaged"):
        loaded.session(resume="s")
    done = jamba("chat", str(model), "--session", "s", stdin=b"Hello\n")
    assert done.returncode == 1 and b"internal" not in done.stderr and b"is damaged" in done.stderr


@pytest.mark.parametrize("field", ["prompt", "reply"])
def test_a_session_with_tokens_that_the_model_lacks_is_refused(model: Path, field: str) -> None:
    loaded = Jamba.load(model)
    saved("s", [{"role": "user", "content": "Hi"}], loaded, **{field: "////fw=="})
    with pytest.raises(JambaError, match="holds tokens that the model does not have"):
        loaded.session(resume="s")


@pytest.mark.parametrize("shared", ["session_no_content.json", "session_pinned_fence.json"])
def test_handed_sessions_are_listed_as_damaged(shared_data: Path, shared: str) -> None:
    shutil.copy(shared_data.parent / "cases" / "hostile" / shared, session_file.session_path("s"))
    done = jamba("sessions", "list")
    assert done.returncode == 0 and b"is damaged" in done.stderr


@pytest.mark.parametrize("fmt", ["q8_1", "q8_k"])
def test_blocks_of_activations_are_refused_as_weights(tmp_path: Path, fmt: str) -> None:
    def change(tensors: list[Stored]) -> Iterable[Stored]:
        changed = False
        for name, stored, shape, data in tensors:
            if not changed and len(shape) == 2 and shape[1] % 256 == 0:
                changed = True
                yield name, fmt, shape, np.zeros(shape[0] * get_format(fmt).row_bytes(shape[1]), np.uint8)
            else:
                yield name, stored, shape, data

    path = rewritten(demo_model_path(), tmp_path / "m.gguf", change)
    with pytest.raises(JambaError, match=f"is stored as {fmt}, which is not a type of weights"):
        Jamba.load(path)


def test_a_vocabulary_with_fewer_tokens_than_the_model_is_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "m.gguf"
    with GGUFFile.open(model) as file, GGUFWriter(path) as writer:
        fewer = len(file.metadata["tokenizer.ggml.tokens"]) - 1
        for key, value in copied_metadata(file.metadata).items():
            if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
                short = list(file.metadata[key])[:fewer]
                writer.add(key, short if isinstance(short[0], str) else np.array(short, np.int32))
            else:
                writer.add_encoded(key, value)
        for name, info in file.tensors.items():
            writer.plan_tensor(name, info.shape, info.format)
        writer.begin()
        for name in file.tensors:
            writer.write_tensor(name, np.array(file.data(name)))
    loaded = Jamba.load(path)
    with pytest.raises(BadFileError, match=r"the vocabulary has \d+ tokens, but the model has"):
        loaded.session(store=False).send("Hello")
    done = jamba("run", str(path), "Hello")
    assert done.returncode == 1 and b"the vocabulary has" in done.stderr


def test_keys_that_are_no_numbers_end_in_one_line_with_q8_0(tmp_path: Path, model: Path) -> None:
    def change(tensors: list[Stored]) -> Iterable[Stored]:
        for name, stored, shape, data in tensors:
            yield name, stored, shape, np.full_like(data, 255) if ".attn_k." in name else data

    path = rewritten(model, tmp_path / "m.gguf", change)
    done = jamba("run", str(path), "Hello", "-n", "2", "--no-store", "--kv-type", "q8_0")
    assert done.returncode == 1 and b"internal" not in done.stderr


@pytest.mark.parametrize(
    "text", ["{{ 'inf'|float }}", "{{ 1e999 }}", "{{ ('nan'|float) == 1 }}", "{{ [-1e999, 'inf'|float][0] }}",
             "{% set x = 1e999 %}{{ x }}"]
)  # fmt: skip
def test_infinite_numbers_in_a_template_are_rendered(text: str) -> None:
    source = text + "{% for m in messages %}{{ m.content }}{% endfor %}"
    rendered = ChatTemplate(source, small_model().tokenizer).render([{"role": "user", "content": "Hi"}])
    assert rendered.endswith("Hi") and rendered[:-2].strip("-") in ("inf", "False")


def test_a_piece_of_two_megabytes_does_not_take_quadratic_time() -> None:
    pieces = ["a", "b", "ab", "x" * 1_000_000 + "ab", "x" * 1_000_000, "x" * 2_000_000]
    started = time.process_time()
    rules = scored_merges(pieces, [0.0, 0.0, 1.0, 4.0, 2.0, 3.0], [True] * 6)
    assert rules.tolist() == [[4, 2], [4, 4], [0, 1]]
    assert time.process_time() - started < 2


def test_a_chat_without_a_writable_home_goes_on_unsaved(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "file"))
    done = jamba("chat", str(model), "-n", "2", stdin=b"Hello\n")
    said = done.stderr.decode()
    assert said.count("this chat is not saved") == 1 and done.returncode == 0 and done.stdout
    named = jamba("chat", str(model), "--session", "s", stdin=b"Hello\n")
    assert named.returncode == 1 and b"cannot keep sessions under" in named.stderr


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_a_session_that_is_a_link_to_itself_is_replaced_or_named(model: Path) -> None:
    path = session_file.session_path("looped")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)
    done = jamba("chat", str(model), "--session", "looped", "--max-tokens", "2", stdin=b"Hello\n")
    lines = done.stderr.decode().splitlines()
    assert not [line for line in lines if "internal" in line or "Traceback" in line], lines
    assert done.returncode in (0, 1) and len([line for line in lines if line.startswith("error:")]) == done.returncode


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_file_without_an_end_is_refused(model: Path, tmp_path: Path) -> None:
    zero = "/dev/zero"
    for arguments in (
        ["run", str(model), "Hi", "--schema", zero],
        ["run", str(model), "Hi", "--chat-template", zero],
        ["quantize", str(model), str(tmp_path / "q.gguf"), "--type", "q4_k_m", "--imatrix", zero],
        ["show", zero],
        ["sessions", "import", zero],
    ):
        done = jamba(*arguments)
        (line,) = [line for line in done.stderr.decode().splitlines() if line.startswith("error:")]
        assert done.returncode == 1 and "memory" not in line and "internal" not in line, line
