"""The table of commands and options that completion in shells reads: jambacli/data/completion.json (see tools.cli_docs)."""

from __future__ import annotations

import json
from typing import Any

from jambacli.commands.common import first_sentence

#: What the values of options are, by name.
_OPTIONS = {
    "--model": "model",
    "--session": "session",
    "--preset": "preset",
    "--system": "text or file",
    "--chat-template": "file",
    "--kv-type": "one of f16 bf16 f32 q8_0 q5_1 q4_0",
    "--device": "one of auto cpu cuda",
    "--lookup": "one of on off",
    "--ocr": "one of auto off",
    "--style": "one of bullets prose",
    "--length": "one of short medium long",
    "--compare": "one of llama.cpp",
    "--fill": "one of read random",
    "--shape": "one of jamba-mini jamba-3b jamba-large moe",
}
#: What arguments are, by command and Python name, or by Python name alone.
_ARGUMENTS = {
    "pull name": "pull",
    "convert source": "file",
    "quantize source": "file",
    "quantize output": "file",
    "ask files": "file",
    "summarize files": "file",
    "batch inputs": "file",
    "run first": "model",
    "config set value": "value of setting",
    "rm names": "model",
    "chat name": "model",
    "bench name": "model",
    "model": "model",
    "models": "model",
    "reference": "model",
    "file": "file",
    "path": "file",
}
_GROUPS = {"sessions": "session", "preset": "preset", "config": "setting"}


def table() -> dict[str, Any]:
    """The table: of a group its ``commands`` and ``options``, of a command its ``options``, and what its ``arguments`` are;
    with ``repeats`` the last of them may come again."""
    import typer.main

    from jambacli.cli import make_app

    return _node("", typer.main.get_command(make_app()))


def as_text() -> str:
    """The table as the text of its file: one line a command."""
    found = table()
    lines = []
    for name, node in found["commands"].items():
        lines.append(f"{json.dumps(name)}: {json.dumps(node, ensure_ascii=False)}")
    head = {key: value for key, value in found.items() if key != "commands"}
    return json.dumps(head, ensure_ascii=False)[:-1] + ',\n"commands": {\n' + ",\n".join(lines) + "\n}}\n"


def _node(path: str, command: Any) -> dict[str, Any]:
    from typer.core import TyperArgument

    options: dict[str, list[str | None]] = {}
    for option in command.params:
        if not isinstance(option, TyperArgument) and not option.hidden:
            about = first_sentence(option.help or "")
            kind = None if option.is_flag else _option_kind(path, option)
            for name in [*option.opts, *option.secondary_opts]:
                options[name] = [kind, about]
    for name in ("-h", "--help"):
        options.setdefault(name, [None, "Show help"])
    node: dict[str, Any] = {"about": command.get_short_help_str(), "options": options}
    children = getattr(command, "commands", None)
    if children:
        return {**node, "commands": {name: _node(f"{path} {name}".strip(), child) for name, child in children.items()}}
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    kinds = [_argument_kind(path, a) for a in arguments]
    return {**node, "arguments": kinds, "repeats": any(a.nargs == -1 for a in arguments)}


def _option_kind(path: str, option: Any) -> str:
    if (choices := getattr(option.type, "choices", None)) is not None:
        return f"one of {' '.join(map(_plain, choices))}"
    longest = max(option.opts, key=len)
    if longest in ("--type", "--quant", "--output-type", "--embedding-type"):
        from jambacli.quantize.recipes import RECIPES

        return f"one of {' '.join(RECIPES)}"
    if longest == "--output" and path == "bench":
        return "one of md json csv"
    if longest in _OPTIONS:
        return _OPTIONS[longest]
    return "file" if option.type.name == "path" else "text"


def _argument_kind(path: str, argument: Any) -> str:
    if (choices := getattr(argument.type, "choices", None)) is not None:
        return f"one of {' '.join(map(_plain, choices))}"
    group = path.partition(" ")[0]
    for name in (f"{path} {argument.name}", argument.name):
        if name in _ARGUMENTS:
            return _ARGUMENTS[name]
    if group in _GROUPS and argument.name.startswith("name"):
        return _GROUPS[group]
    return "file" if argument.type.name == "path" else "text"


def _plain(choice: Any) -> str:
    return str(getattr(choice, "value", choice))
