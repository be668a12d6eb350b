"""Error classes and their exit codes; knows nothing of what failed.

Every error a user can cause is a JambaError whose text is one line: what is wrong, with which file or name, what to do.
"""

from __future__ import annotations


class JambaError(Exception):
    """A failure with a one-line explanation; the command exits with ``exit_code``."""

    exit_code = 1


class UsageError(JambaError):
    """The command line itself is wrong (exit code 2)."""

    exit_code = 2


class BadFileError(JambaError):
    """A file is damaged, foreign or hostile; the text names the file and the field."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = str(path)
        self.problem = problem


class UnsupportedError(JambaError):
    """A sound file or model that this program does not handle; the text says which part and why."""
