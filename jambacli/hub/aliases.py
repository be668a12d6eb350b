"""The table of short names: the built-in one (aliases.json), overridden by the user's own at JAMBA_HOME/aliases.json.

A table is ``{"models": {NAME: {"gguf": [REPO, ...], "weights": REPO, "quant": TYPE, ...}}, "aliases": {NAME: OTHER}}``.
An alias may stand for any name that ``jamba pull`` takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jambacli.errors import BadFileError, JambaError
from jambacli.files import jamba_home

FILE = "aliases.json"
#: The name of the demo model, which comes with the program.
DEMO_NAME = "jamba:tiny"
#: The type taken when neither the name nor the table says one.
DEFAULT_QUANT = "Q4_K_M"
SHORT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}(?::[a-z0-9][a-z0-9_.-]{0,63})?")
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """One model of the table.

    ``gguf``: repositories with GGUF files of it, best first. ``weights``: the repository of its HF checkpoint. ``quant``: the
    default type. ``sizes``: known sizes in bytes by type, so that what fits can be offered without asking the hub.
    """

    name: str
    gguf: tuple[str, ...]
    weights: str | None
    quant: str
    about: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All models and aliases by full name (``family:tag``, or a single word from the user's table)."""

    models: Mapping[str, Model]
    aliases: Mapping[str, str]

    def names(self) -> list[str]:
        """All short names, sorted."""
        return sorted({*self.models, *self.aliases})


def load_table() -> Table:
    """Both tables merged. Raises BadFileError, naming the entry, when the user's table is not valid."""
    models, aliases = _parse(Path(__file__).with_name(FILE).read_text(encoding="utf-8"), FILE)
    try:
        own = jamba_home() / FILE
    except JambaError:  # a user without a home directory has no table of their own
        return Table(models, aliases)
    if own.is_file():
        try:
            with own.open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadFileError(own, "is not UTF-8 text") from None
        more_models, more_aliases = _parse(text, own)
        # A name that the user redefines loses its built-in meaning, whether that was a model or an alias.
        models = {name: m for name, m in models.items() if name not in more_aliases} | more_models
        aliases = {name: a for name, a in aliases.items() if name not in more_models} | more_aliases
    return Table(models, aliases)


def _parse(text: str, path: str | Path) -> tuple[dict[str, Model], dict[str, str]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"is not JSON: {error}") from None
    if not isinstance(table, dict) or not table.keys() <= {"models", "aliases"}:
        raise BadFileError(path, 'must be an object with "models" and "aliases"')
    models = {name: _model(path, name, entry) for name, entry in _section(path, table, "models")}
    aliases = {}
    for name, target in _section(path, table, "aliases"):
        if not isinstance(target, str) or not target or not target.isprintable() or len(target) > 300:
            raise BadFileError(path, f"aliases.{name} must be a string: the name that it stands for")
        aliases[name] = target
    return models, aliases


def _section(path: str | Path, table: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    section = table.get(key, {})
    if not isinstance(section, dict):
        raise BadFileError(path, f'"{key}" must be an object')
    rows = []
    for name, entry in section.items():
        full = str(name).lower()
        if not SHORT.fullmatch(full):
            raise BadFileError(
                path, f"{key}: {name[:80]!a} is not a valid name; use letters, digits, _ . - and at most one colon"
            )
        rows.append((full, entry))
    return rows


def _model(path: str | Path, name: str, entry: Any) -> Model:
    if not isinstance(entry, dict):
        raise BadFileError(path, f"models.{name} must be an object")
    gguf, weights, quant = entry.get("gguf", []), entry.get("weights"), entry.get("quant", DEFAULT_QUANT)
    repos = [*gguf, *([] if weights is None else [weights])] if isinstance(gguf, list) else [None]
    if not all(isinstance(repo, str) and REPO.fullmatch(repo) for repo in repos):
        raise BadFileError(
            path, f"models.{name}: gguf must be a list of repositories (OWNER/REPO), weights must be one"
        )
    sizes, about = entry.get("sizes_gb", {}), entry.get("about", "")
    valid_sizes = isinstance(sizes, dict) and all(isinstance(s, (int, float)) and 0 < s < 1e6 for s in sizes.values())
    if not isinstance(quant, str) or not isinstance(about, str) or not valid_sizes:
        raise BadFileError(path, f"models.{name}: quant and about must be strings, sizes_gb must map types to numbers")
    return Model(name, tuple(gguf), weights, quant.upper(), about, {k.upper(): int(s * 1e9) for k, s in sizes.items()})
