"""Texts as people have them: encodings without marks, truncated logs, tables with odd headers, notebooks."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file, read_stdin
from jambacli.errors import JambaError

TEXTS = {
    "Russian": "Договор заключён на три месяца. Арендная плата составляет 900 рублей.",
    "Greek": "Η σύμβαση λήγει σε τρεις μήνες. Το μίσθωμα είναι εννιακόσια ευρώ.",
    "Chinese": "合同在三个月后结束。租金为每月九百元，双方同意。\n第二行：通知期限为三十天。",
    "Japanese": "契約は三ヶ月後に終了します。解約の通知は書面で行うものとする。",
    "Korean": "계약은 세 달 후에 종료됩니다. 임대료는 매월 구백 유로입니다.",
    "Hebrew": "החוזה מסתיים בעוד שלושה חודשים. דמי השכירות הם תשע מאות.",
    "Arabic": "ينتهي العقد بعد ثلاثة أشهر. الإيجار تسعمائة يورو.",
    "Hindi": "अनुबंध तीन महीने में समाप्त होता है। किराया नौ सौ यूरो है।",
    "Thai": "สัญญาสิ้นสุดในสามเดือน ค่าเช่าเก้าร้อยยูโร",
    "German": "Die Kündigungsfrist beträgt drei Monate, die Miete 900 Euro.",
    "English": "The notice period is three months.\nThe rent is 900 euros.",
    "mixed": "Отчёт 2026: total 900 EUR, см. file.txt\nвторая строка",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def read(folder: Path, data: bytes | str, name: str = "t.txt", sandbox: Sandbox | None = None) -> Document:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_file(path, sandbox)


def piped(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Document:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return read_stdin()


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"])
def test_wide_encodings_with_and_without_a_mark(tmp_path: Path, language: str, encoding: str) -> None:
    document = read(tmp_path, TEXTS[language].encode(encoding))
    assert document.text == TEXTS[language]
    assert bool(document.remarks) == encoding.endswith("e") and all(encoding[:6].upper() in r for r in document.remarks)
    assert read(tmp_path, (TEXTS[language] * 2000).encode(encoding)).text.startswith(TEXTS[language])


def test_a_truncated_wide_text_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, TEXTS["Russian"].encode("utf-16-le")[:-1]).text.startswith(TEXTS["Russian"][:-1])


@pytest.mark.parametrize(("language", "encoding"), [("Japanese", "iso2022_jp"), ("Korean", "iso2022_kr")])
def test_encodings_of_mail(tmp_path: Path, language: str, encoding: str) -> None:
    document = read(tmp_path, TEXTS[language].encode(encoding))
    assert document.text == TEXTS[language] and "iso-2022" in document.remarks[0]
    assert read(tmp_path, b"\x1b[31mred\x1b[0m and plain").text == "\x1b[31mred\x1b[0m and plain"


@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (TEXTS["Russian"], "cp1251"),
        (TEXTS["Russian"], "koi8_r"),
        (TEXTS["Greek"], "cp1253"),
        (TEXTS["Hebrew"], "cp1255"),
        (TEXTS["Arabic"], "cp1256"),
        (TEXTS["German"], "cp1252"),
        ("Umowa zostaje zawarta na czas określony, wypowiedzenie trzy miesiące.", "cp1250"),
        ("Umowa zostaje zawarta na czas określony, wypowiedzenie trzy miesiące.", "iso8859_2"),
        ("A szerződés három hónap múlva lejár. A bérleti díj kilencszáz euró.", "cp1250"),
        ("Sözleşme üç ay sonra sona erer. Kira aylık dokuz yüz avrodur.", "cp1254"),
        (TEXTS["Chinese"], "gb18030"),
        (TEXTS["Japanese"], "euc_jp"),
    ],
)
def test_encodings_of_one_language(tmp_path: Path, text: str, encoding: str, count: int) -> None:
    document = read(tmp_path, "\n".join([text] * count).encode(encoding))
    assert document.text == "\n".join([text] * count) and "not UTF-8" in document.remarks[0]


LOG = b"".join(b"2026-05-01 12:00:%02d error %d: disk full\n" % (i % 60, i) for i in range(400))


@pytest.mark.parametrize(
    ("data", "nuls"),
    [
        (LOG.replace(b"error 7:", b"error \x007:"), 1),
        (LOG[:5000] + bytes(4096) + LOG[5000:], 4096),
        (LOG[:100] + bytes(1 << 20) + LOG[100:], 1 << 20),
        (bytes(8192) + LOG, 8192),
        (LOG + bytes(20_000), 20_000),
        (LOG * 40 + bytes(10) + LOG, 10),  # beyond the sample
    ],
)
def test_nuls_of_a_truncated_log_are_no_text(tmp_path: Path, data: bytes, nuls: int) -> None:
    document = read(tmp_path, data, "a.log")
    assert document.text.replace("\n", "") == data.replace(b"\x00", b"").decode().replace("\n", "")
    assert f"{nuls:,} NUL bytes" in document.remarks[0]


@pytest.mark.parametrize(
    "data",
    [
        bytes(5000),
        bytes(range(256)) * 40,
        b"\x00\x01" * 500,
        b"".join(i.to_bytes(4, "little") for i in range(3000)),
        b"name\x00" * 3 + bytes(range(32)) * 30,
        b"a.txt".ljust(257, b"\x00") + b"ustar\x00" + b"text " * 200,
    ],
)
def test_binary_files_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(JambaError, match="is binary, not text"):
        read(tmp_path, data, "a.log")


ROWS = "\n".join(f'{i};"Customer {i}";{i},50' for i in range(600))
HEADER = '"No";"Customer\nname";"Amount\n(EUR)"'


@pytest.mark.parametrize(
    ("before", "header"),
    [
        ("", "No;Customer;Amount"),
        ("sep=;\n", "No;Customer;Amount"),
        ("\ufeffSEP=;\r\n", "No;Customer;Amount"),
        ("", HEADER),
        ("sep=;\n", HEADER),
        ("Statement of account\nfrom 1 May\n\n", "No;Customer;Amount"),
    ],
)
def test_the_header_record_begins_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, header: str
) -> None:
    data = f"{before}{header}\n{ROWS}\n".encode()
    documents = [read(tmp_path, data, "t.csv"), piped(data, monkeypatch)]
    for document in documents:
        assert len(document.parts) > 3
        for part in document.parts[1:]:
            rest = part.text.removeprefix(header + "\n")
            assert rest != part.text and rest[0].isdigit() and header not in rest
        assert document.text.count("Customer 599") == 1


def test_a_piped_text_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(f"In the year {i}, the herons came, and the owls, who had waited, left." for i in range(500))
    assert piped(text.encode(), monkeypatch).text == text
    log = "\n".join(f"2026-05-{i % 28 + 1:02}, host, message {i}" for i in range(900))
    assert piped(log.encode(), monkeypatch).text == log


def notebook(*cells: dict[str, object]) -> str:
    return json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_a_notebook_is_its_cells_and_text_outputs(tmp_path: Path, sandbox: Sandbox) -> None:
    image = base64.b64encode(bytes(30_000)).decode()
    data = notebook(
        {"cell_type": "markdown", "source": ["# Sales\n", f"![x](data:image/png;base64,{image})\n", "5 million."]},
        {
            "cell_type": "code",
            "source": "print(7)",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["seven\n"]},
                {"output_type": "display_data", "data": {"image/png": image, "text/plain": ["<Figure>"]}},
                {"output_type": "execute_result", "data": {"text/html": "<b>x</b>", "text/plain": "a  b\n1  2"}},
                {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mValueError\x1b[0m: no"]},
            ],
        },
        {"cell_type": "raw", "source": "raw text"},
    )
    document = read(tmp_path, data, "n.ipynb", sandbox)
    assert document.text == (
        "# Sales\n![x]((image))\n5 million.\n\n```\nprint(7)\n```\nOutput:\nseven\nOutput:\n<Figure>\nOutput:\na  b\n1  2\n"
        "Output:\nValueError: no\n\nraw text"
    )
    assert document.unit == "cell" and "2 images" in document.remarks[0]


def test_long_notebooks_keep_the_numbers_of_cells(tmp_path: Path, sandbox: Sandbox) -> None:
    cells: list[dict[str, object]] = [
        {"cell_type": "markdown", "source": f"cell {i} " + "x" * (9000 if i == 20 else 300)} for i in range(1, 41)
    ]
    document = read(tmp_path, notebook(*cells), "n.ipynb", sandbox)
    assert document.parts[0].first == 1 and document.parts[-1].last == 40
    for part in document.parts:
        assert part.text.startswith(f"cell {part.first} ") or part.first == 20


@pytest.mark.parametrize(
    "data", ["{", "[]", "{}", '{"cells": 3}', '{"cells": []}', "[" * 100_000, '{"cells": [1, null]}']
)
def test_damaged_notebooks_are_refused_in_one_line(tmp_path: Path, sandbox: Sandbox, data: str) -> None:
    with pytest.raises(JambaError) as failure:
        read(tmp_path, data, "n.ipynb", sandbox)
    assert "n.ipynb" in str(failure.value) and "\n" not in str(failure.value)


def test_json_keeps_its_data(tmp_path: Path) -> None:
    line = json.dumps({"image": base64.b64encode(bytes(range(250))).decode(), "cells": []})
    assert read(tmp_path, line + "\n" + line, "a.jsonl").text == line + "\n" + line
