"""Outlook's messages are read as the same messages in .eml: fields, bodies, attachments, messages within messages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from jambacli.documents.extract.outlook_rtf import decompressed, enclosed
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.errors import JambaError
from tests.support.document_files import docx_bytes, paragraph, pdf_bytes
from tests.support.outlook_files import Outlook, compound_file, packed_rtf

pytest.importorskip("olefile")

SUBJECT, BODY, HTML, RTF, DATE = 0x0037, 0x1000, 0x1013, 0x1009, 0x0039
WHEN = datetime(2026, 5, 1, 8, 0, 0, tzinfo=UTC)
ADA: dict[int, object] = {0x0C1A: "Ada Byron", 0x0C1F: "ada@example.org", SUBJECT: "Notice", DATE: WHEN}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def read(folder: Path, sandbox: Sandbox, data: bytes, name: str = "m.msg") -> Document:
    path = folder / name
    path.write_bytes(data)
    return read_file(path, sandbox)


def person(name: str, address: str, role: int = 1) -> dict[int, object]:
    return {0x3001: name, 0x39FE: address, 0x0C15: role}


def attached(name: str, data: bytes, **more: object) -> dict[int, object]:
    return {0x3705: 1, 0x3707: name, 0x3701: data}


def eml() -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"] = "Ada Byron <ada@example.org>", "Bob Größe <bob@example.org>, eve@example.org"
    made["Cc"], made["Bcc"] = '"Turing, Alan" <alan@example.org>', "hidden@example.org"
    made["Date"], made["Subject"] = "Fri, 01 May 2026 08:00:00 +0000", "Kündigung: größer als 5 €"
    return made


PEOPLE = [
    person("Bob Größe", "bob@example.org"),
    person("eve@example.org", "eve@example.org"),
    person("Turing, Alan", "alan@example.org", 2),
    person("", "hidden@example.org", 3),
]


def test_a_message_reads_as_the_same_message_in_eml(tmp_path: Path, sandbox: Sandbox) -> None:
    pdf, word = pdf_bytes(["Page one: 11 herons.", "Page two."]), docx_bytes(paragraph("Seven owls."))
    made = eml()
    made.set_content("Die Kündigungsfrist beträgt 30 Tage.\n\nGrüße\n")
    made.add_alternative(
        "<p>Die Kündigungsfrist betr&auml;gt <b>30</b> Tage.</p><p>Gr&uuml;&szlig;e</p>", subtype="html"
    )
    made.add_attachment(pdf, "application", "pdf", filename="Größe.pdf")
    made.add_attachment(word, "application", "octet-stream", filename="a.docx")
    made.add_attachment(bytes(range(256)) * 9, "application", "octet-stream", filename="data.bin")
    made.add_attachment(b"\x89PNG" + bytes(50), "image", "png", filename="photo.png")
    made.add_attachment(
        b"\x89PNG" + bytes(50), "image", "png", filename="logo.png", disposition="inline", cid="<logo@x>"
    )
    theirs = read(tmp_path, sandbox, made.as_bytes(), "m.eml")
    properties = {
        **ADA,
        SUBJECT: "Kündigung: größer als 5 €",
        BODY: "Die Kündigungsfrist beträgt 30 Tage.\r\n\r\nGrüße\r\n",
        HTML: "<p>Die Kündigungsfrist beträgt <b>30</b> Tage.</p><img src='cid:logo@x'>".encode(),
        0x3FDE: 65001,
    }
    files = [
        {**attached("Größe.pdf", pdf), 0x370E: "application/pdf"},
        {**attached("a.docx", word), 0x370E: "application/octet-stream"},
        attached("data.bin", bytes(range(256)) * 9),
        attached("photo.png", b"\x89PNG" + bytes(50)),
        {**attached("logo.png", b"\x89PNG" + bytes(50)), 0x3712: "logo@x"},
    ]
    ours = read(tmp_path, sandbox, Outlook(properties, PEOPLE, files).to_bytes())
    assert ours.text == theirs.text
    assert [r.replace("m.msg", "m.eml") for r in ours.remarks] == list(theirs.remarks)
    for line in ("Subject: Kündigung: größer als 5 €", "[Größe.pdf, page 2]\nPage two.", "Seven owls.", "30 Tage"):
        assert line in ours.text
    assert "1 image left out" in " ".join(ours.remarks) and "2 attachments not read" in " ".join(ours.remarks)


@pytest.mark.parametrize(
    ("code_page", "text"),
    [
        (("cp1252", 1252), "Größe – 5 €"),
        (("cp1251", 1251), "Договор"),
        (("cp932", 932), "契約"),
        (("utf-8", 65001), "Größe 契約"),
    ],
)
def test_strings_of_code_pages(tmp_path: Path, sandbox: Sandbox, code_page: tuple[str, int], text: str) -> None:
    properties: dict[int, object] = {SUBJECT: text, BODY: f"{text}, im Text.", 0x0C1F: "a@b.c"}
    found = read(tmp_path, sandbox, Outlook(properties, code_page=code_page).to_bytes()).text
    assert f"Subject: {text}\n" in found and f"{text}, im Text." in found


def test_the_fields_that_were_sent_stand_before_those_of_outlook(tmp_path: Path, sandbox: Sandbox) -> None:
    sent = (
        "Microsoft Mail Internet Headers Version 2.0\r\nReceived: from x by y; Fri, 01 May 2026 10:00:00 +0200\r\n"
        "From: =?utf-8?q?Ada_Gr=C3=BCn?= <ada@example.org>\r\nTo: bob@example.org\r\nReply-To: office@example.org\r\n"
        "Date: Fri, 01 May 2026 10:00:00 +0200\r\nSubject: The real\r\n subject\r\n"
    )
    properties = {**ADA, 0x007D: sent, BODY: "text"}
    text = read(tmp_path, sandbox, Outlook(properties, PEOPLE).to_bytes()).text
    assert text.startswith(
        "From: Ada Grün <ada@example.org>\nTo: bob@example.org\n"
        'Cc: "Turing, Alan" <alan@example.org>\nBcc: hidden@example.org\nReply-To: office@example.org\n'
        "Date: Fri, 01 May 2026 10:00:00 +0200\nSubject: The real subject\n"
    )


def test_addresses_within_exchange_are_left_out(tmp_path: Path, sandbox: Sandbox) -> None:
    properties = {**ADA, 0x0C1F: "/O=EXCHANGELABS/OU=GROUP/CN=ADA", 0x5D01: "ada@example.org", BODY: "text"}
    people = [{0x3001: "Bob", 0x3003: "/O=EXCHANGELABS/CN=BOB", 0x0C15: 1}]
    text = read(tmp_path, sandbox, Outlook(properties, people).to_bytes()).text
    assert text.startswith("From: Ada Byron <ada@example.org>\nTo: Bob\nDate: Fri, 01 May 2026 08:00:00 +0000\n")


# RTF as Outlook writes it for an HTML message: the HTML in htmltag groups, its RTF between htmlrtf and htmlrtf0.
FROM_HTML = b"\r\n".join(
    [
        rb"{\rtf1\ansi\ansicpg1252\fromhtml1 \deff0{\fonttbl{\f0\fswiss Arial;}{\f1\fcharset204 Arial;}}",
        rb"{\colortbl\red0\green0\blue0;}\uc1\pard\plain\deftab360 \f0\fs24",
        rb"{\*\htmltag19 <html>}{\*\htmltag34 <head>}{\*\htmltag2 \par }",
        rb"{\*\htmltag241 <style>p \{color: red\}</style>}{\*\htmltag41 </head>}",
        rb"{\*\htmltag64 <p>}\htmlrtf {\htmlrtf0 The rent of {\*\htmltag84 <b>}\htmlrtf {\b \htmlrtf0 900 \u8364?",
        rb"\htmlrtf }\htmlrtf0 {\*\htmltag92 </b>}",
        rb" is due{\*\htmltag84 &nbsp;}\htmlrtf \'a0\htmlrtf0 on the 3rd: \'84fr\'fch\'93",
        rb" \f1 \'c4\'ee\'e3\'ee\'e2\'ee\'f0\f0 .",
        rb"\htmlrtf \par }\htmlrtf0",
        rb'{\*\htmltag72 </p>}{\*\mhtmltag0 <img src="cid:x">}{\*\htmltag27 </html>}}',
    ]
)
PLAIN_HEAD = rb"{\rtf1\ansi\ansicpg1250\fromtext \deff0{\fonttbl{\f0 Arial;}}{\info{\author No}}\f0 "


def test_html_and_text_within_compressed_rtf(tmp_path: Path, sandbox: Sandbox) -> None:
    assert decompressed(packed_rtf(FROM_HTML)) == FROM_HTML
    kind, page = enclosed(FROM_HTML)
    assert kind == "html" and "<p>The rent of <b>900 €</b> is due&nbsp;on the 3rd: „früh“ Договор.</p>" in page
    assert "img" not in page
    text = read(tmp_path, sandbox, Outlook({**ADA, RTF: packed_rtf(FROM_HTML)}).to_bytes()).text
    assert (
        "The rent of 900 € is due\xa0on the 3rd: „früh“ Договор." in text
        or "The rent of 900 € is due on the 3rd" in text
    )
    assert "color" not in text and "htmltag" not in text
    plain = PLAIN_HEAD + rb"B\'ecda\par line\tab two \{x\}\par}"
    for rtf in (plain, plain.replace(rb"\fromtext", b"")):
        text = read(tmp_path, sandbox, Outlook({**ADA, RTF: packed_rtf(rtf)}).to_bytes()).text
        assert text.endswith("\n\nBěda\nline\ttwo {x}") and "No" not in text.split("\n\n")[1]
    stored = b"\x00\x00\x00\x00" + len(plain).to_bytes(4, "little") + b"MELA" + bytes(4) + plain
    assert "Běda" in read(tmp_path, sandbox, Outlook({**ADA, RTF: stored}).to_bytes()).text


def test_messages_within_messages(tmp_path: Path, sandbox: Sandbox) -> None:
    deep = Outlook({SUBJECT: "Deep", BODY: "Deepest text."}, attachments=[attached("deep.txt", b"in the deep")])
    middle = Outlook({SUBJECT: "Middle", BODY: "Middle text."}, attachments=[{0x3705: 5, 0x3701: deep}])
    beside = Outlook({SUBJECT: "Beside", BODY: "Text of a file."}).to_bytes()
    outer = Outlook(
        {**ADA, BODY: "Outer text."}, attachments=[{0x3705: 5, 0x3701: middle}, attached("saved.msg", beside)]
    )
    text = read(tmp_path, sandbox, outer.to_bytes()).text
    order = [
        "Outer text.",
        "Subject: Middle",
        "Middle text.",
        "Subject: Deep",
        "Deepest text.",
        "in the deep",
        "Subject: Beside",
    ]
    assert [text.find(each) for each in order] == sorted(text.find(each) for each in order) and order[0] in text
    made = eml()
    made.set_content("See the message.")
    made.add_attachment(outer.to_bytes(), "application", "vnd.ms-outlook", filename="fw.msg")
    assert "Deepest text." in read(tmp_path, sandbox, made.as_bytes(), "m.eml").text
    inner = Outlook({SUBJECT: "Innermost", BODY: "x"})
    for _ in range(30):
        inner = Outlook({SUBJECT: "S", BODY: "text"}, attachments=[{0x3705: 5, 0x3701: inner}])
    found = read(tmp_path, sandbox, inner.to_bytes())
    assert "Innermost" not in found.text and "messages within messages" in found.remarks[0]
    file = Outlook({SUBJECT: "Innermost", BODY: "x"}).to_bytes()
    for _ in range(30):
        file = Outlook({SUBJECT: "S", BODY: "text"}, attachments=[attached("a.bin", file)]).to_bytes()
    assert "Innermost" not in read(tmp_path, sandbox, file).text


def test_signed_messages_are_read_and_sealed_ones_named(tmp_path: Path, sandbox: Sandbox) -> None:
    signed = (
        b"Content-Type: multipart/signed; protocol=application/pkcs7-signature; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n\r\nSigned gr\xc3\xbc\xc3\x9fe\r\n--b\r\n"
        b"Content-Type: application/pkcs7-signature; name=smime.p7s\r\n\r\nxyz\r\n--b--\r\n"
    )
    file = {**attached("smime.p7m", signed), 0x370E: "multipart/signed"}
    properties = {**ADA, 0x001A: "IPM.Note.SMIME.MultipartSigned"}
    document = read(tmp_path, sandbox, Outlook(properties, attachments=[file]).to_bytes())
    assert document.text.endswith("Signed grüße") and not document.remarks
    file = {**attached("smime.p7m", b"\x30\x82" + bytes(300)), 0x370E: "application/pkcs7-mime"}
    document = read(tmp_path, sandbox, Outlook({**ADA, 0x001A: "IPM.Note.SMIME"}, attachments=[file]).to_bytes())
    assert "1 attachment not read: smime.p7m" in document.remarks[0]


def test_links_and_embedded_objects_are_named(tmp_path: Path, sandbox: Sandbox) -> None:
    files: list[dict[int, object]] = [
        {0x3705: 7, 0x3707: "plan.xlsx", 0x370D: "https://example.org/plan.xlsx"},
        {0x3705: 6, 0x3001: "Drawing", 0x3701: {"CONTENTS": b"abc"}},
    ]
    document = read(tmp_path, sandbox, Outlook({**ADA, BODY: "text"}, attachments=files).to_bytes())
    assert "2 attachments not read: plan.xlsx, Drawing" in document.remarks[0]


def test_appointments_and_contacts(tmp_path: Path, sandbox: Sandbox) -> None:
    meeting = Outlook({SUBJECT: "Board", 0x001A: "IPM.Appointment", 0x8000: WHEN, 0x8001: "Room 7", BODY: "agenda"})
    meeting.names = [0x820D, 0x8208]
    text = read(tmp_path, sandbox, meeting.to_bytes()).text
    assert "Start: Fri, 01 May 2026 08:00:00 +0000\nLocation: Room 7\n\nagenda" in text
    contact = Outlook({SUBJECT: "Ada", 0x001A: "IPM.Contact", 0x3A16: "Engines Ltd", 0x8000: "ada@example.org"})
    contact.names = [0x8083]
    assert "Company: Engines Ltd\nMail: ada@example.org" in read(tmp_path, sandbox, contact.to_bytes()).text


def test_templates_and_files_without_an_ending(tmp_path: Path, sandbox: Sandbox) -> None:
    data = Outlook({**ADA, BODY: "The form."}).to_bytes()
    assert "The form." in read(tmp_path, sandbox, data, "m.oft").text
    assert "The form." in read(tmp_path, sandbox, data, "noending").text
    with pytest.raises(JambaError, match="old Word file"):
        read(tmp_path, sandbox, compound_file({"WordDocument": b"x" * 5000}), "old.doc")
    with pytest.raises(JambaError, match="without properties"):
        read(tmp_path, sandbox, compound_file({"WordDocument": b"x" * 5000}), "no.msg")


def test_damaged_files_give_text_or_one_line(tmp_path: Path, sandbox: Sandbox) -> None:
    files = [attached("big.txt", b"line of text\n" * 900), attached("b.txt", b"small")]
    data = Outlook({**ADA, BODY: "word " * 2000, RTF: packed_rtf(FROM_HTML)}, PEOPLE, files).to_bytes()
    random_bytes = random.Random(5)
    loops = bytearray(data)
    fat = int.from_bytes(data[76:80], "little")
    at = (fat + 1) * 512
    loops[at : at + 64] = b"".join(n.to_bytes(4, "little") for n in range(16))  # every sector is followed by itself
    huge = bytearray(data)
    place = huge.find("__substg1.0_1000001F".encode("utf-16-le"))
    huge[place + 120 : place + 124] = (0x7FFFFFF0).to_bytes(4, "little")
    hostile = [bytes(loops), bytes(huge), data[:600], data[: len(data) // 2], data[:8] + bytes(5000)]
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(random_bytes.choice((1, 4, 30))):
            changed[random_bytes.randrange(24, len(changed))] = random_bytes.randrange(256)
        hostile.append(bytes(changed))
    read_well = 0
    for i, each in enumerate(hostile):
        try:
            read_well += bool(read(tmp_path, sandbox, each).text)
        except JambaError as error:
            assert "m.msg" in str(error) and "\n" not in str(error) and "crashed" not in str(error), i
    assert read_well > 60


def test_damage_is_said(tmp_path: Path, sandbox: Sandbox) -> None:
    data = bytearray(
        Outlook({**ADA, BODY: "kept", HTML: b"x" * 5000}, attachments=[attached("b.txt", b"s" * 5000)]).to_bytes()
    )
    place = data.rfind("__substg1.0_37010102".encode("utf-16-le"))
    data[place + 116 : place + 120] = (0x00FFFFFF).to_bytes(4, "little")  # begins behind the end of the file
    document = read(tmp_path, sandbox, bytes(data))
    assert "kept" in document.text and "1 damaged part not read" in " ".join(document.remarks)


def test_many_names_of_one_large_stream_are_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    files = [attached(f"{i}.txt", b"x" * 5000 + bytes((i,))) for i in range(200)]
    data = bytearray(Outlook({**ADA, BODY: "word " * 400_000}, attachments=files).to_bytes())
    body = data.find("__substg1.0_1000001F".encode("utf-16-le"))
    at = 0
    while (at := data.find("__substg1.0_37010102".encode("utf-16-le"), at + 1)) >= 0:
        data[at + 116 : at + 128] = data[body + 116 : body + 128]
    with pytest.raises(JambaError, match="larger than the file"):
        read(tmp_path, sandbox, bytes(data))
