"""Compiles and renders one chat template: in the process for templates (``template_process``), or here where there is none."""

from __future__ import annotations

import functools
import hashlib
import marshal
import numbers
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from jambacli.errors import UsageError
from jambacli.text.template_process import UnavailableError, shared
from jambacli.text.template_protocol import Answer, Kind

if TYPE_CHECKING:
    from jambacli.text.template_environment import Templates


class Renderer:
    """One template. ``kept``: characters that its ``tojson`` never escapes."""

    def __init__(self, source: str, kept: str) -> None:
        self._source, self._kept = source, kept
        # Templates are known to the process by their text.
        self._key = hashlib.sha256(f"{kept}\0{source}".encode("utf-8", "surrogatepass")).hexdigest()

    def compile(self) -> Answer:
        """TEXT, or why the template is not one."""
        return self._answer(marshal.dumps(("compile", self._key, self._source, self._kept)), 0)

    def render(self, values: Mapping[str, Any]) -> Answer:
        """The text of the template with these variables, or why there is none. Raises UsageError for values other than texts,
        numbers, lists and mappings."""
        try:
            request = marshal.dumps(("render", self._key, values))  # type: ignore[arg-type]
        except ValueError:  # values of other types, or nested too deeply
            request = self._of_plain_values(values)
        answer = self._answer(request, len(request))
        if answer[0] is Kind.UNKNOWN:  # the process is new, or had many templates since
            answer = self.compile()
            if answer[0] is Kind.TEXT:
                answer = self._answer(request, len(request))
        return answer

    def cancel(self) -> None:
        """Let a request that another thread waits for fail at once."""
        shared().cancel(self._key)

    def _answer(self, request: bytes, size: int) -> Answer:
        try:
            return shared().ask(request, self._key, size)
        except UnavailableError:
            with _here:
                return _templates_here().answer(request)

    def _of_plain_values(self, values: Mapping[str, Any]) -> bytes:
        try:
            return marshal.dumps(("render", self._key, _plain(values)))
        except (ValueError, RecursionError):
            raise UsageError("the conversation is nested too deeply") from None


# Templates are not made for several threads.
_here = threading.Lock()


@functools.cache
def _templates_here() -> Templates:
    """The templates of this process, where no other can be had. Memory and time are not limited, so steps are counted."""
    from jambacli.text.template_environment import Templates
    from jambacli.text.template_limits import BoundedEnvironment

    return Templates(BoundedEnvironment)


def _plain(value: Any) -> Any:
    """``value`` in the types that every process has."""
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    if isinstance(value, AbstractSet):
        return {_plain(v) for v in value}
    raise UsageError(
        f"the conversation has a value of the type {type(value).__name__}, which a chat template cannot take",
        remedy="use texts, numbers, lists and mappings",
    )
