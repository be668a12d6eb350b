"""Subtitles (.srt, .vtt, .sbv, .ass) as text: what is said, a line a cue, with the times as the place.

Markup, numbers of cues and places on the screen are left out. Captions that roll up, where each cue repeats the line before,
are read once.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.documents.extract.plain import decode
from jambacli.units import counted

_CLOCK = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,:](\d{1,3}))?"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*(?:-->|,)\s*{_CLOCK}(?:\s.*)?$")
_ARROW = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s.*)?$")
_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s|$)")
_WORD_TIME = re.compile(rf"<{_CLOCK}>")
_VOICE = re.compile(r"<v(?:\.[^\s<>]{0,100})?[ \t]+([^<>]{0,200})>", re.IGNORECASE)
_RUBY = re.compile(r"<rt(?:\.[^<>]{0,100})?>([^<]{0,200})(?:</rt>)?", re.IGNORECASE)
_TAG = re.compile(r"</?(?:[biuscvp]|font|lang|ruby|rt|span|br|em|strong)(?:[.\s][^<>]{0,500})?/?>", re.IGNORECASE)
_OVERRIDE = re.compile(r"\{\\[^{}]{0,500}\}")
_DRAWING = re.compile(r"\{[^{}]{0,500}\\p[1-9][^{}]{0,500}\}")
# Seconds between cues that follow each other without a pause.
_GAP = 0.15


@dataclass
class Cue:
    """``line``, ``last``: where it stands in the file, counted from 1. ``start``, ``end``: in seconds. ``lines``: as shown."""

    line: int
    last: int
    start: float
    end: float
    lines: list[str]


def subtitle_pieces(path: str, name: str) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit, the pieces and remarks. A file without a single cue is read as the text it is. Raises BadFileError naming
    ``name`` when it is no text."""
    text, remark = decode(Path(path).read_bytes(), name)
    remarks = [remark] if remark else []
    lines = text.split("\n")
    if re.search(r"(?m)^[ \t]{0,9}\[Events\]", text[:1_000_000]):
        cues, notes = _ass(lines), 0
    else:
        cues, notes = _cues(lines)
    if not cues:
        return "line", parts_of_lines(enumerate(lines, 1)), remarks
    if notes:
        remarks.append(f"{counted(notes, 'comment')} (NOTE) left out")
    return "line", _pieces(_said_once(cues)), remarks


def _pieces(cues: Sequence[Cue]) -> Iterator[DocumentPart]:
    for part in parts_of_lines((i, _joined(cue.lines)) for i, cue in enumerate(cues)):
        some = cues[part.first : part.last + 1]
        label = f"{_clock(min(cue.start for cue in some))}-{_clock(max(cue.end for cue in some))}"
        yield DocumentPart(part.text, min(cue.line for cue in some), max(cue.last for cue in some), label)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _joined(lines: Sequence[str]) -> str:
    """A cue's lines as one line; speakers that are told apart by dashes keep theirs."""
    out = ""
    for line in lines:
        out += ("\n" if out and re.match(r"[-–—]\s?\w|[^\W\d_][\w .]{0,30}: ", line) else " " if out else "") + line
    return out


def _cues(lines: Sequence[str]) -> tuple[list[Cue], int]:
    """The cues of an .srt, .vtt or .sbv file, and how many comments there are."""
    arrows = any(_ARROW.match(line) for line in lines)
    timed = _ARROW if arrows else _TIMES
    web = bool(lines) and lines[0].startswith("WEBVTT")
    cues: list[Cue] = []
    notes = 0
    cue: Cue | None = None
    blank = True
    for number, line in enumerate(lines, 1):
        if (match := timed.match(line)) is not None:
            if cue is not None and not blank and cue.lines and cue.lines[-1].strip().isdecimal():
                cue.lines.pop()  # this cue's number, without a blank line before it
            cue = Cue(number, number, _seconds(match.groups()[:4]), _seconds(match.groups()[4:]), [])
            cues.append(cue)
        elif not line.strip():
            if cue is not None and not blank and _starts(lines, number, timed):
                cue = None
        elif cue is not None:
            cue.lines.append(line)
            cue.last = number
        elif web and blank:
            notes += line.startswith("NOTE")
        blank = not line.strip()
    for each in cues:
        each.lines = [text for line in each.lines if (text := _shown(line))]
    return [each for each in cues if each.lines], notes


def _starts(lines: Sequence[str], at: int, timed: re.Pattern[str]) -> bool:
    """Whether a cue begins after blank lines: a number or a name, then times. Else the blank line is part of a text, as where
    captions that roll up begin."""
    while at < len(lines) and not lines[at].strip():
        at += 1
    return at >= len(lines) or bool(_BLOCK.match(lines[at])) or any(timed.match(line) for line in lines[at : at + 2])


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _shown(line: str) -> str:
    """A line as it is shown: without markup, with the name of who speaks."""
    line = _WORD_TIME.sub("", line)
    line = _VOICE.sub(lambda match: f"{match[1].strip()}: " if match[1].strip() else "", line)
    line = _RUBY.sub(lambda match: f"({match[1].strip()})" if match[1].strip() else "", line)
    line = _OVERRIDE.sub("", _TAG.sub("", line))
    line = re.sub(r"[\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", "", html.unescape(line))
    return " ".join(line.split())


def _ass(lines: Sequence[str]) -> list[Cue]:
    """The dialogue of an .ass or .ssa file in the order of time."""
    fields = ["layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text"]
    cues: list[Cue] = []
    events = False
    for number, line in enumerate(lines, 1):
        key, _, value = line.strip().partition(":")
        if line.strip().startswith("["):
            events = line.strip().lower() == "[events]"
        elif not events:
            continue
        elif key.lower() == "format":
            fields = [field.strip().lower() for field in value.split(",")]
        elif key.lower() == "dialogue":
            found = dict(zip(fields, value.split(",", len(fields) - 1), strict=False))
            start, end = (re.fullmatch(_CLOCK, found.get(key, "").strip()) for key in ("start", "end"))
            text = found.get("text", "")
            if start is None or end is None or _DRAWING.search(text):
                continue
            said = [shown for each in re.split(r"\\[Nn]", text.replace("\\h", " ")) if (shown := _shown(each))]
            if said and (name := found.get("name", "").strip()):
                said[0] = f"{name}: {said[0]}"
            if said:
                cues.append(Cue(number, number, _seconds(start.groups()), _seconds(end.groups()), said))
    return sorted(cues, key=lambda cue: cue.start)


def _said_once(cues: list[Cue]) -> list[Cue]:
    """The cues of captions that roll up without the lines that the cue before has shown. In other files, where something may
    be said twice, the cues as they are."""
    overlaps = sum(_follows(a, b) and _repeated(a.lines, b.lines) > 0 for a, b in pairwise(cues))
    if overlaps < 2 or overlaps < 0.3 * (len(cues) - 1):
        return cues
    kept: list[Cue] = []
    before: Cue | None = None
    for cue in cues:
        if before is None or not _follows(before, cue):
            kept.append(cue)
        else:
            count = _repeated(before.lines, cue.lines)
            fresh = cue.lines[count:]
            if count and _grows(before.lines[-1], cue.lines[count - 1]) and kept:
                kept[-1].lines = [*kept[-1].lines[:-1], cue.lines[count - 1]]
            if count and kept:  # the lines before are shown for as long as they are repeated
                kept[-1].end = max(kept[-1].end, cue.start if fresh else cue.end)
                kept[-1].last = max(kept[-1].last, cue.line)
            if fresh:
                kept.append(Cue(cue.line, cue.last, cue.start, cue.end, fresh))
        before = Cue(cue.line, cue.last, cue.start, cue.end, list(cue.lines))
    return kept


def _follows(a: Cue, b: Cue) -> bool:
    return b.start <= a.end + _GAP


def _repeated(before: Sequence[str], lines: Sequence[str]) -> int:
    """How many lines of a cue the one before has shown: its last ones are the first ones here, the last perhaps longer."""
    for count in range(min(len(before), len(lines)), 0, -1):
        tail, head = before[-count:], lines[:count]
        if list(tail[:-1]) == list(head[:-1]) and (tail[-1] == head[-1] or _grows(tail[-1], head[-1])):
            return count
    return 0


def _grows(a: str, b: str) -> bool:
    return len(b) > len(a) and b.startswith(a + " ")
