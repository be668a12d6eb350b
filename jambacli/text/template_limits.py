"""The environment of chat templates bounded in steps and sizes, for where no process with limits can be had.

jinja2's immutable sandbox protects the machine, but does not limit time and memory. Here every loop iteration, macro call and
produced text is charged to one budget for the whole rendering, and operations that can turn small values into huge ones
(padding, repeating, joining, replacing, formatting) are measured before they run. Comparing and hashing nested lists,
arithmetic and some methods are not: only a process of its own (``template_process``) bounds those.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.visitor import NodeTransformer

from jambacli.text.template_environment import LimitError, TemplateEnvironment

MAX_STEPS = 20_000_000  # a template that loops over all messages for each message takes millions
MAX_TEXT = 1 << 26  # characters, of the rendering and of any text in it
_MAX_ITEMS = 1 << 22
_MAX_WORK = 1 << 28  # the product of the sizes of one call's arguments
_MAX_NUMBER = 100_000  # as a width, an indent, a precision
_TEXT_PER_STEP = 250
_VALUE_STEPS = 40  # steps for each value of a list in the output
_MACRO_STEPS = 200
_WIDTHS = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # in a format: a large width, or one from an argument
_SIZED = frozenset(["batch", "center", "indent", "round", "slice", "truncate", "wordwrap"])
_WRITTEN = frozenset(["e", "escape", "forceescape", "pprint", "safe", "string", "urlencode", "xmlattr"])


class BoundedEnvironment(TemplateEnvironment):
    """Counts what the templates do that it renders."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, kept: str = "") -> None:
        super().__init__(kept, finalize=self._finalized)
        self.concat = self._concatenated  # type: ignore[method-assign]
        self._steps = 0
        unmeasured = {"tojson": self.filters["tojson"]}  # it measures itself
        self.filters = {name: self._filter(name, function) for name, function in self.filters.items()} | unmeasured

    def compiled(self, source: str) -> jinja2.Template:
        """The template of ``source``, with the accounting in it."""
        tree = self.parse(source)
        _Counting().visit(tree)
        tree.set_environment(self)
        return self.module(tree)

    def rendered(self, template: jinja2.Template, values: Mapping[str, Any], limit: int) -> str:
        """The text of a template, within a budget of its own."""
        self._steps = 0
        return super().rendered(template, values, min(limit, MAX_TEXT))

    def charge(self, steps: int = 1) -> str:
        """Take ``steps`` from the budget. Raises LimitError when it is used up."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps")
        return ""

    def counted(self, items: Any) -> Any:
        """The items of a loop, charged one by one, or all at once when their number is known."""
        if isinstance(items, Sized):
            self.charge(len(items))
            return items
        return self._charged(items)

    def joined(self, parts: list[Any]) -> str:
        """``a ~ b ~ c``."""
        return self._concatenated([str(self._finalized(part)) for part in parts])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check the operators that can turn small values into huge ones."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left, [right])
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._check_size(len(left) + len(right), left)
        elif operator == "*" and (repeated := _repeated(left, right)) is not None:
            self._check_size(len(repeated[0]) * max(0, repeated[1]), repeated[0])
            self.charge(len(repeated[0]) * max(0, repeated[1]) // _TEXT_PER_STEP + 1)
        elif operator in ("*", "**"):
            small = all(isinstance(v, int | float) and abs(v) < 1e6 for v in (left, right))
            if not small or (operator == "**" and abs(right) > 64):
                raise LimitError(f"{operator} on something other than small numbers")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Measure methods of strings and numbers before they run; call everything else unchanged."""
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        if isinstance(__obj, types.BuiltinMethodType | type) and isinstance(owner, str | bytes | int | float | None):
            arguments = [*args, *kwargs.values()]
            name = getattr(__obj, "__name__", "")
            if name == "join" and args:
                return __self._join(owner, args[0])
            if name in ("format", "format_map"):
                __self._check_format(str(owner), arguments)
            else:
                __self._check_work([owner, *arguments], numbers=__obj is not range)
        result = super().call(__context, __obj, *args, **kwargs)
        return __self._made(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``'...'.format(...)``, which jinja2 replaces with its own version, measured too."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, [*args, *kwargs.values()])
            return str(self._made(inner(*args, **kwargs)))

        return measured

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is measured before it runs. A first argument that comes from jinja2 is passed on unmeasured."""
        hidden = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            arguments = [*args[hidden:], *kwargs.values()]
            for value in arguments:
                if isinstance(value, Sized) and not isinstance(value, str | bytes):
                    self.charge(len(value))
            if name == "join":
                return self._join_filter(*args[hidden:], **kwargs)
            if name == "format":
                self._check_format(str(arguments[0]), arguments[1:])
            elif name in _WRITTEN:
                self._measure(arguments)
            self._check_work(arguments, numbers=name in _SIZED)
            return self._made(function(*args, **kwargs))

        return bounded

    def _join_filter(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return self._join(str(d), value)

    def _join(self, separator: Any, items: Iterable[Any]) -> Any:
        if not isinstance(separator, str):
            raise LimitError("join with a separator that is not text")
        parts, size = [], 0
        for item in self._charged(items):
            parts.append(str(self._finalized(item)))
            size += len(parts[-1]) + len(separator)
            self._check_size(size, "")
        return self._made(separator.join(parts))

    def _encoded(self, encoder: json.JSONEncoder, value: Any) -> str:
        if isinstance(encoder.indent, int) and encoder.indent > 100:
            raise LimitError(f"an indent of {encoder.indent}")
        self._measure(value)
        return self._concatenated(encoder.iterencode(value))

    def _now(self, form: str) -> str:
        self._check_format(form, [])
        return super()._now(form)

    def _charged(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.charge()
            yield item

    def _concatenated(self, pieces: Iterable[str]) -> str:
        parts, size = [], 0
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            self._check_size(size, "")
        return str(self._made("".join(parts)))

    def _finalized(self, value: Any) -> Any:
        """A value about to be written. Nested lists are measured, since a list may contain another many times."""
        if isinstance(value, list | tuple | dict):
            self._measure(value)
        return value

    def _measure(self, value: Any) -> None:
        waiting = [value]
        while waiting:
            self.charge(_VALUE_STEPS)
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                waiting += item
            elif isinstance(item, str):
                self.charge(len(item) // _TEXT_PER_STEP)

    def _made(self, result: Any) -> Any:
        if isinstance(result, str | bytes | list):
            self._check_size(len(result), result)
            self.charge(len(result) // _TEXT_PER_STEP)
        return result

    def _check_size(self, size: int, kind: Any) -> None:
        if size > (MAX_TEXT if isinstance(kind, str | bytes) else _MAX_ITEMS):
            raise LimitError(f"it produces {size:,} characters or items")

    def _check_work(self, arguments: list[Any], numbers: bool) -> None:
        work = 1
        for value in arguments:
            if isinstance(value, str | bytes | list | tuple | dict | range):
                work *= max(1, len(value))
            elif numbers and isinstance(value, int):
                if abs(value) > _MAX_NUMBER:
                    raise LimitError(f"a size of {value}")
                work *= max(1, abs(value))
        if work > _MAX_WORK:
            raise LimitError("the arguments of one call are too large")

    def _check_format(self, form: str, arguments: list[Any]) -> None:
        if _WIDTHS.search(form):
            raise LimitError(f"the format {form[:40]!a}")
        for value in arguments:
            self._measure(value)
            if isinstance(value, str):
                self._check_size(len(value) * max(1, form.count("{") + form.count("%")), "")


class _Counting(NodeTransformer):
    """Adds the accounting to a template's syntax tree: around the items of loops, in macros, and in place of ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("counted", node.iter)
        if node.recursive:
            node.body.insert(0, _step(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _step(node))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _step(node))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes, lineno=node.lineno))


def _repeated(left: Any, right: Any) -> tuple[str | list[Any] | tuple[Any, ...], int] | None:
    """The text or list, and how often it is repeated; None for another product."""
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            return value, count
    return None


def _call(name: str, argument: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=argument.lineno)
    return nodes.Call(function, [argument], [], None, None, lineno=argument.lineno)


def _step(node: nodes.Node) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call("charge", nodes.Const(_MACRO_STEPS, lineno=node.lineno)), lineno=node.lineno)
