"""Pages that are pictures are recognized by tesseract, are said to be, and are not recognized twice."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest

from jambacli.documents.extract.images import grey_picture
from jambacli.documents.extract.ocr import Ocr
from jambacli.documents.extract.sandbox import OcrRequest, Sandbox
from jambacli.documents.extract.tesseract import Tesseract, tesseract
from jambacli.documents.load import Document, read_documents, read_file
from jambacli.errors import JambaError, UsageError
from tests.support.cli_runner import jamba
from tests.support.document_files import pdf_bytes
from tests.support.scans import page_images, scanned_pdf, tiff_bytes

pytest.importorskip("pypdfium2")
pytest.importorskip("PIL")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for tesseract are shell scripts")

LEASE = "The tenant shall pay 900 euros on the third of each month.\nNotice must be given in writing."
HEADER = r"level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
WORDS = r"5\t1\t1\t1\t1\t1\t0\t0\t9\t9\t96\tSeven\n5\t1\t1\t1\t1\t2\t0\t0\t9\t9\t91\towls\n"
WORDS += r"5\t1\t1\t1\t2\t1\t0\t0\t9\t9\t90\thoot\n"
GOOD = f"printf '{HEADER}{WORDS}'"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Installs a program called tesseract, whose recognition is the shell commands given; returns the log of its calls."""

    def install(commands: str, languages: str = "deu eng osd") -> Path:
        folder = tmp_path / f"bin{len(list(tmp_path.glob('bin*')))}"
        folder.mkdir()
        program, log = folder / "tesseract", folder / "log"
        listed = "\n".join(languages.split())
        program.write_text(
            '#!/bin/sh\ncase "$1" in\n--version) echo "tesseract 9.8.7"; exit;;\n'
            f"--list-langs) printf 'List of languages (3):\\n{listed}\\n'; exit;;\nesac\n"
            f'echo "$$ $*" >> {log}\n{commands}\n'
        )
        program.chmod(0o755)
        log.touch()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return log

    return install


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def read(path: str, **options: object) -> Document:
    (document,) = read_documents([path], **options)  # type: ignore[arg-type]
    return document


def scan(*texts: str, layer: tuple[str, ...] = ()) -> bytes:
    return scanned_pdf(page_images(texts), layer)


needs_tesseract = pytest.mark.skipif(
    (found := tesseract()) is None or "eng" not in found.languages, reason="tesseract with English is not installed"
)


@needs_tesseract
def test_scanned_pages_are_recognized(tmp_path: Path) -> None:
    path = write(tmp_path, "lease.pdf", scan(LEASE, "", "Annex. The rent includes heating.", layer=("Page 1 of 3",)))
    document = read(path, ocr="eng")
    assert [part.first for part in document.parts] == [1, 3] and document.unit == "page"
    assert LEASE in document.parts[0].text and document.parts[1].text == "Annex. The rent includes heating."
    version = tesseract().version  # type: ignore[union-attr]
    assert f"2 pages recognized by OCR (tesseract {version}, eng): 1, 3" in document.remarks[0]
    assert "no text found by OCR on 1 page: 2" in document.remarks[1]


@needs_tesseract
def test_pictures(tmp_path: Path) -> None:
    first, second = (page.crop((0, 0, page.width, 400)) for page in page_images([LEASE, "The second page."]))
    first.save(tmp_path / "a.jpg")
    document = read(str(tmp_path / "a.jpg"), ocr="eng")
    assert document.text == LEASE and document.title(document.parts[0]) == str(tmp_path / "a.jpg")
    document = read(write(tmp_path, "a.tif", tiff_bytes([first, second])), ocr="eng")
    assert [part.text for part in document.parts] == [LEASE, "The second page."]
    assert document.where(document.parts[1]) == "page 2"
    screen = page_images([LEASE], dpi=96)[0].crop((0, 0, 700, 120)).convert("RGBA")
    screen.putdata([(0, 0, 0, 255 - red) for red in screen.getchannel("R").tobytes()])  # black letters on nothing
    screen.save(tmp_path / "screen.png")
    assert LEASE in read(str(tmp_path / "screen.png"), ocr="eng").text


@needs_tesseract
def test_turned_pages(tmp_path: Path) -> None:
    if not tesseract().turns:  # type: ignore[union-attr]
        pytest.skip("tesseract's osd data are not installed")
    page = page_images([(LEASE + "\n") * 4])[0].crop((0, 0, 1654, 700))
    path = write(tmp_path, "turned.pdf", scanned_pdf([page.rotate(90, expand=True), page.rotate(180)]))
    assert [part.text.count("900 euros") for part in read(path, ocr="eng").parts] == [4, 4]


def test_a_page_is_recognized_once(tmp_path: Path, stand_in: Callable[[str], Path], home: Path) -> None:
    log = stand_in(GOOD)
    data = scan("one", "two", "three")
    path = write(tmp_path, "a.pdf", data)
    expected = "Seven owls\nhoot"
    assert [part.text for part in read(path).parts] == [expected] * 3
    assert len(log.read_text().splitlines()) == 3
    assert "-l deu+eng" in log.read_text() or "-l eng+deu" in log.read_text()
    again = read(write(tmp_path, "copy.pdf", data))
    assert [part.text for part in again.parts] == [expected] * 3 and len(log.read_text().splitlines()) == 3
    assert "3 pages recognized by OCR (tesseract 9.8.7" in again.remarks[0]
    read(path, ocr="deu")
    assert len(log.read_text().splitlines()) == 6
    stored = list((home / "prefixes" / "ocr").iterdir())
    assert len(stored) == 2
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in stored)
    assert stat.S_IMODE((home / "prefixes" / "ocr").stat().st_mode) == 0o700
    other = write(tmp_path, "other.pdf", scan("four"))
    read(other, store=False)
    assert len(list((home / "prefixes" / "ocr").iterdir())) == 2


def test_stored_pages_are_deleted_with_the_rest(tmp_path: Path, stand_in: Callable[[str], Path], home: Path) -> None:
    stand_in(GOOD)
    made = EmailMessage()
    made["From"], made["Subject"], made["Date"] = "a@b.c", "scan", "Fri, 01 May 2026 10:00:00 +0200"
    made.set_content("See the scan.")
    made.add_attachment(scan("attached"), "application", "pdf", filename="scan.pdf")
    first, second = write(tmp_path, "a.pdf", scan("one")), write(tmp_path, "m.eml", made.as_bytes())
    read(first), read(first, ocr="deu")
    mail = read(second)
    assert "[scan.pdf, page 1]\nSeven owls\nhoot" in mail.text
    assert "scan.pdf: 1 page recognized by OCR" in mail.remarks[0]
    folder = home / "prefixes" / "ocr"
    assert len(list(folder.iterdir())) == 3
    assert jamba("cache", "clear", "--document", first).returncode == 0
    assert len(list(folder.iterdir())) == 1
    assert jamba("cache", "clear", "--document", second).returncode == 0
    assert not list(folder.iterdir())
    read(first)
    assert jamba("cache", "clear").returncode == 0
    assert not list(folder.iterdir())


def test_damaged_stored_pages_are_recognized_again(tmp_path: Path, stand_in: Callable[[str], Path], home: Path) -> None:
    log = stand_in(GOOD)
    path = write(tmp_path, "a.pdf", scan("one", "two"))
    read(path)
    (stored,) = (home / "prefixes" / "ocr").iterdir()
    lines = [line for line in stored.read_text().split("\n") if line]
    stored.write_text("\n".join([*lines[:1], lines[1][:20], "[1, 2]", '{"page": "x"}']))
    assert len(read(path).parts) == 2 and len(log.read_text().splitlines()) == 3


def test_text_is_read_as_it_is_and_stray_letters_are_not(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    log = stand_in(GOOD)
    assert read(write(tmp_path, "a.pdf", pdf_bytes(["A short page.", "More."]))).text == "A short page.\nMore."
    layer = "This layer of text has more letters than a stamp or the number of a page."
    assert read(write(tmp_path, "b.pdf", scan("x", layer=(layer,)))).text == layer
    assert not log.read_text()
    assert read(write(tmp_path, "c.pdf", scan("x", layer=("p. 1",)))).text == "Seven owls\nhoot"
    mixed = scan("x", "y", layer=(layer, ""))
    document = read(write(tmp_path, "d.pdf", mixed))
    assert [part.text for part in document.parts] == [layer, "Seven owls\nhoot"]
    assert "1 page recognized by OCR (tesseract 9.8.7" in document.remarks[0] and document.remarks[0].endswith(": 2")


def test_off_and_not_installed_say_what_to_do(tmp_path: Path, nothing_installed: None) -> None:
    path = write(tmp_path, "a.pdf", scan("one", "two"))
    with pytest.raises(
        JambaError, match=r"its 2 pages have no text \(a scan\?\); make it searchable.*install tesseract"
    ):
        read(path)
    with pytest.raises(JambaError, match=r"its 2 pages have no text \(a scan\?\); make it searchable"):
        read(path, ocr="off")
    page_images(["one"])[0].save(tmp_path / "a.png")
    with pytest.raises(JambaError, match=r"is a PNG image; read its text with an OCR program.*install tesseract"):
        read(str(tmp_path / "a.png"))
    mixed = read(write(tmp_path, "b.pdf", scan("x", "y", layer=("words " * 20, ""))))
    assert (
        "install tesseract" in mixed.remarks[0]
        and "1 page has no text (a scan?) and was skipped: 2" in mixed.remarks[1]
    )
    with pytest.raises(UsageError, match="needs tesseract, which is not installed"):
        read(path, ocr="deu")
    assert read(write(tmp_path, "t.pdf", pdf_bytes(["text"])), ocr="auto").text == "text"


def test_languages(tmp_path: Path, stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    log = stand_in(GOOD)
    path = write(tmp_path, "a.pdf", scan("one"))
    with pytest.raises(
        UsageError, match=r"'fra\+xyz' is no language of tesseract here \(fra, xyz\); installed: deu, eng"
    ):
        read(path, ocr="fra+xyz")
    assert not log.read_text()
    read(path, ocr="de+eng")
    assert "-l deu+eng" in log.read_text()
    many = Tesseract("tesseract", "5", ("ara", "chi_sim", "deu", "eng", "fra", "jpn", "script/Latin"), True)
    for name, chosen in (
        ("de_DE.UTF-8", "deu+eng"),
        ("C", "eng"),
        ("en_US.UTF-8", "eng"),
        ("zh_CN.UTF-8", "chi_sim+eng"),
    ):
        monkeypatch.setenv("LC_ALL", name)
        assert many.variant("auto").languages == chosen
    done = jamba("ask", path, "why?", "--ocr", "klingon")
    assert (
        done.returncode == 2
        and b"--ocr 'klingon' is no language" in done.stderr
        and b"installed: deu, eng" in done.stderr
    )


BROKEN = {
    "an error": ('echo "Error opening data file" >&2; exit 1', "tesseract failed (Error opening data file)"),
    "an exit without a word": ("exit 3", "tesseract failed (exit code 3)"),
    "a crash": ("kill -SEGV $$", "tesseract crashed (signal 11)"),
    "garbage": ("head -c 100000 /dev/urandom", "tesseract answered with something else"),
    "nothing": ("exit 0", "tesseract answered with something else"),
    "no end of output": ("exec yes", "tesseract went beyond its limits"),
    "a hang": ("exec sleep 600", "tesseract took longer than 1 s"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_program_that_fails(tmp_path: Path, stand_in: Callable[[str], Path], kind: str, home: Path) -> None:
    commands, said = BROKEN[kind]
    log = stand_in(commands)
    path = Path(write(tmp_path, "a.pdf", scan(*"abcdefgh")))
    with Sandbox(ocr=OcrRequest("auto", str(home / "prefixes"), seconds=1)) as sandbox:
        with pytest.raises(JambaError) as caught:
            read_file(path, sandbox)
        assert "its 8 pages have no text, and recognizing them failed: " + said in str(caught.value)
        calls = log.read_text().splitlines()
        assert 3 <= len(calls) < 8  # it is not tried for ever
        assert not any(alive(int(call.split()[0])) for call in calls)
        assert read_file(Path(write(tmp_path, "t.pdf", pdf_bytes(["text"]))), sandbox).text == "text"
    assert not (home / "prefixes" / "ocr").exists()


def test_garbage_within_a_table_of_words(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    stand_in(
        rf"printf '{HEADER}5\t1\n\n5\t1\t1\t1\t1\t1\t0\t0\t9\t9\tnan\t\033[31mred\n4\t1\t1\t1\t1\t0\t0\t0\t9\t9\t-1\t\n{WORDS}'"
    )
    text = read(write(tmp_path, "a.pdf", scan("one"))).text
    assert "Seven owls\nhoot" in text and "\x1b" not in text


def test_a_page_that_fails_beside_others(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    log = stand_in(f'test "$(wc -l < "${{0%/*}}/log")" = 1 && exit 1\n{GOOD}')
    document = read(write(tmp_path, "a.pdf", scan("one", "two", "three", "four")))
    assert len(log.read_text().splitlines()) == 4
    assert len(document.parts) in (3, 4)
    if len(document.parts) == 3:
        assert "1 page not recognized (tesseract failed (exit code 1)): " in document.remarks[1]


def test_doubtful_text_is_said_and_noise_left_out(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    line = r"5\t1\t1\t1\t1\t1\t0\t0\t9\t9\t{}\tblurred\n"
    stand_in(f"printf '{HEADER}{line.format(45)}'")
    document = read(write(tmp_path, "a.pdf", scan("one")))
    assert document.text == "blurred" and "recognized poorly, check the text: 1" in document.remarks[1]
    stand_in(f"printf '{HEADER}{line.format(12)}'")
    with pytest.raises(JambaError, match="none was found by OCR"):
        read(write(tmp_path, "b.pdf", scan("two")))


def test_progress_is_told(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    stand_in(GOOD)
    told: list[object] = []

    @contextmanager
    def progress(title: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        told.append((title, total, unit))
        yield told.append

    path = write(tmp_path, "a.pdf", scan("one", "two", ""))
    read(path, progress=progress)
    assert told == [(f"Recognizing {path}", 3, "pages"), 1, 1, 1]
    read(path, progress=progress)
    assert len(told) == 4


def test_an_interrupt_ends_at_once_and_leaves_no_child(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    log = stand_in("exec sleep 600")
    path = write(tmp_path, "a.pdf", scan("one", "two"))
    code = f"from jambacli.documents.load import read_documents; read_documents([{path!r}])"
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < deadline and reader.poll() is None:
        time.sleep(0.05)
    reader.send_signal(signal.SIGINT)
    _, said = reader.communicate(timeout=20)
    assert b"KeyboardInterrupt" in said
    pids = [int(line.split()[0]) for line in log.read_text().splitlines()]
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not any(alive(pid) for pid in pids)
    assert not list(tmp_path.glob("jamba-*"))


def test_every_kind_of_picture_is_opened(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    stand_in(GOOD)
    page = page_images(["one"])[0].crop((0, 0, 600, 300))
    pictures = [
        page,
        page.convert("RGB"),
        page.convert("RGBA"),
        page.convert("P"),
        page.convert("1"),
        page.convert("CMYK"),
    ]
    paths = []
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "noending"):
        for i, picture in enumerate(pictures):
            if picture.mode not in {"a.jpg": "L RGB CMYK", "noending": "L"}.get(name, "L RGB RGBA P 1").split():
                continue
            path = tmp_path / f"{i}{name}"
            picture.save(path, format="PNG" if name == "noending" else None)
            paths.append(str(path))
    documents = read_documents(paths)
    assert len(documents) == len(paths) > 15
    for document in documents:
        assert document.text == "Seven owls\nhoot" and "1 page recognized by OCR" in document.remarks[0], document.name
    page.save(tmp_path / "film.gif", save_all=True, append_images=[page.rotate(180)])
    assert "only the first of 2 pictures was read" in read(str(tmp_path / "film.gif")).remarks[0]


def test_pictures_of_16_bits_are_grey(tmp_path: Path) -> None:
    from PIL import Image

    page = page_images(["one"])[0].crop((0, 0, 600, 300))
    page.convert("I").point(lambda value: value * 257).convert("I;16").save(tmp_path / "deep.png", dpi=(300, 300))
    page.save(tmp_path / "flat.png", dpi=(300, 300))
    deep, flat = (grey_picture(Image.open(tmp_path / name)) for name in ("deep.png", "flat.png"))
    assert deep == flat and {min(flat.pixels), max(flat.pixels)} == {0, 255}


def test_damaged_and_huge_pictures(tmp_path: Path, stand_in: Callable[[str], Path]) -> None:
    stand_in(GOOD)
    page_images(["one"])[0].save(tmp_path / "a.png")
    good = (tmp_path / "a.png").read_bytes()
    for data in (
        good[:60],
        good[: len(good) // 2],
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"RIFF\x10\x00\x00\x00WEBPVP8 xxxx",
    ):
        with pytest.raises(
            JambaError, match=r"b\.png: (is a damaged image|contains no text, and recognizing them failed)"
        ):
            read(write(tmp_path, "b.png", data))
    huge = bytearray(tiff_bytes(page_images(["x"])))
    at = huge.find(b"\x00\x01\x04\x00\x01\x00\x00\x00") + 8
    huge[at : at + 4] = (60_000).to_bytes(4, "little")
    huge[at + 12 : at + 16] = (60_000).to_bytes(4, "little")
    with pytest.raises(JambaError, match="60,000 x 60,000 pixels"):
        read(write(tmp_path, "c.tif", bytes(huge)))


def test_nothing_is_asked_of_the_program_before_a_page_needs_it() -> None:
    assert Ocr("off").ready is False and Ocr(stored="eng~5-1").ready


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return " Z " not in state.read_text()
    except OSError:
        return state.parent.parent.joinpath("self").exists() is False
