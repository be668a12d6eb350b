"""Damaged files through ``jamba show``: a page or one clear line, never a crash, a hang or a great deal of memory."""

from __future__ import annotations

import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jambacli.commands.show import show
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from tests.support import jamba_gguf

EXTREMES = [
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
]
SHAPE = jamba_gguf.Shape(layers=4, hidden=32, ffn=64, experts=2, attention=(1,), dt_rank=4, vocab=300)


def model(path: Path, tokens: list[str], split: int | None = None) -> list[Path]:
    """A model as converters write them: full tokenizer metadata and a template; weights of ``len(tokens)`` rows."""
    source = jamba_gguf.write(path.with_suffix(".source"), SHAPE, kind="f32")
    with GGUFFile.open(source) as file, GGUFWriter(path, split_max_size=split) as writer:
        writer.copy_metadata(file.metadata, skip={"tokenizer.ggml.tokens"})
        writer.add("tokenizer.ggml.model", "llama")
        writer.add("tokenizer.ggml.tokens", tokens)
        writer.add("tokenizer.ggml.scores", np.zeros(len(tokens), np.float32))
        writer.add("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
        writer.add("tokenizer.ggml.bos_token_id", 1)
        writer.add("tokenizer.ggml.eos_token_id", 2)
        writer.add("tokenizer.ggml.add_bos_token", True)
        writer.add("tokenizer.chat_template", "{% for m in messages %}<|bom|>{{ m.content }}<|eom|>{% endfor %}")
        for name, info in file.tensors.items():
            rows = len(tokens) if name in ("token_embd.weight", "output.weight") else info.shape[0]
            writer.plan_tensor(name, (rows, *info.shape[1:]), info.format)
        writer.begin()
        for name, info in file.tensors.items():
            rows = len(tokens) if name in ("token_embd.weight", "output.weight") else info.shape[0]
            writer.write_tensor(name, bytes(rows * (info.nbytes // info.shape[0])))
    source.unlink()
    return writer.paths


def mutants(whole: bytes, header: int, n: int, seed: int) -> Iterator[bytes]:
    """``n`` damaged copies of ``whole``, mostly in its first ``header`` bytes; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(n):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
            # Half of the damage goes to the first keys, where counts, lengths and types are dense.
            at = rng.randrange(min(header, 2000) if rng.random() < 0.5 else header)
            kind = rng.randrange(7)
            if kind == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                content[at] = rng.randrange(256)
            elif kind == 2:
                struct.pack_into("<I", content, min(at, len(content) - 8), rng.choice(EXTREMES) & 0xFFFFFFFF)
            elif kind == 3:
                struct.pack_into("<Q", content, min(at, len(content) - 8), rng.choice(EXTREMES))
            elif kind == 4:
                del content[at : at + rng.choice([1, 4, 8, 100])]
            elif kind == 5:
                content[at:at] = content[at : at + rng.choice([1, 4, 8, 200])]
            else:
                struct.pack_into("<Q", content, rng.choice([0, 8, 16]), rng.choice(EXTREMES))
            if len(content) < 64:
                break
        if rng.random() < 0.2:
            del content[rng.randrange(len(content) + 1) :]
        yield bytes(content)


def survives(path: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    """Show the file; returns the error line, "" where it was a sound model after all."""
    try:
        show(str(path), ctx=None, kv_type="f16", as_json=as_json)
    except JambaError as error:
        line = str(error)
        assert path.parent.name in line and path.name.split("-")[0].split(".")[0] in line
        assert len(line.splitlines()) == 1 and line.isprintable(), ascii(line)
        assert capsys.readouterr().out == ""
        return line
    page = capsys.readouterr().out
    assert page.replace("\n", "").isprintable(), ascii(page)
    return ""


@pytest.mark.parametrize("as_json", [False, True])
def test_damaged_files_get_a_page_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    (path,) = model(tmp_path / "m.gguf", [f"<{i}>" for i in range(300)])
    whole = path.read_bytes()
    with GGUFFile.open(path) as file:
        header = min(info.offset for info in file.tensors.values())
    lines = []
    for content in mutants(whole, header, 120, seed=as_json):
        path.write_bytes(content)
        lines.append(survives(path, capsys, as_json=as_json))
    assert sum(bool(line) for line in lines) > 60


def test_damaged_parts_of_a_split_set_get_a_page_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = model(tmp_path / "m.gguf", [f"<{i}>" for i in range(300)], split=60_000)
    sound = [path.read_bytes() for path in paths]
    assert len(paths) >= 3
    for i in (0, 1, len(paths) - 1):
        for content in mutants(sound[i], 600, 25, seed=i):
            paths[i].write_bytes(content)
            survives(paths[0], capsys, as_json=False)
        paths[i].write_bytes(sound[i])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix signals")
def test_two_thousand_damaged_files_with_a_real_vocabulary(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "jamba-1.5-tokenizer.model"))
    (path,) = model(tmp_path / "m.gguf", [processor.id_to_piece(i) for i in range(processor.vocab_size())])
    whole = path.read_bytes()
    with GGUFFile.open(path) as file:
        header = min(info.offset for info in file.tensors.values())
    survives(path, capsys, as_json=False)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def too_long(*_: object) -> None:
        raise AssertionError("a damaged file took over 20 seconds")

    signal.signal(signal.SIGALRM, too_long)
    slowest, refused = 0.0, 0
    for i, content in enumerate(mutants(whole, header, 2000, seed=2)):
        path.write_bytes(content)
        signal.alarm(20)
        start = time.perf_counter()
        refused += bool(survives(path, capsys, as_json=i % 2 == 0))
        slowest = max(slowest, time.perf_counter() - start)
        signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    with capsys.disabled():
        print(f"\n{refused} of 2000 refused, slowest {slowest:.2f} s, memory grew by {grown / 1024:.0f} MB")
    assert grown * 1024 < 200 << 20
    assert refused > 1000
