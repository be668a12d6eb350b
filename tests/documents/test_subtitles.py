"""Subtitles and exported chats are read as what is said, with the times as the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_documents, read_file
from jambacli.documents.pages import entries_of
from jambacli.errors import JambaError


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def read(folder: Path, sandbox: Sandbox, data: str | bytes, name: str) -> Document:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_file(path, sandbox)


SRT = """1
00:01:10,500 --> 00:01:12,000
{\\an8}<i>The notice period</i>
is <font color="#ffffff">thirty</font> days.

2
00:01:12,000 --> 00:01:14,250
- Who signs?
- Größe &amp; Sons, a < b.

3
00:03:18,000 --> 00:03:20,000
In 2026

it ends.
"""


def test_srt_without_numbers_times_and_markup(tmp_path: Path, sandbox: Sandbox) -> None:
    document = read(tmp_path, sandbox, SRT, "talk.srt")
    assert document.text == (
        "The notice period is thirty days.\n- Who signs?\n- Größe & Sons, a < b.\nIn 2026 it ends."
    )
    assert document.where(document.parts[0]) == "lines 2-15 (00:01:10-00:03:20)"
    assert not document.remarks


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, sandbox: Sandbox, encoding: str, ends: str) -> None:
    document = read(tmp_path, sandbox, SRT.replace("\n", ends).encode(encoding), "talk.srt")
    assert "The notice period is thirty days.\n" in document.text and "Größe & Sons" in document.text
    assert document.parts[0].label == "00:01:10-00:03:20"
    assert len(document.remarks) == (encoding == "cp1252")


def test_loosely_written_srt(tmp_path: Path, sandbox: Sandbox) -> None:
    text = "1\n0:0:1.5-->0:0:2,5 X1:10\nOne.\n2\n00:00:03,000 --> 00:00:04,000\nTwo.\n\n\n00:00:05,0 --> 00:00:06,0\n1984\n\n"
    assert read(tmp_path, sandbox, text, "a.srt").text == "One.\nTwo.\n1984"
    assert read(tmp_path, sandbox, "no cues at all\n\njust text", "b.srt").text == "no cues at all\n\njust text"


VTT = """WEBVTT - a talk
Kind: captions
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

STYLE
::cue { color: red }

NOTE
not for the viewer

intro
00:01.000 --> 00:04.000 align:start position:0%
<v.loud Mary Smith>The rent is <c.yellow>900</c> euros.</v>

00:00:05.000 --> 00:00:06.500
<lang de>Gr&uuml;&szlig;e</lang>&nbsp;to <ruby>契約<rt>けいやく</rt></ruby>
"""


def test_webvtt(tmp_path: Path, sandbox: Sandbox) -> None:
    document = read(tmp_path, sandbox, VTT, "talk.vtt")
    assert document.text == "Mary Smith: The rent is 900 euros.\nGrüße to 契約(けいやく)"
    assert document.parts[0].label == "00:00:01-00:00:06" and "1 comment (NOTE) left out" in document.remarks[0]
    assert read(tmp_path, sandbox, VTT, "noending").text == document.text


ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.240 --> 00:00:02.389 align:start position:0%

so<00:00:00.480><c> the</c><00:00:00.719><c> notice</c>

00:00:02.389 --> 00:00:02.399 align:start position:0%
so the notice


00:00:02.399 --> 00:00:05.030 align:start position:0%
so the notice
is<00:00:02.560><c> thirty</c><00:00:02.960><c> days</c>

00:00:05.030 --> 00:00:05.040 align:start position:0%
is thirty days


00:00:05.040 --> 00:00:08.000 align:start position:0%
is thirty days
no<00:00:05.280><c> no</c>

00:00:08.000 --> 00:00:08.010 align:start position:0%
no no


00:00:30.000 --> 00:00:32.000 align:start position:0%
no no
"""


def test_captions_that_roll_up_are_read_once(tmp_path: Path, sandbox: Sandbox) -> None:
    document = read(tmp_path, sandbox, ROLLING, "auto.en.vtt")
    assert document.text == "so the notice\nis thirty days\nno no\nno no"
    assert document.parts[0].label == "00:00:00-00:00:32"
    words = ["we", "agree", "on", "thirty", "days"]
    growing = "".join(f"{i}\n00:00:0{i},000 --> 00:00:0{i + 1},000\n{' '.join(words[:i])}\n\n" for i in range(1, 6))
    assert read(tmp_path, sandbox, growing, "g.srt").text == "we agree on thirty days"


def test_what_is_said_twice_stays(tmp_path: Path, sandbox: Sandbox) -> None:
    said = ["No.", "No.", "Why?", "Because.", "It is.", "It is.", "Fine.", "Then go.", "I go."]
    text = "".join(f"{i}\n00:00:{i:02},000 --> 00:00:{i + 1:02},000\n{line}\n\n" for i, line in enumerate(said))
    assert read(tmp_path, sandbox, text, "film.srt").text == "\n".join(said)


def test_sbv_and_ass(tmp_path: Path, sandbox: Sandbox) -> None:
    text = "0:00:01.000,0:00:03.000\nFirst line\nsecond.\n\n0:01:00.000,0:01:02.500\nAt 12:30, maybe.\n"
    document = read(tmp_path, sandbox, text, "a.sbv")
    assert document.text == "First line second.\nAt 12:30, maybe." and document.parts[0].label == "00:00:01-00:01:02"
    text = (
        "[Script Info]\nTitle: x\n\n[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: 0,0:00:09.00,0:00:10.00,Default,,0,0,0,,Later, with a comma\n"
        "Comment: 0,0:00:02.00,0:00:03.00,Default,,0,0,0,,not shown\n"
        "Dialogue: 0,0:00:01.50,0:00:03.00,Default,Ada,0,0,0,,{\\i1}First{\\i0}\\Nand\\hsecond\n"
        "Dialogue: 0,0:00:01.50,0:00:03.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1{\\p0}\n"
    )
    document = read(tmp_path, sandbox, text, "a.ass")
    assert document.text == "Ada: First and second\nLater, with a comma"
    assert document.where(document.parts[0]) == "lines 10-12 (00:00:01-00:00:10)"


def test_long_subtitles_are_parts_with_their_times(tmp_path: Path) -> None:
    times = [f"{i // 1200:02}:{i // 20 % 60:02}:{i % 20 * 3:02},000" for i in range(2001)]
    cues = "".join(f"{i}\n{times[i]} --> {times[i + 1]}\nSentence {i} of the talk.\n\n" for i in range(2000))
    (tmp_path / "long.srt").write_text(cues)
    (document,) = read_documents([str(tmp_path / "long.srt")])
    assert len(document.parts) > 10 and document.text == "\n".join(f"Sentence {i} of the talk." for i in range(2000))
    entry = next(e for e in entries_of([document]) if "Sentence 1200 " in e.text)
    first, last = entry.sources[0].label.split("-")
    assert first <= "01:00:00" < last and entry.sources[0].label in entry.title
    assert document.parts[0].label.startswith("00:00:00-") and document.parts[-1].label.endswith("-01:40:00")


def test_exported_chats_stay_text(tmp_path: Path, sandbox: Sandbox) -> None:
    chat = "[01.05.26, 10:00:12] Ada: Kündigung?\n[01.05.26, 10:01:00] Bob: <Media omitted>\n10:02 - 10:03\nend"
    for name in ("chat.txt", "WhatsApp Chat"):
        assert read(tmp_path, sandbox, chat, name).text == chat


@pytest.mark.parametrize(
    "data",
    [
        b"WEBVTT\n\n" + b"00:00.000 --> 00:01.000\n" * 100_000,
        b"1\n00:00:00,000 --> 99:99:99,999\n" + b"<" * 2_000_000,
        b"1\n00:00:00,000 --> 00:00:01,000\n" + b"\n" * 2_000_000 + b"x",
        b"1\n00:00:00,000 --> 00:00:01,000\n" + b"a\n\n" * 300_000,
        b"1\n00:00:00,000 --> 00:00:01,000\n" + b"<v " * 300_000,
        b"1\n00:00:00,000 --> 00:00:01,000\n" + b"{\\" * 300_000,
        b"[Events]\nFormat: " + b"a," * 100_000 + b"\nDialogue: " + b"b," * 200_000,
        bytes(range(256)) * 1000,
    ],
)
def test_hostile_files_end_quickly(tmp_path: Path, data: bytes) -> None:
    with Sandbox(page_seconds=15) as sandbox:
        try:
            assert read(tmp_path, sandbox, data, "h.srt").parts
        except JambaError as error:
            assert "h.srt" in str(error) and "no progress" not in str(error) and "crashed" not in str(error)
