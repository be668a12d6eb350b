"""Files in messages become documents, read once, whatever API and form they come in."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.documents import load
from tests.support.document_files import pdf_bytes
from tests.support.servers import Running, serving

CHAT = "/v1/chat/completions"
QUESTION = "How many herons were counted?"
PAGES = ["Mira counted 42 herons at the lake.\n" * 30, "Otto counted 7 storks.\n" * 30]


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(part: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [part, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12, **more}


def file_part(data: bytes, name: str | None = "report.pdf", kind: str = "application/pdf") -> dict[str, Any]:
    named = {"filename": name} if name is not None else {}
    return {"type": "file", "file": {**named, "file_data": f"data:{kind};base64,{base64_of(data)}"}}


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that have been extracted."""
    names: list[str] = []
    extract = load.Sandbox.extract

    def counted(self: load.Sandbox, kind: str, path: str, name: str) -> Any:
        names.append(name)
        return extract(self, kind, path, name)

    monkeypatch.setattr(load.Sandbox, "extract", counted)
    return names


@pytest.fixture(scope="module")
def reference(server: Running) -> dict[str, Any]:
    """The answer when the same pages come as AI21's documents."""
    pytest.importorskip("pypdfium2")
    documents = [{"title": f"report.pdf, page {i + 1}", "text": p.strip("\n")} for i, p in enumerate(PAGES)]
    messages = [{"role": "user", "content": QUESTION}]
    body = {"messages": messages, "documents": documents, "temperature": 0, "max_tokens": 12}
    return dict(server.client.post(CHAT, json=body).raise_for_status().json())


def test_a_pdf_in_a_message_is_its_pages_as_documents(
    server: Running, reference: dict[str, Any], extractions: list[str]
) -> None:
    pdf = pdf_bytes(PAGES)
    for name in ("report.pdf", "../../etc/report.pdf", "C:\\Temp\\report.pdf"):
        answer = server.client.post(CHAT, json=asked(file_part(pdf, name))).raise_for_status().json()
        assert answer["choices"] == reference["choices"]
        usage = answer["usage"]
        assert usage["prompt_tokens"] == reference["usage"]["prompt_tokens"] > 300
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] <= 1
    assert extractions == ["report.pdf"]


def test_every_api_takes_the_same_file(server: Running, reference: dict[str, Any]) -> None:
    pdf, tokens = base64_of(pdf_bytes(PAGES)), reference["usage"]["prompt_tokens"]
    text = reference["choices"][0]["message"]["content"]
    source = {"type": "base64", "media_type": "application/pdf", "data": pdf}
    block = {"type": "document", "title": "report", "source": source}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": QUESTION}]}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    anthropic = server.client.post("/v1/messages", json=body).raise_for_status().json()
    assert anthropic["content"][0]["text"] == text
    counted = server.client.post("/v1/messages/count_tokens", json=body).raise_for_status().json()
    assert counted["input_tokens"] == tokens
    block = {"document": {"format": "pdf", "name": "report", "source": {"bytes": pdf}}}
    messages = [{"role": "user", "content": [block, {"text": QUESTION}]}]
    config = {"maxTokens": 12, "temperature": 0}
    converse = server.client.post("/model/x/converse", json={"messages": messages, "inferenceConfig": config}).json()
    assert converse["output"]["message"]["content"][0]["text"] == text and converse["usage"]["inputTokens"] == tokens
    part = {"type": "input_file", "filename": "report.pdf", "file_data": f"data:application/pdf;base64,{pdf}"}
    given = [{"role": "user", "content": [part, {"type": "input_text", "text": QUESTION}]}]
    body = {"input": given, "max_output_tokens": 12, "temperature": 0}
    response = server.client.post("/v1/responses", json=body).raise_for_status().json()
    assert response["output"][0]["content"][0]["text"] == text and response["usage"]["input_tokens"] == tokens


def test_a_conversation_about_a_file_reads_only_what_is_new(server: Running, extractions: list[str]) -> None:
    pytest.importorskip("pypdfium2")
    part = file_part(pdf_bytes(["The report of a crane in the north.\n" * 40, "Its end."]), None)
    messages = asked(part)["messages"]
    for turn, question in enumerate((None, "Who counted them?", "Where?")):
        if question is not None:
            messages.append({"role": "user", "content": question})
        body = {"messages": messages, "temperature": 0, "max_tokens": 8, "stream": False}
        answer = server.client.post(CHAT, json=body).raise_for_status().json()
        messages.append(answer["choices"][0]["message"])
        usage = answer["usage"]
        read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        assert read > 200 if turn == 0 else read <= 40
    assert extractions == ["document.pdf"]


def test_texts_tables_and_pages_are_read_by_their_endings(server: Running) -> None:
    for name, kind, data, wanted in (
        ("notes.txt", "text/plain", "Mira counted 42 herons – at the lake.".encode(), "notes.txt"),
        (None, "text/markdown", b"# Herons\n\n42", "document.md"),
        ("page.html", "text/html", b"<html><body><p>42 herons</p><script>no</script></body></html>", "page.html"),
    ):
        body = {"messages": asked(file_part(data, name, kind))["messages"]}
        tokens = server.client.post("/tokenize", json=body).raise_for_status().json()["tokens"]
        shown = server.client.post("/detokenize", json={"tokens": tokens}).json()["content"]
        assert wanted in shown and "42" in shown and "script" not in shown


BAD = pdf_bytes(["", ""])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (file_part(b"%PDF-1.7 broken"), "report.pdf"),
        (file_part(pdf_bytes(["x"], encrypt=True)), "report.pdf"),
        (file_part(BAD), "no text"),
        (file_part(b""), "report.pdf"),
        (file_part(b"PK\x03\x04 nothing", "a.docx"), "a.docx"),
        (file_part(b"\x00\x01\x02\xff" * 999, "a.bin"), "a.bin"),
        ({"type": "file", "file": {"filename": "a.txt", "file_data": "***"}}, "base64"),
        ({"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain,hello"}}, "base64"),
        ({"type": "file", "file": {"filename": "a.txt"}}, "file_data"),
        ({"type": "file", "file": {"file_data": 3}}, "not texts"),
        ({"type": "file", "file": "a.txt"}, "without a file"),
        ({"type": "file"}, "without a file"),
        ({"type": "file", "file": {"file_id": "file-0000"}}, "no file"),
        ({"type": "file", "file": {"file_id": "../../../etc/passwd"}}, "no file"),
        ({"type": "input_file", "file_url": "http://127.0.0.1/x.pdf"}, "not opened"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_cannot_be_read_is_refused_before_the_first_byte(
    server: Running, part: dict[str, Any], words: str, stream: bool
) -> None:
    pytest.importorskip("pypdfium2")
    answer = server.client.post(CHAT, json=asked(part, stream=stream))
    assert answer.status_code in (400, 404) and words in answer.json()["error"]["message"]
    assert "/tmp" not in answer.text


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_files_are_the_users(server: Running, role: str) -> None:
    content = [file_part(b"x", "a.txt", "text/plain")]
    messages = [{"role": role, "content": content}, {"role": "user", "content": "?"}]
    answer = server.client.post(CHAT, json={"messages": messages})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"


def test_a_file_that_does_not_fit_is_refused_with_the_numbers(server: Running) -> None:
    long = b"Mira counted 42 herons. " * 6000
    error = server.client.post(CHAT, json=asked(file_part(long, "a.txt", "text/plain"))).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["n_prompt_tokens"] > error["n_ctx"]


def test_what_ask_has_read_is_known(tiny: Jamba, tmp_path: Any) -> None:
    from jambacli.documents.pages import entries_of
    from jambacli.documents.reader import Reader, Task

    path = tmp_path / "herons.txt"
    path.write_text("Mira counted 42 herons at the lake. " * 60)
    reader = Reader(tiny)
    "".join(reader.stream(entries_of([load.read_file(path)]), Task("How many?"), max_tokens=4))
    reader.close()
    with serving(tiny, store=True) as one:
        body = asked(file_part(path.read_bytes(), "herons.txt", "text/plain"))
        usage = one.client.post(CHAT, json=body).raise_for_status().json()["usage"]
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 40 < usage["prompt_tokens"]


def test_the_clients_send_files(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    text = b"Mira counted 42 herons at the lake. " * 20
    file = client.files.create(file=("notes.txt", text), purpose="user_data")
    answer = client.chat.completions.create(model="x", **asked({"type": "file", "file": {"file_id": file.id}}))
    inline = client.chat.completions.create(model="x", **asked(file_part(text, "notes.txt", "text/plain")))
    assert answer.choices == inline.choices and answer.usage.prompt_tokens == inline.usage.prompt_tokens > 150
    given: Any = [{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
    assert client.responses.create(model="x", input=given, max_output_tokens=2).usage.input_tokens > 150
    anthropic = pytest.importorskip("anthropic", reason="the extra `clients` is not installed")
    other = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
    block: Any = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text.decode()}}
    ask: Any = [{"role": "user", "content": [block, {"type": "text", "text": QUESTION}]}]
    assert other.messages.count_tokens(model="x", messages=ask).input_tokens > 150
    boto3 = pytest.importorskip("boto3", reason="the extra `clients` is not installed")
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    runtime = boto3.client("bedrock-runtime", endpoint_url=server.url, **keys)
    document = {"format": "txt", "name": "notes", "source": {"bytes": text}}
    messages = [{"role": "user", "content": [{"document": document}, {"text": QUESTION}]}]
    config = {"temperature": 0.0, "maxTokens": 12}
    told = runtime.converse(modelId="ai21.jamba", messages=messages, inferenceConfig=config)
    assert told["output"]["message"]["content"][0]["text"] == inline.choices[0].message.content
    assert json.dumps(told["usage"]) and told["usage"]["inputTokens"] == inline.usage.prompt_tokens
