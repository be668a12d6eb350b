"""Markdown while it is written: the finished rows do not depend on the pieces, and on the screen stands what they say."""

from __future__ import annotations

import io
import random
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.markdown import Markdown

from jambacli.chat.markdown import Page, plain

SECTION = """# Part {n}: herons, otters and cranes

Leila **counted {n} herons at the lake, which is more than *anyone* had counted before** and `wrote_it_down()` in her
[notebook of the lake](http://example.org/{n}), with 2 * 3 = 6 and snake_case_names, a lone [ and ~~no~~ doubts.

1. One, with text that is long enough to need more than one row of the terminal it is shown in, whichever that is.
2. Two

   goes on in **a paragraph** of its own.
10. Ten
   - nested `code`
   - nested again

- Wide: 漢字かな交じり文
- Joined: 👩‍👩‍👧 family, 🏳️‍🌈 flag, 👍🏽 thumb
- Right to left: שלום עולם and مرحبا بالعالم
  with a line that goes on

```python
def herons_{n}(lake: str) -> int:
    # a comment
    return len([h for h in lake if h == "heron"]) + {n}

```

| bird | count | where |
|------|------:|-------|
| heron | {n} | lake |
| crane | 15 | mount 漢 |

> A quotation that is long enough to need more than one row, and goes on and on and on and on and on and on.

Text before a rule
---
<b>No HTML</b> & an end.\\
A hard break.

"""
DOCUMENT = "".join(SECTION.format(n=n) for n in range(1, 16))


def console(width: int) -> Console:
    return Console(width=width, file=io.StringIO(), force_terminal=True, highlight=False)


def whole(text: str, width: int) -> list[str]:
    page = Page(console(width))
    page.push(text)
    return [plain(row).rstrip() for row in page.take(width, end=True)]


@pytest.mark.parametrize(("width", "size"), [(80, 60), (50, 29), (24, 200)])
def test_the_finished_rows_do_not_depend_on_the_pieces(width: int, size: int) -> None:
    text, rng = SECTION.format(n=1) + SECTION.format(n=2)[:300], random.Random(size)
    page, rows, at = Page(console(width)), [], 0
    while at < len(text):
        n = rng.randrange(1, size)
        page.push(text[at : at + n])
        at += n
        rows += page.take(width)
        page.live(width)
    rows += page.take(width, end=True)
    assert [plain(row).rstrip() for row in rows] == whole(text, width)


@pytest.mark.parametrize("width", [80, 50])
def test_the_rows_are_those_of_the_whole_document(width: int) -> None:
    # Rich's own rendering at once; blank rows and the room for numbers are the Page's.
    out = console(width)
    text = (
        SECTION.format(n=3)
        .replace("Text before a rule\n---", "Text before a rule\n\n---")
        .replace("<b>No HTML</b>", "No HTML")
    )
    out.print(Markdown(text))
    bare = re.sub(r"\x1b\[[0-9;]*m|\x1b\][^\x1b]*\x1b\\", "", out.file.getvalue())  # type: ignore[attr-defined]
    theirs = [" ".join(line.split()) for line in bare.split("\n") if line.strip()]
    ours = [" ".join(line.split()) for line in whole(text, width) if line.strip()]
    assert "".join(theirs).replace(" ", "") == "".join(ours).replace(" ", "")


def test_a_block_taller_than_the_window_comes_out_row_by_row() -> None:
    for line, most in (("word " * 300, 3), ("- an item of a list\n" * 100, 3), ("```\n" + "code\n" * 100, 2)):
        page, taken = Page(console(60)), 0
        for at in range(0, len(line), 50):
            page.push(line[at : at + 50])
            taken += len(page.take(60))
            assert len(page.live(60)) <= most
        assert taken > 20


def test_code_keeps_its_frame_while_it_is_written() -> None:
    page = Page(console(60))
    page.push("```python\n" + "x = 1\n" * 80 + "y = ")
    rows = [*page.take(60), *page.live(60)]
    assert len(rows) == 81 and all(any(s.style and s.style.bgcolor for s in row) for row in rows)


def test_after_a_resize_the_text_goes_on_where_it_was() -> None:
    words = [f"word{i}" for i in range(200)]
    page = Page(console(80))
    page.push(" ".join(words[:120]) + " ")
    rows = page.take(80)
    page.push(" ".join(words[120:]))
    rows += page.take(33, end=True)
    assert " ".join(plain(row) for row in rows).split() == words


ROWS = [
    f"| name{i} | a cell with a text of some length, number {i} | more words in a third column |" for i in range(12)
]
TABLE = "\n".join(["| head one | head two | head three |", "| --- | --- | --- |", *ROWS, ""])


def names(lines: list[str]) -> list[str]:
    return re.findall(r"name\d+", " ".join(lines))


@pytest.mark.parametrize("cut", [TABLE.index("name5") + 9, TABLE.index("| name5")])
@pytest.mark.parametrize("rest", [True, False])
def test_a_table_that_stays_on_the_screen_goes_on_with_its_head(cut: int, rest: bool) -> None:
    page = Page(console(100))
    page.push("Before.\n\n" + TABLE[:cut])
    shown = page.take(100) + (live := page.live(100))
    page.freeze(live)
    page.push(TABLE[cut:] if rest else "\n\nAfter.")
    below = [plain(row) for row in page.take(60, end=True)]
    again = ["name5"] if cut > TABLE.index("name5") else []  # its row was not complete
    left = [f"name{i}" for i in range(5 + len(again), 12)] if rest else []
    assert names([plain(row) for row in shown]) == [f"name{i}" for i in range(5)] + again
    assert names(below) == again + left
    assert sum("head one" in line for line in below) == bool(again + left)
    assert rest or below[-1] == "After."


def test_what_is_not_all_on_the_screen_comes_again() -> None:
    page = Page(console(100))
    page.push(TABLE[: TABLE.index("name9")])
    page.freeze(page.live(100)[-4:])  # the window is low
    assert names([plain(row) for row in page.take(60, end=True)]) == [f"name{i}" for i in range(9)]


# Shows a reply in pieces; after half of them it waits for a key.
PROGRAM = """
import itertools, os, sys, types
from pathlib import Path
from jambacli.chat import screen
ticks = itertools.count()
screen.time = types.SimpleNamespace(monotonic=lambda: next(ticks) * 0.04)  # it draws after every few pieces
text, size = Path(sys.argv[1]).read_text(encoding="utf-8"), int(sys.argv[2])

def pieces():
    for at in range(0, len(text), size):
        yield text[at : at + size]
        if at < len(text) // 2 <= at + size:
            Path(sys.argv[3]).touch()
            os.read(0, 1)

screen.Screen().reply(pieces(), True, lambda: None, lambda: False)
print("THE END")
"""
_INVISIBLE = dict.fromkeys([0x200D, 0xFE0F])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (50, 15)])
def test_500_lines_of_markdown_stand_in_the_terminal_as_their_finished_rendering(
    tmp_path: Path, columns: int, lines: int
) -> None:
    from tests.support.emulator import Emulator

    assert DOCUMENT.count("\n") > 500
    (tmp_path / "reply.md").write_text(DOCUMENT, encoding="utf-8")
    terminal = Emulator(columns, lines, ["-c", PROGRAM, str(tmp_path / "reply.md"), "61", str(tmp_path / "waits")])
    terminal.settle(tmp_path / "waits")
    terminal.type("\n")
    found = terminal.wait("THE END")
    assert terminal.leave() == 0
    expected = [row.translate(_INVISIBLE) for row in whole(DOCUMENT, columns)]
    assert found[: found.index("THE END")] == expected


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("before", "after"), [((50, 15), (80, 24)), ((50, 15), (80, 15)), ((80, 24), (50, 15))])
def test_a_resize_in_mid_reply_leaves_no_fragments(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    from tests.support.emulator import Emulator

    words = " ".join(f"word{i}" for i in range(600))
    text = DOCUMENT[:1500] + "\n\n" + words + "\n\n" + SECTION.format(n=77)
    (tmp_path / "reply.md").write_text(text, encoding="utf-8")
    terminal = Emulator(*before, ["-c", PROGRAM, str(tmp_path / "reply.md"), "37", str(tmp_path / "waits")])
    terminal.settle(tmp_path / "waits")
    terminal.resize(*after)
    terminal.type("\n")
    found = terminal.wait("THE END")
    assert terminal.leave() == 0
    shown = [w for line in found for w in line.split() if w.startswith("word") and w[4:].isdigit()]
    assert shown == words.split()
    end = [row.translate(_INVISIBLE) for row in whole(SECTION.format(n=77), after[0])]
    assert found[found.index("THE END") - len(end) : found.index("THE END")] == end
    start = [row.translate(_INVISIBLE) for row in whole(DOCUMENT[:1500], before[0])][:5]
    assert [line[: after[0]] for line in start] == [line[: after[0]] for line in found[:5]]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("before", "after"), [((100, 24), (60, 24)), ((80, 24), (50, 15)), ((100, 24), (100, 5))])
def test_a_window_that_gets_smaller_while_a_table_is_written(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    from tests.support.emulator import Emulator

    (tmp_path / "reply.md").write_text(f"Before.\n\n{TABLE}\nAfter.\n", encoding="utf-8")
    terminal = Emulator(*before, ["-c", PROGRAM, str(tmp_path / "reply.md"), "17", str(tmp_path / "waits")])
    terminal.settle(tmp_path / "waits")
    terminal.resize(*after)
    terminal.type("\n")
    found = terminal.wait("THE END")
    assert terminal.leave() == 0
    assert found[0] == "Before." and found.count("Before.") == found.count("After.") == 1
    heads = [i for i, line in enumerate(found) if "head one" in line]
    assert len(heads) == 2
    above, below = names(found[: heads[1]]), names(found[heads[1] :])
    assert above == [f"name{i}" for i in range(len(above))] and len(above) > 3
    assert below == [f"name{i}" for i in range(12 - len(below), 12)]
    assert len(above) + len(below) in (12, 13)  # a row that was being written is there again
    last = TABLE.split("\n")
    rows = whole("\n".join([*last[:2], *last[14 - len(below) :]]), after[0])
    assert found[heads[1] : found.index("After.") - 1] == rows
