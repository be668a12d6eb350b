"""GGUF's general.* keys: name, licence, base models and sampling defaults, from a checkpoint's model card and JSON files.

The model card is README.md with YAML front matter (https://huggingface.co/docs/hub/model-cards). Where it is damaged, a
warning is logged and the conversion continues without it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jambacli.convert.hf_checkpoint import read_json
from jambacli.errors import JambaError
from jambacli.gguf import jamba_metadata as keys

MAX_CARD_BYTES = 64 << 10
MAX_ENTRIES = 200
Rows = list[tuple[str, Any, str]]

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
SAMPLING = {
    "temperature": ("general.sampling.temp", "f32", 0.0, 100.0),
    "top_p": ("general.sampling.top_p", "f32", 0.0, 1.0),
    "min_p": ("general.sampling.min_p", "f32", 0.0, 1.0),
    "top_k": ("general.sampling.top_k", "i32", 0, 1 << 30),
    "repetition_penalty": ("general.sampling.penalty_repeat", "f32", 0.0, 100.0),
}


def general_metadata(folder: Path, config: Mapping[str, Any], *, name: str | None, size_label: str) -> Rows:
    """general.name, licence, base models, tags, languages and sampling defaults, as (key, value, GGUF type).

    ``name`` is the user's choice; without it, the name is the card's, the hub repository's or the directory's, in this
    order. ``size_label`` is the parameter count as text ("52B").
    """
    card = read_card(folder / "README.md")
    repo = repo_id(folder, config)
    title = name or _text(card.get("model_name")) or model_name(folder, config)
    rows: Rows = [
        ("general.type", "model", "str"),
        (keys.NAME, title, "str"),
        ("general.size_label", size_label, "str"),
    ]
    if repo:
        rows.append(("general.organization", repo.split("/")[0], "str"))
        rows.append(("general.source.repo_url", f"https://huggingface.co/{repo}", "str"))
    licence = card.get("license")
    licence = ",".join(_texts(licence)) if isinstance(licence, list) else _text(licence)
    for key, value in (
        (keys.LICENSE, licence),
        ("general.license.name", _text(card.get("license_name"))),
        ("general.license.link", _text(card.get("license_link"))),
        ("general.author", _text(card.get("model_creator"))),
    ):
        if value:
            rows.append((key, value, "str"))
    rows += _base_models(card.get("base_model"))
    for key, field in (("general.tags", "tags"), ("general.languages", "language")):
        if values := _texts(card.get(field)):
            rows.append((key, values, "arr[str]"))
    return rows + _sampling(folder / "generation_config.json")


def model_name(folder: Path, config: Mapping[str, Any]) -> str:
    """The model's short name: the hub repository's, or else the directory's."""
    repo = repo_id(folder, config)
    return repo.split("/")[1] if repo else folder.resolve().name or "model"


def repo_id(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The hub repository of a checkpoint, from its path in the hub's cache or from config.json; None where unknown."""
    for part in reversed(folder.absolute().parts):
        if match := _SNAPSHOT.fullmatch(part):
            return f"{match['owner']}/{match['name']}"
    kept = config.get("_name_or_path")
    return kept if isinstance(kept, str) and _REPO_ID.fullmatch(kept) and not Path(kept).exists() else None


def read_card(path: Path) -> dict[str, Any]:
    """The front matter of a README.md; {} where there is none, and with a warning where it is damaged."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        logger.warning("%s: cannot read the model card: %s", path, error.strerror or error)
        return {}
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        value = _parse_yaml(match[1])
    except _BadCard as error:
        logger.warning(
            "%s: the model card's front matter is unreadable (%s); licence and base model are left out", path, error
        )
        return {}
    return value if isinstance(value, dict) else {}


class _BadCard(Exception):
    """The YAML cannot be used; the message says why."""


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            # Aliases can expand a few lines to gigabytes, and no model card needs them.
            if self.check_event(yaml.AliasEvent):
                raise _BadCard("it uses YAML aliases")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise _BadCard(" ".join(str(error).split())[:100]) from None


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for v in values[:MAX_ENTRIES] if (text := _text(v))]


def _base_models(value: Any) -> Rows:
    models = _texts(value)
    rows: Rows = [("general.base_model.count", len(models), "u32")] if models else []
    for i, model in enumerate(models):
        key, named = f"general.base_model.{i}.", model.removeprefix("https://huggingface.co/")
        rows.append((key + "name", named.rsplit("/", 1)[-1], "str"))
        if _REPO_ID.fullmatch(named):
            rows.append((key + "organization", named.split("/")[0], "str"))
            rows.append((key + "repo_url", f"https://huggingface.co/{named}", "str"))
    return rows


def _sampling(path: Path) -> Rows:
    """generation_config.json's sampling settings, unless do_sample is false."""
    if not path.is_file():
        return []
    try:
        settings = read_json(path)
    except JambaError as error:
        logger.warning("%s; sampling defaults are left out", error)
        return []
    if settings.get("do_sample") is False:
        return []
    rows: Rows = []
    for field, (key, kind, minimum, maximum) in SAMPLING.items():
        value = settings.get(field)
        whole = kind != "i32" or isinstance(value, int)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and whole and minimum <= value <= maximum:
            rows.append((key, value, kind))
    return rows
