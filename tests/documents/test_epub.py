"""E-books are read in the order of their spine, chapters by their titles, and what is missing or left out is said."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.documents.pages import entries_of
from jambacli.errors import JambaError
from tests.support.written_files import epub_bytes, zip_bytes


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


Read = Callable[..., Document]


@pytest.fixture
def read(tmp_path: Path, sandbox: Sandbox) -> Read:
    def one(chapters: dict[str, str | bytes], **options: object) -> Document:
        path = tmp_path / "b.epub"
        path.write_bytes(epub_bytes(chapters, **options))  # type: ignore[arg-type]
        return read_file(path, sandbox)

    return one


@pytest.mark.parametrize("ncx", [False, True], ids=["EPUB 3", "EPUB 2"])
def test_chapters_have_the_titles_of_the_table_of_contents(read: Read, ncx: bool) -> None:
    chapters: dict[str, str | bytes] = {
        "cover.xhtml": "<p>Cover</p>",
        "c%201.xhtml": "<h1>I</h1><p>One.</p>",
        "c1b.xhtml": "<p>More of one.</p>",
        "c2.xhtml": "<p>Two.</p>",
    }
    chapters = {name.replace("%20", " "): body for name, body in chapters.items()}
    titles = {
        "c%201.xhtml#start": "The   <b>Deed</b>" if not ncx else "The Deed",
        "c%201.xhtml#x": "A part",
        "c2.xhtml": "Ende",
    }
    document = read(chapters, titles=titles, ncx=ncx)
    found = [(part.first, part.label, part.text) for part in document.parts]
    assert found == [
        (1, "", "Cover"), (2, "The Deed", "# I\nOne."), (3, "The Deed", "More of one."), (4, "Ende", "Two.")]  # fmt: skip
    assert document.unit == "chapter" and document.title(document.parts[1]) == f"{document.name}, chapter 2 (The Deed)"
    assert entries_of([document])[3].sources[0].to_json() == {"file": document.name, "chapter": 4, "label": "Ende"}


def test_the_order_is_that_of_the_spine_and_asides_come_last(read: Read) -> None:
    chapters: dict[str, str | bytes] = {
        name: f"<p>{name}</p>" for name in ("a.xhtml", "b.xhtml", "notes.xhtml", "unused.xhtml")
    }
    document = read(chapters, spine=["b.xhtml", "notes.xhtml", "a.xhtml", "b.xhtml"], aside=["notes.xhtml"])
    assert document.text.split("\n") == ["b.xhtml", "a.xhtml", "notes.xhtml"]
    assert "1 repeated chapter left out" in document.remarks[0]


def test_xhtml_is_not_html(read: Read) -> None:
    page = (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        "<head><title/><script src='x.js'/><style/></head><body><a id='p1'/><textarea/>"
        "<p>One<a epub:type='noteref' href='#n'>1</a>"
        "<![CDATA[ <two> & ]]>three&#160;four<br/>five</p><div class='a/b' title='x > y'/><iframe/>"
        "<aside epub:type='footnote' id='n'><p>The note.</p></aside></body></html>"
    )
    assert read({"a.xhtml": page.encode()}).text.split("\n") == ["One1 <two> & three four", "five", "The note."]
    assert read({"a.xhtml": page.encode()}).text.count("The note.") == 1


def test_encodings_of_chapters(read: Read) -> None:
    page = '<?xml version="1.0" encoding="{}"?><html><body><p>Договор</p></body></html>'
    for encoding in ("windows-1251", "utf-16", "utf-8"):
        assert read({"a.xhtml": page.format(encoding).encode(encoding)}).text == "Договор"


def test_long_chapters_are_cut(read: Read) -> None:
    document = read(
        {"a.xhtml": "<p>" + "</p><p>".join(f"Sentence {i} of many words." for i in range(1000)) + "</p>"},
        titles={"a.xhtml": "Long"},
    )
    assert len(document.parts) > 5 and {(p.first, p.last, p.label) for p in document.parts} == {(1, 1, "Long")}
    assert max(len(p.text) for p in document.parts) <= 4000


def test_what_is_not_there_is_named(read: Read) -> None:
    item = '<item id="{0}" href="{0}" media-type="{1}"/>'
    items = item.format("gone.xhtml", "application/xhtml+xml") + item.format(
        "http://example.com/r.xhtml", "application/xhtml+xml"
    )
    items += item.format("../../../../etc/passwd", "application/xhtml+xml") + item.format("/etc/hosts", "text/html")
    items += item.format("a.pdf", "application/pdf") + item.format("p.jpg", "image/jpeg")
    names = (
        "gone.xhtml",
        "http://example.com/r.xhtml",
        "../../../../etc/passwd",
        "/etc/hosts",
        "a.pdf",
        "p.jpg",
        "nowhere",
    )
    refs = "".join(f'<itemref idref="{name}"/>' for name in names)
    document = read(
        {"a.xhtml": '<p>Here.<img src="http://example.com/x.png" alt="A heron"/></p>'}, items=items, refs=refs
    )
    said = " ".join(document.remarks)
    assert document.text == "Here.[A heron]"
    for words in ("1 chapter missing from the file: gone.xhtml", "3 chapters outside of the file",
                  "1 file of other kinds left out: a.pdf",
                  "1 chapter without a file", "2 pictures left out"):  # fmt: skip
        assert words in said


def test_damaged_chapters_are_named_and_hidden_text_counted(read: Read) -> None:
    chapters: dict[str, str | bytes] = {
        "a.xhtml": "<p>One <span hidden=''>secret words</span></p>",
        "b.xhtml": b"\x00\x01\x02\x03\xff\xfe\x00\x80" * 40,
        "c.xhtml": "<p>Two <span style='display:none'>secret words</span></p>",
    }
    document = read(chapters)
    assert document.text.split("\n") == ["One", "Two"]
    assert "1 chapter not read: b.xhtml" in document.remarks[0] and "(2 times)" in document.remarks[1]


def encryption(*entries: tuple[str, str]) -> dict[str, str | bytes]:
    data = "".join(
        f'<enc:EncryptedData><enc:EncryptionMethod Algorithm="{method}"/><enc:CipherData><enc:CipherReference URI="{path}"/>'
        "</enc:CipherData></enc:EncryptedData>"
        for method, path in entries
    )
    return {"META-INF/encryption.xml": f'<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#">{data}</encryption>'}


def test_protected_books_are_refused_but_not_those_with_garbled_fonts(read: Read) -> None:
    fonts = ("http://www.idpf.org/2008/embedding", "OEBPS/font.otf")
    assert read({"a.xhtml": "<p>x</p>"}, parts=encryption(fonts)).text == "x"
    drm = ("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "OEBPS/a.xhtml")
    with pytest.raises(JambaError, match="DRM") as caught:
        read({"a.xhtml": "<p>x</p>"}, parts=encryption(fonts, drm))
    assert "\n" not in str(caught.value)


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="{}"/></rootfiles>'
    "</container>"
)
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


def opf(text: str) -> dict[str, str | bytes]:
    return {"META-INF/container.xml": CONTAINER.format("o.opf"), "o.opf": text}


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no package": (lambda: zip_bytes({"META-INF/container.xml": "<container/>"}), "names no package"),
    "package missing": (lambda: zip_bytes({"META-INF/container.xml": CONTAINER.format("o.opf")}), "o.opf is missing"),
    "package outside": (
        lambda: zip_bytes({"META-INF/container.xml": CONTAINER.format("../../etc/passwd")}),
        "names no package",
    ),
    "entities": (lambda: zip_bytes(opf(f"{ENTITIES}<package>&b;</package>")), "entities"),
    "external": (
        lambda: zip_bytes(opf('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><package>&e;</package>')),
        "entities",
    ),
    "not XML": (lambda: zip_bytes(opf("package")), "damaged e-book"),
    "nothing in it": (lambda: epub_bytes({}), "contains no text"),
    "pictures": (lambda: epub_bytes({"a.xhtml": "<p><img src='a.jpg'/></p>"}), "e-book of pictures"),
    "bomb": (lambda: epub_bytes({"a.xhtml": b"<p>" + b"a" * (80 << 20)}), "unpacks to"),
    "cut": (lambda: epub_bytes({"a.xhtml": "<p>x</p>"})[:-100], "damaged"),
}


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_and_damaged_books_get_one_line(tmp_path: Path, sandbox: Sandbox, which: str) -> None:
    data, words = HOSTILE[which]
    path = tmp_path / "h.epub"
    path.write_bytes(data())
    with pytest.raises(JambaError, match=words) as caught:
        read_file(path, sandbox)
    assert "\n" not in str(caught.value) and "h.epub" in str(caught.value)


def test_an_endless_spine_is_read_once(read: Read) -> None:
    refs = '<itemref idref="a.xhtml"/>' * 100_000 + '<itemref idref="none"/>' * 1000
    items = "".join(f'<item id="i{i}" href="m{i}.xhtml" media-type="text/html"/>' for i in range(2_000))
    more = "".join(f'<itemref idref="i{i}"/>' for i in range(2_000))
    document = read({"a.xhtml": "<p>x</p>"}, items=items, refs=refs + more)
    said = " ".join(document.remarks)
    assert document.text == "x" and "100,000 repeated chapters" in said and "2,000 chapters missing" in said
    assert len(said) < 2000


def test_tables_of_contents_that_cannot_be_read_are_none(read: Read) -> None:
    for toc in ("<html", ENTITIES + "<html/>", "<ncx/>"):
        items = '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        document = read({"a.xhtml": "<p>x</p>"}, items=items, parts={"OEBPS/nav.xhtml": toc})
        assert document.text == "x" and document.parts[0].label == ""


def test_damaged_books_never_crash_the_reader(tmp_path: Path, sandbox: Sandbox) -> None:
    sample = epub_bytes({"a.xhtml": "<p>One</p>", "b.xhtml": "<p>Two</p>"}, titles={"a.xhtml": "T"})
    random, path = Random(5), tmp_path / "r.epub"
    for _ in range(100):
        data = bytearray(sample)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(bytes(data))
        try:
            read_file(path, sandbox)
        except JambaError as error:
            assert "\n" not in str(error) and "crashed" not in str(error)


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not installed")
@pytest.mark.parametrize("target", ["epub2", "epub3"])
def test_what_pandoc_writes(tmp_path: Path, sandbox: Sandbox, target: str) -> None:
    text = "---\ntitle: Book\n---\n\n# First\n\nText[^1].\n\n# Second\n\n1. one\n2. two\n\n[^1]: Note.\n"
    (tmp_path / "a.md").write_text(text)
    subprocess.run(["pandoc", "-s", str(tmp_path / "a.md"), "-t", target, "-o", str(tmp_path / "a.epub")], check=True)
    document = read_file(tmp_path / "a.epub", sandbox)
    assert [(p.label, p.text) for p in document.parts if p.label in ("First", "Second")] == [
        ("First", "# First\nText1.\n1. Note.↩︎"), ("Second", "# Second\n1. one\n2. two")]  # fmt: skip
