"""The structure of the packages holds: imports run down, none in a circle, only front ends print or name flags."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest

from tools import check_imports
from tools.check_imports import Module

FOUND = check_imports.modules()


def with_line(name: str, line: str) -> list[Module]:
    """The modules, with one line more in the module called ``name``."""
    assert any(m.name == name for m in FOUND)
    return [replace(m, text=f"{m.text}\n{line}\n") if m.name == name else m for m in FOUND]


def test_every_import_runs_down() -> None:
    assert check_imports.upward_imports(FOUND) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert check_imports.import_cycles(FOUND) == []


def test_only_front_ends_print_or_name_flags() -> None:
    assert check_imports.console_uses(FOUND) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("quant.formats", "from jambacli.errors import JambaError"),
        ("jambacli.kernels.reference", "import jambacli.model.jamba"),
        ("jambacli.engine.sequence", "from jambacli.session import session"),
        ("jambacli.session.session", "def f() -> None:\n    from jambacli.api import Jamba"),
        ("jambacli.cache.prefix_store", "from ..engine import sequence"),
        ("jambacli.hub.names", "from jambacli import ui"),
    ],
)
def test_an_upward_import_is_reported(module: str, line: str) -> None:
    lines = check_imports.upward_imports(with_line(module, line))
    assert len(lines) == 1 and module in lines[0]


def test_a_module_without_a_floor_is_reported() -> None:
    lines = check_imports.upward_imports([*FOUND, Module("jambacli.attic", "jambacli/attic.py", "")])
    assert len(lines) == 1 and "jambacli.attic has no floor" in lines[0]


def test_a_circle_is_reported_with_its_modules() -> None:
    assert check_imports.import_cycles(with_line("jambacli.errors", "from jambacli import units")) == [
        ["jambacli.errors", "jambacli.units"]
    ]


@pytest.mark.parametrize(
    "line",
    [
        "print('text')",
        "from jambacli import ui",
        "from jambacli.ui import note",
        "raise ValueError('use --ctx 4k')",
        "raise ValueError(f'use --ctx {1}')",
        "x = 1  # what --temp sets",
        '"""Sets --temp."""',
    ],
)
def test_console_and_flags_below_the_front_ends_are_reported(line: str) -> None:
    lines = check_imports.console_uses(with_line("jambacli.engine.sampling", line))
    assert len(lines) == 1 and lines[0].startswith("jambacli/engine/sampling.py:")


def test_a_front_end_may_print_and_name_flags() -> None:
    assert check_imports.console_uses(
        with_line("jambacli.commands.run", "print('use --ctx')")
    ) == check_imports.console_uses(FOUND)


def test_no_command_imports_a_slow_package_at_the_top() -> None:
    assert check_imports.slow_imports(FOUND) == []


@pytest.mark.parametrize(
    ("module", "line", "reported"),
    [
        ("jambacli.cli", "import torch", "imports torch at"),
        ("jambacli.commands.run", "from rich.console import Console", "imports rich.console at"),
        ("jambacli.commands.run", "try:\n    import torch.nn\nexcept ImportError:\n    pass", "imports torch.nn at"),
        (
            "jambacli.commands.run",
            "from jambacli.commands import show_page",
            "rich.console (through jambacli.commands.sh",
        ),
        ("jambacli.gguf.reader", "from quant import legacy", "imports torch (through quant.legacy)"),
        ("jambacli.hub", "class A:\n    from huggingface_hub import HfApi", "imports huggingface_hub at"),
    ],
)
def test_a_slow_import_at_the_top_is_reported(module: str, line: str, reported: str) -> None:
    lines = check_imports.slow_imports(with_line(module, line))
    assert len(lines) == 1 and lines[0].startswith(module.replace(".", "/")) and reported in lines[0]


@pytest.mark.parametrize(
    "line",
    [
        "def f() -> None:\n    import torch",
        "if TYPE_CHECKING:\n    import torch",
        "from jambacli.ui import note",
        "import tomllib",
    ],
)
def test_imports_in_functions_and_for_type_checkers_are_allowed(line: str) -> None:
    assert check_imports.slow_imports(with_line("jambacli.commands.run", line)) == []


def test_no_test_module_imports_another() -> None:
    wrong = []
    for path in sorted((check_imports.REPO / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}: {n}" for n in names if re.fullmatch(r"tests\.(\w+\.)*(test_\w+|conftest)", n)]
    assert wrong == []


def test_every_module_that_the_fast_run_leaves_out_exists() -> None:

    tests = check_imports.REPO / "tests"
    names = (tests / "longer_modules.txt").read_text(encoding="utf-8").split()
    assert [name for name in names if not (tests / f"{name}.py").is_file()] == []
