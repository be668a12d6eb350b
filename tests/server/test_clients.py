"""The real clients, each with nothing but another address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.repository import SHARED_DATA
from tests.support.servers import QUESTION, Running, serving

ASK: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def slow(tiny: Jamba) -> Iterator[Running]:
    """A server that gives signs of life at every opportunity."""
    with serving(tiny, keep_alive=0.001) as running:
        yield running


LONG: list[Any] = [{"role": "user", "content": "Mira counted 42 herons. " * 200}]


class TestOpenAI:
    @pytest.fixture
    def client(self, server: Running) -> Any:
        openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)

    def test_chat(self, client: Any, said: str) -> None:
        answer = client.chat.completions.create(model="gpt-x", messages=ASK, temperature=0)
        assert answer.choices[0].message.content == said and answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens_details.cached_tokens >= 0

    def test_stream(self, client: Any, said: str) -> None:
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model="x", messages=ASK, temperature=0, stream=True, stream_options=options)
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
        assert chunks[-1].usage.completion_tokens > 0

    def test_parse(self, client: Any) -> None:
        pytest.importorskip("llguidance")
        pydantic = pytest.importorskip("pydantic")
        count = pydantic.create_model("Count", name=(str, ...), count=(int, ...))
        answer = client.chat.completions.parse(
            model="x", messages=ASK, temperature=0, max_tokens=24, response_format=count
        )
        assert isinstance(answer.choices[0].message.parsed.count, int)

    def test_completions_models_and_responses(self, client: Any, said: str) -> None:
        assert client.completions.create(model="x", prompt="The herons", max_tokens=3).choices[0].finish_reason
        assert [m.id for m in client.models.list()] == ["jamba:tiny"]
        assert client.models.retrieve("jamba:tiny").object == "model"
        whole = client.responses.create(model="x", input=QUESTION, temperature=0)
        assert whole.output_text == said and whole.status == "completed"
        with client.responses.stream(model="x", input=ASK, temperature=0) as stream:
            assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == said
            assert stream.get_final_response().output_text == said
        with client.responses.stream(model="x", input=ASK, temperature=0, max_output_tokens=2) as stream:
            assert [e.type for e in stream][-1] == "response.incomplete"

    def test_errors_have_their_classes(self, client: Any) -> None:
        import openai

        long = [{"role": "user", "content": "herons " * 20_000}]
        with pytest.raises(openai.BadRequestError, match="context_length_exceeded") as error:
            client.chat.completions.create(model="x", messages=long)
        assert error.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-9")
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(model="x", input="x", previous_response_id="resp_1")

    @pytest.mark.parametrize("stream", [False, True])
    def test_signs_of_life(self, slow: Running, stream: bool) -> None:
        openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
        client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="x", max_retries=0)
        answer = client.chat.completions.create(model="x", messages=LONG, max_tokens=4, stream=stream)
        assert (len(list(answer)) > 4) if stream else answer.choices[0].finish_reason


class TestAnthropic:
    @pytest.fixture(params=["server", "slow"])
    def client(self, request: pytest.FixtureRequest) -> Any:
        anthropic = pytest.importorskip("anthropic", reason="the extra `clients` is not installed")
        url = request.getfixturevalue(request.param).url
        return anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)

    def test_messages(self, client: Any, said: str) -> None:
        answer = client.messages.create(model="claude", max_tokens=64, messages=ASK, extra_body={"temperature": 0})
        assert answer.content[0].text == said and answer.stop_reason == "end_turn"
        usage = answer.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == 12
        word = said.split()[2]
        stopped = client.messages.create(
            model="claude", max_tokens=64, messages=ASK, extra_body={"temperature": 0}, stop_sequences=[word]
        )
        assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == word

    def test_stream(self, client: Any, said: str) -> None:
        with client.messages.stream(model="x", max_tokens=64, messages=ASK, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == said
            assert stream.get_final_message().usage.output_tokens > 0
        blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        with client.messages.stream(model="x", max_tokens=2, messages=blocks, system="Be brief.") as stream:
            assert stream.get_final_message().stop_reason == "max_tokens"

    def test_tokens_are_counted(self, client: Any) -> None:
        assert client.messages.count_tokens(model="x", messages=ASK).input_tokens == 12

    def test_errors(self, client: Any) -> None:
        import anthropic

        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            client.messages.create(model="x", max_tokens=4, messages=[{"role": "user", "content": "herons " * 20_000}])
        with pytest.raises(anthropic.BadRequestError, match="tools"):
            client.messages.create(
                model="x", max_tokens=4, messages=ASK, tools=[{"name": "f", "input_schema": {"type": "object"}}]
            )


class TestOllama:
    @pytest.fixture(params=["server", "slow"])
    def client(self, request: pytest.FixtureRequest) -> Any:
        ollama = pytest.importorskip("ollama", reason="the extra `clients` is not installed")
        return ollama.Client(host=request.getfixturevalue(request.param).url)

    def test_chat_and_generate(self, client: Any, said: str) -> None:
        options = {"temperature": 0, "num_ctx": 4096, "num_predict": -1}
        whole = client.chat(model="x", messages=ASK, options=options)
        assert whole.message.content == said and whole.done_reason == "stop" and whole.eval_count > 0
        pieces = list(client.chat(model="x", messages=ASK, options=options, stream=True))
        assert "".join(p.message.content for p in pieces) == said and [p.done for p in pieces].count(True) == 1
        assert client.generate(model="x", prompt=QUESTION, options=options).response == said
        pieces = list(client.generate(model="x", prompt=QUESTION, options={**options, "num_predict": 2}, stream=True))
        assert pieces[-1].done_reason == "length"

    def test_format(self, client: Any) -> None:
        pytest.importorskip("llguidance")
        schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
        answer = client.chat(model="x", messages=ASK, format=schema, options={"num_predict": 24, "temperature": 0})
        assert isinstance(json.loads(answer.message.content)["count"], int)

    def test_what_editors_ask_first(self, client: Any, server: Running) -> None:
        assert [m.model for m in client.list().models] == ["jamba:tiny"] == [m.model for m in client.ps().models]
        shown = client.show("jamba:tiny")
        assert shown.capabilities == ["completion"] and shown.modelinfo["jamba.context_length"] == 16384
        assert server.client.get("/").text == "Ollama is running" == client._client.get("/").text
        assert server.client.head("/").status_code == 200
        assert tuple(map(int, server.client.get("/api/version").json()["version"].split("."))) >= (0, 6, 4)
        (model,) = server.client.get("/api/tags").json()["models"]
        assert {"name", "modified_at", "size", "digest", "details"} <= model.keys() and isinstance(model["size"], int)
        assert server.client.post("/api/generate", json={"model": "x"}).json()["done_reason"] == "load"

    def test_errors(self, client: Any) -> None:
        import ollama

        with pytest.raises(ollama.ResponseError, match="maximum context length") as error:
            client.chat(model="x", messages=[{"role": "user", "content": "herons " * 20_000}])
        assert error.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match="num_ctx"):
            client.chat(model="x", messages=ASK, options={"num_ctx": 1 << 20})


class TestAI21:
    @pytest.mark.parametrize("which", ["server", "slow"])
    def test_chat_stream_and_documents(self, request: pytest.FixtureRequest, which: str, said: str) -> None:
        ai21 = pytest.importorskip("ai21", reason="the extra `clients` is not installed")
        from ai21.models.chat import ChatMessage
        from ai21.models.chat.document_schema import DocumentSchema

        client = ai21.AI21Client(api_key="x", api_host=f"{request.getfixturevalue(which).url}/studio/v1")
        messages = [ChatMessage(role="user", content=QUESTION)]
        answer = client.chat.completions.create(model="jamba-mini", messages=messages, temperature=0)
        assert answer.choices[0].message.content == said and answer.usage.prompt_tokens == 12
        chunks = list(client.chat.completions.create(model="jamba-mini", messages=messages, temperature=0, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == said
        assert chunks[-1].usage.completion_tokens > 0
        text = "Mira counted 42 herons. " * 20
        documents = [DocumentSchema(content=text, metadata={"title": "Report"})]
        more = client.chat.completions.create(model="jamba-mini", messages=messages, documents=documents, max_tokens=2)
        assert more.usage.prompt_tokens > 100


class TestBedrock:
    @pytest.fixture(params=["server", "slow"])
    def runtime(self, request: pytest.FixtureRequest) -> Any:
        boto3 = pytest.importorskip("boto3", reason="the extra `clients` is not installed")
        url = request.getfixturevalue(request.param).url
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        return boto3.client("bedrock-runtime", endpoint_url=url, **keys)

    def test_invoke_takes_three_forms(self, runtime: Any, said: str) -> None:
        def ask(body: dict[str, Any], model: str = "ai21.jamba-1-5-large") -> Any:
            return json.loads(runtime.invoke_model(modelId=model, body=json.dumps(body))["body"].read())

        given = {"maxTokens": 64, "temperature": 0.0}
        assert ask({"inputText": QUESTION, "parameters": given})["outputText"] == said
        titan = ask({"inputText": QUESTION, "textGenerationConfig": {"maxTokenCount": 2, "temperature": 0}})
        assert titan["results"][0]["completionReason"] == "LENGTH"
        arn = "arn:aws:bedrock:us-east-1:1:inference-profile/ai21.jamba-1-5-mini-v1:0"
        jamba = ask({"messages": ASK, "temperature": 0, "max_tokens": 64}, arn)
        assert jamba["choices"][0]["message"]["content"] == said
        j2 = ask({"prompt": QUESTION, **given})
        assert j2["completions"][0]["data"]["text"] == said

    def test_streams(self, runtime: Any, said: str) -> None:
        for body in ({"messages": ASK, "temperature": 0}, {"inputText": QUESTION, "parameters": {"temperature": 0}}):
            answer = runtime.invoke_model_with_response_stream(modelId="ai21.jamba", body=json.dumps(body))
            assert answer["contentType"] == "application/json"
            chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
            choices = [c["choices"][0]["delta"].get("content", "") for c in chunks if "choices" in c]
            assert "".join(choices) + "".join(c.get("outputText", "") for c in chunks) == said
            assert chunks[-1]["amazon-bedrock-invocationMetrics"]["inputTokenCount"] == 12

    def test_converse(self, runtime: Any, said: str) -> None:
        messages = [{"role": "user", "content": [{"text": QUESTION}]}]
        config = {"temperature": 0.0, "maxTokens": 64}
        whole = runtime.converse(modelId="ai21.jamba", messages=messages, inferenceConfig=config)
        assert whole["output"]["message"]["content"][0]["text"] == said and whole["stopReason"] == "end_turn"
        stream = runtime.converse_stream(
            modelId="ai21.jamba", messages=messages, inferenceConfig=config, system=[{"text": "Be brief."}]
        )
        events = list(stream["stream"])
        assert [next(iter(e)) for e in events][-2:] == ["messageStop", "metadata"]
        assert events[-1]["metadata"]["usage"]["outputTokens"] > 0

    def test_errors_have_their_classes(self, runtime: Any) -> None:
        with pytest.raises(runtime.exceptions.ValidationException, match="maximum context length"):
            runtime.invoke_model(modelId="x", body=json.dumps({"inputText": "herons " * 20_000}))
        with pytest.raises(runtime.exceptions.ValidationException):
            runtime.invoke_model(modelId="x", body=b"{")

    def test_a_program_written_for_bedrock_runs_unchanged(self, server: Running, tmp_path: Path) -> None:
        pytest.importorskip("boto3", reason="the extra `clients` is not installed")
        program = SHARED_DATA.parent / "cases" / "clients" / "bedrock_invoke.py"
        if not program.is_file():
            pytest.skip("../shared/cases/clients/bedrock_invoke.py is not here")
        (tmp_path / "contract.txt").write_text("The buyer pays 42 euros for the herons. " * 40)
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        environment = {**os.environ, **keys, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": server.url}
        done = subprocess.run(
            [sys.executable, str(program), str(tmp_path / "contract.txt")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and len(done.stdout.splitlines()) >= 2 and "No output" not in done.stdout
