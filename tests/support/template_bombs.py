"""Chat templates that take much time or memory from a few characters: values that grow, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator

# Values that hold themselves twice, 60 times over, as a and, equal but not the same, b.
_NESTED = {
    "tuples": ("(1,)", "({0}, {0})"),
    "lists": ("[1]", "[{0}, {0}]"),
    "dicts": ("{{'k': 1}}", "{{'k': {0}, 'l': {0}}}"),
    "mixed": ("(1,)", "[({0},), {{'x': {0}}}]"),
}
_ON_NESTED = {
    "equal": "{{ n.a == n.b }}",
    "less": "{{ n.a < n.b }}",
    "in": "{{ n.a in [n.b] }}",
    "index": "{{ [n.b].index(n.a) }}",
    "count": "{{ (n.b, n.b).count(n.a) }}",
    "key": "{{ {n.a: 1} | length }}",
    "unique": "{{ [n.a, n.b] | unique | list | length }}",
    "get": "{{ {}.get(n.a) }}",
    "sort": "{{ [n.a, n.b] | sort | length }}",
    "max": "{{ [n.a, n.b] | max | length }}",
    "written": "{{ n.a }}",
    "concatenated": "{{ '' ~ n.a }}",
    "string": "{{ n.a | string | length }}",
    "pprint": "{{ n.a | pprint | length }}",
    "json": "{{ n.a | tojson | length }}",
    "percent": "{{ ('%s' % (n.a,)) | length }}",
    "format": "{{ '{}'.format(n.a) | length }}",
    "join": "{{ [n.a] | join | length }}",
    "urlize": "{{ n.a | urlize | length }}",
    "groupby": "{{ [{'a': n.a}, {'a': n.b}] | groupby('a') | list | length }}",
    "selected": "{{ [n.a] | select('equalto', n.b) | list | length }}",
    "refused": "{{ raise_exception(n.a) }}",
    "message": "{{ [][n.a | string] }}",
}

# Integers, texts, bytes and lists that are large.
_LARGE = {
    "int": "{% set n = namespace(a=3) %}{% for i in range(21) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "text": "{% set n = namespace(a='ab ') %}{% for i in range(22) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "bytes": "{% set n = namespace(a='ab '.encode()) %}{% for i in range(22) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "list": "{% set n = namespace(a=['a']) %}{% for i in range(20) %}{% set n.a = n.a + n.a %}{% endfor %}",
}
_ON_LARGE = {
    "int": [
        "n.a % (n.a - 1)",
        "n.a // 7",
        "n.a ** 9",
        "n.a | string",
        "n.a * n.a",
        "'%d' % n.a",
        "'%x' % n.a",
        "n.a | float",
        "'{:,}'.format(n.a)",
        "n.a.to_bytes(9999999, 'big')",
        "n.a | round(9999)",
        "n.a.bit_length()",
        "-n.a // 3 % n.a",
        "n.a | tojson",
        "[n.a] | sum",
        "n.a == n.a + 1",
        "n.a.__class__",
        "'x' * n.a",
        "range(n.a)",
        "n.a | abs | pprint",
        "n.a.as_integer_ratio()",
        "{n.a: n.a}",
        "n.a | filesizeformat",
        "n.a / (n.a - 1)",
    ],
    "text": [
        "n.a.replace('a', n.a)",
        "n.a.translate({97: n.a})",
        "n.a.join(n.a)",
        "n.a | replace('a', n.a)",
        "n.a * 9999",
        "n.a.split('a') | length",
        "n.a | list | length",
        "n.a.center(2 ** 40)",
        "n.a.ljust(2 ** 33) ~ ''",
        "n.a.zfill(2 ** 34)",
        "n.a | wordwrap(1) | length",
        "n.a | indent(9999) | length",
        "n.a | urlize | length",
        "n.a | wordcount",
        "n.a | title | upper | lower | capitalize | length",
        "n.a | striptags | length",
        "n.a | escape | length",
        "n.a | urlencode | length",
        "n.a | tojson(ensure_ascii=true) | length",
        "n.a.expandtabs(99999999)",
        "('%s' * 999) % n.a",
        "n.a | batch(1) | list | length",
        "n.a.encode('utf-16').decode('utf-16') | length",
        "(n.a | sort) | length",
        "n.a | unique | list",
        "n.a.find(n.a ~ 'x')",
        "n.a.count('ab ab')",
        "n.a.splitlines(true) | length",
        "n.a | trim('ab ') | length",
        "(n.a ~ n.a ~ n.a ~ n.a) | length",
        "n.a.partition('zz') | pprint | length",
        "n.a.maketrans(n.a, n.a) | length",
        "n.a.format(n.a)",
        "('{0}' * 999).format(n.a)",
        "n.a.rsplit(none, -1) | join(n.a)",
        "n.a | xmlattr",
        "{'a': n.a} | xmlattr | length",
        "n.a | map('upper') | join",
        "n.a | reverse | length",
        "n.a | slice(3) | list | length",
        "n.a.casefold().swapcase() == n.a",
        "n.a | pprint | length",
        "n.a | forceescape | length",
        "n.a | truncate(99999999) | length",
    ],
    "bytes": [
        "n.a * 9999",
        "n.a.replace('a'.encode(), n.a)",
        "n.a.join([n.a] * 99)",
        "n.a.hex() | length",
        "n.a.center(2 ** 36)",
        "n.a | list | length",
        "n.a.split() | length",
        "('%2000000000d'.encode() % 1) | length",
        "n.a | string | length",
    ],
    "list": [
        "n.a * 9999",
        "n.a | join('x' * 999999)",
        "n.a | map('center', 99999) | join | length",
        "n.a | sort | unique | list",
        "n.a | tojson(indent=99999)",
        "n.a | groupby(0) | list | length",
        "n.a | batch(1) | map('list') | list | length",
        "n.a | pprint | length",
        "n.a == n.a + []",
        "n.a | sum(start='')",
        "n.a | tojson | length",
        "n.a | slice(99999) | list | length",
        "n.a | map('replace', 'a', 'b' * 99999) | list | length",
        "n.a | random",
        "[n.a, n.a] | sort",
        "(n.a + n.a + n.a) | string | length",
    ],
}

_ALONE = {
    "macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "caller": (
        "{% macro f(n) %}{% if n %}{% call f(n - 1) %}{{ caller() ~ caller() }}{% endcall %}"
        "{% endif %}{% endmacro %}{{ f(40) }}"
    ),
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "set block": (
        "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set b %}{{ n.a }}{{ n.a }}"
        "{% endset %}{% set n.a = b %}{% endfor %}"
    ),
    "list that grows": "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% set n.a = n.a + [i] %}{% endfor %}",
    "texts kept": (
        "{% set s = 'x' * 999999 %}{% set n = namespace(a=[]) %}{% for i in range(99999) %}"
        "{% set n.a = n.a + [s[1:]] %}{% endfor %}"
    ),
    "dict that grows": (
        "{% set n = namespace(a={}) %}{% for i in range(99999) %}{% set n.a = dict(n.a, **"
        "{'k%d' % i: i}) %}{% endfor %}"
    ),
    "width": "{{ '%9000000000d' % 1 }}",
    "width from an argument": "{{ '%*d' % (2000000000, 1) }}",
    "format width": "{{ '{:>9000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 9000000000) }}",
    "precision": "{{ '%.2000000000f' % 1 }}",
    "filter width": "{{ 'x' | center(90000000000) }}",
    "batch": "{{ [1] | batch(9000000000, 'x') | list }}",
    "round": "{{ 1.5 | round(900000000, 'ceil') }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "power chain": "{% set n = namespace(a=9) %}{% for i in range(40) %}{% set n.a = n.a ** 9 %}{% endfor %}{{ n.a % 10 }}",
    "negative power": "{{ 10 ** -(10 ** 9) }}{{ (10 ** 9) ** (10 ** 7) % 7 }}",
    "time": "{{ strftime_now('%9000000000Y' * 999) }}",
    "time of much": "{% for i in range(99999) %}{{ strftime_now('%c' * 9999) }}{% endfor %}",
    "cycler": (
        "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(99) %}"
        "{{ c.next() }}{% endfor %}{% endfor %}"
    ),
    "joiner": "{% set j = joiner('x' * 99999) %}{% for i in range(99999) %}{{ j() }}{% endfor %}",
    "attribute map": "{{ range(99999) | map('string') | map('center', 99999) | join | length }}",
    "chain of maps": "{{ range(99999)" + " | map('string')" * 200 + " | list | length }}",
    "chain of filters": "{{ 'x'" + " | center(99999)" * 500 + " | length }}",
    "dictsort": "{% set n = namespace(a=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}{% endfor %}"
    "{{ {n.a: 1, 'b': 2} | dictsort | length }}",
    "concatenation": "{{ " + " ~ ".join(["'x' * 999999"] * 999) + " }}",
    "sum": "{{ range(99999) | map('string') | sum(start='') }}",
    "slices": "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% if s[i:] == s[:-i] %}{% endif %}{% endfor %}",
    "calls": "{% for i in range(99999) %}{{ namespace(**dict(a=range(999) | list)) }}{% endfor %}",
    "escapes": "{% for i in range(99999) %}{{ ('<' * 99999) | escape | length }}{% endfor %}",
    "include": "{% include 'x' %}",
    "extends": "{% extends 'x' %}",
    "import": "{% import 'x' as y %}",
    "own text": "{% include self %}{{ self }}",
    "block in itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "blocks": "".join(f"{{% block b{i} %}}{{% endblock %}}" for i in range(2000)) + "{{ self.b1() * 99999999 }}",
    "long": "{{ messages }}" * 70_000,
    "deep": "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
    "deep lists": "{{ " + "[" * 90 + "]" * 90 + " }}",
    "many ifs": "{% if 1 %}" * 90 + "{% endif %}" * 90,
    "constants": (
        "{{ 'x' | center(99999) | center(99999) | list | length }}"
        "{{ ('a' | center(99999)) | replace(' ', 'x' * 9999) | length }}"
    ),
    "constant power": "{{ 7 // 3 % 2 - 9 ** 9 // 2 ** 99999999 }}",
    "long name": "{% set " + "a" * 900_000 + " = 1 %}",
    "long text": "x" * 1_000_000,
    "comments": "{#" * 300_000,
    "open blocks": "{% " * 300_000,
    "numbers": "{{ " + "9" * 900_000 + " }}",
    "quotes": "{{ '" + "\\\\" * 400_000 + "' }}",
    "operators": "{{ " + "1 + " * 30_000 + "1 }}",
    "comparisons": "{{ " + "1 < " * 30_000 + "1 }}",
    "attributes": "{{ a" + ".a" * 30_000 + " }}",
    "whitespace": "{{ 1 " + " " * 900_000 + "}}",
    "line ends": "{%- set a = 1 -%}\n" * 40_000,
    "brackets": "{{ " + "{" * 5000 + " }}",
}


def bombs() -> Iterator[tuple[str, str]]:
    """Name and source of each template."""
    for kind, (first, twice) in _NESTED.items():
        made = "".join(
            f"{{% set n.{v} = {twice.replace('{{', '{').replace('}}', '}').replace('{0}', f'n.{v}')} %}}" for v in "ab"
        )
        start = first.replace("{{", "{").replace("}}", "}")
        setting = f"{{% set n = namespace(a={start}, b={start}) %}}{{% for i in range(60) %}}{made}{{% endfor %}}"
        for name, text in _ON_NESTED.items():
            yield f"{kind}: {name}", setting + text
    for kind, setting in _LARGE.items():
        for text in _ON_LARGE[kind]:
            yield f"{kind}: {text}", f"{setting}{{{{ {text} }}}}"
    yield from _ALONE.items()
