"""Texts that are given in files besides the documents: a system message, a chat template. They are decoded as documents are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from jambacli.documents.extract.plain import decode
from jambacli.documents.paths import shown
from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import path_of

logger = logging.getLogger(__name__)

#: The largest file, in bytes.
MAX_FILE = 64 << 20


def read_text_file(path: Path) -> str:
    """The text of a file, with ``\\n`` line ends; a guessed encoding is logged as a warning.

    Raises JambaError with one line for a file that is missing, empty, binary or too large.
    """
    name = shown(path)
    try:
        if path.is_dir():
            raise BadFileError(name, "is a directory, not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        raise JambaError(f"there is no file {name}") from error
    except OSError as error:
        raise JambaError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file system allows
        raise JambaError(f"cannot read {name}: {error}") from error
    if len(data) > MAX_FILE:
        raise BadFileError(name, f"is larger than {MAX_FILE >> 20} MB")
    text, remark = decode(data, name)
    if remark is not None:
        logger.warning("%s: %s", name, remark)
    return text


def text_or_file(text: str, option: str) -> str:
    """``text``, or for ``@FILE`` the text of that file without line breaks at its end; ``@@`` stands for an @ at the beginning.

    ``option``: the Python name of what the text is for. Raises UsageError for an @ alone, JambaError for the file.
    """
    if not text.startswith("@"):
        return text
    if text.startswith("@@"):
        return text[1:]
    if text[1:].strip() in ("", "-"):
        raise UsageError("needs the name of a file after the @ (@@ for a text that begins with @)", field=option)
    path = path_of(text[1:])
    try:
        return read_text_file(path).rstrip("\n")
    except JambaError as error:
        if error.__cause__ is None or not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise JambaError(f"{error.problem}; a text that begins with @ is written @@") from error


def read_chat_template(given: str | Path) -> tuple[str, str]:
    """A chat template and its name in errors. ``given``: the path of a file, or the template itself, which has braces.

    The file is Jinja, or JSON with the key "chat_template", as tokenizer_config.json. Raises JambaError for a file that cannot
    be read or is no chat template, TemplateError for one that does not parse.
    """
    from jambacli.text.template import compiled

    path = path_of(str(given))
    if isinstance(given, str) and ("{{" in given or "{%" in given) and not _is_file(path):
        source, name = given, "the chat template"
    else:
        source, name = read_text_file(path), shown(path)
        source = _from_json(source, name)
    compiled(source, name)
    if "messages" not in source:
        raise BadFileError(name, "is not a chat template: it does not read the variable `messages`")
    return source, name


def _is_file(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _from_json(text: str, name: str) -> str:
    """The template in a JSON file, or ``text`` itself if it is not JSON."""
    if not text.lstrip().startswith("{") or text.lstrip().startswith(("{%", "{{", "{#")):
        return text
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(found, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise BadFileError(name, 'is JSON without a chat template: it has no text "chat_template"')
    return found
