"""Fields of a request through OpenAI's own client: choices, seeds, biases, stop texts, usage."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.servers import Running

ASK: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "How many herons were counted?"}]}


@pytest.fixture
def client(server: Running) -> Any:
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


@pytest.mark.parametrize("seed", [7, -3])
def test_choices_of_a_seed_are_the_same_in_a_stream(client: Any, seed: int) -> None:
    given = {**ASK, "n": 3, "seed": seed, "temperature": 5, "max_completion_tokens": 8, "extra_body": {"top_k": 0}}
    whole = client.chat.completions.create(**given)
    texts, ends, roles = defaultdict[int, str](str), dict[int, str](), list[int]()
    *chunks, usage = client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.index not in ends
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert [texts[i] for i in range(3)] == [c.message.content for c in whole.choices] and len(set(texts.values())) > 1
    assert [ends[i] for i in range(3)] == [c.finish_reason for c in whole.choices] and roles == [0, 1, 2]
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens


def test_without_stream_options_no_chunk_has_usage(client: Any) -> None:
    for chunk in client.chat.completions.create(**ASK, max_tokens=2, stream=True):
        assert chunk.choices and chunk.usage is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_before_the_first_of_its_stop_texts(client: Any, stream: bool) -> None:
    given = {**ASK, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**given).choices[0].message.content
    first, later = whole[3:9], whole[5:12]  # across tokens, one in the other
    for stop in (first, [later, first], ["never", first]):
        answer = client.chat.completions.create(**given, stop=stop, stream=stream)
        if stream:
            choices = [chunk.choices[0] for chunk in answer]
            said, finish = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
        else:
            said, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert said == whole[: whole.index(first)] and finish == "stop"


def test_a_bias_forces_and_forbids(client: Any, tiny: Jamba) -> None:
    (token,) = tiny.tokenizer.encode(" herons")[:1]
    given = {**ASK, "max_tokens": 3}
    forced = client.chat.completions.create(**given, logit_bias={str(token): 100}).choices[0].message.content
    word = tiny.tokenizer.decode([token])
    assert f" {forced}" == word * 3 or forced == word * 3
    plain = client.completions.create(model="x", prompt="The herons", temperature=0, max_tokens=1)
    (ours,) = tiny.tokenizer.encode(plain.choices[0].text)
    other = client.completions.create(
        model="x", prompt="The herons", temperature=0, max_tokens=1, logit_bias={str(ours): -100}
    )
    assert other.choices[0].text != plain.choices[0].text
