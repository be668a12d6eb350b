"""The user's defaults: where each value comes from, a file that is changed line by line, and what is wrong in one line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from jambacli import settings
from jambacli.errors import BadFileError, JambaError, UsageError
from tests.support.cli_runner import jamba


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAMBA_CONFIG", raising=False)
    for setting in settings.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.fixture
def file(own_home: Path) -> Path:
    own_home.mkdir(parents=True)
    return own_home / "config.toml"


def test_a_variable_comes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.find("temp") is None
    file.write_text('temp = 0.5\nkv_type = "Q8_0"\nprecise = true\nlookup = false\nctx = 4096\n')
    assert settings.find("temp") == settings.Value(0.5, "file", str(file))
    assert [settings.value(n) for n in ("kv-type", "precise", "lookup", "ctx")] == ["q8_0", True, "off", "4096"]
    monkeypatch.setenv("JAMBA_TEMP", " 0.25 ")
    assert settings.find("temp") == settings.Value(0.25, "environment", "JAMBA_TEMP")
    monkeypatch.setenv("JAMBA_TEMP", "")
    assert settings.value("temp") == 0.5


def test_the_file_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAMBA_CONFIG", str(tmp_path / "mine.toml"))
    assert settings.write("threads", "3") == tmp_path / "mine.toml"
    assert settings.value("threads") == 3


def test_comments_and_other_lines_stay(file: Path) -> None:
    text = '# mine\ntemp = 0.5  # calm\n\n"threads" = 4\n[unknown]\nx = 1\n'
    file.write_text(text)
    settings.write("temp", "0.75")
    settings.write("device", "cpu")
    assert file.read_text() == text.replace("0.5 ", "0.75 ").replace("[unknown]", 'device = "cpu"\n[unknown]')
    settings.write("threads", None)
    settings.write("seed", None)
    assert tomllib.loads(file.read_text()) == {"temp": 0.75, "device": "cpu", "unknown": {"x": 1}}
    assert file.read_text().startswith("# mine\ntemp = 0.75  # calm\n")


def test_a_value_over_several_lines_is_not_damaged(file: Path) -> None:
    text = 'model = """\na\\\nb"""\n'
    file.write_text(text)
    with pytest.raises(BadFileError, match="model cannot be changed in place"):
        settings.write("model", "c")
    assert file.read_text() == text


def test_a_file_without_a_last_line_end_and_behind_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.toml").write_text("temp = 1")
    file.symlink_to(tmp_path / "kept.toml")
    settings.write("top-k", "40")
    assert (tmp_path / "kept.toml").read_text() == "temp = 1\ntop-k = 40\n" and file.is_symlink()


@pytest.mark.parametrize("text", ['a "b" \\ c', "é שלום 🙂", "'x'", "#no comment"])
def test_any_text_comes_back(file: Path, text: str) -> None:
    settings.write("model", text)
    assert settings.value("model") == text
    settings.write("model", "other")
    assert settings.value("model") == "other"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("temp", "warm", "temp 'warm' is not a number"),
        ("temp", "nan", "temp 'nan' is outside 0 to 100"),
        ("top-k", "1.5", "top-k '1.5' is not a whole number"),
        ("threads", "0", "threads '0' is outside 1 to 1024"),
        ("precise", "maybe", "precise 'maybe' is neither on nor off"),
        ("kv-type", "q9", "kv-type 'q9' is not one of f16, bf16, f32, q8_0, q5_1, q4_0"),
        ("ctx", "many", "ctx 'many' is not a size; write it like 4096, 256k or 20G"),
        ("device", "tpu", "device 'tpu' is not auto, cpu, cuda or cuda:N"),
        ("tmep", "1", "unknown setting 'tmep'; did you mean temp"),
    ],
)
def test_wrong_values_and_names_are_refused(file: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.write(name, text)
    assert words in str(caught.value) and not file.exists()
    done = jamba("config", "set", name, text)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_a_wrong_value_in_the_file_names_file_and_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('temp = "warm"\n')
    with pytest.raises(UsageError) as caught:
        settings.value("temp")
    assert str(caught.value) == f'{file}: temp = "warm" is not a number'
    done = jamba("run", "hello", "--no-store", "-n", "1")
    assert (done.returncode, done.stderr.decode()) == (2, f"error: {caught.value}\n")
    file.write_text("tmep = 1\n")
    done = jamba("run", "hello", "--no-store", "-n", "1", "-q")
    assert done.returncode == 0
    assert done.stderr.decode() == f"warning: {file}: unknown setting 'tmep'; did you mean temp or theme?\n"
    file.unlink()
    monkeypatch.setenv("JAMBA_THREADS", "lots")
    done = jamba("run", "hello", "--no-store", "-n", "1")
    assert (done.returncode, done.stderr) == (2, b"error: JAMBA_THREADS='lots' is not a whole number\n")


def test_a_damaged_file_stops_neither_list_nor_path_nor_help(file: Path) -> None:
    file.write_bytes(b"temp = = \xff")
    assert jamba("config", "path").stdout.decode() == f"{file}\n"
    for words in (("config",), ("config", "list"), ("config", "--help"), ("--help",), ("list",)):
        assert jamba(*words).returncode == 0
    listed = jamba("config", "--json")
    assert json.loads(listed.stdout)["problem"].startswith(f"{file}: is not TOML")
    assert b"is not TOML" in jamba("config", "set", "temp", "1").stderr
    assert file.read_bytes() == b"temp = = \xff"
    with pytest.raises(JambaError):
        settings.value("temp")


def test_config_shows_every_value_and_where_it_is_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jamba("config", "set", "temp", "0.5").returncode == 0
    monkeypatch.setenv("JAMBA_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = jamba("config").stdout.decode()
    assert "temp               0.5" in shown and str(file) in shown and "JAMBA_THREADS" in shown
    assert "HF_TOKEN = (not shown)" in shown and "hf_secret" not in shown
    listed = json.loads(jamba("config", "list", "--json").stdout)
    assert b"hf_secret" not in jamba("config", "list", "--json").stdout
    rows = {row["name"]: row for row in listed["settings"]}
    assert set(rows) == set(settings.SETTINGS)
    assert (rows["temp"]["value"], rows["temp"]["source"], rows["temp"]["where"]) == (0.5, "file", str(file))
    assert (rows["threads"]["source"], rows["threads"]["where"]) == ("environment", "JAMBA_THREADS")
    assert rows["top-p"]["source"] is None
    assert jamba("config", "get", "temp").stdout == b"0.5\n"
    assert b"comes before the file" in jamba("config", "set", "threads", "2").stderr
    assert jamba("config", "unset", "temp").returncode == 0
    assert jamba("config", "get", "temp").stdout == b""


def test_what_a_flag_says_comes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("max-tokens = 3\nstats = true\n")
    options = ("run", "jamba:tiny", "The report", "--raw", "--json", "--temp", "0", "--no-store")
    by_file = jamba(*options)
    assert json.loads(by_file.stdout)["generated_tokens"] == 3 and b"decode " in by_file.stderr
    monkeypatch.setenv("JAMBA_MAX_TOKENS", "2")
    assert json.loads(jamba(*options).stdout)["generated_tokens"] == 2
    by_flag = jamba(*options, "-n", "1", "--no-stats")
    assert json.loads(by_flag.stdout)["generated_tokens"] == 1 and b"decode " not in by_flag.stderr


def test_the_default_model_comes_before_the_last_used(file: Path) -> None:
    file.write_text('model = "jamba:tiny"\n')
    done = jamba("run", "hello", "--json", "-n", "1")
    assert json.loads(done.stdout)["model"].startswith("Tiny Jamba")
    assert b"no model given" not in done.stderr
    file.write_text('model = "jamba:nothing"\n')
    done = jamba("run", "hello", "-n", "1")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.decode().startswith(f"error: the default model ({file}): unknown model 'jamba:nothing'")
