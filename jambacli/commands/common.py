"""What every command has: options such as ``--quiet``; defaults from presets, the environment and the settings file."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from jambacli import settings, ui

if TYPE_CHECKING:
    from jambacli.presets import Preset

_MARK = "has_common_options"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and notes.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what the libraries log, with times.")]
Log = Annotated[Path | None, typer.Option("--log", metavar="FILE", help="Write that and all messages to a file.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def common(quiet: Quiet = False, verbose: Verbose = False, log: Log = None, debug: Debug = False) -> None:
    """Do what the options say that every command has. ``debug`` is looked at where errors are shown."""
    if quiet:
        ui.set_quiet(True)
    if verbose:
        ui.set_verbose(True)
    if log is not None:
        ui.log_to(log)


_OPTIONS = list(inspect.signature(common, eval_str=True).parameters.values())


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with its own ``--quiet`` and so on, so that they work after the command as well as before it.

    A command's own option of the same short name keeps it.
    """
    if getattr(command, _MARK, False):
        return command
    signature = inspect.signature(command, eval_str=True)
    own = {p.name for p in signature.parameters.values()}
    added = beside(signature.parameters.values(), [p for p in _OPTIONS if p.name not in own])

    @functools.wraps(command)
    def wrapped(*values: Any, **named: Any) -> None:
        common(**{p.name: named.pop(p.name) for p in added})
        command(*values, **named)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in added]
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *keyword]
    )
    setattr(wrapped, _MARK, True)
    return wrapped


def beside(own: Iterable[inspect.Parameter], added: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Options to add to a command, without the short names that its ``own`` have."""
    taken = {name for parameter in own for name in _short_names(parameter)}
    return [_without(parameter, taken) for parameter in added]


def _short_names(parameter: inspect.Parameter) -> list[str]:
    declared = [d for m in _metadata(parameter) for d in (getattr(m, "param_decls", None) or ())]
    return [name for d in declared for name in d.split("/") if len(name) == 2]


def _metadata(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return getattr(parameter.annotation, "__metadata__", ())


def _without(parameter: inspect.Parameter, taken: set[str]) -> inspect.Parameter:
    if not taken.intersection(_short_names(parameter)):
        return parameter
    annotation, (option, *_) = parameter.annotation, _metadata(parameter)
    option = copy.copy(option)
    option.param_decls = [d for d in option.param_decls if d not in taken]
    return parameter.replace(annotation=Annotated[annotation.__origin__, option])


class Command(TyperCommand):
    """A command whose options have defaults from a preset, the environment and the settings file, in this order."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line, then set the options that they leave out."""
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._set_defaults(ctx)
        return rest

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of the help, whole: it is wrapped where ``limit`` would cut it."""
        return first_sentence(self.short_help or self.help or "")

    def _set_defaults(self, ctx: Any) -> None:
        generates = "preset" in ctx.params
        preset: Preset | None = ctx.params.get("preset")
        sampling = {s.parameter for s in settings.SAMPLING}
        for option in self.params:
            name = option.name or ""
            if ctx.get_parameter_source(name).name != "DEFAULT":
                continue
            value = None if preset is None else preset.options.get(name)
            setting = settings.SETTINGS.get(name.replace("_", "-"))
            if value is None and setting is not None and name != "model" and (generates or name not in sampling):
                value = settings.value(setting.name)
            if value is not None:
                ctx.params[name] = list(value) if isinstance(value, tuple) else option.type_cast_value(ctx, value)


def first_sentence(text: str) -> str:
    """The first sentence of a help text, without its full stop."""
    return " ".join(text.split()).partition(". ")[0].rstrip(".")
