"""``jamba convert`` as a user runs it: what it prints, where it writes, and that failing leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jambacli.cli import main
from jambacli.gguf.reader import GGUFFile
from tests.support.checkpoints import make_checkpoint, write_tokenizer
from tests.support.repository import REPO

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "my-jamba", dtype="bfloat16", **SMALL)


@pytest.fixture
def jamba(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in an empty directory: (exit code, stdout, stderr)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jamba", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def files() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


def test_the_file_is_named_after_model_and_type(jamba: Any, checkpoint: Path) -> None:
    code, out, err = jamba("convert", checkpoint)
    assert (code, out, files()) == (0, "", ["my-jamba-BF16.gguf"])
    assert "wrote my-jamba-BF16.gguf: bf16" in err
    assert jamba("convert", checkpoint, "--type", "q8_0", "--name", "Some / Name")[0] == 0
    assert files() == ["Some-Name-Q8_0.gguf", "my-jamba-BF16.gguf"]
    with GGUFFile.open(Path("Some-Name-Q8_0.gguf")) as file:
        assert file.metadata["general.name"] == "Some / Name"


def test_an_output_that_exists_is_kept_without_force(jamba: Any, checkpoint: Path) -> None:
    Path("m.gguf").write_text("precious")
    code, out, err = jamba("convert", checkpoint, "-o", "m.gguf")
    assert code == 1 and out == "" and "m.gguf already exists" in err and "--force" in err
    assert Path("m.gguf").read_text() == "precious" and files() == ["m.gguf"]
    assert jamba("convert", checkpoint, "-o", "m.gguf", "--force")[0] == 0
    assert files() == ["m.gguf"] and Path("m.gguf").read_bytes()[:4] == b"GGUF"


def test_split_parts_are_refused_one_by_one(jamba: Any, checkpoint: Path) -> None:
    code, _, err = jamba("convert", checkpoint, "-o", "m.gguf", "--split-max-size", "100k")
    assert code == 0 and "more parts" in err
    parts = files()
    assert len(parts) > 2 and parts[0] == f"m-00001-of-{len(parts):05d}.gguf"
    sizes = [Path(p).stat().st_size for p in parts]
    Path(parts[0]).unlink()
    code, _, err = jamba("convert", checkpoint, "-o", "m.gguf", "--split-max-size", "100k")
    assert code == 1 and f"{parts[1]} already exists" in err and files() == parts[1:]
    assert jamba("convert", checkpoint, "-o", "m.gguf", "--split-max-size", "100k", "--force")[0] == 0
    assert [Path(p).stat().st_size for p in parts] == sizes


def test_a_directory_as_output_gets_the_default_name(jamba: Any, checkpoint: Path) -> None:
    Path("models").mkdir()
    assert jamba("convert", checkpoint, "-o", "models")[0] == 0
    assert files() == ["models"] and [p.name for p in Path("models").iterdir()] == ["my-jamba-BF16.gguf"]


def test_quiet_says_nothing(jamba: Any, checkpoint: Path) -> None:
    assert jamba("--quiet", "convert", checkpoint) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["SRC", "--type", "q4_k_m"], 2, "q4_k_m"),
        (["SRC", "--split-max-size", "big"], 2, "'big' is not a size"),
        (["SRC", "--split-max-size", "0"], 2, "at least 1 byte"),
        (["SRC", "-o", "no/where/m.gguf"], 1, "there is no directory no/where"),
        (["nowhere"], 2, "no such directory"),
        (["SRC/config.json"], 2, "is a file: convert takes the directory"),
        (["."], 1, "there is no config.json"),
        ([], 2, "SRC"),
    ],
)
def test_mistakes_are_said_in_a_line(
    jamba: Any, checkpoint: Path, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = jamba("convert", *(a.replace("SRC", str(checkpoint)) for a in arguments))
    assert (found, out) == (code, "") and message in " ".join(err.split()) and "Traceback" not in err
    assert files() == []


def test_an_error_in_the_checkpoint_names_it_and_leaves_nothing(jamba: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "bad", **SMALL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mamba_proj_bias": True}))
    code, out, err = jamba("convert", folder)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and "mamba_proj_bias" in err and str(folder) in err
    assert files() == []


def large_checkpoint(folder: Path, rows: int = 65536, hidden: int = 4096) -> Path:
    """A valid checkpoint of one attention layer in a sparse file: 1.3 GB to read, nothing on disk."""
    folder.mkdir()
    config = {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "hidden_size": hidden,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_experts": 1,
        "attn_layer_period": 1,
        "attn_layer_offset": 0,
        "vocab_size": rows,
        "tie_word_embeddings": True,
    }
    shapes: dict[str, list[int]] = {
        "embed_tokens": [rows, hidden],
        "layers.0.self_attn.q_proj": [hidden, hidden],
        "layers.0.self_attn.k_proj": [hidden // 4, hidden],
        "layers.0.self_attn.v_proj": [hidden // 4, hidden],
        "layers.0.self_attn.o_proj": [hidden, hidden],
        "layers.0.feed_forward.gate_proj": [32, hidden],
        "layers.0.feed_forward.up_proj": [32, hidden],
        "layers.0.feed_forward.down_proj": [hidden, 32],
        "layers.0.input_layernorm": [hidden],
        "layers.0.pre_ff_layernorm": [hidden],
        "final_layernorm": [hidden],
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[f"model.{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def start(folder: Path, work: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jambacli", "convert", str(folder), "-o", str(work / "m.gguf")]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    folder, work = large_checkpoint(tmp_path / "model"), tmp_path / "work"
    work.mkdir()
    process = start(folder, work)
    while process.poll() is None and not any(work.iterdir()):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    assert list(work.iterdir()) == []


def test_a_disk_without_room_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    folder, work = large_checkpoint(tmp_path / "model"), tmp_path / "work"
    work.mkdir()
    process = start(folder, work, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith(f"error: cannot write {work / 'm.gguf'}") and err.count("\n") == 1
    assert list(work.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "q8_0"])
def test_memory_stays_under_a_gigabyte_whatever_the_size_of_a_matrix(tmp_path: Path, kind: str) -> None:
    folder = large_checkpoint(tmp_path / "model")
    program = (
        "import resource, sys; from pathlib import Path; from jambacli.convert.to_gguf import convert;"
        f"convert(Path({str(folder)!r}), Path({str(tmp_path / 'm.gguf')!r}), type={kind!r});"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 1_000_000  # kilobytes
