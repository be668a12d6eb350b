"""/v1/files: uploads, lists, contents, deletion, limits."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.server.errors import ApiError
from jambacli.server.files import FileStore, clean_name
from jambacli.server.multipart import MultipartReader, Part, boundary_of
from tests.support.servers import Running

FILES = "/v1/files"


def upload(client: httpx.Client, name: str = "a.txt", data: bytes = b"text") -> dict[str, Any]:
    answer = client.post(FILES, files={"file": (name, data)}, data={"purpose": "assistants"})
    return dict(answer.raise_for_status().json())


def test_a_file_comes_back_as_it_was_sent(server: Running) -> None:
    content = bytes(range(256)) * 9000 + b"\r\n--almost\r\n"
    entry = upload(server.client, "../../../etc/passwd.txt", content)
    assert entry["filename"] == "passwd.txt" and entry["bytes"] == len(content) and entry["purpose"] == "assistants"
    assert server.client.get(f"{FILES}/{entry['id']}").json() == entry
    back = server.client.get(f"{FILES}/{entry['id']}/content")
    assert back.content == content and "sandbox" in back.headers["content-security-policy"]
    assert back.headers["content-disposition"].startswith("attachment")
    assert entry in server.client.get(FILES).json()["data"]
    assert server.client.delete(f"{FILES}/{entry['id']}").json()["deleted"] is True
    for path in ("", "/content"):
        assert server.client.get(f"{FILES}/{entry['id']}{path}").status_code == 404
    assert server.client.delete(f"{FILES}/{entry['id']}").status_code == 404


def test_a_raw_body_is_a_file_too(server: Running) -> None:
    entry = server.client.put(f"{FILES}/report.pdf", content=b"%PDF").raise_for_status().json()
    assert entry["filename"] == "report.pdf"
    assert server.client.get(f"{FILES}/{entry['id']}/content").content == b"%PDF"


def test_lists_are_paged(server: Running) -> None:
    ids = [upload(server.client, f"{i}.txt")["id"] for i in range(5)]
    listed: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = server.client.get(FILES, params={"limit": 2, "order": "asc", **after}).json()
        listed += [file["id"] for file in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert listed[-5:] == ids and len(set(listed)) == len(listed)
    assert server.client.get(FILES, params={"limit": "x"}).status_code == 400
    assert server.client.get(FILES, params={"purpose": "none"}).json()["data"] == []


@pytest.mark.parametrize("name", ["file-", "x", "..%2f..%2fetc", "file-" + "g" * 32, "file-" + "0" * 32, "%00", "é"])
def test_ids_that_are_none_are_not_found(server: Running, name: str) -> None:
    assert server.client.get(f"{FILES}/{name}").status_code == 404
    assert server.client.delete(f"{FILES}/{name}").status_code == 404


FORM = b'--B\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", FORM % b"file" + b"--B--"),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=" + "B" * 300, b""),
        ("application/json", b"{}"),
        ("", b""),
        ("multipart/form-data; boundary=B", b""),
        ("multipart/form-data; boundary=B", b"--B--"),
        ("multipart/form-data; boundary=B", b"x" * 100_000),
        ("multipart/form-data; boundary=B", FORM % b"other" + b"--B--"),
        ("multipart/form-data; boundary=B", FORM % b"file"),
        ("multipart/form-data; boundary=B", FORM % b"file" + FORM % b"file" + b"--B--"),
        ("multipart/form-data; boundary=B", b"--B\r\n" + b"X: y\r\n" * 9000 + b"\r\nabc\r\n--B--"),
        ("multipart/form-data; boundary=B", b"--B\r\n\r\nabc\r\n--B--"),
        ("multipart/form-data; boundary=B", b"--B\r\nContent-Disposition: attachment\r\n\r\nabc\r\n--B--"),
        ("multipart/form-data; boundary=B", FORM % b"x" * 70 + b"--B--"),
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="p"\r\n\r\n' + b"x" * 99_999),
    ],
)
def test_what_is_no_form_is_refused_and_leaves_nothing(server: Running, kind: str, body: bytes) -> None:
    folder = FileStore().folder()
    before = sorted(folder.iterdir())
    answer = server.client.post(FILES, content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 413) and answer.json()["error"]["message"]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 64, 10_000])
def test_a_form_is_the_same_in_pieces_of_any_size(size: int) -> None:
    data = b"\r\n--B\r \r\n--Bx--\r\n-" + bytes(range(256)) + b"\r\n"
    body = b'ignored\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\r\n'
    body += b'--B\r\nContent-Type: x/y\r\ncontent-disposition:form-data; filename="a \\"b\\".txt"; name=file\r\n\r\n'
    body += data + b"\r\n--B--\r\nignored too"
    reader = MultipartReader(boundary_of('multipart/form-data; boundary="B"'))
    parts: list[tuple[Part, bytes]] = []
    for at in range(0, len(body), size):
        for event in reader.feed(body[at : at + size]):
            if isinstance(event, Part):
                parts.append((event, b""))
            else:
                parts[-1] = (parts[-1][0], parts[-1][1] + event)
    assert reader.done and parts == [(Part("purpose", None), b""), (Part("file", 'a "b".txt'), data)]


def store(root: Path, **limits: int) -> FileStore:
    return FileStore(root=root, **limits)


def kept(files: FileStore, data: bytes, name: str = "a.txt") -> str:
    with files.receive() as one:
        one.write(data)
        return one.finish(name, "user_data").id


def test_files_survive_a_restart_and_are_the_users_alone(tmp_path: Path) -> None:
    name = kept(store(tmp_path / "files"), b"abc")
    again = store(tmp_path / "files")
    file = again.get(name)
    assert (file.name, file.size, again.path(file).read_bytes()) == ("a.txt", 3, b"abc")
    assert stat.S_IMODE((tmp_path / "files").stat().st_mode) == 0o700
    assert stat.S_IMODE(again.path(file).stat().st_mode) == 0o600


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    files = store(tmp_path, budget=250, largest=200)
    names = [kept(files, b"x" * 100) for _ in range(4)]
    assert [file.id for file in files.all()] == names[:1:-1]
    alone = kept(files, b"x" * 200)
    assert [file.id for file in files.all()] == [alone]
    with pytest.raises(ApiError) as error, files.receive() as one:
        one.write(b"x" * 201)
    assert error.value.status == 413 and not list(tmp_path.glob("*.part"))


def test_files_that_are_not_to_be_kept_go_at_the_end(own_home: Path) -> None:
    files = FileStore(keep=False)
    folder = files.folder()
    kept(files, b"x")
    assert own_home not in folder.parents
    files.close()
    assert not folder.exists()


def test_names_are_one_line_without_folders() -> None:
    assert clean_name("/etc/../passwd") == "passwd" and clean_name("a\\b\\c.pdf") == "c.pdf"
    assert clean_name("..") == clean_name("") == clean_name(None) == clean_name("a/") == "document"
    assert clean_name("a\n\x00\u202eb.pdf") == "a b.pdf"
    long = clean_name("x" * 500 + ".docx")
    assert len(long) == 120 and long.endswith(".docx") and len(clean_name("y" * 500)) == 120


def test_the_openai_client_keeps_files(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    made = client.files.create(file=("größe.txt", b"abc"), purpose="user_data")
    assert made.filename == "größe.txt" and made.bytes == 3 and client.files.retrieve(made.id).id == made.id
    assert client.files.content(made.id).read() == b"abc"
    assert made.id in [file.id for file in client.files.list(limit=1)]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_the_anthropic_client_keeps_files(server: Running) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the extra `clients` is not installed")
    client = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
    made = client.beta.files.upload(file=("a.txt", b"abc", "text/plain"))
    assert made.size_bytes == 3 and client.beta.files.retrieve_metadata(made.id).filename == "a.txt"
    assert made.id in [file.id for file in client.beta.files.list()]
    assert client.beta.files.download(made.id).read() == b"abc"
    assert client.beta.files.delete(made.id).id == made.id
