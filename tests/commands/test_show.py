"""``jamba show`` as a user meets it: the page, the JSON, the plan, and one line where there is nothing to show."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli.commands.show import show
from jambacli.commands.show_page import print_page
from jambacli.errors import JambaError, UsageError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.summary import summarize
from jambacli.gguf.writer import GGUFWriter
from jambacli.hardware.devices import Device
from jambacli.model.config import JambaConfig
from jambacli.runtime.memory_plan import memory_plan
from tests.support import jamba_gguf

SHAPE = jamba_gguf.Shape(layers=9, hidden=64, ffn=96, experts=4, attention=(3, 8), dt_rank=4, vocab=40)
TEMPLATE = "{% for m in messages %}<|bom|>{{ m.content }}{% endfor %}{% if tools %}{{ documents }}{% endif %}"


def model(path: Path, shape: jamba_gguf.Shape = SHAPE, kind: str = "bf16", **general: str) -> Path:
    extra = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 99,
        "tokenizer.chat_template": TEMPLATE,
        "general.license": "apache-2.0",
        "general.base_model.0.repo_url": "https://huggingface.co/ai21labs/AI21-Jamba-Mini-1.7",
    }
    return jamba_gguf.write(path, jamba_gguf.Shape(**{**vars(shape), "extra_metadata": extra | general}), kind=kind)


def split(source: Path, size: int) -> list[Path]:
    with GGUFFile.open(source) as file, GGUFWriter(source, split_max_size=size, force=True) as writer:
        writer.copy_metadata(file.metadata)
        for name, info in file.tensors.items():
            writer.plan_tensor(name, info.shape, info.format)
        writer.begin()
        for name in file.tensors:
            writer.write_tensor(name, file.data(name))
    source.unlink()
    return writer.paths


def page(capsys: pytest.CaptureFixture[str], name: Path, ctx: str | None = None, kv_type: str = "f16") -> str:
    show(str(name), ctx=ctx, kv_type=kv_type, as_json=False)
    return capsys.readouterr().out


def described(capsys: pytest.CaptureFixture[str], name: Path, ctx: str | None = None, kv_type: str = "f16") -> Any:
    show(str(name), ctx=ctx, kv_type=kv_type, as_json=True)
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_the_page_says_what_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path / "m.gguf")
    out = page(capsys, path, "2k")
    # Mamba layers are round, attention diamonds; filled ones have experts; eight to a block.
    assert "○●○◆○●○● ◇" in out
    assert "4 Mamba" in out and "3 Mamba + experts" in out and "1 attention + experts" in out
    assert "hidden 64 · FFN 96 · 4 experts, 2 used · 4 heads of 16, 2 KV (layers 3, 8)" in out
    assert "4,096 tokens (4k)" in out
    assert "40 SentencePiece · bos 1 <1> · eos 99" in out
    assert "the eos token 99 is not in the vocabulary" in out
    assert "Jamba 1.5 to 1.7 template · takes tools, documents" in out
    assert "licence apache-2.0 · from ai21labs/AI21-Jamba-Mini-1.7" in out
    assert "memory at 2k tokens of context" in out
    assert str(path) in out
    assert "\x1b" not in out


@pytest.mark.parametrize("columns", [40, 63, 64, 80])
def test_a_narrow_terminal_costs_pictures_not_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    path = model(tmp_path / "m.gguf")
    figures = re.compile(r"\d[\d.]* [kM]?B\b")
    tables = page(capsys, path, "2k").partition("weights ")[2]
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = page(capsys, path, "2k").partition("weights ")[2]
    assert "…" not in narrow
    assert {f for f in figures.findall(tables) if "GB" not in f} <= set(figures.findall(narrow.replace("\n", " ")))


def test_the_figures_are_the_gguf_package_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gguf

    path = model(tmp_path / "m.gguf")
    shown = described(capsys, path)
    tensors = gguf.GGUFReader(path).tensors
    values = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    nbytes = sum(tensor.n_bytes for tensor in tensors)
    assert (shown["params"], shown["weight_bytes"], shown["file_bytes"]) == (values, nbytes, path.stat().st_size)
    assert shown["bits_per_weight"] == pytest.approx(nbytes * 8 / values, abs=1e-3)
    by_group = {group["name"]: group for group in shown["groups"]}
    assert by_group["experts"]["nbytes"] == sum(
        tensor.n_bytes for tensor in tensors if "_exps" in tensor.name or "gate_inp" in tensor.name
    )
    assert by_group["mamba"]["formats"] == {"bf16": 28, "f32": 35}
    assert sum(group["tensors"] for group in shown["groups"]) == len(tensors)
    assert shown["vocabulary"]["special"][0] == {"role": "bos", "id": 1, "piece": "<1>"}
    assert shown["file_type"] == "BF16"


def test_the_plan_follows_context_and_kv_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path / "m.gguf")
    at_model, longer, small = (described(capsys, path, ctx)["plan"] for ctx in (None, "8k", "1000"))
    assert (at_model["ctx"], longer["ctx"], small["ctx"]) == (4096, 8192, 1000)
    # Two attention layers, keys and values, two heads of 16, two bytes each.
    assert [plan["kv"]["f16"] for plan in (at_model, longer, small)] == [n * 256 for n in (4096, 8192, 1000)]
    assert small["state"] == 7 * 128 * (16 + 3) * 4
    assert small["drafts"] == 8 * small["state"]
    assert "copies of the Mamba state" in page(capsys, path)
    assert "more than the model's 4k" in page(capsys, path, "8k")
    wide = model(tmp_path / "w.gguf", dataclasses.replace(SHAPE, heads=2, kv_heads=1))
    plan = described(capsys, wide, "8k", "q8_0")["plan"]
    assert plan["total"] == plan["weights"] + plan["kv"]["q8_0"] + plan["state"] + plan["drafts"] + plan["scratch"]
    assert plan["fits"][0]["device"]["kind"] == "cpu"
    assert plan["fits"][0]["prefill_seconds"] > 0
    # Heads of 16 values cannot be q8_0, so it is neither planned nor offered.
    assert all("q8_0" not in kinds for kinds in (at_model["kv"], at_model["fits"][0]["largest_ctx"]))
    assert "q8_0" in page(capsys, wide) and "q8_0" not in page(capsys, path)
    with pytest.raises(JambaError, match="multiple of 32; this model's have 16; use kv_type f16"):
        show(str(path), ctx=None, kv_type="q8_0", as_json=False)


@pytest.mark.parametrize(
    ("ram", "gpu", "lines"),
    [
        (32, 80, ["fits, ", "prefill of 256k tokens takes about "]),
        (32, 24, ["with 1", "GB of the experts in RAM", "prefill of 256k tokens would take at least "]),
        (32, 8.5, ["too small by ", "longest with experts in RAM: "]),
        (32, 3, ["too small by "]),
        (
            20,
            12,
            [
                "too small, RAM too: 2",
                "GB of experts would be read from disk",
                "prefill of 256k tokens would take at least ",
            ],
        ),
    ],
)
def test_a_gpu_s_lines_say_what_can_be_done_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ram: float, gpu: float, lines: list[str]
) -> None:
    devices = [Device(k, k, k, int(n * 1e9), int(n * 1e9), 1e13, False, "") for k, n in (("cpu", ram), ("cuda", gpu))]
    mini = JambaConfig.from_hf({})
    plan = memory_plan(mini, 31_200_000_000, 27_300_000_000, mini.context_length, "f16", devices)
    print_page(summarize(model(tmp_path / "m.gguf")), plan)
    said = capsys.readouterr().out.partition(" cuda · ")[2]
    assert all(line in said for line in lines), said
    for word in ("prefill of", "longest"):
        assert (word in said) == any(word in line for line in lines), said


def test_any_part_of_a_split_model_shows_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = described(capsys, model(tmp_path / "m.gguf"))
    paths = split(tmp_path / "m.gguf", 100_000)
    assert len(paths) > 2
    for path in (paths[0], paths[-1]):
        shown = described(capsys, path)
        assert shown["groups"] == whole["groups"]
        assert [part["name"] for part in shown["parts"]] == [p.name for p in paths]
        assert shown["file_bytes"] == sum(p.stat().st_size for p in paths)
    assert f"{len(paths)} parts" in page(capsys, paths[1])


def test_a_checkpoint_directory_shows_like_its_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.JambaConfig(
        num_hidden_layers=4, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        num_experts=4, vocab_size=128, attn_layer_period=4, attn_layer_offset=1,
    )  # fmt: skip
    made = transformers.JambaForCausalLM(config).bfloat16()
    made.save_pretrained(tmp_path / "checkpoint")
    shown = described(capsys, tmp_path / "checkpoint")
    assert shown["params"] == sum(p.numel() for p in made.parameters())
    assert shown["weight_bytes"] == sum(p.numel() * p.element_size() for p in made.parameters())
    assert shown["config"]["layer_is_attention"] == [False, True, False, False]
    assert shown["file_type"] == "BF16"
    out = page(capsys, tmp_path / "checkpoint", "4k")
    assert "○◆○●" in out and "Hugging Face checkpoint" in out


def test_text_from_the_file_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = {"general.name": "a\x1b[2Jb\nc\x9b1m[red]d", "general.license": "x" * 5000}
    path = model(tmp_path / "m.gguf", **evil)
    out = page(capsys, path, "2k")
    assert out.replace("\n", "").isprintable()
    assert "[red]d" in out
    assert len(max(out.splitlines(), key=len)) < 400
    assert described(capsys, path)["name"].isprintable()


def test_a_dense_tied_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = page(capsys, model(tmp_path / "m.gguf", jamba_gguf.SMALL_3B), "2k")
    assert "○○○○○○○◇ ○○○○○○○○ ○○○○○◇○○ ○○○○" in out
    assert "embedding tied" in out and "expert" not in out


def test_what_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    other = tmp_path / "llama.gguf"
    with GGUFWriter(other) as writer:
        writer.add("general.architecture", "llama")
    (tmp_path / "empty").mkdir()
    for name, problem in [
        (other, "the architecture is 'llama'"),
        (tmp_path / "absent.gguf", "no such file"),
        (tmp_path / "empty", "no config.json"),
        (Path("jamba-of-dreams"), "unknown model"),
    ]:
        with pytest.raises(JambaError, match=problem) as caught:
            show(str(name), ctx=None, kv_type="f16", as_json=False)
        assert "\n" not in str(caught.value)
    for ctx, kv_type in [("many", "f16"), ("0", "f16"), (None, "q3_k")]:
        with pytest.raises(UsageError):
            show(str(other), ctx=ctx, kv_type=kv_type, as_json=False)


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jambacli", "show", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, errors="replace"
    )


def test_the_command_itself(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    plain = run(str(path), "--ctx", "2k", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0 and plain.stderr == ""
    assert "mMmAmMmM a" in plain.stdout and plain.stdout.isascii()
    path.write_bytes(path.read_bytes()[:5000])
    broken = run(str(path))
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.startswith(f"error: {path}: ") and broken.stderr.count("\n") == 1
    assert run(str(path), "--ctx", "lots").returncode == 2


def test_without_a_name_it_is_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    show(None)
    said = capsys.readouterr()
    assert "demonstration model" in said.out
    assert "no model given" in said.err


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    child = subprocess.Popen(
        [sys.executable, "-m", "jambacli", "show", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    child.wait()
    child.stderr.close()


def test_showing_imports_nothing_slow(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    code = (
        "import sys; from jambacli.commands.show import show; "
        f"show({str(path)!r}, ctx=None, kv_type='f16', as_json=False); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'gguf') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
