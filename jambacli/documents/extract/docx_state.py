"""What is known while a part of a Word document is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jambacli.documents.extract.docx_fields import Field
from jambacli.documents.extract.docx_numbering import Numbering
from jambacli.documents.extract.docx_styles import Styles
from jambacli.documents.extract.ooxml import Package
from jambacli.documents.extract.rows import Cell, Line, Rows


@dataclass
class Left:
    """What was left out of a document, for the remarks."""

    deletions: int = 0
    hidden_words: int = 0
    pictures: int = 0
    objects: int = 0
    files: int = 0
    numbers: int = 0
    symbols: int = 0


@dataclass
class Context:
    """What all stories of a document share. ``notes``: by kind and number; each is taken out where it is referred to.
    ``graphics``: the lines of charts and drawings that were read, by part.
    ``alive``: called now and then while a part is read."""

    package: Package
    name: str
    styles: Styles = field(default_factory=Styles)
    numbering: Numbering = field(default_factory=Numbering)
    notes: dict[str, str] = field(default_factory=dict)
    left: Left = field(default_factory=Left)
    chars: int = 0
    graphics: dict[str, list[str]] = field(default_factory=dict)
    alive: Callable[[], None] = lambda: None


@dataclass
class Table:
    rows: Rows = field(default_factory=Rows)
    cells: list[Cell] = field(default_factory=list)
    cell: Cell | None = None
    row_deleted: bool = False
    cell_deleted: bool = False


@dataclass
class Paragraph:
    style: str | None = None
    number: str | None = None
    level: int | None = None
    merged: bool = False
    mark_hidden: bool = False
    lost: bool = False


@dataclass
class Run:
    hidden: bool = False
    font: str = ""
    shift: str = ""
    struck: bool = False
    start: int = 0


@dataclass
class Frame:
    """A stream of paragraphs: the body, or what is in a text box or a note."""

    lines: list[Line] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    boxes: list[tuple[int, list[str]]] = field(default_factory=list)
    after: list[Line] = field(default_factory=list)
    paragraph: Paragraph = field(default_factory=Paragraph)
    tables: list[Table] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
