"""RTF is read as Word shows it: code pages, tables, notes, accepted changes; what is left out is said, and nothing is noise."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.document_files import docx_bytes, paragraph
from tests.support.outlook_files import compound_file
from tests.support.written_files import rtf_bytes


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


Read = Callable[..., Document]


@pytest.fixture
def read(tmp_path: Path, sandbox: Sandbox) -> Read:
    def one(body: str | bytes, *head: str, name: str = "d.rtf", raw: bool = False) -> Document:
        path = tmp_path / name
        path.write_bytes(bytes(body) if raw and isinstance(body, bytes) else rtf_bytes(body, *head))
        return read_file(path, sandbox)

    return one


def test_paragraphs_and_characters(read: Read) -> None:
    body = (
        r"Fran\'e7ois \ldblquote says\rdblquote  1\~000\_2 \emdash  \{a\\b\}\par second\line"
        "\r\nline\\tab end\\par\n\\\nlast"
    )
    document = read(body)
    assert document.text == "François “says” 1\xa0000-2 — {a\\b}\nsecond\nline\tend\n\nlast"
    assert document.unit == "paragraph" and document.remarks == ()


def test_unicode_with_and_without_replacements(read: Read) -> None:
    body = r"\u8364\'80 \uc2\u1087\'ef\'f0\u1088xx {\uc0\u1080}\u1081\'e9\'ea \uc1\u-10179?\u-8704? \u20154\loch ?!"
    assert read(body).text == "€ пр ий 😀 人!"


@pytest.mark.parametrize(
    ("page", "charset", "text", "encoding"),
    [
        (1251, 204, "Договор подряда", "cp1251"),
        (1252, 204, "Договор подряда", "cp1251"),
        (932, 128, "契約書　能登ソ表", "cp932"),
        (1252, 128, "表示ソフト", "cp932"),
        (936, 134, "合同条款", "cp936"),
        (1252, 129, "계약서", "cp949"),
        (1250, 238, "Smlouva o dílo: žluťoučký", "cp1250"),
        (1252, 161, "Σύμβαση", "cp1253"),
        (1252, 177, "חוזה", "cp1255"),
        (1251, 0, "Счёт", "cp1251"),
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_code_pages_and_charsets_of_fonts(
    read: Read, page: int, charset: int, text: str, encoding: str, escaped: bool
) -> None:
    data = text.encode(encoding)
    if escaped:
        written = "".join(
            f"\\'{b:02x}" if b > 127 else chr(b) if chr(b) not in "\\{}" else f"\\{chr(b)}" for b in data
        ).encode()
    else:
        written = data.replace(b"\\", b"\\\\").replace(b"{", b"\\{").replace(b"}", b"\\}")
    fonts = rf"{{\fonttbl{{\f0\fswiss\fcharset{charset}{{\*\panose 020b0604}} Font {{\*\falt Other}};}}}}"
    assert read(b"\\f0 " + written, rf"\ansi\ansicpg{page}\deff0{fonts}").text == text


def test_a_font_lasts_until_its_group_ends(read: Read) -> None:
    fonts = r"\ansi\ansicpg1252\deff0{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset204 B;}"
    fonts += r"{\f2\fcharset2 Wingdings;}{\f3\fcharset2 Symbol;}}"
    body = r"\'e9{\f1 \'e9}\'e9 {\f1\plain \'e9}{\f2 \'fe}{\f3 ab\'b3}{\rtlch\af0 \ltrch\f1 \'e9}{\ltrch\f0 \rtlch\af1 \'e9}"
    assert read(body, fonts).text == "éйé é☑αβ≥йй"


def test_tables_are_rows_with_bars(read: Read) -> None:
    row = r"\trowd\cellx1000\cellx2000\cellx3000 \pard\intbl {}\cell {}\cell {}\cell\row "
    merged = r"\trowd\clvmgf\cellx1\clmgf\cellx2\clmrg\cellx3\pard\intbl a\cell b\cell hidden\cell\row"
    body = r"Before.\par " + row.format("Item", r"Price\par per day", "") + row.format("", "9", "EUR") + merged
    assert read(body + r"\pard After.\par").text == "Before.\nItem | Price per day | \n | 9 | EUR\na | b | \nAfter."


def test_nested_tables_and_missing_ends(read: Read) -> None:
    inner = r"\pard\intbl\itap2 x\nestcell y\nestcell{\*\nesttableprops\trowd\cellx5\cellx9\nestrow}{\nonesttables\par}"
    body = r"\trowd\cellx1\cellx2 " + inner + r"\pard\intbl\itap1 after\cell z\cell\row \pard text\par"
    assert read(body).text == "x y after | z\ntext"
    assert read(r"\trowd\cellx1\pard\intbl a\cell b\cell \pard next\par").text == "a | b\nnext"


def test_labels_of_lists_as_they_are_shown(read: Read) -> None:
    item = r"{{\listtext\pard\plain {}\tab}}\pard\ls1\ilvl{} {}\par "
    body = item.format("2.2", 1, "Rent") + item.format("(a)", 2, "monthly") + item.format(r"\f1\'b7", 1, "a point")
    body += r"\pard{\pntext\f1\'B7\tab}{\*\pn\pnlvlblt{\pntxtb\'B7}}WordPad\par plain"
    fonts = r"\ansi\deff0{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset2 Symbol;}}"
    assert read(body, fonts).text == "2.2 Rent\n(a) monthly\n  - a point\n- WordPad\nplain"


def test_notes_comments_headers_and_footers(read: Read) -> None:
    note = r"{\super\chftn{\footnote\pard\plain\super\chftn\nosupersub  The \b note\b0 .}}"
    comment = r"{\*\atnid AB}{\*\atnauthor Ada B}\chatn{\*\annotation{\*\atndate 1}\pard Why?}"
    header = r"{\header\pard Contract {\field{\*\fldinst PAGE}{\fldrslt 1}}\par}{\footerl left\par}"
    header += r"{\footer\pard Draft\par}{\headerf first\par}"
    document = read(header + rf"One{note} two{comment} three\par \sect {header}last\par")
    lines = ["Header: Contract 1", "One [The note.] two [Comment by Ada B: Why?] three", "Footer: Draft", "last"]
    assert document.text.split("\n") == lines
    assert "Header: first" in read(r"\sectd\titlepg" + header + "x").text


def test_changes_are_accepted_and_hidden_text_is_left_out(read: Read) -> None:
    body = r"Rent {\deleted 900}{\revised 950}.\par gone {\deleted a\par b}joined\par {\v secret words}\v more\v0  shown\par"
    document = read(body + r"{\v only hidden\par}{\plain\v x\plain y}")
    assert document.text == "Rent 950.\ngone joined\nshown\ny"
    assert "2 tracked deletions" in document.remarks[0] and "6 hidden words" in document.remarks[1]


def test_fields_and_forms(read: Read) -> None:
    field = r"{{\field{{\*\fldinst {}}}{{\fldrslt {}}}}}"
    form = r"{{\*\formfield{{\fftype{}\ffres{}\ffdefres{}{{\*\ffname F}}{{\*\ffl red}}{{\*\ffl green}}}}}}"
    body = field.format(r"HYPERLINK {\field{\*\fldinst X}{\fldrslt no}} \\l", "a link") + " "
    body += field.format('SYMBOL 97 \\\\f "Symbol"', "") + field.format("TC \\'22x\\'22", "")
    for kind, result, default in ((1, 25, 1), (1, 0, 1), (2, 1, 0)):
        body += " " + field.format("FORM " + form.format(kind, result, default), "")
    assert read(body + r"{\xe index}{\tc contents}{\*\bkmkstart b}{\*\unknown noise}").text == "a link α ☒ ☐ green"


def test_pictures_and_objects_are_no_noise(read: Read) -> None:
    alt = r"{\*\picprop{\sp{\sn wzDescription}{\sv A heron}}}"
    binary = b"{\\pict\\pngblip\\bin10 }}{{\\par}}}"
    picture = (r"{\*\shppict{\pict" + alt + r"\pngblip 89504e47}}{\nonshppict{\pict\wmetafile8 0100}}").encode()
    thing = rb"{\object\objemb{\*\objclass Excel.Sheet}{\*\objdata d0cf11e0}{\result{\pict 0100}shown}}"
    document = read(b"a " + picture + binary + thing + b" b")
    assert document.text == "a  [A heron] shown b"
    assert [r.partition(": ")[2] for r in document.remarks] == [
        "2 pictures were left out; text in them is not read",
        "1 embedded object was left out, but for the text shown for it",
    ]


def test_text_boxes_are_lines_of_their_own(read: Read) -> None:
    shape = r"{\shp{\*\shpinst\shpleft0{\sp{\sn pib}{\sv {\pict 01}}}{\shptxt\pard In the box.\par}}"
    shape += r"{\shprslt{\*\do{\dptxbxtext In the box.\par}}}}"
    old = r"{\*\do\dobxcolumn{\dptxbxtext\pard Old box.\par}}"
    assert read(rf"One. {shape}Two.\par {old}three").text == "One.\nIn the box.\nTwo.\nOld box.\nthree"


def test_formulas_and_pairs(read: Read) -> None:
    math = r"{\mmath{\*\moMathPara{\*\moMath{\mf{\mfPr{\mctrlPr x}}{\mnum{\mr a+b}}{\mden{\mr 2}}}{\mr =c}"
    math += r"{\msSup{\me{\mr x}}{\msup{\mr 2}}}}}{\mmathPict 12}}"
    assert read(rf"f: {math}{{\upr{{ansi}}{{\*\ud unicode}}}}").text == "f: (a + b)/2 = cx^2unicode"
    assert read(r"x{\super 2} H{\sub 2}O {\strike old}{\up6 th}").text == "x² H₂O ~~old~~th"


def test_outlooks_rtf_is_the_web_page_in_it(read: Read) -> None:
    body = (
        r"{\*\htmltag64 <html><body>}{\*\htmltag84 <b>}\htmlrtf {\b \htmlrtf0 Re: a &lt; b \u8364?\'80\htmlrtf }\htmlrtf0"
        r"{\*\htmltag92 </b>}{\*\htmltag4 <br>}\htmlrtf \par\htmlrtf0{\*\mhtmltag84 <i>}second \'e9"
        r"{\*\htmltag84 &nbsp;}{\*\htmltag27 </body></html>}"
    )
    head = r"\ansi\ansicpg1252\fromhtml1\deff0{\fonttbl{\f0\fcharset0 Arial;}}"
    document = read(body, head)
    assert document.text.split("\n")[0].startswith("Re: a") and "second é" in document.text and "€" in document.text
    assert "htmltag" not in document.text and document.unit == "line"


def test_word_files_of_other_kinds_are_told_by_content(tmp_path: Path, sandbox: Sandbox, read: Read) -> None:
    assert read("Rich.", name="a.doc").text == "Rich."
    for name, data, text in (
        ("b.doc", b"<html><body><p>Web.</p></body></html>", "Web."),
        ("c.doc", docx_bytes(paragraph("Zip.")), "Zip."),
        ("d.doc", b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n<p>Archive.</p>", "Archive."),
        ("e.txt", rtf_bytes("Named wrong."), "Named wrong."),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_file(tmp_path / name, sandbox).text.strip() == text
    (tmp_path / "f.doc").write_bytes(compound_file({"WordDocument": bytes(5000)}))
    (tmp_path / "g.doc").write_bytes(
        b'<?xml version="1.0"?><?mso-application progid="Word.Document"?><w:wordDocument/>'
    )
    for name, words in (("f.doc", "old Word file"), ("g.doc", "one XML file")):
        with pytest.raises(JambaError, match=words) as caught:
            read_file(tmp_path / name, sandbox)
        assert "\n" not in str(caught.value)


def test_a_text_that_ends_early_or_late_is_said(read: Read) -> None:
    document = read(rb"{\rtf1\ansi One {\b two", raw=True)
    assert document.text == "One two" and "truncated" in document.remarks[0]
    document = read(rb"{\rtf1\ansi One} two}three {four}" + b"\0\0", raw=True)
    assert document.text == "One" and "3 words were left out after the end" in document.remarks[0]
    assert read(rb"{\rtf1\ansi One\par}" + b"\r\n\0", raw=True).remarks == ()


HOSTILE: dict[str, bytes] = {
    "groups": b"{\\rtf1 " + b"{" * 100_000 + b"x" + b"}" * 100_000 + b"}",
    "notes in notes": b"{\\rtf1 " + b"{\\footnote x" * 20_000 + b"}" * 20_000 + b"}",
    "tables in tables": b"{\\rtf1 " + b"".join(b"\\itap%d x\\nestcell" % i for i in range(3000)) + b"}",
    "cells": b"{\\rtf1 \\intbl " + b"x\\cell" * 100_000 + b"\\row}",
    "words": b"{\\rtf1 x\\" + b"a" * 1_000_000 + b" y}",
    "numbers": b"{\\rtf1 x\\u99999999999999999999 \\uc9999999999 \\f-9999999999 \\bin-5 y}",
    "bin": b"{\\rtf1 x\\bin9999999999 y}",
    "closes": b"{\\rtf1 x" + b"}" * 100_000,
    "formulas": b"{\\rtf1 x{\\moMath" + b"{\\mf{\\mnum" * 5000 + b"}" * 20_000,
    "objects": b"{\\rtf1 x" + b"{\\object{\\result" * 10_000 + b"}" * 20_000,
    "fonts": b"{\\rtf1 x{\\fonttbl" + b"".join(b"{\\f%d A;}" % i for i in range(200_000)) + b"}y}",
}


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_files_are_read_or_refused_in_one_line(tmp_path: Path, sandbox: Sandbox, which: str) -> None:
    path = tmp_path / "h.rtf"
    path.write_bytes(HOSTILE[which])
    try:
        assert "x" in read_file(path, sandbox).text
    except JambaError as error:
        assert "\n" not in str(error) and "h.rtf" in str(error) and "crashed" not in str(error)


def test_damaged_files_never_crash_the_reader(tmp_path: Path, sandbox: Sandbox) -> None:
    sample = rtf_bytes(
        r"{\header H\par}One{\footnote n}\par\trowd\cellx1\intbl a\cell\row{\field{\*\fldinst X}{\fldrslt y}}"
        r"{\pict\bin3 abc}{\shp{\*\shpinst{\shptxt box\par}}}{\moMath{\mf{\mnum 1}{\mden 2}}}{\listtext 1.}z\par\sect\v q"
    )
    random = Random(7)
    path = tmp_path / "r.rtf"
    for _ in range(150):
        data = bytearray(sample)
        for _ in range(random.randint(1, 6)):
            at = random.randrange(6, len(data))
            data[at : at + random.randint(0, 4)] = random.choice(
                [b"{", b"}", b"\\", b"\\par", b"\\cell", b"\\row", b"", b"\xff"]
            )
        path.write_bytes(bytes(data))
        try:
            read_file(path, sandbox)
        except JambaError as error:
            assert "contains no text" in str(error), bytes(data)


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not installed")
def test_what_pandoc_writes(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "a.md").write_text(
        "# Über\n\nText[^1] **bold** and “quotes”.\n\n1. one\n2. two\n\n| A | B |\n|---|---|\n| 1 | 2 |\n\n[^1]: Note.\n"
    )
    subprocess.run(["pandoc", "-s", str(tmp_path / "a.md"), "-o", str(tmp_path / "a.rtf")], check=True)
    lines = [line for line in read_file(tmp_path / "a.rtf", sandbox).text.split("\n") if line]
    assert lines == ["Über", "Text [Note.] bold and “quotes”.", "1.\tone", "2.\ttwo", "A | B", "1 | 2"]
