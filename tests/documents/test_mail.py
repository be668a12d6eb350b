"""Mail as its reader sees it: fields, decoded bodies, attachments by name and, where they can be, read."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file, read_stdin
from jambacli.errors import JambaError
from tests.support.document_files import docx_bytes, paragraph, pdf_bytes


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def message(subject: str = "Notice") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ada Byron <ada@example.org>", "bob@example.org", subject
    made["Date"] = "Fri, 01 May 2026 10:00:00 +0200"
    made["Message-ID"] = "<1@example.org>"
    return made


def read(folder: Path, sandbox: Sandbox, data: bytes, name: str = "m.eml") -> Document:
    path = folder / name
    path.write_bytes(data)
    return read_file(path, sandbox)


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
def test_a_body_is_decoded_whatever_carried_it(tmp_path: Path, sandbox: Sandbox, encoding: str) -> None:
    made = message("Kündigung: größer als 5 €")
    made.set_content("Die Kündigungsfrist beträgt 30 Tage; " * 5 + "\nGrüße\n", cte=encoding)
    document = read(tmp_path, sandbox, made.as_bytes())
    assert "Subject: Kündigung: größer als 5 €\n" in document.text and "Grüße" in document.text
    assert document.text.count("Die Kündigungsfrist beträgt 30 Tage;") == 5 and "=\n" not in document.text
    assert document.text.startswith("From: Ada Byron <ada@example.org>\nTo: bob@example.org\nDate: Fri, 01 May 2026")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"=?iso-8859-1?q?M=FCnchen?=", "München"),
        (b"=?utf-8?b?R3LDvA==?=\r\n =?utf-8?b?w59l?=", "Grüße"),
        (b"=?utf-8?b?R3LD?= =?utf-8?b?vMOfZQ==?=", "Grüße"),  # a letter cut in two
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("latin-1"), "Grüße"),
        (b"=?iso-2022-jp?b?GyRCN0BMcxsoQg==?=", "契約"),
        (b"=?x-nobody-knows?q?abc?=", "abc"),
        (b"a folded\r\n subject", "a folded subject"),
        (b'"=?utf-8?q?Gr=C3=BC?=" <a@b.c>', '"Grü" <a@b.c>'),
    ],
)
def test_fields_are_decoded(tmp_path: Path, sandbox: Sandbox, field: bytes, text: str) -> None:
    data = b"Subject: " + field + b"\r\nFrom: a@b.c\r\nMIME-Version: 1.0\r\n\r\nbody\r\n"
    assert f"Subject: {text}\n" in read(tmp_path, sandbox, data).text


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "utf-8", "us-ascii", "nonsense", "UTF-16"])
def test_bodies_in_any_charset(tmp_path: Path, sandbox: Sandbox, charset: str) -> None:
    text = "Die „Kündigungsfrist“ beträgt drei Monate, die Miete 900 €."
    real = {"iso-8859-1": "cp1252", "us-ascii": "utf-8", "nonsense": "utf-8"}.get(charset, charset)
    head = f"From: a@b.c\nSubject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset={charset}\n"
    import base64

    data = head.encode() + b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(text.encode(real))
    assert text in read(tmp_path, sandbox, data).text


def test_plain_text_is_preferred_and_html_read_where_there_is_no_other(tmp_path: Path, sandbox: Sandbox) -> None:
    made = message()
    made.set_content("The plain text of thirty days.")
    made.add_alternative("<p>The <b>HTML</b> text of thirty days.</p>", subtype="html")
    text = read(tmp_path, sandbox, made.as_bytes()).text
    assert "The plain text" in text and "HTML" not in text
    made = message()
    made.set_content("<style>p{}</style><p>Only <b>HTML</b>, mit Größe.</p>", subtype="html", charset="iso-8859-1")
    assert "Only HTML, mit Größe." in read(tmp_path, sandbox, made.as_bytes()).text
    made = message()
    made.set_content("Your mail program cannot show HTML.")
    made.add_alternative("<p>" + "The rent is 900 euros a month. " * 30 + "</p>", subtype="html")
    assert "900 euros" in read(tmp_path, sandbox, made.as_bytes()).text


def test_attachments_are_named_and_read_where_they_can_be(tmp_path: Path, sandbox: Sandbox) -> None:
    made = message()
    made.set_content("See the files.")
    made.add_attachment(pdf_bytes(["Page one: 11 herons.", "Page two."]), "application", "pdf", filename="Größe.pdf")
    word = docx_bytes(paragraph("Seven owls."))
    made.add_attachment(word, "application", "octet-stream", filename="a.docx")
    made.add_attachment("name,count\nowl,7\n", subtype="csv", filename="birds.csv")
    made.add_attachment(bytes(range(256)) * 9, "application", "octet-stream", filename="data.bin")
    made.add_attachment(b"\x89PNG\r\n\x1a\n" + bytes(50), "image", "png", filename="photo.png")
    document = read(tmp_path, sandbox, made.as_bytes())
    for line in (
        "Attachment: Größe.pdf (",
        "[Größe.pdf, page 2]\nPage two.",
        "Seven owls.",
        "owl,7",
        "photo.png (image/png",
    ):
        assert line in document.text
    assert "data.bin" in document.text and "not read: data.bin (" in document.remarks[0]
    assert "photo.png" in document.remarks[0] and "2 attachments" in document.remarks[0]


def test_a_message_within_a_message(tmp_path: Path, sandbox: Sandbox) -> None:
    inner, made = message("The inner one"), message("The outer one")
    inner.set_content("Inner text.")
    inner.add_attachment("deep text", filename="deep.txt")
    made.set_content("Outer text.")
    made.add_attachment(inner)
    text = read(tmp_path, sandbox, made.as_bytes()).text
    places = [text.index(each) for each in ("Outer text.", "Subject: The inner one", "Inner text.", "deep text")]
    assert places == sorted(places)


def test_a_mailbox_has_messages(tmp_path: Path, sandbox: Sandbox) -> None:
    box = b""
    for i in range(1, 4):
        made = message(f"Number {i}")
        made.set_content(f"Text {i}.\n>From here it is quoted.\nFrom now on\n")
        box += (
            b"From ada@example.org Fri May  1 10:00:00 2026\n"
            + made.as_bytes(unixfrom=False).replace(b"\n>From", b"\n>>From").replace(b"\nFrom now", b"\n>From now")
            + b"\n"
        )
    for name in ("all.mbox", "all"):
        document = read(tmp_path, sandbox, box, name)
        assert document.unit == "message" and [p.first for p in document.parts] == [1, 2, 3]
        assert "Subject: Number 2\n" in document.parts[1].text and "\n>From here" in document.parts[1].text
        assert "\nFrom now on" in document.parts[1].text
    assert document.title(document.parts[1]).endswith("all, message 2")


def test_a_web_archive_is_its_page(tmp_path: Path, sandbox: Sandbox) -> None:
    data = (
        b"From: <Saved by Blink>\r\nSnapshot-Content-Location: https://example.org/\r\nSubject: =?utf-8?Q?The=20page?=\r\n"
        b'MIME-Version: 1.0\r\nContent-Type: multipart/related;\r\n\ttype="text/html";\r\n\tboundary="B"\r\n\r\n\r\n'
        b"--B\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b'<html><meta charset=3D"utf-8"><p>M=C3=BCnchen has 7 owls.</p></html>\r\n'
        b"--B\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Location: https://example.org/a.png\r\n\r\niVBORw0KGgo=\r\n--B--\r\n"
    )
    for name in ("a.mht", "a.mhtml"):
        document = read(tmp_path, sandbox, data, name)
        assert document.text == "Subject: The page\n\nMünchen has 7 owls." and "1 image left out" in document.remarks[0]


def test_flowed_text_is_joined(tmp_path: Path, sandbox: Sandbox) -> None:
    data = b"From: a@b.c\nSubject: x\nContent-Type: text/plain; format=flowed\n\n"
    data += b"One line \nthat goes on.\n> quoted \n> too\n-- \nAda\n"
    assert "One line that goes on.\n> quoted too\n--\nAda" in read(tmp_path, sandbox, data).text


def test_mail_is_known_by_its_content(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    made = message("Größe")
    made.set_content("Grüße aus München", cte="base64")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(made.as_bytes())))
    assert "Grüße aus München" in read_stdin(sandbox).text
    assert "Grüße aus München" in read(tmp_path, sandbox, made.as_bytes(), "no-suffix").text
    plist = b"%d       \n" % len(made.as_bytes()) + made.as_bytes() + b'<?xml version="1.0"?><plist/>'
    apple = read(tmp_path, sandbox, plist, "1.emlx").text
    assert "Grüße aus München" in apple and "plist" not in apple
    notes = b"From: the beginning\nTo: the end\nit is a text of notes\n"
    assert read(tmp_path, sandbox, notes, "notes.txt").text == notes.decode().rstrip("\n")
    assert read(tmp_path, sandbox, b"just text", "odd.eml").text == "just text"


def test_an_outlook_message_without_content_is_refused_by_name(tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(JambaError, match=r"is a damaged Outlook message"):
        read(tmp_path, sandbox, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "a.msg")


def nested(depth: int) -> bytes:
    head = b"From: a@b.c\nMIME-Version: 1.0\nSubject: x\n"
    return head + b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (i, i) for i in range(depth))


def forwarded(depth: int) -> bytes:
    head = b"From: a@b.c\nMIME-Version: 1.0\nSubject: x\nContent-Type: message/rfc822\n\n"
    return head * depth + b"From: a@b.c\nSubject: inside\n\ntext\n"


HOSTILE = {
    "parts": b"From: a@b.c\nSubject: x\nContent-Type: multipart/mixed; boundary=B\n\n" + b"--B\n\nx\n" * 20_000,
    "nested": nested(400),
    "deep": nested(20_000),
    "forwarded": forwarded(60),
    "header": b"From: a@b.c\nSubject: " + b"=?utf-8?q?a?= " * 50_000 + b"\n\nx",
    "parameters": b"From: a@b.c\nSubject: x\nContent-Type: text/plain; " + b"a*0=b; " * 20_000 + b"\n\nx",
    "boundary": b"From: a@b.c\nSubject: x\nContent-Type: multipart/mixed\n\n--\n--\n",
    "charset": b'From: a@b.c\nSubject: x\nContent-Type: text/plain; charset="rot13"\n\nhello',
    "base64": b"From: a@b.c\nSubject: x\nContent-Transfer-Encoding: base64\n\n" + b"=A" * 100_000,
    "path": b"From: a@b.c\nSubject: x\nContent-Type: text/plain\nContent-Disposition: attachment; "
    b'filename="../../../etc/passwd"\n\nx',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_is_read_or_refused_in_one_line(tmp_path: Path, sandbox: Sandbox, name: str) -> None:
    try:
        document = read(tmp_path, sandbox, HOSTILE[name])
    except JambaError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert document.text and "/etc" not in document.text
        assert all("\n" not in remark and len(remark) < 2000 for remark in document.remarks)
