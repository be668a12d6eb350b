"""What is known while an OpenDocument text is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jambacli.documents.extract.odf_package import Package
from jambacli.documents.extract.odt_lists import Counters, ListStyle
from jambacli.documents.extract.odt_styles import Style, Styles
from jambacli.documents.extract.paragraph_lines import Box
from jambacli.documents.extract.rows import Cell, Line, Rows


@dataclass
class Left:
    """What was left out of a document, for the remarks."""

    deletions: int = 0
    hidden_words: int = 0
    pictures: int = 0
    objects: int = 0
    symbols: int = 0
    rows: int = 0


@dataclass
class Context:
    """What all parts of a document share.

    ``controls``: what the controls of its forms show, by their names. ``masters``: page styles. ``read_objects``: parts of
    embedded objects that were read. ``alive``: called now and then while a part is read.
    """

    package: Package
    name: str
    styles: Styles = field(default_factory=Styles)
    counters: Counters = field(default_factory=Counters)
    controls: dict[str, str] = field(default_factory=dict)
    masters: dict[str, Master] = field(default_factory=dict)
    left: Left = field(default_factory=Left)
    read_objects: set[str] = field(default_factory=set)
    chars: int = 0
    alive: Callable[[], None] = lambda: None


@dataclass
class Master:
    """A page style: the lines of its headers and footers, and the page style of the page after."""

    then: str = ""
    headers: list[list[str]] = field(default_factory=list)
    footers: list[list[str]] = field(default_factory=list)


@dataclass
class Table:
    """``row_times``, ``cell_times``: how often the current one is repeated; ``covered``: a cell under a merged one."""

    rows: Rows = field(default_factory=Rows)
    cells: list[Cell] = field(default_factory=list)
    cell: Cell | None = None
    row_times: int = 1
    cell_times: int = 1
    covered: bool = False


@dataclass
class List:
    """A list, or a list in one of its items. ``key``: of its counters. ``pending``: the item's number is not shown yet."""

    key: str
    level: int
    style: str
    pending: bool = False
    start: int | None = None
    inner: int = 0


@dataclass
class Paragraph:
    """``outline``: the level of a heading, 0 for none. ``lost``: some of it was left out. ``number``: the label that the file
    states."""

    style: Style
    outline: int = 0
    start: int | None = None
    unnumbered: bool = False
    hidden: bool = False
    lost: bool = False
    number: str = ""


@dataclass
class Frame:
    """A stream of paragraphs: the body, or what is in a text box, a note or a header. ``space``: the last character is one,
    so that white space is not repeated. ``spans``: where each begins, and its style."""

    lines: list[Line] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    after: list[Line] = field(default_factory=list)
    paragraph: Paragraph | None = None
    tables: list[Table] = field(default_factory=list)
    lists: list[List] = field(default_factory=list)
    spans: list[tuple[int, Style]] = field(default_factory=list)
    space: bool = True
    author: str = ""
    formula: str = ""


@dataclass
class Drawing:
    """A frame or shape. ``said``: how much had been said before it. ``alone``: an image, or an object that is not read."""

    said: int
    alone: bool = False
    title: str = ""
    description: str = ""


def style_of_list(frame: Frame, styles: Styles, paragraph: Style) -> ListStyle | None:
    """The list style of the paragraph that is being read."""
    name = next((each.style for each in reversed(frame.lists) if each.style), "") or paragraph.lists or ""
    return styles.list_style(name)
