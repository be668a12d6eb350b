"""The jinja2 environment of chat templates, as transformers has it: the immutable sandbox, loop controls, ``tojson``,
``raise_exception``, ``strftime_now`` and generation blocks. It has no limits of its own: it is used in a process that has them
(``template_worker``). ``template_limits`` is the version that counts.
"""

from __future__ import annotations

import json
import marshal
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jambacli.text.template_protocol import Answer, Kind, characters_for

# Only this much of an exception's text is shown.
_MESSAGE = 1000


class LimitError(OverflowError):
    """A template exceeds the limits of a rendering."""


class RefusedError(Exception):
    """The template called ``raise_exception``."""


class Generation(Extension):
    """``{% generation %}``, which marks assistant text for training; at inference its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it a plain set

    def parse(self, parser: Any) -> nodes.Node:
        """The block's body in its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders templates. ``kept``: characters that the ``tojson`` filter never escapes."""

    def __init__(self, kept: str = "", *, finalize: Callable[..., Any] | None = None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[loopcontrols, Generation],
            finalize=finalize,
        )
        self._kept = kept
        self.filters["tojson"] = self._tojson
        self.globals.pop("lipsum")
        self.globals["strftime_now"] = self._now
        self.globals["raise_exception"] = _refuse

    def compiled(self, source: str) -> jinja2.Template:
        """The template of ``source``. Raises jinja2's or Python's errors when it is not one."""
        return self.module(source)

    def module(self, source: str | nodes.Template) -> jinja2.Template:
        """The template of a source or a syntax tree."""
        template = self.from_string(source)
        # jinja2 writes constants as repr does, so that an infinite number becomes a name.
        template.root_render_func.__globals__.update(inf=math.inf, nan=math.nan)
        return template

    def rendered(self, template: jinja2.Template, values: Mapping[str, Any], limit: int) -> str:
        """The text of a template with these variables. Raises whatever the template does, RefusedError, and LimitError for more
        than ``limit`` characters."""
        parts, size = [], 0
        for part in template.generate(values):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise LimitError(f"it produces more than {limit:,} characters")
        return "".join(parts)

    def _encoded(self, encoder: json.JSONEncoder, value: Any) -> str:
        return encoder.encode(value)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as in transformers: no HTML escaping, non-ASCII characters kept."""
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        text = self._encoded(encoder, value)
        for character in self._kept if ensure_ascii else "":
            text = text.replace(f"\\u{ord(character):04x}", character)
        return text

    def _now(self, form: str) -> str:
        return datetime.now().strftime(form)


class Templates:
    """Compiled templates by key: the most recent ones."""

    _MOST = 16

    def __init__(self, environment: Callable[[str], TemplateEnvironment]) -> None:
        self._environment = environment
        self._known: dict[str, tuple[TemplateEnvironment, jinja2.Template]] = {}

    def answer(self, request: bytes) -> Answer:
        """The answer to a request (see ``template_protocol``)."""
        try:
            what, key, *rest = marshal.loads(request)
            if what == "compile":
                self._compile(key, *rest)
                return Kind.TEXT, ""
            if key not in self._known:
                return Kind.UNKNOWN, ""
            return Kind.TEXT, self._render(key, rest[0], characters_for(len(request)))
        except RefusedError as error:
            return Kind.REFUSED, one_line(error)
        except LimitError as error:
            return Kind.LIMIT, one_line(error)
        except MemoryError:
            return Kind.MEMORY, ""
        except Exception as error:  # any failure of a template is an error in it
            return Kind.FAILED, one_line(error)

    def _compile(self, key: str, source: str, kept: str) -> None:
        environment = self._environment(kept)
        self._known[key] = environment, environment.compiled(source)
        if len(self._known) > self._MOST:
            del self._known[next(iter(self._known))]

    def _render(self, key: str, values: Mapping[str, Any], limit: int) -> str:
        environment, template = self._known[key] = self._known.pop(key)
        return environment.rendered(template, values, limit)


def one_line(error: BaseException) -> str:
    """The error's text as one line, or its type if it has none."""
    return " ".join(str(error)[:_MESSAGE].split()) or type(error).__name__


def _refuse(message: Any) -> NoReturn:
    raise RefusedError(str(message))
