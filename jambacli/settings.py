"""The user's defaults: environment variables such as ``JAMBA_TEMP``, and ``config.toml``; and where each value comes from.

The file is flat: one ``name = value`` a line. It is changed line by line, so that comments and order stay as they are.
"""

from __future__ import annotations

import difflib
import functools
import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import atomic_write, config_home, path_of, read_regular
from jambacli.units import parse_size

logger = logging.getLogger(__name__)

#: The path of another file than ``config.toml`` in ``config_home``.
FILE_VARIABLE = "JAMBA_CONFIG"
_MAX_BYTES = 1 << 20
_ON, _OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")
_KEY = re.compile(r"""\s*(?:"([^"\\]*)"|'([^']*)'|([\w-]+))\s*=""", re.ASCII)


@dataclass(frozen=True)
class Setting:
    """One default. ``name``: as in the file. ``kind``: text, number, integer, size, switch or choice. ``about``: for people.
    ``unset``: what holds where nothing is set. ``low``, ``high``: of numbers. ``choices``: texts that are allowed; for the
    kind text a regular expression, with ``example`` what to write."""

    name: str
    kind: str
    about: str
    unset: str = "the model's"
    low: float = 0
    high: float = 1 << 53
    choices: tuple[str, ...] = ()
    pattern: str = ""
    example: str = ""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "JAMBA_" + self.parameter.upper()

    @property
    def parameter(self) -> str:
        """The Python name of the command line's option."""
        return self.name.replace("-", "_")

    def parse(self, text: str) -> Any:
        """The value that a text means. Raises UsageError, without the name, for another."""
        plain = text.strip()
        if self.kind == "switch":
            if plain.lower() not in _ON + _OFF:
                raise UsageError("is neither on nor off")
            return plain.lower() in _ON
        if self.kind in ("number", "integer"):
            return self._number(plain)
        if self.kind == "choice":
            if plain.lower() not in self.choices:
                raise UsageError(f"is not one of {', '.join(self.choices)}")
            return plain.lower()
        if self.kind == "size":
            try:
                positive = parse_size(plain) > 0
            except UsageError:
                positive = False
            if not positive:
                raise UsageError("is not a size; write it like 4096, 256k or 20G")
            return plain
        if not plain or not text.isprintable() or len(text) > 4096:
            raise UsageError("is empty or not a plain line of text")
        if self.pattern and not re.fullmatch(self.pattern, plain, re.ASCII):
            raise UsageError(f"is not {self.example}")
        return plain

    def check(self, value: Any) -> Any:
        """A value of a TOML file, as ``parse`` gives it. Raises UsageError, without the name, for another."""
        if isinstance(value, bool):
            if self.kind != "switch" and set(self.choices) != {"on", "off"}:
                raise UsageError(f"is not {_KINDS[self.kind]}")
            return self.parse("on" if value else "off")
        if isinstance(value, int | float) and self.kind not in ("number", "integer", "size"):
            raise UsageError(f"is not {_KINDS[self.kind]}")
        if not isinstance(value, str | int | float):
            raise UsageError(f"is not {_KINDS[self.kind]}")
        return self.parse(value if isinstance(value, str) else repr(value))

    def _number(self, text: str) -> int | float:
        try:
            value = int(text) if self.kind == "integer" else float(text)
        except ValueError:
            raise UsageError(f"is not {_KINDS[self.kind]}") from None
        if not self.low <= value <= self.high:  # also refuses NaN
            raise UsageError(f"is outside {self.low:g} to {self.high:g}")
        return value


_KINDS = {
    "text": "a text",
    "number": "a number",
    "integer": "a whole number",
    "size": "a size; write it like 4096, 256k or 20G",
    "switch": "on or off",
    "choice": "a text",
}
#: How replies are chosen: what a preset may set too.
SAMPLING = (
    Setting("temp", "number", "Temperature; 0 is greedy.", high=100),
    Setting("top-k", "integer", "Keep the K most likely tokens; 0: all.", high=1 << 31),
    Setting("top-p", "number", "Keep the most likely tokens, up to this total probability.", high=1),
    Setting("min-p", "number", "Drop tokens less likely than this fraction of the most likely.", high=1),
    Setting("typical-p", "number", "Keep the most typical tokens, up to this probability.", high=1),
    Setting("repeat-penalty", "number", "Divide the logits of repeated tokens by this.", low=1e-3, high=100),
    Setting("presence-penalty", "number", "Subtract this from the logits of repeated tokens.", low=-100, high=100),
    Setting("frequency-penalty", "number", "Subtract this per repetition.", low=-100, high=100),
    Setting("penalty-last-n", "integer", "Apply penalties to this many last tokens; -1: all.", low=-1, high=1 << 31),
    Setting("seed", "integer", "The same seed gives the same text.", "a new one each time"),
    Setting("max-tokens", "integer", "Stop after this many tokens.", "the context", low=1),
    Setting("think", "switch", "Let a model that can think do so before it answers.", "the template's"),
)
#: Where and how a model computes.
RUNTIME = (
    Setting("ctx", "size", "Context length, such as 256k."),
    Setting("kv-type", "choice", "Type of keys and values.", "f16", choices=("f16", "bf16", "f32", "q8_0", "q5_1", "q4_0")),
    Setting("threads", "integer", "CPU threads.", "the cores", low=1, high=1024),
    Setting(
        "device", "text", "auto, cpu, cuda or cuda:N.", "auto",
        pattern=r"auto|cpu|cuda(:\d{1,3})?", example="auto, cpu, cuda or cuda:N",
    ),
    Setting("gpu-memory", "size", "Use at most this much GPU memory, such as 20G.", "all that is free"),
    Setting("cpu-experts", "integer", "Keep the experts of this many layers in RAM.", "as many as do not fit", high=1024),
    Setting("cpu-kv", "switch", "Keep keys and values in RAM, not on the GPU.", "off"),
    Setting("precise", "switch", "Round activations less: slower, closer to the exact model.", "off"),
    Setting("lookup", "choice", "Draft tokens from earlier text.", "on where it is fast", choices=("on", "off")),
)  # fmt: skip
SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting("model", "text", "The model of commands that name none.", "the last used"),
        *SAMPLING,
        *RUNTIME,
        Setting("stats", "switch", "Print speed, token counts and memory after a reply.", "off"),
        Setting("no-store", "switch", "Store no text or state on disk.", "off"),
        Setting("language", "text", "Answer questions about documents in this language.", "the question's"),
        Setting("ocr", "text", "Recognize scanned pages: auto, off or tesseract's languages.", "auto"),
        Setting("theme", "choice", "Colours of the terminal.", "auto", choices=("auto", "dark", "light", "plain")),
        Setting("pager", "text", "A command that shows long texts, or off.", "PAGER"),
    )
}


@dataclass(frozen=True)
class Value:
    """A value and where it is set: ``source`` is environment or file, ``where`` the variable or the file's path."""

    value: Any
    source: str
    where: str


def config_path() -> Path:
    """The file of the defaults: that of ``JAMBA_CONFIG``, or ``config.toml`` in ``config_home``. Raises JambaError."""
    if (path := os.environ.get(FILE_VARIABLE, "")).strip():
        return path_of(path)
    return config_home() / "config.toml"


def known(name: str) -> Setting:
    """The setting of that name, with dashes or underscores. Raises UsageError, with similar names."""
    setting = SETTINGS.get(name.strip().lower().replace("_", "-"))
    if setting is None:
        near = difflib.get_close_matches(name.lower(), SETTINGS, 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SETTINGS)}"
        raise UsageError(f"unknown setting {name[:60]!r}; {hint}")
    return setting


def find(name: str) -> Value | None:
    """Where a setting gets its value from besides the command line; None where it is not set.

    Raises UsageError for a value that is not one, naming the variable, or the file and the key; BadFileError for a file that
    is not TOML.
    """
    setting = SETTINGS[name]
    return _of_environment(setting) or _of_file(setting)


def value(name: str) -> Any:
    """The value of a setting, None where it is not set. Raises as ``find`` does."""
    found = find(name)
    return None if found is None else found.value


def _of_environment(setting: Setting) -> Value | None:
    text = os.environ.get(setting.variable, "")
    if not text.strip():
        return None
    try:
        return Value(setting.parse(text), "environment", setting.variable)
    except UsageError as error:
        raise UsageError(f"{setting.variable}={text[:60]!r} {error.problem}") from None


def _of_file(setting: Setting) -> Value | None:
    try:
        path = config_path()
    except JambaError:  # a user without a home directory has no file
        return None
    given = read_file(path).get(setting.name)
    if given is None:
        return None
    try:
        return Value(setting.check(given), "file", str(path))
    except UsageError as error:
        raise UsageError(f"{path}: {setting.name} = {_toml(given)[:60]} {error.problem}") from None


def read_file(path: Path) -> Mapping[str, Any]:
    """The names and values of a file, not checked; empty where there is none. Unknown names are logged once and left out.

    Raises BadFileError for a file that is not TOML or cannot be read.
    """
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror or error}") from error
    return _parsed(path, data)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, data: bytes) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for key, given in _toml_of(path, data).items():
        try:
            name = known(key).name
        except UsageError as error:
            logger.warning("%s: %s", path, error.problem)
            continue
        found[name] = given
    return found


def _toml_of(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) > _MAX_BYTES:
        raise BadFileError(path, f"is larger than {_MAX_BYTES >> 10} kB; a file of settings is smaller")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"is not TOML: {' '.join(str(error).split())}") from None


def write(name: str, text: str | None) -> Path:
    """Set a setting in the file, or with None remove it; returns the file's path. Other lines stay as they are.

    Raises UsageError for a value that is not one, BadFileError for a file that is damaged, JambaError for one that cannot be
    written.
    """
    setting = known(name)
    chosen: Any = None
    if text is not None:
        try:
            chosen = setting.parse(text)
        except UsageError as error:
            raise UsageError(f"{setting.name} {text[:60]!r} {error.problem}") from None
    path = config_path()
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        data = b""
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror or error}") from error
    had = _toml_of(path, data)
    before = data.decode("utf-8-sig")
    after = _edited(before, setting.name, chosen)
    others = {k: v for k, v in had.items() if k.replace("_", "-") != setting.name}
    wanted = others if chosen is None else {**others, setting.name: chosen}
    try:
        right = _toml_of(path, after.encode()) == wanted
    except BadFileError:
        right = False
    if not right:  # a value over several lines, say
        raise BadFileError(path, f"{setting.name} cannot be changed in place; edit the file")
    if after == before:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}") from error
    # Behind a link, if it is one: files of settings are often kept elsewhere.
    with atomic_write(path) as file:
        file.write(after.encode())
    return path


def _edited(text: str, name: str, chosen: Any) -> str:
    """The text of the file with the line of a setting changed, added before the first table, or removed."""
    line = None if chosen is None else f"{name} = {_toml(chosen)}"
    lines = text.splitlines(keepends=True)
    end = next((i for i, one in enumerate(lines) if one.lstrip().startswith("[")), len(lines))
    for i, one in enumerate(lines[:end]):
        found = _KEY.match(one)
        if found and next(g for g in found.groups() if g is not None).replace("_", "-") == name:
            comment = re.search(r"\s+#[^\"']*$", one.rstrip("\r\n"))
            lines[i] = "" if line is None else f"{line}{comment[0] if comment else ''}\n"
            return "".join(lines)
    if line is None:
        return text
    if end and not lines[end - 1].endswith("\n"):
        lines[end - 1] += "\n"
    return "".join([*lines[:end], f"{line}\n", *lines[end:]])


def _toml(given: Any) -> str:
    """A value as TOML: texts as in JSON, whose escapes TOML has too."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        return json.dumps(given, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(given)
