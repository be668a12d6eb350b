"""The functions of a user's Python file, as tools. The file is run, as Python runs it: it is the user's own code."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from jambacli.errors import UsageError
from jambacli.session.functions import Tool, tools_of


def read_tools(path: Path) -> list[Tool]:
    """The tools that a file defines: the functions in its list TOOLS, or else all of its functions without a leading
    underscore. Raises UsageError for a file that cannot be run or has none."""
    name = "_jamba_tools_" + "".join(c if c.isalnum() else "_" for c in path.stem)
    spec = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" and path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file with functions")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    listed = getattr(module, "TOOLS", None)
    if listed is None:
        own = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == name]
        listed = sorted((f for f in own if not f.__name__.startswith("_")), key=lambda f: f.__code__.co_firstlineno)
    if not isinstance(listed, list | tuple) or not listed:
        raise UsageError(f"{path} defines no functions")
    return list(tools_of(listed).values())
