"""HTML source -> tags and texts, in linear time and without a limit of depth or length.

Follows the tokenizer of the HTML standard (13.2.5) as far as text depends on it. libxml2's parser, which lxml uses, stops at
2,048 nested elements and counts lines only to 65,535.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

#: Elements whose content is text, not markup, up to their end tag; those of _ESCAPABLE have character references.
_RAW = frozenset(("script", "style", "xmp", "iframe", "noembed", "noframes", "textarea", "title"))
_ESCAPABLE = frozenset(("textarea", "title"))
_TAG = re.compile(r"<(/?)([a-zA-Z][^ \t\n\f/>]*)")
_ATTRIBUTE = re.compile(
    r"""[ \t\n\f/]*([^ \t\n\f/>][^ \t\n\f/>=]*)"""
    r"""(?:[ \t\n\f]*=[ \t\n\f]*(?:"([^"]*)(?:"|\Z)|'([^']*)(?:'|\Z)|([^ \t\n\f>"'][^ \t\n\f>]*)|(?=>)))?"""
)
_SPACE = re.compile(r"[ \t\n\f/]*")
_COMMENT_END = re.compile(r"--!?>")


class Token(NamedTuple):
    """A start tag or an end tag (``kind`` "start" or "end", ``value`` its name in lower case), or a "text".

    ``at``: its offset in the source. ``attributes``: of a start tag; names in lower case, the first of each name. ``closed``:
    the tag ends with a slash. A text of kind "lost" is the rest of a file whose last tag or comment does not end.
    """

    kind: str
    value: str
    at: int
    attributes: dict[str, str] = {}  # noqa: RUF012 - never changed
    closed: bool = False


def tokens(source: str) -> Iterator[Token]:
    """The tokens of a page; a comment is none."""
    at, size = 0, len(source)
    while at < size:
        sign = source.find("<", at)
        if sign < 0:
            yield Token("text", unescape(source[at:]), at)
            return
        if sign > at:
            yield Token("text", unescape(source[at:sign]), at)
        tag = _TAG.match(source, sign)
        if tag is None:
            if source.startswith(("<!", "</", "<?"), sign) and sign + 2 < size:
                at = _after_comment(source, sign)
                if at < 0:
                    yield Token("lost", source[sign:], sign)
                    return
            else:  # a sign in the text; more of them at once
                at = sign + 1
                while at < size and source[at] == "<" and not source.startswith(("<!", "</", "<?"), at):
                    if _TAG.match(source, at):
                        break
                    at += 1
                yield Token("text", source[sign:at], sign)
            continue
        attributes, at = _attributes(source, tag.end())
        if at < 0:
            yield Token("lost", source[sign:], sign)
            return
        name = tag[2].lower()
        if tag[1]:
            yield Token("end", name, sign)
            continue
        yield Token("start", name, sign, attributes, source[at - 2] == "/")
        if name == "plaintext":
            yield Token("text", source[at:], at)
            return
        if name in _RAW:
            end = _raw_end(source, name, at)
            if end > at:
                text = source[at:end]
                yield Token("text", unescape(text) if name in _ESCAPABLE else text, at)
            at = end


def _after_comment(source: str, at: int) -> int:
    """The offset after the comment, doctype or unknown markup at ``at``; -1 if it does not end."""
    if not source.startswith("<!--", at):
        end = source.find(">", at + 2)
        return end + 1 if end >= 0 else -1
    for short in ("<!-->", "<!--->"):
        if source.startswith(short, at):
            return at + len(short)
    found = _COMMENT_END.search(source, at + 4)
    return found.end() if found else -1


def _attributes(source: str, at: int) -> tuple[dict[str, str], int]:
    """The attributes at ``at`` and the offset after the tag; -1 if the tag does not end."""
    found: dict[str, str] = {}
    if source.startswith(">", at):
        return found, at + 1
    while (match := _ATTRIBUTE.match(source, at)) is not None:
        name, *values = match.groups()
        value = next((v for v in values if v is not None), "")
        found.setdefault(name.lower(), unescape(value) if "&" in value else value)
        at = match.end()
    at = _SPACE.match(source, at).end()  # type: ignore[union-attr]
    return (found, at + 1) if source.startswith(">", at) else (found, -1)


def _raw_end(source: str, name: str, at: int) -> int:
    end = re.compile(rf"</{name}(?=[ \t\n\f/>])", re.IGNORECASE).search(source, at)
    return end.start() if end else len(source)
