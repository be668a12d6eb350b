"""Presets: saved and read as they were, variables filled in, flags before them, and none of a hostile name or file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jambacli import presets
from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.presets import Preset
from tests.support.cli_runner import jamba

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "system",
    ["one line", "two\nlines 'quoted' \"so\"", "a '''\n''' b", "ends with '\n'", "\ttab\\back\x7f\u2028", "é שלום 🙂"],
)
def test_what_is_saved_is_read(system: str, tmp_path: Path) -> None:
    given = Preset(
        "legal",
        tmp_path,
        'A "line"',
        system,
        {"temp": 0.2, "max_tokens": 5, "think": False, "stop": ("a\n", "'")},
        SCHEMA,
        "m",
    )
    path = presets.save(given, force=False)
    found = presets.read(path, "legal")
    assert found == Preset(
        "legal", path, *[getattr(given, f) for f in ("description", "system", "options", "schema", "model")]
    )
    with pytest.raises(JambaError, match="already exists"):
        presets.save(given, force=False)
    presets.save(given, force=True)


def test_variables_are_filled_in() -> None:
    preset = Preset("p", Path(), system="Dear {{ name }}, {{tone = kind words}} {{ tone }} {{}} {{ 1 }}")
    assert preset.variables == {"name": None, "tone": "kind words"}
    assert preset.filled({"name": "{{ tone }}"}) == "Dear {{ tone }}, kind words kind words {{}} {{ 1 }}"
    assert preset.filled({"name": "A", "tone": ""}) == "Dear A,   {{}} {{ 1 }}"
    with pytest.raises(UsageError, match=r"needs name=\.\.\."):
        preset.filled({})
    with pytest.raises(UsageError, match="has no variable 'nmae'; its variables are name, tone"):
        preset.filled({"nmae": "x"})


def test_those_that_come_with_the_program_work() -> None:
    found = list(presets.readable())
    assert [p.name for p in found if isinstance(p, Preset)] == ["code", "contracts", "minutes", "papers"]
    for preset in found:
        assert isinstance(preset, Preset) and preset.shipped and preset.description
        text = preset.filled({})
        assert text and "{{" not in text
    with pytest.raises(UsageError, match="comes with the program"):
        presets.remove("code")
    presets.save(Preset("code", Path(), system="mine"), force=False)
    assert presets.find("code").system == "mine"
    presets.remove("code")
    assert presets.find("code").shipped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temp = 'hot'", "temp is not a number"),
        ("tmep = 1", "unknown key 'tmep'; did you mean temp?"),
        ("schema = '['", "schema is not JSON"),
        ("system = 3", "system is not a text"),
        ("stop = [1]", "stop is not a list of texts"),
        ("a = = 1", "is not TOML"),
        ("temp = " + "[" * 5000, "is not TOML"),
        ("system = '" + "x" * (1 << 20) + "'", "is larger than 1 MB"),
        ("schema = '" + "[" * 5000 + "'", "schema is not JSON"),
        ("schema = [1]", "schema is not a JSON schema: it must be an object"),
        ("model = []", "model is not a text"),
        ("temp = nan", "temp is outside 0 to 100"),
        ("seed = 1.5", "seed is not a whole number"),
        ("think = 'maybe'", "think is neither on nor off"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadFileError) as caught:
        presets.find(str(path))
    assert str(path) in str(caught.value) and words in str(caught.value)
    done = jamba("run", "hello", "--preset", str(path))
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "\x1b[31m", "x" * 300])
def test_a_name_is_never_a_path(name: str, tmp_path: Path, own_home: Path) -> None:
    (own_home / "presets").mkdir(parents=True)
    (own_home / "mine.toml").write_text("temp = 1")
    with pytest.raises(UsageError):
        presets.find(name)
    with pytest.raises(UsageError):
        presets.save(Preset(name, Path(), system="x"), force=True)
    with pytest.raises(UsageError):
        presets.remove(name)
    assert not list((own_home / "presets").iterdir()) and (own_home / "mine.toml").exists()


def test_what_is_no_file_is_no_preset(own_home: Path) -> None:
    folder = own_home / "presets"
    folder.mkdir(parents=True)
    (folder / "dir.toml").mkdir()
    os.mkfifo(folder / "pipe.toml")  # reading it would wait for a writer
    for name in ("dir", "pipe"):
        with pytest.raises(BadFileError, match="cannot be read"):
            presets.find(name)
    assert jamba("preset", "list").stderr.count(b"cannot be read") == 2


def test_unknown_and_missing_variables_are_named(own_home: Path) -> None:
    presets.save(Preset("v", Path(), system="For {{ client }} by {{ when = today }}."), force=False)
    options = ("run", "jamba:tiny", "hi", "-n", "1", "--preset", "v")
    for given, words in (
        ((), "the preset v needs client=..."),
        (("-p", "clint=A"), "the preset v has no variable 'clint'; its variables are client, when"),
        (("-p", "client"), "--param 'client' is not NAME=VALUE"),
    ):
        done = jamba(*options, *given)
        assert done.returncode == 2 and words in done.stderr.decode() and done.stdout == b""
    assert (
        presets.find("v").filled({"client": "A {{ when }}"}) == "For A {{ when }} by today."
    )  # a value is no template


def test_a_preset_is_used_and_a_flag_comes_before_it(tmp_path: Path) -> None:
    (tmp_path / "legal.txt").write_text("You are {{ who }}.")
    saved = jamba("preset", "save", "legal", "--system", f"@{tmp_path}/legal.txt", "--temp", "0", "-n", "3")
    assert saved.returncode == 0 and b"variables: who" in saved.stderr
    options = ("run", "jamba:tiny", "hello", "--json", "--no-store", "--preset", "legal")
    missing = jamba(*options)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (2, 1)
    assert b"the preset legal needs who=...; give it with --param" in missing.stderr
    used = json.loads(jamba(*options, "-p", "who=a very long name of a lawyer").stdout)
    assert used["generated_tokens"] <= 3
    other = json.loads(jamba(*options, "--system", "no", "-n", "2", "--temp", "0").stdout)
    assert other["generated_tokens"] <= 2 and other["prompt_tokens"] < used["prompt_tokens"]
    by_hand = jamba(*options[:-2], "--system", "You are a very long name of a lawyer.", "--temp", "0", "-n", "3")
    assert json.loads(by_hand.stdout)["text"] == used["text"]
    assert b"add --preset" in jamba("run", "hello", "-p", "a=b").stderr
    assert b"did you mean legal?" in jamba("run", "hello", "--preset", "leagl").stderr


def test_presets_are_listed_shown_and_removed() -> None:
    assert jamba("preset", "save", "x", "--temp", "5000").returncode == 2
    assert b"would be empty" in jamba("preset", "save", "x").stderr
    assert b"is not a preset's name" in jamba("preset", "save", "../x", "--temp", "1").stderr
    assert jamba("preset", "save", "x", "--temp", "1", "--stop", "END", "--description", "Mine").returncode == 0
    assert b"x          yours    Mine\n" in jamba("preset", "list").stdout
    listed = json.loads(jamba("preset", "list", "--json").stdout)
    assert [p["name"] for p in listed] == ["code", "contracts", "minutes", "papers", "x"]
    assert jamba("preset", "show", "x").stdout == b'description = "Mine"\ntemp = 1.0\nstop = ["END"]\n'
    assert json.loads(jamba("preset", "show", "x", "--json").stdout)["options"] == {"temp": 1.0, "stop": ["END"]}
    assert jamba("preset", "rm", "x").returncode == 0
    assert jamba("preset", "rm", "x").returncode == 2


def test_a_schema_of_a_preset_holds(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert jamba("preset", "save", "n", "--schema", str(tmp_path / "schema.json"), "-n", "40").returncode == 0
    done = jamba("run", "jamba:tiny", "How many?", "--preset", "n", "--no-store")
    assert isinstance(json.loads(done.stdout)["n"], int)
