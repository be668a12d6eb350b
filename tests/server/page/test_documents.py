"""The library of documents: states, pages, pictures, where words stand, searches, deletion."""

from __future__ import annotations

import io
import json

import pytest

from jambacli.cache.prefix_store import PrefixStore
from jambacli.files import data_home
from tests.server.page.talking import DOCUMENTS, OWLS, SESSIONS, Talk
from tests.support.pdf_files import pdf_of

pytest.importorskip("pypdfium2", reason="the extra `docs` is not installed")

LINES = [
    ("The tenant shall pay 1,250 euros a month.", 72, 700, 12),
    ("Payment is due on the third working", 72, 600, 12),
    ("day of each month.", 72, 584, 12),
]


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """The width, the height and the rows of a picture, three bytes a pixel."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    data, width = image.tobytes(), image.width * 3
    return image.width, image.height, [data[i * width : (i + 1) * width] for i in range(image.height)]


def test_a_document_is_read_and_measured(talk: Talk) -> None:
    answer = talk.client.post(DOCUMENTS, json={"name": "owls", "text": OWLS})
    assert answer.status_code == 201 and answer.json()["state"] in ("extracting", "ready")
    document = talk.ready(answer.json()["id"])
    assert document["name"] == "owls.txt" and document["kind"] == "text" and document["pages"] == 1
    assert document["tokens"] > 50 and document["fits"] is True and document["bytes"] == len(OWLS)
    again = talk.client.post(DOCUMENTS, json={"name": "owls.txt", "text": OWLS})
    assert again.status_code == 200 and again.json()["id"] == document["id"]
    other = talk.document(OWLS + " More.", "owls.txt")
    assert other["id"] != document["id"] and other["name"] == "owls (2).txt"
    assert len(talk.client.get(DOCUMENTS).json()["documents"]) == 2


def test_a_pdf_has_pages_pictures_and_boxes(talk: Talk) -> None:
    document = talk.upload(pdf_of([LINES, [("Another page.", 72, 700, 12)]]), "lease.pdf")
    one = f"{DOCUMENTS}/{document['id']}"
    assert document["kind"] == "pdf" and document["pages"] == 2 and document["pictures"]
    page = talk.client.get(f"{one}/pages/1").json()
    assert page["label"] == "page 1" and page["title"] == "lease.pdf, page 1" and page["count"] == 2
    quote = "Payment is due on the third working day of each month."
    found = talk.client.get(f"{one}/locate", params={"quote": quote, "page": 1}).json()
    assert found["found"] and found["page"] == 1 and len(found["boxes"]) == 2
    assert page["text"][found["start"] : found["end"]].replace("\n", " ") == quote
    picture = talk.client.get(f"{one}/pages/1.png", params={"scale": 2})
    assert picture.headers["content-type"] == "image/png" and "max-age" in picture.headers["cache-control"]
    width, height, rows = pixels(picture.content)
    assert (width, height) == (1190, 1684)
    for left, top, right, bottom in found["boxes"]:
        # The words are where the box is, and nothing is around it.
        inside = rows[int(top * height) : int(bottom * height) + 1]
        ink = [min(row[int(left * width) * 3 : int(right * width) * 3]) for row in inside]
        assert min(ink) < 64
        around = rows[int(top * height) - 4][int(left * width) * 3 : int(right * width) * 3]
        assert min(around) > 200
    assert 584 < 842 * (1 - found["boxes"][0][1]) < 616
    again = talk.client.get(
        f"{one}/pages/1.png", params={"scale": 2}, headers={"If-None-Match": picture.headers["etag"]}
    )
    assert again.status_code == 304


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_boxes_are_right_on_turned_and_cut_pages(talk: Talk, turn: int) -> None:
    data = pdf_of([LINES], page=f"/Rotate {turn} /CropBox [50 500 545 800]")
    document = talk.upload(data, "turned.pdf")
    one = f"{DOCUMENTS}/{document['id']}"
    found = talk.client.get(f"{one}/locate", params={"quote": "1,250 euros", "page": 1}).json()
    (box,) = found["boxes"]
    width, height, rows = pixels(talk.client.get(f"{one}/pages/1.png", params={"scale": 2}).content)
    left, top, right, bottom = (round(v * (width, height)[i % 2]) for i, v in enumerate(box))
    assert (right - left > bottom - top) == (turn == 180)
    inked = sum(min(row[left * 3 : right * 3], default=255) < 128 for row in rows[top:bottom])
    assert inked > (bottom - top) / 3
    assert all(min(row[max(0, left - 2) * 3 : left * 3], default=255) > 100 for row in rows[top:bottom]) or turn == 0


def test_words_that_stand_nowhere_are_marked_nowhere(talk: Talk) -> None:
    document = talk.upload(pdf_of([LINES]), "lease.pdf")
    one = f"{DOCUMENTS}/{document['id']}"
    nothing = {"found": False, "page": None, "boxes": None, "start": None, "end": None}
    for page in ({}, {"page": 1}):
        found = talk.client.get(f"{one}/locate", params={"quote": "The landlord pays everything at once.", **page})
        assert found.json() == nothing
    assert talk.client.get(f"{one}/locate", params={"quote": " "}).status_code == 400
    assert talk.client.get(f"{one}/locate", params={"quote": "x", "page": 2}).status_code == 400


def test_text_has_paragraphs_and_places_but_no_pictures(talk: Talk) -> None:
    text = "First paragraph,\nof two lines.\n\n\nSecond paragraph with Straße."
    document = talk.document(text, "text.md")
    one = f"{DOCUMENTS}/{document['id']}"
    page = talk.client.get(f"{one}/pages/1").json()
    assert [page["text"][p["start"] : p["end"]] for p in page["paragraphs"]] == [
        "First paragraph,\nof two lines.",
        "Second paragraph with Straße.",
    ]
    assert not page["picture"] and talk.client.get(f"{one}/pages/1.png").status_code == 404
    found = talk.client.get(f"{one}/locate", params={"quote": "PARAGRAPH, of  two"}).json()
    assert found["boxes"] is None and page["text"][found["start"] : found["end"]] == "paragraph,\nof two"
    assert talk.client.get(f"{one}/locate", params={"quote": "with strasse"}).json()["found"]


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "1e3", "٣", "99999999999999999999", "0.png", "2.png", ".png"])
def test_pages_that_there_are_not(talk: Talk, number: str) -> None:
    document = talk.upload(pdf_of([LINES]), "lease.pdf")
    assert talk.client.get(f"{DOCUMENTS}/{document['id']}/pages/{number}").status_code == 404


@pytest.mark.parametrize("scale", ["0", "-1", "99", "nan", "inf", "x", "1e309"])
def test_scales_are_limited(talk: Talk, scale: str) -> None:
    document = talk.upload(pdf_of([LINES]), "lease.pdf")
    url = f"{DOCUMENTS}/{document['id']}/pages/1.png"
    assert talk.client.get(url, params={"scale": scale}).status_code == 400


def test_a_page_of_enormous_size_is_drawn_small(talk: Talk) -> None:
    data = pdf_of([[("Small words", 72, 700, 12)]], page="/MediaBox [0 0 14400 14400]").replace(
        b"/MediaBox [0 0 595 842] ", b""
    )
    document = talk.upload(data, "wall.pdf")
    answer = talk.client.get(f"{DOCUMENTS}/{document['id']}/pages/1.png", params={"scale": 4})
    width, height, _ = pixels(answer.content)
    assert width * height <= 4_010_000


def test_files_that_cannot_be_read_are_refused_in_one_line(talk: Talk) -> None:
    for data, name in ((b"%PDF-1.7 nothing", "broken.pdf"), (b"\0\1\2" * 5000, "x.bin"), (b" \n ", "blank.txt")):
        document = talk.upload(data, name)
        assert document["state"] == "refused" and name in document["message"] and "\n" not in document["message"]
        answer = talk.client.post(SESSIONS, json={"documents": [document["id"]]})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "document_refused"
        assert talk.client.get(f"{DOCUMENTS}/{document['id']}/pages/1").status_code == 409
        assert talk.client.delete(f"{DOCUMENTS}/{document['id']}").status_code == 200
    empty = talk.client.post(DOCUMENTS, files={"file": ("a.txt", b"")}, headers={"X-Jamba": "1"})
    assert empty.status_code == 400


def test_searches_names_and_texts(talk: Talk) -> None:
    owls = talk.document()
    pdf = talk.upload(pdf_of([LINES, [("A garden gnome stands here.", 72, 700, 12)]]), "lease.pdf")
    (found,) = talk.client.get(DOCUMENTS, params={"q": "GNOME garden"}).json()["documents"]
    excerpt = found["excerpt"]
    assert found["id"] == pdf["id"] and excerpt["page"] == 2
    assert excerpt["text"][excerpt["start"] : excerpt["end"]] == "gnome"
    (found,) = talk.client.get(DOCUMENTS, params={"q": "owls.txt"}).json()["documents"]
    assert found["id"] == owls["id"] and found["excerpt"] is None
    assert talk.client.get(DOCUMENTS, params={"q": "zebra"}).json()["documents"] == []


def test_a_new_name_is_shown_and_nothing_is_read_again(talk: Talk) -> None:
    document = talk.document()
    talk.ask(talk.session(), text="Who counted the owls?", documents=[document["id"]])
    renamed = talk.client.patch(f"{DOCUMENTS}/{document['id']}", json={"name": "../Birds of\n prey.txt"}).json()
    assert renamed["name"] == "Birds of prey.txt" and renamed["read"]["tokens_stored"] == document["tokens"]
    stats = talk.ask(talk.session(), text="What is the code word?", documents=[document["id"]])["stats"]
    assert stats["reused_tokens"] >= document["tokens"]


def leftovers(words: str) -> list[str]:
    """The files below the home that hold a text: as it is, or in JSON."""
    found = []
    for path in data_home().rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if words.encode() in data or json.dumps(words)[1:-1].encode() in data:
                found.append(str(path.relative_to(data_home())))
    return found


def test_deleting_a_document_deletes_all_that_was_stored_of_it(talk: Talk) -> None:
    document = talk.upload(pdf_of([LINES]), "lease.pdf")
    one = f"{DOCUMENTS}/{document['id']}"
    name = talk.session()
    talk.ask(name, text="What is due?", documents=[document["id"]])
    assert talk.client.get(f"{one}/pages/1.png").status_code == 200
    assert leftovers("third working") and list(data_home().rglob("*.png")) and PrefixStore().stats()["prefixes"]
    answer = talk.client.delete(one).json()
    assert answer["deleted"] and answer["freed"] > document["bytes"]
    assert talk.client.get(one).status_code == 404
    left = leftovers("third working")
    assert left and all(path.startswith("sessions/") for path in left)  # a conversation keeps its text
    assert not list(data_home().rglob("*.png")) and not PrefixStore().stats()["prefixes"]
    assert not list((data_home() / "library" / "files").glob("file-*"))
    shown = talk.get(name)
    assert shown["documents"] == [] and shown["messages"][0]["documents"] == []
    talk.client.delete(f"{SESSIONS}/{name}")
    assert leftovers("third working") == []


def test_the_same_content_under_two_names_keeps_its_pictures(talk: Talk) -> None:
    first, second = (talk.upload(pdf_of([LINES]), name) for name in ("a.pdf", "b.pdf"))
    for document in (first, second):
        assert talk.client.get(f"{DOCUMENTS}/{document['id']}/pages/1.png").status_code == 200
    talk.client.delete(f"{DOCUMENTS}/{first['id']}")
    assert talk.client.get(f"{DOCUMENTS}/{second['id']}/pages/1.png").status_code == 200


def test_the_files_are_for_this_user_alone(talk: Talk) -> None:
    document = talk.document()
    talk.ask(talk.session(), text="Who counted the owls?", documents=[document["id"]])
    folder = data_home() / "library"
    assert folder.stat().st_mode & 0o077 == 0
    for path in folder.rglob("*.json"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_pages_without_text_are_left_out_and_the_others_keep_their_numbers(talk: Talk) -> None:
    document = talk.upload(pdf_of([[], LINES]), "half.pdf")
    assert document["pages"] == 1 and any("skipped: 1" in remark for remark in document["remarks"])
    one = f"{DOCUMENTS}/{document['id']}"
    assert talk.client.get(f"{one}/pages/1").json()["label"] == "page 2"
    assert talk.client.get(f"{one}/locate", params={"quote": "1,250 euros", "page": 1}).json()["boxes"]
    assert min(min(row) for row in pixels(talk.client.get(f"{one}/pages/1.png").content)[2]) < 64
