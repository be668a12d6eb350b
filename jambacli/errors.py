"""Errors and their exit codes. A library error says what is wrong; a front end formats it for its users.

Every error that a user can cause is a JambaError whose text is one line: what is wrong, with which file or name, and what
to do about it. Below the front ends no text names a command-line flag: an error carries the Python name of the option it
is about, and each front end shows its own name for it (see ``worded``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NO_VALUE = object()


class JambaError(Exception):
    """A failure with a one-line explanation; the command exits with ``exit_code``.

    Args:
        problem: what is wrong: a sentence, or with ``field`` its predicate ("is outside 0 to 100").
        field: the Python name of the option at fault ("temperature"), or the names of several.
        value: the value of the option.
        remedy: what to do. A constant text in which ``{ctx}`` stands for the option of that name.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str = "",
        *,
        field: str | tuple[str, ...] | None = None,
        value: object = _NO_VALUE,
        remedy: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fields = () if field is None else (field,) if isinstance(field, str) else field
        self.value = None if value is _NO_VALUE else value
        self.remedy = remedy
        self._has_value = value is not _NO_VALUE

    @property
    def field(self) -> str | None:
        """The option at fault, the first of several."""
        return self.fields[0] if self.fields else None

    def worded(self, option: Callable[[str], str] | None = None) -> str:
        """The error as one line; ``option`` gives the name under which a front end knows an option."""
        option = option or python_name
        subject = " and ".join(option(name) for name in self.fields)
        if self._has_value:
            subject += f" {self.value!r}" if isinstance(self.value, str) else f" {self.value}"
        text = f"{subject} {self.problem}" if subject else self.problem
        return f"{text}; {name_options(self.remedy, option)}" if self.remedy else text

    def __str__(self) -> str:
        return self.worded()


def python_name(option: str) -> str:
    """The argument's name in Python: ``own_name`` is an option whose argument is called ``name``, as another option's."""
    return {"own_name": "name"}.get(option, option)


def name_options(text: str, option: Callable[[str], str] = python_name) -> str:
    """``text`` with every ``{name}`` replaced by what ``option`` calls the option of that name."""
    return re.sub(r"\{([a-z][a-z0-9_]*)\}", lambda m: option(m[1]), text)


class UsageError(JambaError):
    """An option or argument is wrong (exit code 2)."""

    exit_code = 2


class BadFileError(JambaError):
    """A file is damaged, of another kind or hostile; the text names the file and the field in it."""

    def __init__(self, path: object, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(f"{path}: {problem}", remedy=remedy)
        self.path = str(path)
        self.problem_in_file = problem


class UnsupportedError(JambaError):
    """A valid file or model that this program does not handle; the text says which part and why."""


class GpuMemoryError(JambaError):
    """The GPU's memory does not suffice, and nothing more can be moved out of it."""

    def __init__(self, problem: str = "the GPU is out of memory (does another program use it?)") -> None:
        super().__init__(
            problem,
            remedy="use a smaller {ctx}, {kv_type} q8_0, a larger {cpu_experts}, {cpu_kv} or a smaller {gpu_memory}",
        )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
