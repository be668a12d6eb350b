"""Checks the structure that docs/architecture.md describes: imports run down, there is no import cycle, and below the front
ends nothing prints or names a command-line flag; and modules of quick commands import nothing slow at their top.

    python -m tools.check_imports

Exits with 1 and one line for each violation. CI runs it with the other lint steps.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

#: From the lowest floor to the highest. A module belongs to the longest entry that is its name or a package above it; it
#: may import modules of its own entry and of floors below. Entries of one line share a floor and do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("quant",),
    ("jambacli.errors", "jambacli.progress", "jambacli.startup"),
    ("jambacli.units", "jambacli.interrupts", "jambacli.keywords"),
    ("jambacli.unfinished",),
    ("jambacli.files", "jambacli.zip_guard"),
    ("jambacli.settings",),
    ("jambacli.presets",),
    ("jambacli.hardware", "jambacli.text", "jambacli.data"),
    ("jambacli.kernels",),
    ("jambacli.model.config",),
    ("jambacli.gguf",),
    ("jambacli.model",),
    ("jambacli.runtime",),
    ("jambacli.convert", "jambacli.quantize"),
    ("jambacli.cache",),
    ("jambacli.hub",),
    ("jambacli.engine",),
    ("jambacli.session",),
    ("jambacli.storage",),
    ("jambacli.documents",),
    ("jambacli.batch",),
    ("jambacli.chat",),
    ("jambacli.api",),
    ("jambacli.training", "jambacli.evaluation"),
    ("jambacli.gpu_check",),
    ("jambacli.ui",),
    ("jambacli.chat.screen",),
    ("jambacli.chat.terminal",),
    ("jambacli.server",),
    ("jambacli.commands",),
    ("jambacli.cli",),
    ("jambacli.__main__",),
)

#: The one upward import: ``jambacli.Jamba`` is looked up when it is first used.
LAZY = {("jambacli", "jambacli.api")}

#: Modules that talk to a person. All others log, call back and raise.
FRONT_ENDS = ("jambacli.cli", "jambacli.__main__", "jambacli.ui", "jambacli.commands", "jambacli.chat.screen",
              "jambacli.chat.terminal", "jambacli.server", "jambacli.gpu_check", "quant.native.build")  # fmt: skip

#: Modules that pass flags to other programs.
OTHER_PROGRAMS = (
    "jambacli.engine.serving_plan",
    "jambacli.evaluation.llama_cpp",
    "jambacli.documents.extract.tesseract",
)

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its path below the root, and its text."""

    name: str
    path: str
    text: str


def modules(root: Path = REPO) -> list[Module]:
    """Every module of the packages jambacli and quant below ``root``."""
    found = []
    for package in ("jambacli", "quant"):
        for path in sorted((root / package).rglob("*.py")):
            place = path.relative_to(root)
            parts = place.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, place.as_posix(), path.read_text(encoding="utf-8")))
    return found


def imports(module: Module, known: Mapping[str, Module]) -> Iterator[tuple[str, int]]:
    """Names of the ``known`` modules that ``module`` imports anywhere, functions and type checking included, with lines."""
    for node in ast.walk(ast.parse(module.text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: counted from the package that the module is in or is
                is_package = module.path.endswith("__init__.py")
                package = module.name.split(".")[: len(module.name.split(".")) + is_package - node.level]
                base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        else:
            continue
        for name in names:
            if name in known and name != module.name:
                yield name, node.lineno


def floor(name: str) -> tuple[int, str] | None:
    """The floor of a module and the entry of FLOORS that it belongs to, None for one that has no place."""
    best: tuple[int, str] | None = None
    for level, entries in enumerate(FLOORS):
        for entry in entries:
            if (name == entry or name.startswith(entry + ".")) and (best is None or len(entry) > len(best[1])):
                best = level, entry
    return best


def upward_imports(found: Iterable[Module]) -> list[str]:
    """A line for every import that does not run down, and for every module that has no floor."""
    known = {m.name: m for m in found}
    lines = []
    for module in known.values():
        here = floor(module.name)
        if here is None and module.name != "jambacli":
            lines.append(f"{module.path}: {module.name} has no floor; add it to FLOORS in tools/check_imports.py")
        for name, line in imports(module, known):
            if name == "jambacli" or (module.name, name) in LAZY:
                continue
            there = floor(name)
            if there is None or here is None or there[1] == here[1] or there[0] < here[0]:
                continue
            lines.append(
                f"{module.path}:{line}: {module.name} (floor {here[1]}) imports {name} (floor {there[1]}), which is not below "
                "it; move what both need to a lower module, or pass it as an argument"
            )
    return lines


def import_cycles(found: Iterable[Module]) -> list[list[str]]:
    """The import cycles: groups of modules that import each other (Tarjan's strongly connected components)."""
    known = {m.name: m for m in found}
    edges = {
        m.name: {n for n, _ in imports(m, known) if n != "jambacli" and (m.name, n) not in LAZY} for m in known.values()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return groups


def console_uses(found: Iterable[Module]) -> list[str]:
    """A line for every use of the console, every print and every flag named in a text or comment below the front ends."""
    return [line for module in found if not module.name.startswith(FRONT_ENDS) for line in _console_uses(module)]


@functools.cache
def _console_uses(module: Module) -> tuple[str, ...]:
    lines = []
    for node in ast.walk(ast.parse(module.text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            lines.append(
                f"{module.path}:{node.lineno}: print() below the front ends; use logging, or a Progress callback"
            )
        if isinstance(node, ast.ImportFrom) and (
            node.module == "jambacli.ui"
            or (node.module == "jambacli" and any(alias.name == "ui" for alias in node.names))
        ):
            lines.append(f"{module.path}:{node.lineno}: imports jambacli.ui; use logging, or a Progress callback")
    if module.name in OTHER_PROGRAMS:
        return tuple(lines)
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        middle = getattr(tokenize, "FSTRING_MIDDLE", -1)  # Python 3.12 takes f-strings apart
        if token.type in (tokenize.STRING, tokenize.COMMENT, middle) and (flag := _FLAG.search(token.string)):
            line = token.start[0] + token.string.count("\n", 0, flag.start())
            lines.append(f"{module.path}:{line}: names the flag {flag[0]}; name the option instead")
    return tuple(lines)


#: Packages that take a tenth of a second or more to import: functions import them, so that `jamba --help` is immediate.
SLOW_PACKAGES = frozenset({"torch", "transformers", "huggingface_hub", "llguidance", "rich"})

#: What every command may import at the top of a file.
FAST_MODULES = ("jambacli.cli", "jambacli.commands", "jambacli.hub", "jambacli.gguf", "jambacli.documents")

#: Modules of those packages that are imported in a function, where their slow package is needed anyway.
LATE_MODULES = ("jambacli.commands.show_page",)


def _top_imports(module: Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when ``module`` is imported: neither those in functions nor those for type checkers."""
    waiting: list[ast.AST] = [ast.parse(module.text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def slow_imports(found: Iterable[Module]) -> list[str]:
    """A line for every module of FAST_MODULES whose import also imports a slow package, directly or through others."""
    known = {m.name: m for m in found}
    slow: dict[str, str] = {}  # what a module itself imports
    edges: dict[str, set[str]] = {}
    for module in known.values():
        statements = list(_top_imports(module))
        for node in statements:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if getattr(node, "level", 0) == 0 and name.partition(".")[0] in SLOW_PACKAGES:
                    slow[module.name] = name
        text = "\n".join(ast.unparse(node) for node in statements)
        targets = {name for name, _ in imports(replace(module, text=text), known)}
        # Importing a module imports the packages above it.
        edges[module.name] = {".".join(t.split(".")[:n]) for t in targets for n in range(1, t.count(".") + 2)} & set(
            known
        )
    fast = {n for n in known if any(n == f or n.startswith(f + ".") for f in FAST_MODULES)} - set(LATE_MODULES)
    lines = []
    for name in sorted(fast):
        reached, waiting = {name}, [name]
        while waiting:
            other = waiting.pop(0)
            if other in slow:
                through = "" if other == name else f" (through {other})"
                lines.append(f"{known[name].path}: imports {slow[other]}{through} at the top; import it in a function")
                break
            new = edges[other] - reached - fast  # other fast modules have lines of their own
            reached |= new
            waiting += sorted(new)
    return lines


def main() -> None:
    """Print every violation and leave with 1 if there is one."""
    found = modules()
    lines = [
        *upward_imports(found),
        *(
            f"import cycle: {', '.join(group)}; move what they share to a module of its own"
            for group in import_cycles(found)
        ),
        *console_uses(found),
        *slow_imports(found),
    ]
    for line in lines:
        print(line, file=sys.stderr)
    print(f"imports: {len(found)} modules, {len(FLOORS)} floors, {len(lines)} violations")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
