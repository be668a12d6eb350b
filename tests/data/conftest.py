"""The demo model, loaded once, and its files in other types, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jambacli.api import Jamba
from jambacli.hub.demo import demo_model_path
from tests.support.cli_runner import jamba
from tests.support.demo_model import as_f32


@pytest.fixture(scope="session")
def model() -> Jamba:
    return Jamba.load(demo_model_path())


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo model in a type, by ``jamba quantize``; the shipped file itself for bf16."""
    folder, made = tmp_path_factory.mktemp("types"), {"bf16": demo_model_path()}

    def make(kind: str) -> Path:
        if kind not in made:
            path = folder / f"tiny-jamba-{kind}.gguf"
            if kind == "f32":
                made[kind] = as_f32(path)
                return made[kind]
            done = jamba("quantize", str(demo_model_path()), str(path), "--type", kind)
            assert done.returncode == 0, done.stderr.decode()
            made[kind] = path
        return made[kind]

    return make
