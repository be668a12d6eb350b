"""Every parser of files from elsewhere, with valid files of each kind, for ``fuzzing``."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli.api import Jamba
from jambacli.documents.extract.sandbox import Sandbox
from tests.support.checkpoints import make_checkpoint
from tests.support.fuzz_requests import request_cases
from tests.support.fuzzing import Case, Parser, damaged
from tests.support.hostile_packages import members, well_formed
from tests.support.hostile_streams import well_formed_streams
from tests.support.imatrix_files import write_imatrix
from tests.support.office_files import zipped
from tests.support.small_models import small_file, small_model


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


def _gguf(path: Path) -> object:
    from jambacli.gguf.summary import summarize

    os.truncate(path, max(path.stat().st_size, model_file().stat().st_size))  # the weights: zeros that take no space
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


def _index(path: Path) -> object:
    from jambacli.convert.hf_checkpoint import Checkpoint

    with Checkpoint.open(path.parent) as checkpoint:
        return checkpoint.tensors


def _sentencepiece(path: Path) -> object:
    from jambacli.convert.sentencepiece import read_sentencepiece

    return read_sentencepiece(path)


def _tokenizer_files(path: Path) -> object:
    from jambacli.convert.vocabulary import tokenizer_metadata

    return tokenizer_metadata(path.parent, {"vocab_size": 512}, 512, None)


def _vocabulary(path: Path) -> object:
    """The tokenizer of a GGUF file."""
    from jambacli.gguf.reader import GGUFFile
    from jambacli.text.tokenizer import Tokenizer

    with GGUFFile.open(path) as file:
        return Tokenizer(file.metadata, path).encode("Hello herons")


def _given_template(path: Path) -> object:
    from jambacli.documents.given_texts import read_chat_template

    return read_chat_template(path)


def _prefix(value: dict[str, Any]) -> object:
    from jambacli.cache.prefix_store import Prefix

    return Prefix.from_json(value)


def _reply(path: Path) -> object:
    from jambacli.cache.reply_cache import ReplyCache

    return ReplyCache(path.parent.parent).get("x")


def _known_weights() -> object:
    from jambacli.cache.fingerprint import _read_known

    return _read_known()


def _ocr_pages(path: Path) -> object:
    from jambacli.cache.ocr_cache import OcrCache

    return OcrCache(path.parent.parent).pages("d", "v")


def _part_file(path: Path) -> object:
    from jambacli.batch.part_file import PartFile

    part = PartFile(path.with_suffix(""))
    try:
        return [part.get(key) for key in ("a", "b") if key in part]
    finally:
        part.close()


def _field(number: int, data: bytes) -> bytes:
    """A field of a protocol buffer with bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def _piece(text: str, kind: int) -> bytes:
    return _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", -1.5) + bytes([3 << 3, kind]))


def _more(checkpoint: Path, folder: Path) -> list[Case]:
    index = folder / "index"
    index.mkdir()
    weights = next(iter(checkpoint.glob("*.safetensors")))
    shutil.copy(weights, index / "model-00001-of-00001.safetensors")
    shutil.copy(checkpoint / "config.json", index)
    names = [name for name in read_names(weights) if name != "__metadata__"][:20]
    listed = {"metadata": {"total_size": 5}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    tokenizer = folder / "tokenizer files"
    tokenizer.mkdir()
    for path in checkpoint.glob("*.json"):
        shutil.copy(path, tokenizer)
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "added_tokens_decoder": {"3":
                {"content": "<x>", "special": True}}, "add_bos_token": True, "model_max_length": 1e30}  # fmt: skip
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<0x41>", 6), ("a", 1), ("b", 1), ("ab", 1)]
    model = b"".join(_piece(*one) for one in pieces) + _field(2, b"\x18\x02") + _field(3, _field(1, b"identity"))
    weights_record = {
        "version": 1,
        "files": {"a": {"name": "b", "sample": "c", "hash": None, "chunks": [], "aliases": []}},
    }
    prefix = {"version": 1, "position": 3, "chain": "0" * 40, "checkpoint": "1" * 40, "segments": ["2" * 40],
              "segment_tokens": 512, "logits": None, "documents": []}  # fmt: skip
    page = b'\n{"page": 1, "text": "Hello", "sure": 90.0}\n\n{"page": 2, "text": "x", "sure": 1}\n'
    lines = b"".join(json.dumps({"key": k, "record": {"custom_id": k}}).encode() + b"\n" for k in "ab")
    return [
        Case("index", _index, [json.dumps(listed).encode()], place=str(index / "model.safetensors.index.json")),
        Case("sentencepiece", _sentencepiece, [model]),
        Case("tokenizer files", _tokenizer_files, [json.dumps(settings).encode()],
             place=str(tokenizer / "tokenizer_config.json")),
        Case("vocabulary", _vocabulary, [vocabulary_file(folder).read_bytes()]),
        Case("given template", _given_template, [json.dumps({"chat_template": "{{ messages }}"}).encode(), b"{{ a }}"]),
        Case("prefix", as_json(_prefix), [json.dumps(prefix).encode()]),
        Case("reply", _reply, [b'{"text": "Hello", "documents": ["a"]}'], place="notes/x.json"),
        Case("weights", functools.partial(_record, name="weights.json", use=_known_weights),
             [json.dumps(weights_record).encode()]),
        Case("ocr", _ocr_pages, [page], place="ocr/d~v.jsonl"),
        Case("part file", _part_file, [lines], place="out.part"),
    ]  # fmt: skip


def read_names(weights: Path) -> list[str]:
    """The tensors in a safetensors file."""
    with weights.open("rb") as file:
        return list(json.loads(file.read(int.from_bytes(file.read(8), "little"))))


def vocabulary_file(folder: Path) -> Path:
    """A GGUF file of a vocabulary alone."""
    from jambacli.gguf.writer import GGUFWriter
    from tests.support.vocabularies import byte_level_metadata

    path = folder / "vocabulary.gguf"
    lists = {"tokenizer.ggml.token_type": "arr[i32]", "tokenizer.ggml.scores": "arr[f32]"}
    kinds = {str: "str", bool: "bool", int: "u32"}
    with GGUFWriter(path) as writer:
        writer.add("general.architecture", "jamba", "str")
        for key, value in byte_level_metadata(["hello herons"], vocab_size=270)[0].items():
            writer.add(key, value, lists.get(key, "arr[str]") if isinstance(value, list) else kinds[type(value)])
        writer.begin()
    return path


def document_cases(sandbox: Sandbox) -> list[Case]:
    """Documents of each kind, read in the sandbox; of a package, a part is damaged."""
    made = {**well_formed(), **well_formed_streams()}
    found = [Case(e, functools.partial(_document, ending=e, sandbox=sandbox), [data]) for e, data in _DOCUMENTS.items()]
    for suffix, data in made.items():
        parse = functools.partial(_document, ending=f".{suffix}", sandbox=sandbox)
        packed = data.startswith(b"PK")
        found.append(Case(suffix, parse, [data], damage=damaged_part if packed else damaged))
    return found


def damaged_part(source: bytes, r: random.Random) -> bytes:
    """An archive with one of its files damaged."""
    files = members(source)
    name = r.choice(sorted(files))
    if r.random() < 0.7:
        name = max(files, key=lambda one: len(files[one]))
    return zipped({**files, name: damaged(files[name], r)})


@functools.cache
def model_file() -> Path:
    """The small model in a file: sessions of a model without one cannot be saved."""
    return small_file(Path(tempfile.mkdtemp()), "f32")


@functools.cache
def saved_model() -> Jamba:
    return Jamba.load(model_file())


def cases(folder: Path) -> dict[str, Case]:
    """The parsers by name. ``folder``: for their valid files."""
    from jambacli.session import session_file

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
        Case("manifest", _manifest, [json.dumps(_MANIFEST).encode()], place="manifests/x.json"),
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
    return {case.name: case for case in [*found, *_more(checkpoint, folder), *request_cases()]}
