"""Type checkers see the options of the Python API: a misspelt one is an error, also where the package is installed editable."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jambacli import Jamba
from jambacli.session.session import Session
from tests.support.repository import REPO

_USES = """\
from jambacli import Jamba, Jambo
from quant import quantise

Jamba.load("jamba:tiny", thread=2)
model = Jamba.load("jamba:tiny", threads=2)
model.session(contxt=1024)
session = model.session()
for piece in session.send("hi", temprature=0.0):
    print(piece)
list(session.send("hi", seed="one"))
list(session.complete("hi", top_q=1))
list(session.answer(max_token=1))
model.generate_batch(["a"], max_token=3)
fine = model.session(ctx=1024, name="a").send("hi", temperature=0, documents=[{"content": "x"}], max_tokens=3)
"""
_WRONG = {1, 2, 4, 6, 8, 10, 11, 12, 13}


@pytest.fixture(scope="module")
def demo() -> Jamba:
    return Jamba.load("jamba:tiny")


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for owner in (Jamba, Session):
        for name, value in inspect.getmembers(owner, callable):
            if not name.startswith("_"):
                yield f"{owner.__name__}.{name}", value


def test_keywords_are_typed() -> None:
    checked = 0
    for name, function in public_functions():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                assert str(parameter.annotation).startswith("Unpack["), name
                checked += 1
    assert checked >= 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: Jamba.load("jamba:tiny", thread=2),
            "load() got an unexpected keyword argument 'thread'; did you mean 'threads'?",
        ),
        (lambda m: m.session(contxt=1), "session() got an unexpected keyword argument 'contxt'; did you mean 'ctx'?"),
        (lambda m: m.session(temprature=1), "'temprature'; 'temperature' is an option of session.send(...)"),
        (lambda m: m.session(zzz=1), "there are ctx, kv_type, name,"),
        (lambda m: m.session().send("hi", temprature=1), "did you mean 'temperature'?"),
        (lambda m: m.session().send("hi", docments=[]), "did you mean 'documents'?"),
        (lambda m: m.session().complete("hi", top_q=1), "did you mean 'top_"),
        (lambda m: m.generate_batch(["hi"], max_token=3), "did you mean 'max_tokens'?"),
    ],
)
def test_a_misspelt_option_is_told_the_right_one(demo: Jamba, call: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        call(demo)


def test_the_packages_are_typed_and_installed_from_the_root() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}  # so that an editable install is a path
    for package in ("jambacli", "quant"):
        assert (REPO / package / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_checker_finds_what_is_misspelt(checker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    (tmp_path / "uses.py").write_text(_USES)
    environment = {**os.environ, "MYPYPATH": str(REPO), "PYTHONPATH": str(REPO)}
    if checker == "pyright":
        (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{REPO}"]}}')
    options = ["--follow-imports=silent", f"--cache-dir={tmp_path}"] if checker == "mypy" else []
    done = subprocess.run(
        [sys.executable, "-m", checker, *options, "uses.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "error" in line and "uses.py:" in line]
    assert {int(line.split("uses.py:")[1].split(":")[0]) for line in lines} == _WRONG, done.stdout + done.stderr


@pytest.mark.slow
def test_an_editable_install_is_a_path(tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    source = tmp_path / "source"
    for name in ("jambacli", "quant"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(REPO / name, source)
    code = f"import setuptools.build_meta as b; print(b.build_editable({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "CXX": "false"},  # the libraries are optional
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        paths = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert [wheel.read(name).decode().strip() for name in paths] == [str(source)]
