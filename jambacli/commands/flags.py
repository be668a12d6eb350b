"""How the command line names options: the flag of each Python option, in errors, warnings and notes."""

from __future__ import annotations

#: Options whose flag differs from their name with dashes.
_FLAGS = {
    "temperature": "--temp",
    "store": "--no-store",
    "name": "--session",
    "own_name": "--name",
    "classes": "--class",
}


def flag(option: str) -> str:
    """The flag of the option with this Python name: ``max_tokens`` -> ``--max-tokens``."""
    return _FLAGS.get(option) or "--" + option.replace("_", "-")
