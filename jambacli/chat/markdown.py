"""Markdown as rows of a terminal, also while it is still being written.

A Page takes text as it comes and hands out rows: those that are finished, which no later text can change, and the live ones
after them. Whatever the pieces, the finished rows of the whole text are the same.

A line of dashes under a paragraph is a rule, not a heading, and links are not defined elsewhere: both would change what has
been shown long before. HTML is shown as text.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from rich.console import Console
    from rich.segment import Segment

    Row = list[Segment]

CODE_THEME = "monokai"

# What text may go on with: words, ends of emphasis, code and links, lines and blocks. A row is finished if none changes it.
_ENDS = ("*", "**", "***", "_", "__", "`", "``", "~~", "](x)", ")", ">")
_NEXT = (
    "x",
    "\nx",
    "\n\nx",
    *_ENDS,
    *(f"x{end}" for end in _ENDS),
    "\n```",
    "\n|",
    "\n  x",
    "\n- x",
    "\n    x",
    "\n\n    x",
)
# An incomplete line that is known to begin a block of its own if the parser says so; any other may belong to the block before.
_BEGUN = re.compile(r"[^\W\d_]|[-*+] +[*_`]{0,3}\w|\*{1,3}\w|\d+[.)] +\S|#{1,6} +\S|> *\S")
# Marks that a renderer repeats on rows of its own, at any width.
_DECORATION = re.compile(r"[\s▌─━│┃┏┓┗┛┡┩└┘├┤┬┴┼╇╈╰╯╭╮]")


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    return parser.disable(["lheading", "reference"])


@functools.cache
def _renderer() -> Any:
    from rich.markdown import ListElement, Markdown

    class Numbered(ListElement):
        """A list whose numbers take as much room as they need themselves: a longer list does not move its first items."""

        def __rich_console__(self, console: Any, options: Any) -> Any:
            for number, item in enumerate(self.items, 1 if self.list_start is None else self.list_start):
                yield from item.render_number(console, options, number, max(number, 10))

    class Rendered(Markdown):
        elements = {**Markdown.elements, "ordered_list_open": Numbered}  # noqa: RUF012

    return Rendered


def block_rows(console: Console, text: str, width: int, code_theme: str = CODE_THEME) -> list[Row]:
    """The rows of one block of Markdown, without the blank rows around it and the spaces at their ends.

    ``code_theme``: the colours of code, one of pygments' styles.
    """
    from rich.segment import Segment

    shown = _renderer()("", code_theme=code_theme)
    shown.parsed = _parser().parse(text)
    rows = console.render_lines(shown, console.options.update(width=width, height=None), pad=False)
    rows = [[s for s in row if not s.control] for row in rows]
    full = [bool(plain(row).strip()) for row in rows]
    if not any(full):
        return []
    rows = rows[full.index(True) : len(rows) - full[::-1].index(True)]
    for row in rows:
        while row and not row[-1].text.strip() and not (row[-1].style and row[-1].style.bgcolor):
            row.pop()
        if row and not (row[-1].style and row[-1].style.bgcolor):
            row[-1] = Segment(row[-1].text.rstrip(), row[-1].style)
    return rows


def plain(row: Row) -> str:
    """The text of a row."""
    return "".join(s.text for s in row)


class Page:
    """Markdown that is being written, as rows. ``push`` text, then ``take`` the finished rows and show the ``live`` ones."""

    def __init__(self, console: Console, code_theme: str = CODE_THEME) -> None:
        self._console, self._code_theme = console, code_theme
        self._text = ""  # the block being written
        self._shown = ""  # of its rows that were taken: what they show, without spaces
        self._taken: list[str] = []  # these rows
        self._width = 0
        self._probed = 0  # rows of it when they were last compared with what may follow
        self._begun = False  # whether a block has been taken
        self._live = ""  # what ``live`` showed last, and how many rows that was
        self._live_rows = 0
        self._goes_on = False  # whether it is a table whose first rows are on the screen as they were

    def push(self, text: str) -> None:
        """Add text."""
        self._text += text

    def take(self, width: int, end: bool = False) -> list[Row]:
        """The rows that have become finished since the last call, at ``width`` columns. ``end``: no more text follows."""
        out: list[Row] = []
        *done, self._text, open_ended = self._blocks()
        for text in done:
            out += self._finish(text, width)
        if end:
            out += self._finish(self._text, width)
            self._text = ""
        elif self._text.strip() and not open_ended:
            rows = self._rest(self._text, width)
            out += self._take(rows[: self._stable(rows, width)])
        return out

    def live(self, width: int) -> list[Row]:
        """The rows after those that were taken, as they are now."""
        rows = self._rest(self._text, width) if self._text.strip() else []
        rows = [[], *rows] if rows and self._begun and not self._shown else rows
        self._live, self._live_rows = self._text, len(rows)
        return rows

    def freeze(self, rows: Sequence[Row]) -> None:
        """These live rows stay on the screen as they are, and the text goes on after them: a table with its head again. Where
        they are not all of the live rows, the text that they show comes again."""
        if len(rows) != self._live_rows or not self._text.startswith(self._live):
            return
        if _parser().parse(self._live)[0].type != "table_open":
            self._take([row for row in rows if row])
            return
        shown = self._live.count("\n")  # a line that is not complete comes again
        if shown > 2:
            lines = self._text.split("\n")
            self._text, self._goes_on, self._begun = "\n".join([*lines[:2], *lines[shown:]]), True, True

    def _finish(self, text: str, width: int) -> list[Row]:
        no_rows = self._goes_on and len(text.strip().split("\n")) == 2
        self._goes_on = False
        if not text.strip() or no_rows:
            return []
        out = self._take(self._rest(text, width))
        self._shown, self._taken, self._probed = "", [], 0
        return out

    def _take(self, rows: list[Row]) -> list[Row]:
        if not rows:
            return []
        gap: list[Row] = [[]] if self._begun and not self._shown else []
        self._begun = True
        self._taken += [plain(row) for row in rows]
        self._shown += "".join(_letters(plain(row)) for row in rows)
        return gap + rows

    def _blocks(self) -> tuple[str, ...]:
        """The text cut where its blocks begin, the last one of which may go on; at the end the last line if it may not be a
        block's first one, else ""."""
        lines = self._text.split("\n")
        starts = [t.map[0] for t in _parser().parse(self._text) if t.level == 0 and t.map and t.nesting >= 0]
        open_ended = ""
        if len(starts) > 1 and starts[-1] == len(lines) - 1 and not _BEGUN.match(lines[-1]):
            starts.pop()
            open_ended = lines[-1]
        cuts = [0, *starts[1:], len(lines)]
        parts = ["\n".join(lines[a:b]) for a, b in itertools.pairwise(cuts)]
        return *(f"{part}\n" for part in parts[:-1]), parts[-1], open_ended

    def _rest(self, text: str, width: int) -> list[Row]:
        """The rows of a block after those that were taken. At another width, or where text has become something else, what
        they showed is left out."""
        rows = block_rows(self._console, text, width, self._code_theme)
        if width == self._width and [plain(r) for r in rows[: len(self._taken)]] == self._taken:
            return rows[len(self._taken) :]
        if not self._shown:
            self._width = width
            return rows
        return _after(rows, len(self._shown))

    def _stable(self, rows: list[Row], width: int) -> int:
        """How many of these rows no further text changes."""
        tokens = _parser().parse(self._text)
        kind = tokens[0].type
        if kind == "table_open":  # a wider cell moves every column
            return 0
        if kind == "fence":  # its complete lines; empty ones at its end are not shown yet
            complete = self._text[: self._text.rfind("\n") + 1]
            return len(self._rest(complete, width)) if complete.count("\n") > 1 else 0
        if len(rows) == self._probed:  # the comparison costs much, and finds more when there is another row
            return 0
        self._probed = len(rows)
        count = len(rows) - 1
        now = [plain(row) for row in rows]
        before, render = self._probe(tokens, now, width)
        for following in _NEXT:
            if count <= 0:
                return 0
            then = render(following)
            changed = (i for i in range(before, count) if i - before >= len(then) or then[i - before] != now[i])
            count = next(changed, count)
        self._probed -= count
        return count

    def _probe(self, tokens: list[Any], now: list[str], width: int) -> tuple[int, Callable[[str], list[str]]]:
        """How the block's rows ``now`` would be with more text: how many are there before, and a function of that text that
        gives those after them. Of a long list only the last items are rendered."""
        items = [t.map[0] for t in tokens if t.type == "list_item_open" and t.level == 1]
        if len(items) > 3:
            tail = "\n".join(self._text.split("\n")[items[-2] :])
            last = [plain(row) for row in block_rows(self._console, tail, width, self._code_theme)]
            if (before := len(now) - len(last)) >= 0 and now[before:] == last:
                return before, lambda following: [
                    plain(row) for row in block_rows(self._console, tail + following, width, self._code_theme)
                ]
        return 0, lambda following: [plain(row) for row in self._rest(self._text + following, width)]


def _letters(text: str) -> str:
    return _DECORATION.sub("", text)


def _after(rows: list[Row], skip: int) -> list[Row]:
    """The rows without the first ``skip`` characters that are neither spaces nor decoration."""
    from rich.segment import Segment

    for i, row in enumerate(rows):
        here = len(_letters(plain(row)))
        if here <= skip:
            skip -= here
            continue
        if not skip:
            return rows[i:]
        rest: Row = []
        for segment in row:
            text = segment.text
            while skip and text:
                skip -= len(_letters(text[0]))
                text = text[1:]
            if not skip and (text := text if rest else text.lstrip()):
                rest.append(Segment(text, segment.style))
        return [rest, *rows[i + 1 :]]
    return []
