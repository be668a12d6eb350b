"""``jamba pull``, ``list`` and ``rm`` as a shell runs them: messages, exit codes, and what they do not import."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jambacli import cli
from jambacli.hardware import devices
from jambacli.hub import download
from jambacli.hub.resolve import resolve_model
from jambacli.hub.store import Store, StoredFile, StoreEntry
from tests.support.checkpoints import make_checkpoint
from tests.support.hub_fixtures import *  # noqa: F403 - the server and its models
from tests.support.hub_fixtures import REPO, STEM
from tests.support.hub_servers import Repo, Server

Jamba = Callable[..., int]


@pytest.fixture
def jamba(monkeypatch: pytest.MonkeyPatch) -> Jamba:
    """Runs the command line in this process; its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["jamba", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    return run


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the amount of memory that this machine reports."""

    def shrink(total: int) -> None:
        device = devices.Device("cpu", "cpu:x", "a small machine", total, total, 1e9, False, "1 core")
        monkeypatch.setattr(devices, "devices", lambda: [device])

    return shrink


class Terminal(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_pull_list_show_rm(hub: Server, jamba: Jamba, capsys: pytest.CaptureFixture[str]) -> None:
    assert jamba("pull", "jamba:3b") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "jamba:3b is ready: jamba run jamba:3b" in said.err and "of memory with 4k tokens" in said.err
    assert jamba("pull", "jamba:3b", "--name", "mine") == 0
    assert jamba("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "jamba:3b", "mine"]
    assert all(text in lines[1] for text in ("Q4_K_M", "4k", "never"))
    assert jamba("show", "mine", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["path"] == str(resolve_model("jamba:3b"))
    assert jamba("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    sizes = [row["bytes"] for row in listed["models"]]
    assert sizes[0] == sizes[1] == listed["bytes"], "shared files count once"
    assert jamba("rm", "mine") == 0
    assert "another name still uses its files" in capsys.readouterr().err
    assert jamba("rm", "jamba:3b") == 0
    assert jamba("rm", "jamba:3b") == 1
    assert "is not a pulled model" in capsys.readouterr().err
    assert jamba("list") == 0
    assert "no models yet" in capsys.readouterr().err


def test_what_does_not_fit(
    hub: Server,
    jamba: Jamba,
    small_machine: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a terminal it is refused, with what fits; --yes downloads it; in a terminal, one can choose what fits instead."""
    small_machine(300_000_000)
    assert jamba("pull", f"{REPO}:F32") == 1
    said = capsys.readouterr().err
    assert "does not fit this machine" in said and "--yes" in said
    assert Store().entries() == []
    assert jamba("pull", f"{REPO}:F32", "--yes") == 0
    assert jamba("rm", f"{REPO}:F32") == 0
    # Enough memory for the smaller ones and what every run needs, but not for this one.
    size = {c: len(hub.repos[REPO].files[f"{STEM}-{c}.gguf"]) for c in ("F32", "Q8_0")}
    from jambacli.gguf.summary import summarize
    from jambacli.runtime.memory_plan import scratch_bytes

    jamba("pull", f"{REPO}:F32", "--yes")
    config = summarize(resolve_model(f"{REPO}:F32")).config
    jamba("rm", f"{REPO}:F32")
    fixed = (
        scratch_bytes(config) + config.state_bytes() + config.draft_bytes() + 4096 * config.kv_bytes_per_token("f16")
    )
    small_machine(fixed + (size["F32"] + size["Q8_0"]) // 2)
    capsys.readouterr()
    assert jamba("pull", "jamba:3b-f32", "--ctx", "4k") == 1
    assert "what fits: jamba:2-3b-" in capsys.readouterr().err
    assert jamba("rm", "--unfinished") == 0
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert jamba("--quiet", "pull", "jamba:3b-f32", "--ctx", "4k") == 0
    pulled = Store().entries()
    assert len(pulled) == 1 and pulled[0].quant != "F32" and pulled[0].size < size["F32"]


def test_interrupted(hub: Server, jamba: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(n: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "wait_before", interrupt)
    hub.trouble.cut = lambda n: n // 2
    assert jamba("pull", "jamba:3b") == 130
    assert len(Store().unfinished()) == 1
    assert jamba("rm", "--unfinished") == 0
    assert Store().unfinished() == []


def test_made_from_a_checkpoint(
    server: Server, jamba: Jamba, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(
        tmp_path / "made", dtype="bfloat16", hidden_size=256, intermediate_size=256, max_shard_size="2MB"
    )
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    server.repos["ai21labs/Jamba-v0.1"] = Repo(files | {"pytorch_model.bin": b"x" * 5000})
    assert jamba("pull", "jamba:v0.1") == 1
    assert "jamba pull jamba:v0.1 --quant q4_k_m" in capsys.readouterr().err
    assert jamba("pull", "jamba:v0.1", "--quant", "q9") == 2
    assert server.asked == []
    # Interrupted in the weights, then resumed.
    monkeypatch.setattr(download, "TRIES", 1)
    server.trouble.cut = lambda n: 300_000 if n > 1_000_000 else None
    assert jamba("pull", "jamba:v0.1", "--quant", "q4_k_m") == 1
    server.trouble.cut = lambda n: None
    asked = len(server.asked)
    assert jamba("pull", "jamba:v0.1", "--quant", "q4_k_m") == 0
    assert server.asked[asked][1] == 300_000
    assert not any("pytorch_model" in path for path, _, _ in server.asked)
    entry = Store().get("jamba:v0.1-q4_k_m")
    assert entry is not None and entry.quant == "Q4_K_M"
    left = [p for p in Store().root.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".part", ".gguf")]
    assert left == [resolve_model("jamba:v0.1-q4_k_m")] == [resolve_model("ai21labs/Jamba-v0.1")]

    # The result is that of converting and quantizing separately.
    assert jamba("convert", folder, "-o", tmp_path / "c.gguf", "--name", "Jamba-v0.1") == 0
    assert jamba("quantize", tmp_path / "c.gguf", tmp_path / "q.gguf", "--type", "q4_k_m") == 0
    assert left[0].read_bytes() == (tmp_path / "q.gguf").read_bytes()
    asked = len(server.asked)
    assert jamba("pull", "jamba:v0.1", "--quant", "q4_k_m") == 0
    assert len(server.asked) == asked, "it is already downloaded"
    assert jamba("pull", "ai21labs/Jamba-v0.1", "--quant", "bf16") == 0
    assert resolve_model("hf.co/ai21labs/Jamba-v0.1:BF16").is_file()


def test_options_are_named_as_on_the_command_line(
    hub: Server, jamba: Jamba, models: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "My Model.gguf").write_bytes(models["Q4_0"])
    for arguments, message in (
        (["jamba:3b-q3_k_s"], "or make it from the checkpoint with: jamba pull jamba:2-3b --quant q3_k_s"),
        (["jamba:3b", "--name", "My Model"], "--name 'My Model' is not a valid name"),
        (["jamba:3b", "--revision", "a/../b"], "--revision 'a/../b' is not a branch"),
        (["jamba:3b-q4_0", "--quant", "q8_0"], "--quant 'q8_0' is not the type in the name"),
        ([tmp_path / "My Model.gguf"], "choose another --name"),
        ([tmp_path / "My Model.gguf", "--quant", "q8_0"], "leave --quant and --revision out"),
    ):
        assert jamba("pull", *arguments) in (1, 2)
        assert message in capsys.readouterr().err


def test_another_architecture_is_refused_before_its_weights(
    server: Server, jamba: Jamba, capsys: pytest.CaptureFixture[str]
) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    server.repos["a/llama"] = Repo({"config.json": config, "model.safetensors": b"x" * 4000})
    assert jamba("pull", "a/llama", "--quant", "q4_k_m") == 1
    assert "LlamaForCausalLM" in capsys.readouterr().err
    assert [path for path, _, _ in server.asked] == ["a/llama/config.json"]


def fill(store: Store, count: int, path: Path) -> None:
    for i in range(count):
        files = (StoredFile(path.name, path.stat().st_size, "", str(path)),)
        store.register(
            StoreEntry(f"model:{i}", {"kind": "path"}, files, None, "Q4_K_M", 262_144, 3_000_000_000, time.time())
        )


def test_none_of_it_imports_torch(hub: Server, models: dict[str, bytes], tmp_path: Path) -> None:
    hub.add_ollama("library/jamba", "latest", models["Q8_0"])
    path = tmp_path / "m.gguf"
    path.write_bytes(models["Q4_0"])
    store = Store()
    store.prepare()
    fill(store, 50, path)
    code = """
import sys
from jambacli.cli import main
for arguments in {!r}:
    sys.argv = ["jamba", *arguments]
    try:
        main()
    except SystemExit as left:
        assert not left.code, arguments
slow = {{"torch", "transformers", "tokenizers"}} & sys.modules.keys()
assert not slow, slow
"""
    runs = [
        ["pull", "jamba:3b"],
        ["pull", "ollama:jamba"],
        ["pull", str(path)],
        ["list"],
        ["show", "jamba:3b"],
        ["rm", "jamba:3b"],
    ]
    done = subprocess.run([sys.executable, "-c", code.format(runs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Listing imports no network, console or array library either.
    lean = (
        code.format([["list"]]) + "heavy = {'numpy', 'httpx', 'huggingface_hub', 'rich.console'} & sys.modules.keys()\n"
    )
    lean += "assert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 53


def test_a_damaged_manifest_is_skipped(hub: Server, jamba: Jamba, capsys: pytest.CaptureFixture[str]) -> None:
    assert jamba("pull", "jamba:3b") == 0 and jamba("pull", "jamba:3b-q4_0") == 0
    manifest = next(p for p in (Store().root / "manifests").iterdir() if "q4_0" in p.name)
    stored = json.loads(manifest.read_text())
    outside = [{"name": "../../../x"}, {"name": "x.gguf", "path": "relative"}, {"size": -1}, {"size": "1"}]
    for change in (
        *({"files": [stored["files"][0] | c]} for c in outside),
        {"set_id": "../../x"},
        {"files": []},
        {"name": "\x1b[2J"},
    ):
        manifest.write_text(json.dumps(stored | change))
        capsys.readouterr()
        assert jamba("list") == 0
        said = capsys.readouterr()
        assert "jamba:3b " in said.out and len(said.out.splitlines()) == 2 and "\x1b" not in said.out
        assert "is damaged and was skipped" in said.err
    for text in ("", "[" * 10_000, "null", "\xff"):
        manifest.write_text(text, encoding="latin-1")
        assert jamba("list") == 0
        assert "is damaged and was skipped" in capsys.readouterr().err
    assert jamba("pull", "jamba:3b-q4_0") == 0
    assert resolve_model("jamba:3b-q4_0").is_file()


def test_used_is_shown(hub: Server, jamba: Jamba, capsys: pytest.CaptureFixture[str]) -> None:
    from jambacli.hub.resolve import remember_used

    assert jamba("pull", "jamba:3b") == 0
    remember_used("jamba:3b")
    assert jamba("list") == 0
    assert "just now" in capsys.readouterr().out


def test_the_demo_model_has_a_name(own_home: Path, jamba: Jamba, capsys: pytest.CaptureFixture[str]) -> None:
    from jambacli.hub.demo import demo_model_path
    from jambacli.hub.resolve import last_used, remember_used

    assert jamba("list") == 0
    said = capsys.readouterr()
    assert said.out == "" and "demo model: jamba:tiny (10.1 MB)" in said.err
    assert jamba("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["models"] == [] and listed["embedded"]["name"] == "jamba:tiny"
    assert resolve_model("jamba:tiny") == demo_model_path() == Path(listed["embedded"]["path"])
    remember_used("jamba:tiny")
    assert last_used() == demo_model_path()
    assert jamba("show", "jamba:tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(demo_model_path())
    assert jamba("pull", "jamba:tiny") == 0
    assert jamba("rm", "jamba:tiny") == 1
    assert "comes with the program" in capsys.readouterr().err
    assert demo_model_path().exists()
    # The user's own alias for that name wins.
    own_home.mkdir(exist_ok=True)
    (own_home / "aliases.json").write_text('{"aliases": {"jamba:tiny": "someone/tiny-GGUF:Q8_0"}}')
    assert jamba("show", "jamba:tiny") == 1
    assert "has not been pulled" in capsys.readouterr().err


def test_a_name_with_spaces_can_be_pasted_into_a_shell(
    jamba: Jamba, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "someone/repo/my model.gguf"
    entry = StoreEntry(name, {}, (), None, "Q4_K", 4096, 1, 0.0)
    monkeypatch.setattr("jambacli.hub.pull.pull", lambda *_, **__: entry)
    assert jamba("pull", name) == 0
    assert f"{name} is ready: jamba run '{name}'\n" == capsys.readouterr().err


def test_converted_checkpoints_are_listed_and_can_be_removed(
    tmp_path: Path, own_home: Path, jamba: Jamba, capsys: pytest.CaptureFixture[str]
) -> None:
    from jambacli.hub.converted_cache import converted_gguf

    made = converted_gguf(make_checkpoint(tmp_path / "checkpoint", "moe4"))
    size = made.stat().st_size
    assert jamba("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["converted_bytes"] == size
    assert jamba("list") == 0
    assert "remove them with jamba rm --converted" in capsys.readouterr().err
    assert jamba("rm", "--converted") == 0
    assert not made.exists() and (tmp_path / "checkpoint" / "config.json").exists()
    capsys.readouterr()
    assert jamba("run", str(tmp_path), "hello") == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}: there is no config.json, so this is not a Hugging Face checkpoint\n"
    )
