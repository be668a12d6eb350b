"""The man page jamba(1), from the same Typer app as docs/cli.md (see tools.cli_docs)."""

from __future__ import annotations

import re
from typing import Any

_HEAD = """.\\" Generated from the program by `make docs`.
.TH JAMBA 1 "" "jamba {version}" "User Commands"
.SH NAME
jamba \\- run AI21's Jamba models locally
.SH SYNOPSIS
.B jamba
.RI [ OPTIONS ]
.I COMMAND
.RI [ ARGUMENTS ]
.SH DESCRIPTION
{about}
Results go to standard output, everything else to standard error.
Sizes are accepted as people write them: 4096, 256k, 20G.
"""


def render() -> str:
    """The whole page."""
    import typer.main

    from jambacli import __version__, settings
    from jambacli.cli import make_app
    from jambacli.commands.config import VARIABLES

    group: Any = typer.main.get_command(make_app())
    lines = [_HEAD.format(version=_text(__version__), about=_text(group.help))]
    lines += [".SH OPTIONS BEFORE OR BEHIND THE COMMAND", *_options(group)]
    lines.append(".SH COMMANDS")
    for name, command in group.commands.items():
        lines += _command(f"jamba {name}", command)
    lines.append(".SH ENVIRONMENT")
    for name, about in VARIABLES.items():
        lines += [".TP", f".B {_text(name)}", _text(about[0].upper() + about[1:] + ".")]
    named = list(settings.SETTINGS.values())
    lines += [
        ".TP",
        ".B " + _text(named[0].variable) + ", ...",
        "The defaults of options, which come before the file's:",
    ]
    lines.append(_text(", ".join(s.variable for s in named) + "."))
    lines += [
        ".SH FILES",
        ".TP",
        ".I config.toml",
        "The defaults of options, one NAME = VALUE a line.",
        "\\fBjamba config path\\fR says where it is, \\fBjamba config\\fR what holds.",
        ".SH EXIT STATUS",
        ".TP",
        ".B 0",
        "Success.",
        ".TP",
        ".B 1",
        "Failure.",
        ".TP",
        ".B 2",
        "Wrong usage.",
        ".TP",
        ".B 130",
        "Interrupted by Ctrl\\-C.",
        ".SH EXAMPLES",
        *_example("Answer a prompt:", 'jamba run jamba:3b "Why is the sky blue?"'),
        *_example(
            "Ask about documents, with the pages that the answer is from:", 'jamba ask *.pdf "When?" --citations'
        ),
        *_example("Go on with a conversation:", "jamba chat --session plans"),
        *_example("Set a default:", "jamba config set model jamba:3b"),
    ]
    return "\n".join(line for line in lines if line).rstrip() + "\n"


def _command(path: str, command: Any) -> list[str]:
    from typer.core import TyperArgument

    children = getattr(command, "commands", None)
    lines = [f".SS {_text(path)}", _text(command.help)]
    if children:
        own = [o for o in _options(command) if o]
        lines += own
        for name, child in children.items():
            lines += _command(f"{path} {name}", child)
        return lines
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    usage = " ".join(f"\\fI{_text(_metavar(a))}\\fR" for a in arguments)
    lines += [".PP", f"\\fB{_text(path)}\\fR {usage} [OPTIONS]".replace("  ", " ")]
    for argument in arguments:
        lines += [".TP", f".I {_text(_metavar(argument))}", _text(argument.help)]
    return lines + _options(command)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _options(command: Any) -> list[str]:
    """The options of a command, without those that every command has but the first."""
    from typer.core import TyperArgument

    shared = ("quiet", "verbose", "log", "debug")
    lines: list[str] = []
    for option in command.params:
        general = option.name in shared and command.name != "jamba"
        if isinstance(option, TyperArgument) or option.name == "help" or option.hidden or general:
            continue
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in [*option.opts, *option.secondary_opts])
        value = "" if option.is_flag else f" \\fI{_text(option.metavar or option.type.name.upper())}\\fR"
        lines += [".TP", names + value, _text(option.help)]
    return lines


def _example(about: str, line: str) -> list[str]:
    return [".PP", _text(about), ".PP", ".RS 4", ".nf", _text(line), ".fi", ".RE"]


def _text(text: str | None) -> str:
    """A text as roff: its own signs as they are, no line that begins with one of roff's."""
    plain = " ".join((text or "").split())
    plain = plain.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    plain = plain.replace("~", "\\(ti").replace("^", "\\(ha")
    return re.sub(r"^\.", r"\\&.", plain)
