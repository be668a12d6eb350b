"""The requests of programs that are no Python packages, and the types that they insist on: VS Code, Zed, Continue, Open WebUI,
Codex. What each asks is in the source of its version of autumn 2026."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.servers import QUESTION, Running, events, serving

ASK: list[Any] = [{"role": "user", "content": QUESTION}]


def typed(value: Any, form: Any, where: str = "answer") -> None:
    """Check a value as a strictly typed client does. ``form``: a type, a list of one form, or a dict of forms, in which
    "name?" may be missing or null."""
    if isinstance(form, list):
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            typed(item, form[0], f"{where}[{i}]")
    elif isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, inner in form.items():
            name = key.removesuffix("?")
            if key == name or value.get(name) is not None:
                assert name in value, f"{where}.{name} is missing"
                typed(value[name], inner, f"{where}.{name}")
    else:
        assert isinstance(value, form) and (form is bool or not isinstance(value, bool)), f"{where} is {value!r}"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


class TestVSCode:
    def test_its_ollama_provider(self, server: Running, said: str) -> None:
        version = server.client.get("/api/version").json()["version"]
        assert tuple(int(n) for n in version.split(".")) >= (0, 6, 4)
        for model in server.client.get("/api/tags").json()["models"]:
            shown = server.client.post("/api/show", json={"model": model["model"]}).json()
            typed(shown, {"capabilities": [str], "model_info": {"general.architecture": str, "general.basename": str}})
            architecture = shown["model_info"]["general.architecture"]
            assert shown["model_info"][f"{architecture}.context_length"] == 16384
        body = {"model": "jamba:tiny", "messages": ASK, "stream": True, "temperature": 0, "top_p": 1, "n": 1}
        chunks = events(
            server.client.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
        )
        assert chunks[-1] == "[DONE]"
        found = [json.loads(c) for c in chunks[:-1]]
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in found if c["choices"]) == said


_DETAILS = {"format": str, "family": str, "parameter_size": str, "quantization_level": str, "families?": [str]}


class TestZed:
    def test_it_lists_models(self, server: Running) -> None:
        model = {"name": str, "modified_at": str, "size": int, "digest": str, "details": _DETAILS}
        typed(server.client.get("/api/tags").json(), {"models": [model]})
        shown = server.client.post("/api/show", json={"model": "jamba:tiny"}).json()
        typed(shown, {"capabilities": [str], "model_info": dict, "parameters?": str})
        assert shown["model_info"]["jamba.context_length"] > 0

    def test_it_chats(self, server: Running) -> None:
        body = {
            "model": "jamba:tiny",
            "messages": [{"role": "system", "content": ""}, {"role": "user", "content": QUESTION, "images": None}],
            "stream": True,
            "keep_alive": -1,
            "options": {"num_ctx": 16384, "num_predict": None, "stop": [], "temperature": 0.0, "top_p": None},
            "tools": [],
            "think": False,
        }
        answer = server.client.post("/api/chat", json=body)
        message = {"role": str, "content": str, "thinking?": str}
        line = {"model": str, "created_at": str, "message": message, "done": bool, "done_reason?": str}
        typed(lines(answer.text), [{**line, "prompt_eval_count?": int, "eval_count?": int}])
        assert {part["message"]["role"] for part in lines(answer.text)} == {"assistant"}
        assert [part["done"] for part in lines(answer.text)].count(True) == 1
        assert lines(answer.text)[-1]["done_reason"] == "stop"
        assert "".join(part["message"]["content"] for part in lines(answer.text))


class TestContinue:
    def test_it_reads_the_parameters_line_by_line(self, server: Running) -> None:
        shown = server.client.post("/api/show", json={"name": "jamba:tiny"}).json()
        typed(shown, {"parameters": str, "template": str})
        parameters = dict(
            re.fullmatch(r"(\S+)\s+((?:\".*\")|\S+)", p).groups() for p in shown["parameters"].split("\n")
        )  # type: ignore[union-attr,misc]
        assert int(parameters["num_ctx"]) == 16384 and float(parameters["temperature"]) >= 0

    def test_it_chats_and_completes(self, server: Running, said: str) -> None:
        options = {"temperature": 0, "num_predict": 64, "num_ctx": 8192, "stop": ["\n\n\n"], "mirostat": None}
        body = {"model": "jamba:tiny", "messages": ASK, "options": options, "keep_alive": 1800, "stream": True}
        assert (
            "".join(part["message"]["content"] for part in lines(server.client.post("/api/chat", json=body).text))
            == said
        )
        body = {"model": "jamba:tiny", "prompt": "The herons", "raw": True, "options": options, "keep_alive": 1800}
        answer = server.client.post("/api/generate", json=body)
        typed(lines(answer.text), [{"model": str, "response": str, "done": bool}])


class TestOpenWebUI:
    def test_it_connects(self, tiny: Jamba) -> None:
        from jambacli.server.http import Access

        with serving(tiny, access=Access(key="secret")) as server:
            assert server.client.get("/v1/models").status_code == 401
            key = {"Authorization": "Bearer secret"}
            for path in ("/v1/models", "/models"):
                found = server.client.get(path, headers=key).json()
                typed(found, {"object": str, "data": [{"id": str, "object": str, "created": int, "owned_by": str}]})
                assert "name" not in found["data"][0]  # a null there once ended it
            typed(server.client.get("/api/version", headers=key).json(), {"version": str})
            typed(server.client.get("/api/ps", headers=key).json(), {"models": [{"model": str, "name": str}]})

    def test_lists_are_answered_while_a_reply_is_written(self, server: Running) -> None:
        body = {"messages": ASK, "stream": True, "temperature": 0, "logit_bias": {}, "max_tokens": 2000, "stop": None}
        with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
            for path in ("/v1/models", "/api/tags", "/api/ps", "/health"):
                assert server.client.get(path).status_code == 200

    def test_its_background_tasks_do_not_cost_the_conversation_its_prefix(self, server: Running) -> None:
        chat = {"model": "jamba:tiny", "stream": False, "max_tokens": 12, "temperature": 0}
        messages = [{"role": "user", "content": "Mira counted 42 herons at the lake. " * 40}]
        first = server.client.post("/v1/chat/completions", json={**chat, "messages": messages}).json()
        said = first["choices"][0]["message"]["content"]
        for task in (
            "### Task:\nSuggest 3 follow-ups.",
            "### Task:\nGenerate a title.",
            "### Task:\nGenerate 1-3 tags.",
        ):
            history = f"{task}\n### Chat History:\n<chat_history>\nUSER: {messages[0]['content']}\nASSISTANT: {said}\n"
            body = {
                "messages": [{"role": "user", "content": history}],
                "max_completion_tokens": 8,
                "metadata": {"task": "x"},
            }
            assert server.client.post("/v1/chat/completions", json={**chat, **body}).status_code == 200
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Who counted them?"}]
        usage = server.client.post("/v1/chat/completions", json={**chat, "messages": messages}).json()["usage"]
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 32


_USAGE = {
    "input_tokens": int,
    "input_tokens_details?": {"cached_tokens": int},
    "output_tokens": int,
    "output_tokens_details?": {"reasoning_tokens": int},
    "total_tokens": int,
}


class TestCodex:
    @staticmethod
    def body(*texts: str, **more: Any) -> dict[str, Any]:
        """A request as Codex sends it: what comes of its tools is left to the tests of tools."""
        roles = ("user", "assistant")
        items = []
        for i, text in enumerate(texts):
            part = {"type": "output_text" if i % 2 else "input_text", "text": text}
            items.append({"type": "message", "role": roles[i % 2], "content": [part]})
            if i % 2 == 0:
                items.append({"type": "reasoning", "summary": [], "content": None, "encrypted_content": None})
        return {
            "model": "jamba:tiny",
            "instructions": "You are Codex.",
            "input": items,
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "019a",
            "text": {"verbosity": "medium"},
            "client_metadata": {"x-codex-installation-id": "x"},
            **more,
        }

    def events(self, server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of the answer, each of which must name its type twice and be numbered."""
        answer = server.client.post("/v1/responses", json=body, headers={"accept": "text/event-stream"})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for block in answer.text.rstrip("\n").split("\n\n"):
            kind, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert kind == f"event: {found[-1]['type']}"
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        return found

    def test_a_turn(self, server: Running) -> None:
        found = self.events(server, self.body("Hello", "Hi there.", QUESTION))
        kinds = [event["type"] for event in found]
        assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
        typed(found[-1]["response"], {"id": str, "usage": _USAGE})
        item = next(event["item"] for event in found if event["type"] == "response.output_item.done")
        typed(item, {"type": str, "role": str, "content": [{"type": str, "text": str}]})
        deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
        assert "".join(deltas) == item["content"][0]["text"] and item["content"][0]["type"] == "output_text"

    def test_the_next_turn_reads_what_is_new(self, server: Running) -> None:
        long = "Mira counted 42 herons at the lake. " * 30
        first = self.events(server, self.body(long, temperature=0))[-1]["response"]
        said = first["output"][0]["content"][0]["text"]
        usage = self.events(server, self.body(long, said, "Who counted them?"))[-1]["response"]["usage"]
        assert usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"] < 32

    def test_its_probes(self, server: Running) -> None:
        probe = server.client.post("/v1/responses", json={"model": "x", "input": [], "max_output_tokens": 1})
        assert probe.status_code == 200 and probe.json()["status"] in ("completed", "incomplete")
        found = server.client.get("/v1/models", params={"client_version": "0.155.1"}).json()
        typed(found, {"models": [dict], "data": [{"id": str}]})
        assert "models" not in server.client.get("/v1/models").json()  # other clients would read it instead of data

    def test_state_is_refused(self, server: Running) -> None:
        refused = server.client.post("/v1/responses", json=self.body("Hi", previous_response_id="resp_1"))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "previous_response_id"
