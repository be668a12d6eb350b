"""Presets: a system message, sampling and perhaps a JSON schema under a name, as TOML files. Some come with the program.

``{{ name }}`` in a system message is filled in when the preset is used; ``{{ name = text }}`` has a text where nothing is
given.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import atomic_write, data_home, private_folder, read_regular
from jambacli.settings import SAMPLING

_SHIPPED = Path(__file__).parent / "data" / "presets"
_MAX_BYTES = 1 << 20
# The text ends before the next braces of either kind, so that the time is proportional to the message.
_VARIABLE = re.compile(r"\{\{\s*([^\W\d][\w-]*)\s*(?:=((?:(?!\{\{|\}\}).)*))?\}\}", re.DOTALL)
_SAMPLING = {s.name: s for s in SAMPLING}


def _is_variable(found: re.Match[str]) -> bool:
    """Whether what is in double braces is a variable: its text is one line."""
    return found[2] is None or "\n" not in found[2].strip()


@dataclass(frozen=True)
class Preset:
    """A preset. ``path``: its file. ``system``: the system message with its variables not filled in, None for none.

    ``options``: the values of options by their Python names, such as ``temp`` and ``max_tokens``, and ``stop``, a tuple.
    """

    name: str
    path: Path
    description: str = ""
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    model: str | None = None

    @property
    def shipped(self) -> bool:
        """Whether it comes with the program."""
        return self.path.parent == _SHIPPED

    @property
    def variables(self) -> dict[str, str | None]:
        """The variables of the system message, with the text of each where none is given, None where one is needed."""
        found: dict[str, str | None] = {}
        for m in _VARIABLE.finditer(self.system or ""):
            if _is_variable(m):
                found[m[1]] = found.get(m[1]) if m[2] is None else m[2].strip()
        return found

    def filled(self, given: Mapping[str, str]) -> str | None:
        """The system message with its variables. Raises UsageError for one that is missing, and for one that it lacks."""
        variables = self.variables
        if unknown := [name for name in given if name not in variables]:
            has = f"its variables are {', '.join(variables)}" if variables else "it has none"
            raise UsageError(f"the preset {self.name} has no variable {unknown[0]!r}; {has}")
        texts = {**{k: v for k, v in variables.items() if v is not None}, **given}
        if missing := [name for name in variables if name not in texts]:
            needed = " ".join(f"{name}=..." for name in missing)
            raise UsageError(f"the preset {self.name} needs {needed}", remedy="give it with {param}")
        if self.system is None:
            return None
        return _VARIABLE.sub(lambda m: texts[m[1]] if _is_variable(m) else m[0], self.system)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "name": self.name,
            "description": self.description,
            "shipped": self.shipped,
            "path": str(self.path),
            "system": self.system,
            "variables": self.variables,
            "model": self.model,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()},
            "schema": self.schema,
        }


def presets_folder() -> Path:
    """The directory of the user's presets, which need not exist. Raises JambaError for a user without a home directory."""
    return data_home() / "presets"


def check_name(name: str) -> str:
    """``name`` in NFC. Raises UsageError for one that is not up to 64 letters, digits, dots, dashes and underscores."""
    composed = unicodedata.normalize("NFC", name)
    if not re.fullmatch(r"\w[\w.-]{0,63}", composed) or len(composed.encode()) > 200:
        raise UsageError(f"{name[:80]!r} is not a preset's name; use letters, digits, dots, dashes and underscores")
    return composed


def files() -> dict[str, Path]:
    """The presets' files by name, sorted. A user's own comes before the shipped one of the same name."""
    found: dict[str, Path] = {}
    folders = [_SHIPPED]
    with contextlib.suppress(JambaError):
        folders.append(presets_folder())
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in folder.glob("*.toml"):
                with contextlib.suppress(UsageError):
                    found[check_name(path.stem)] = path
    return dict(sorted(found.items()))


def find(name: str) -> Preset:
    """The preset of that name, or of that path to a .toml file. Raises UsageError with similar names, BadFileError."""
    path = Path(name)
    if name.endswith(".toml") and path.is_file():
        return read(path, path.stem)
    known = files()
    found = known.get(unicodedata.normalize("NFC", name))
    if found is None:
        near = difflib.get_close_matches(name, known, 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"there is no preset {name[:60]!r}; {hint}")
    return read(found, name)


def readable() -> Iterator[Preset | BadFileError]:
    """Every preset by name, or the error of its file."""
    for name, path in files().items():
        try:
            yield read(path, name)
        except BadFileError as error:
            yield error


def read(path: Path, name: str) -> Preset:
    """The preset of a file. Raises BadFileError naming the file and the key that is wrong."""
    try:
        data = read_regular(path)
        if len(data) > _MAX_BYTES:
            raise BadFileError(path, f"is larger than {_MAX_BYTES >> 20} MB; a preset is smaller")
        values = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"is not TOML: {' '.join(str(error).split())}") from None
    texts = {key: values.pop(key, None) for key in ("description", "system", "model")}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise BadFileError(path, f"{key} is not a text")
    schema = values.pop("schema", None)
    return Preset(
        name,
        path,
        description=texts["description"] or "",
        system=texts["system"] or None,
        model=texts["model"] or None,
        schema=None if schema is None else _schema(path, schema),
        options=_options(path, values),
    )


def _schema(path: Path, value: Any) -> Mapping[str, Any]:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise BadFileError(path, "schema is not a JSON schema: it must be an object")
    return schema


def _options(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("_", "-")
        if name == "stop":
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
                raise BadFileError(path, "stop is not a list of texts")
            options["stop"] = tuple(texts)
        elif name in _SAMPLING:
            try:
                options[_SAMPLING[name].parameter] = _SAMPLING[name].check(value)
            except UsageError as error:
                raise BadFileError(path, f"{key} {error.problem}") from None
        else:
            known = ["description", "system", "schema", "model", "stop", *_SAMPLING]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise BadFileError(path, f"unknown key {key[:60]!r}; {hint}")
    return options


def save(preset: Preset, *, force: bool) -> Path:
    """Write a preset under its name into the user's folder; returns its path. Raises JambaError where one exists already,
    without ``force``."""
    name = check_name(preset.name)
    folder = private_folder(presets_folder(), "keep presets")
    path = folder / f"{name}.toml"
    if path.exists() and not force:
        raise JambaError(
            f"the preset {name} already exists", remedy="choose another name, or use {force} to replace it"
        )
    with atomic_write(path, private=True) as file:
        file.write(as_toml(preset).encode())
    return path


def remove(name: str) -> None:
    """Remove a preset of the user. Raises UsageError for one that comes with the program, or that does not exist."""
    preset = files().get(unicodedata.normalize("NFC", name))
    if preset is None:
        find(name)  # raises, with similar names
    elif preset.parent == _SHIPPED:
        raise UsageError(f"the preset {name} comes with the program and cannot be removed")
    else:
        try:
            preset.unlink()
        except OSError as error:
            raise JambaError(f"cannot remove {preset}: {error.strerror or error}") from error


def parse_given(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE arguments as a mapping. Raises UsageError for anything else."""
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError("is not NAME=VALUE, such as client=Acme", field="param", value=text[:60])
        given[name.strip()] = value
    return given


def as_toml(preset: Preset) -> str:
    """The text of a preset's file."""
    lines = []
    if preset.description:
        lines.append(f"description = {_text(preset.description)}")
    if preset.model:
        lines.append(f"model = {_text(preset.model)}")
    for name, value in preset.options.items():
        shown = json.dumps(value) if not isinstance(value, str | tuple) else ""
        if isinstance(value, tuple):
            shown = f"[{', '.join(map(_text, value))}]"
        lines.append(f"{name.replace('_', '-')} = {shown or _text(value)}")
    if preset.system:
        lines.append(f"system = {_long_text(preset.system)}")
    if preset.schema is not None:
        lines.append(f"schema = {_long_text(json.dumps(preset.schema, indent=2, ensure_ascii=False))}")
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """A text in TOML: as in JSON, whose escapes TOML has too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _long_text(text: str) -> str:
    """A text over several lines as people would write it, where it can be."""
    plain = all(c.isprintable() or c in "\n\t" for c in text) and "'''" not in text and not text.endswith("'")
    return f"'''\n{text}'''" if plain and "\n" in text else _text(text)
