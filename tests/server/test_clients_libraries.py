"""Libraries and programs above the APIs, each with nothing but another address: LangChain, LiteLLM, llm."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from tests.support.servers import QUESTION, Running

ASK: list[Any] = [{"role": "user", "content": QUESTION}]
TOO_LONG = "herons " * 20_000
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}


class TestLangChain:
    @pytest.fixture
    def make(self, server: Running) -> Any:
        """Makes a chat model."""
        openai = pytest.importorskip("langchain_openai", reason="the extra `clients` is not installed")

        def make(**options: Any) -> Any:
            keys = {"base_url": f"{server.url}/v1", "api_key": "x", "model": "jamba", "max_retries": 0}
            return openai.ChatOpenAI(**{**keys, "temperature": 0, **options})

        return make

    def test_invoke_and_batch(self, make: Any, said: str) -> None:
        answer = make().invoke(QUESTION)
        assert answer.content == said and answer.response_metadata["finish_reason"] == "stop"
        assert (
            answer.usage_metadata["input_tokens"] == 12 and "cache_read" in answer.usage_metadata["input_token_details"]
        )
        assert [a.content for a in make().batch([QUESTION] * 3)] == [said] * 3
        assert make().invoke([("system", "Be brief."), ("human", QUESTION)]).usage_metadata["input_tokens"] > 12

    def test_streams(self, make: Any, said: str) -> None:
        parts = list(make(stream_usage=True).stream(QUESTION))
        assert "".join(p.content for p in parts) == said and len(parts) > 3
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        assert whole.usage_metadata["output_tokens"] > 0 and whole.response_metadata["finish_reason"] == "stop"

        async def collected() -> str:
            return "".join([p.content async for p in make().astream(QUESTION)])

        assert asyncio.run(collected()) == said

    def test_structured_output(self, make: Any) -> None:
        pytest.importorskip("llguidance")
        pydantic = pytest.importorskip("pydantic")
        count = pydantic.create_model("Count", name=(str, ...), count=(int, ...))
        found = make(max_tokens=32).with_structured_output(count).invoke(QUESTION)
        assert isinstance(found, count) and isinstance(found.count, int)
        raw = make(max_tokens=32).with_structured_output(None, method="json_mode", include_raw=True).invoke(QUESTION)
        assert isinstance(json.loads(raw["raw"].content), dict)

    def test_responses_and_completions(self, make: Any, server: Running, said: str) -> None:
        answer = make(use_responses_api=True).invoke(QUESTION)
        assert "".join(part["text"] for part in answer.content) == said
        parts = list(make(use_responses_api=True).stream(QUESTION))
        assert "".join(part.text for part in parts) == said
        from langchain_openai import OpenAI

        plain = OpenAI(base_url=f"{server.url}/v1", api_key="x", model="jamba", max_tokens=4, temperature=0)
        assert plain.invoke("The herons") == "".join(plain.stream("The herons")) != ""

    def test_a_prompt_that_is_too_long(self, make: Any) -> None:
        from langchain_core.exceptions import ContextOverflowError

        with pytest.raises(ContextOverflowError):
            make().invoke(TOO_LONG)
        with pytest.raises(ContextOverflowError):
            list(make().stream(TOO_LONG))


# Its providers, each with the end of the base address that it needs.
LITELLM = {
    "openai/jamba": "/v1",
    "hosted_vllm/jamba": "/v1",
    "lm_studio/jamba": "/v1",
    "anthropic/jamba": "",
    "ollama_chat/jamba": "",
}


@pytest.mark.parametrize("model", LITELLM)
class TestLiteLLM:
    @pytest.fixture
    def complete(self, server: Running, model: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Calls litellm.completion."""
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise importing it asks the internet
        litellm = pytest.importorskip("litellm", reason="the extra `clients` is not installed")

        def complete(**options: Any) -> Any:
            address = {"model": model, "api_base": server.url + LITELLM[model], "api_key": "x"}
            return litellm.completion(**address, **{"messages": ASK, "temperature": 0, "max_tokens": 64, **options})

        return complete

    def test_whole_and_stream(self, complete: Any, said: str) -> None:
        answer = complete()
        assert answer.choices[0].message.content == said and answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == 12 and answer.usage.completion_tokens > 0
        chunks = list(complete(stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
        assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
        assert complete(max_tokens=2).choices[0].finish_reason == "length"

    def test_schema(self, complete: Any, model: str) -> None:
        pytest.importorskip("llguidance")
        if model.startswith("anthropic"):
            pytest.skip("there LiteLLM asks for a schema as a tool")
        form = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}}
        answer = complete(response_format=form, max_tokens=24)
        assert isinstance(json.loads(answer.choices[0].message.content)["count"], int)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_prompt_that_is_too_long(self, complete: Any, model: str, stream: bool) -> None:
        import litellm

        # Its providers for Ollama do not look for the words.
        kind = litellm.BadRequestError if model.startswith("ollama") else litellm.ContextWindowExceededError
        with pytest.raises(kind, match="maximum context length"):
            complete(messages=[{"role": "user", "content": TOO_LONG}], stream=stream)


class TestLlm:
    @pytest.fixture
    def models(self, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Its models, from the file in which its users list those of other servers."""
        llm = pytest.importorskip("llm", reason="the extra `clients` is not installed")
        monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
        entry = f"model_name: jamba\n  api_base: {server.url}/v1\n  supports_schema: true"
        kinds = {"chat": "", "responses": "\n  responses: true", "text": "\n  completion: true"}
        lines = [f"- model_id: jamba-{name}\n  {entry}{more}\n" for name, more in kinds.items()]
        (tmp_path / "extra-openai-models.yaml").write_text("".join(lines))
        return lambda name: llm.get_model(f"jamba-{name}")

    @pytest.mark.parametrize("name", ["chat", "responses"])
    def test_prompts(self, models: Any, said: str, name: str) -> None:
        for stream in (False, True):
            answer = models(name).prompt(QUESTION, temperature=0, stream=stream)
            assert answer.text() == said
            assert answer.usage().input == 12 and answer.usage().output > 0

    def test_a_conversation_and_a_schema(self, models: Any, said: str) -> None:
        conversation = models("chat").conversation()
        assert conversation.prompt(QUESTION, temperature=0).text() == said
        second = conversation.prompt("Who counted them?", temperature=0)
        assert second.text() and second.usage().details["prompt_tokens_details"]["cached_tokens"] > 12
        pytest.importorskip("llguidance")
        answer = models("chat").prompt(QUESTION, schema=SCHEMA, max_tokens=24, temperature=0)
        assert isinstance(json.loads(answer.text())["count"], int)

    def test_text(self, models: Any) -> None:
        assert models("text").prompt("The herons", max_tokens=4, temperature=0).text()

    def test_its_command_needs_only_the_address(self, models: Any, server: Running, said: str) -> None:
        testing = pytest.importorskip("click.testing")
        from llm.cli import cli

        def run(*arguments: str) -> str:
            done = testing.CliRunner().invoke(cli, ["openai", "endpoint", f"{server.url}/v1", *arguments])
            assert done.exit_code == 0, done.output
            return str(done.output)

        assert "jamba:tiny" in run("--models")
        assert run(QUESTION, "-m", "jamba:tiny", "-o", "temperature", "0").strip() == said
