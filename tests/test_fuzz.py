"""Every parser of files from elsewhere, fed with damaged ones, the same for the same seed: each is read or refused by one of
the program's own errors, which the command line shows as one line; any other would be shown as internal. None takes long or
much memory."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jambacli.api import Jamba
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.errors import JambaError
from tests.support.checkpoints import make_checkpoint
from tests.support.imatrix_files import write_imatrix
from tests.support.small_models import small_file, small_model

Parser = Callable[[Path], object]
SECONDS, MEMORY_KB = 5.0, 500 << 10
_VALUES = [b"1e999", b"-1", b"NaN", b"0", b"9" * 30, b"1" * 5000, b"null", b'""', b"[]", b"{}", b"[" * 2000, b"true"]
_TEXTS = [
    b"\0",
    b"\xff\xfe",
    b"\x80",
    b"\r",
    b"{{",
    b"%}",
    b"<",
    b"&#x110000;",
    b"\\",
    b"**/",
    b"[!",
    b"*" * 40,
    b'"\\ud800"',
]


def damaged(source: bytes, r: random.Random) -> bytes:
    """``source`` with one to four changes: bytes replaced, removed, repeated, numbers and words put in the place of others."""
    data = bytearray(source)
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(data) + 1) if r.random() < 0.5 else r.randrange(min(len(data), 400) + 1)
        length = min(r.choice([1, 1, 2, 4, 8, 50]), len(data) - at)
        kind = r.randrange(7)
        if kind == 0:
            data[at : at + length] = r.randbytes(length)
        elif kind == 1:
            data[at : at + length] = b"\xff" * length if r.random() < 0.5 else bytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * r.choice([1, 2, 100])
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at : at + r.choice([0, length])] = r.choice(_TEXTS)
        else:
            ends = [i for i, c in enumerate(data) if c in b",:}]"]
            if ends:  # a value of JSON in the place of another
                end = r.choice(ends)
                begin = max(data.rfind(mark, 0, end) for mark in (b":", b",", b"[", b"{")) + 1
                data[begin:end] = r.choice(_VALUES)
    return bytes(data)


def archive(path: Path, text: bytes) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("session.json", text)
    return path.read_bytes()


def as_json(parse: Callable[[dict[str, Any]], object]) -> Parser:
    """A parser of objects that are read from JSON elsewhere."""

    def read(path: Path) -> object:
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return None
        return parse(value) if isinstance(value, dict) else None

    return read


class Case:
    """One parser with the valid files that are damaged for it."""

    def __init__(self, name: str, parse: Parser, sources: list[bytes], times: float = 1.0) -> None:
        self.name, self.parse, self.sources, self.times = name, parse, sources, times


def _gguf(path: Path) -> object:
    from jambacli.gguf.summary import summarize

    return summarize(path)


def _manifest(path: Path) -> object:
    from jambacli.hub.store import Store

    store = Store(path.parent)
    return [store.is_complete(entry) for entry in store.entries()], store.unfinished()


def _session(path: Path) -> object:
    from jambacli.session import session_file

    return session_file.read_file(path)


def _resumed(path: Path) -> object:
    """A session that is opened and goes on."""
    from jambacli.session import session_file

    target = session_file.session_path("fuzzed")
    target.write_bytes(path.read_bytes())
    try:
        with saved_model().session(resume="fuzzed", read_only=True) as session:
            return "".join(session.send("Hello", max_tokens=1))
    finally:
        target.unlink()


def _import(path: Path) -> object:
    from jambacli.session import session_file
    from jambacli.session.export import import_session

    name = import_session(path, "imported")
    session_file.remove(name)
    return name


def _safetensors(path: Path) -> object:
    from jambacli.convert.hf_checkpoint import read_header

    return read_header(path)


def _config(values: dict[str, Any]) -> object:
    from jambacli.convert.source import check_config

    return check_config(values, "config.json")


def _tokenizer(path: Path) -> object:
    from jambacli.convert.tokenizer_json import read_tokenizer_json

    return read_tokenizer_json(path)


def _batch(path: Path) -> object:
    from jambacli.batch.openai_format import read_line, request_of_line
    from jambacli.engine.options import GenerationOptions

    line = read_line(1, path.read_bytes().decode("utf-8", "replace"))
    return request_of_line(small_model(), line, GenerationOptions())


def _schema(path: Path) -> object:
    from jambacli.engine.constraints.json_schema import read_schema

    schema = read_schema(path)
    with small_model().session(store=False) as session:
        return "".join(session.send("Hello", max_tokens=1, schema=schema))


def _gitignore(path: Path) -> object:
    from jambacli.documents.gitignore import Globs

    globs = Globs(path.read_bytes().decode("utf-8", "replace").splitlines())
    return [globs(name) for name in ("a", "a/b.c", "x/" * 20 + "y", "a" * 200)]


def _template(path: Path) -> object:
    from jambacli.text.template import ChatTemplate

    template = ChatTemplate(path.read_bytes().decode("utf-8", "replace"), small_model().tokenizer, path)
    return template.render([{"role": "user", "content": "Hello"}])


def _imatrix(path: Path) -> object:
    from jambacli.quantize.imatrix import read_imatrix

    return read_imatrix(path)


def _document(path: Path, ending: str, sandbox: Sandbox) -> object:
    from jambacli.documents.load import read_file

    return read_file(path, sandbox, name=f"file{ending}")


def _record(path: Path, name: str, use: Callable[[], object]) -> object:
    """A file of JAMBA_HOME that is read while something else is done."""
    from jambacli.files import jamba_home

    jamba_home().mkdir(parents=True, exist_ok=True)
    (jamba_home() / name).write_bytes(path.read_bytes())
    return use()


def _aliases() -> object:
    from jambacli.hub.aliases import load_table

    return load_table()


def _used() -> object:
    from jambacli.hub.store import Store

    return Store().use_times(), Store().last_used()


def _speeds() -> object:
    from jambacli.hardware.devices import remembered_speeds

    return remembered_speeds()


_TURNS = [
    {"role": "user", "content": "Hello", "pinned": [0, "x"]},
    {"role": "assistant", "content": "Hi", "ids": [5, 6]},
]
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"enum": ["x", "y"]}},
    "required": ["a"],
}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "stop": ["x"],
         "logit_bias": {"5": 1},
         "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}}}  # fmt: skip
_MANIFEST = {"format": 1, "name": "me:x", "source": {"kind": "hub"},
             "files": [{"name": "a", "size": 5, "sha256": "0", "path": None}],
             "set_id": "sha256-" + "0" * 64, "quant": "Q4", "context": 5, "params": 10, "pulled": 1.5}  # fmt: skip
_ALIASES = b'{"aliases": {"a": "b"}, "models": {"c:d": {"gguf": ["e/f"], "weights": "g/h", "quant": "Q8_0"}}}'
_USED = b'{"last": "x", "times": {"x": 5.0, "y": 1e10}}'
_SPEEDS = b'{"prefill_flops": {"x": 5.0, "y": 1e10}}'
_TEMPLATES = [
    b"{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}{% endfor %}{{ ('inf'|float) }}",
    b"{%- set ns = namespace(x=1e300) -%}{%- for m in messages -%}{{ m['content'][:5] ~ (ns.x * 2)|round|int }}{%- endfor -%}",
    b"{% macro f(x) %}{{ x|tojson }}{% endmacro %}{{ f(messages) }}{{ '%d %s'|format(5, messages[0].role) }}{{ 7 // 2 ** 3 }}",
]
_DOCUMENTS = {
    ".srt": b"1\n00:00:01,000 --> 00:00:02,000\nHello <i>there</i>\n\n2\n00:00:03,000 --> 00:00:04,000\nMore\n",
    ".vtt": b"WEBVTT\n\nNOTE x\n\n00:01.000 --> 00:02.000 align:start\n<v Ann>Hello\n",
    ".html": b"<html><head><meta charset=utf-8><title>T</title></head><body><table><tr><td colspan=2>x</table>&amp;</body>",
    ".eml": b"From: a@b\r\nSubject: =?utf-8?q?x?=\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHi\r\n--b--",
    ".rtf": rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}\pard Hello \'e9 \u8364? {\b bold}\par}",
    ".ipynb": b'{"cells": [{"cell_type": "code", "source": ["x"], "outputs": []}], "nbformat": 4, "metadata": {}}',
    ".csv": b"a,b\n1,2\n",
}  # fmt: skip


@functools.cache
def model_file() -> Path:
    """The small model in a file: sessions of a model without one cannot be saved."""
    return small_file(Path(tempfile.mkdtemp()), "f32")


@functools.cache
def saved_model() -> Jamba:
    return Jamba.load(model_file())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    from jambacli.session import session_file

    folder = tmp_path_factory.mktemp("valid")
    now = 1.7e9
    saved = session_file.SavedSession(
        "s", "m", "/m.gguf", "f" * 24, "f16", 512, now, now, turns=_TURNS, prompt=[1, 2, 3], reply=[5, 6], documents=["d"]
    )  # fmt: skip
    session = session_file.to_json(saved)
    prefix = {"version": 1, "position": 3, "chain": "0" * 40, "checkpoint": "1" * 40, "segments": ["2" * 40],
              "segment_tokens": 512, "logits": None, "documents": []}  # fmt: skip
    with_prefix = json.dumps({**json.loads(session), "prefixes": [prefix]}).encode()
    model = model_file().read_bytes()[:60_000]
    checkpoint = make_checkpoint(folder / "checkpoint")
    (weights,) = list(checkpoint.glob("*.safetensors"))[:1]
    header = weights.read_bytes()[: 8 + 3000]
    import numpy as np

    imatrix = write_imatrix(folder / "i.gguf", {"blk.0.attn_q.weight": (np.ones(64, np.float32), [4])}).read_bytes()
    tokenizer = (checkpoint / "tokenizer.json").read_bytes() if (checkpoint / "tokenizer.json").exists() else b"{}"
    fresh = {**json.loads(session), "fingerprint": saved_model().weights.name, "name": "fuzzed"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": _CHAT}
    found = [
        Case("gguf", _gguf, [model]),
        Case("manifest", _manifest, [json.dumps(_MANIFEST).encode()]),
        Case("session", _session, [session, with_prefix]),
        Case("resumed", _resumed, [json.dumps(fresh).encode()], 0.3),
        Case("archive", _import, [archive(folder / "a.zip", session), archive(folder / "b.zip", with_prefix)]),
        Case("safetensors", _safetensors, [header]),
        Case("config", as_json(_config), [(checkpoint / "config.json").read_bytes()]),
        Case("tokenizer", _tokenizer, [tokenizer]),
        Case("batch", _batch, [json.dumps(line).encode()]),
        Case("schema", _schema, [json.dumps(_SCHEMA).encode()], 0.1),
        Case("gitignore", _gitignore, [b"*.o\n!a/**/b\n/x[a-z]?\n**/\\*\n", b"a*" * 30 + b"b"]),
        Case("template", _template, _TEMPLATES),
        Case("imatrix", _imatrix, [imatrix]),
        Case("aliases", functools.partial(_record, name="aliases.json", use=_aliases), [_ALIASES]),
        Case("used", functools.partial(_record, name="models/used.json", use=_used), [_USED]),
        Case("speeds", functools.partial(_record, name="machine.json", use=_speeds), [_SPEEDS]),
    ]  # fmt: skip
    return {case.name: case for case in found}


def run(case: Case, folder: Path, seed: int, seconds: float, most: int) -> int:
    """Parse up to ``most`` damaged files within ``seconds``; returns how many."""
    from jambacli.files import jamba_home

    (jamba_home() / "models").mkdir(parents=True, exist_ok=True)
    (folder / "manifests").mkdir()
    path = folder / ("manifests/x.json" if case.name == "manifest" else "file")
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    while count < most and time.monotonic() - begin < seconds:
        data = damaged(case.sources[count % len(case.sources)], random.Random(f"{case.name} {seed} {count}"))
        path.write_bytes(data)
        started = time.process_time()
        try:
            case.parse(path)
        except JambaError as error:
            assert str(error).strip(), f"{case.name} {seed} {count}: an error without words"
        except Exception as error:
            pytest.fail(f"{case.name} {seed} {count}: {type(error).__name__}: {error}; input {data[:3000]!r}")
        took = time.process_time() - started
        assert took < SECONDS, f"{case.name} {seed} {count}: {took:.1f} s for {data[:3000]!r}"
        count += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_KB, f"{case.name} {seed}: {grown >> 10} MB"
    return count


NAMES = (
    "gguf", "manifest", "session", "resumed", "archive", "safetensors", "config", "tokenizer", "batch", "schema", "gitignore",
    "template", "imatrix", "aliases", "used", "speeds",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(cases: Mapping[str, Case], tmp_path: Path, name: str) -> None:
    case = cases[name]
    assert run(case, tmp_path, seed=1, seconds=2.0, most=int(150 * case.times)) > 0


@pytest.mark.parametrize("ending", _DOCUMENTS)
def test_a_damaged_document_is_read_or_refused(tmp_path: Path, ending: str) -> None:
    with Sandbox() as sandbox:
        parse = functools.partial(_document, ending=ending, sandbox=sandbox)
        assert run(Case(ending, parse, [_DOCUMENTS[ending]]), tmp_path, seed=1, seconds=2.0, most=60) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files_are_read_or_refused(cases: Mapping[str, Case], tmp_path: Path, name: str) -> None:
    """JAMBA_FUZZ_SEED chooses other files, JAMBA_FUZZ_SECONDS how long each parser runs."""
    seed, seconds = int(os.environ.get("JAMBA_FUZZ_SEED", "2")), float(os.environ.get("JAMBA_FUZZ_SECONDS", "4"))
    assert run(cases[name], tmp_path, seed=seed, seconds=seconds, most=10**7) > 0
