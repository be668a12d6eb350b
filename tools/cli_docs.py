"""Writes docs/cli.md, the man page docs/jamba.1 and the table for completion from the Typer app, or checks them.

python -m tools.cli_docs            # write them
python -m tools.cli_docs --check    # exit with 1 when one is out of date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_HEAD = """# The commands

Generated from the program by `make docs`; `make lint` fails when this page is out of date.
Sizes are accepted as people write them: `4096`, `256k`, `20G`. Results go to stdout, everything else to stderr.
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
"""


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    kind = "" if parameter.is_flag or not parameter.metavar else f" {parameter.metavar}"
    default = parameter.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and str(default) != ""
    shown = f" Default: `{default}`." if plain else ""
    return f"| {names}{kind.replace('|', chr(92) + '|')} | {parameter.help or ''}{shown} |"


def _command(path: str, command: Any) -> list[str]:
    from typer.core import TyperArgument

    lines = [f"## jamba {path}".rstrip(), "", " ".join((command.help or "").split()), ""]
    children = getattr(command, "commands", None)
    if children:
        for name in children:
            lines += _command(f"{path} {name}".strip(), children[name])
        return lines
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    general = ("help", "quiet", "verbose", "log", "debug")
    options = [p for p in command.params if not isinstance(p, TyperArgument) and p.name not in general and not p.hidden]
    usage = " ".join(["jamba", path, *map(_metavar, arguments)])
    lines += ["```", usage + (" [OPTIONS]" if options else ""), "```", ""]
    for argument in arguments:
        lines.append(f"- `{_metavar(argument)}`: {argument.help or ''}")
    if arguments:
        lines.append("")
    if options:
        lines += ["| option | |", "| --- | --- |", *(_option(o) for o in options), ""]
    return lines


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def render() -> str:
    """The whole page."""
    import typer.main

    from jambacli.cli import make_app

    group: Any = typer.main.get_command(make_app())
    lines = [_HEAD]
    general = [p for p in group.params if p.name not in ("help", "install_completion", "show_completion")]
    lines += [
        "## Before or behind the command",
        "",
        "| option | |",
        "| --- | --- |",
        *(_option(o) for o in general),
        "",
    ]
    for name in group.commands:
        lines += _command(name, group.commands[name])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> None:
    """Write or check the files of the checkout this runs in."""
    from tools import completion_table, man_page

    root = Path(__file__).resolve().parents[1]
    texts = {
        "docs/cli.md": render(),
        "docs/jamba.1": man_page.render(),
        "jambacli/data/completion.json": completion_table.as_text(),
    }
    for name, text in texts.items():
        path = root / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"error: {name} is out of date; run `make docs` and commit it", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
