"""Model names that are paths; unknown names give one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.hub.resolve import is_model_name, resolve_model


def test_a_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "m.gguf"), "m.gguf", "./m.gguf", "~/m.gguf", "checkpoint"):
        assert resolve_model(name).exists()
        assert is_model_name(name)


@pytest.mark.parametrize(
    "name", ["absent.gguf", "./absent", "no-such-model", "", "nul\0", "x" * 5000, "~nobody-here/x"]
)
def test_an_unknown_name_is_one_line(name: str) -> None:
    with pytest.raises(JambaError) as caught:
        resolve_model(name)
    assert "path of a .gguf file" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["Hello there", "", "What is in m.gguf?", "two\nlines.gguf", "x" * 5000, "/"])
def test_a_prompt_is_not_a_model_name(text: str) -> None:
    assert not is_model_name(text)
