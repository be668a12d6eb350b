"""Small random models whose templates have tools, in the two forms of Jamba's, and replies that are given to them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from jambacli.api import Jamba
from jambacli.engine.sampling import Sampler
from jambacli.text.tool_calls import Form
from tests.support.small_models import CORPUS, SHAPE
from tests.support.vocabularies import byte_level_metadata

LIST_TEMPLATE = """
{%- if tools -%}
{{- '<|im_start|>system\n<tool_definitions>' -}}
{%- for tool in tools -%}{{- '\n' + (tool.function | tojson(indent=2)) -}}{%- endfor -%}
{{- '\n</tool_definitions><|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' + (m.content or '') -}}
{%- if m.tool_calls -%}
{{- '<tool_calls>[\n' -}}
{%- for call in m.tool_calls -%}
{%- set arguments = call.function.arguments -%}
{{- '    {"name": "' + call.function.name + '", "arguments": ' -}}
{{- (arguments if arguments is string else arguments | tojson) + '}' + (',\n' if not loop.last else '') -}}
{%- endfor -%}
{{- '\n]</tool_calls>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

SINGLE_TEMPLATE = """
{%- if tools -%}
{{- '<|im_start|>system\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools><|im_end|>\n' -}}
{%- endif -%}
{%- set last = namespace(user=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.reasoning_content and loop.index0 > last.user -%}
{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' -}}
{%- endif -%}
{{- m.content -}}
{%- for call in m.tool_calls or [] -%}
{%- if m.content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{%- set arguments = call.function.arguments -%}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (arguments if arguments is string else arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' + ('<think>\n' if thinks else '') -}}{%- endif -%}
"""

TEMPLATES: dict[Form, str] = {"list": LIST_TEMPLATE, "single": SINGLE_TEMPLATE}
MARKS = ["<tool_calls>", "</tool_calls>", "<tool_call>", "</tool_call>"]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@functools.cache
def tool_model(form: Form, marks: bool = True, thinks: bool = False, template: str | None = None) -> Jamba:
    """A random model whose template has calls of this form. ``marks``: the marks of calls are tokens. ``thinks``: the prompt
    opens thoughts. ``template``: another one."""
    from jambacli.evaluation.synthetic import synthetic_model
    from jambacli.model.config import JambaConfig

    metadata, _ = byte_level_metadata(CORPUS, vocab_size=400)
    names, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    more = MARKS if marks else []
    source = TEMPLATES[form].replace("if thinks", "if true" if thinks else "if false")
    metadata |= {
        "tokenizer.ggml.tokens": names + more,
        "tokenizer.ggml.token_type": types + [4] * len(more),
        "tokenizer.chat_template": template or source,
        "general.name": "small",
    }
    config = JambaConfig.from_hf({**SHAPE, "vocab_size": len(names) + len(more)}, "small")
    return Jamba(synthetic_model(config, "f32"), metadata, "small")


def written(form: Form, *calls: tuple[str, str], before: str = "") -> str:
    """The text of a reply that calls functions: (name, arguments) each."""
    bodies = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls]
    if form == "list":
        return f"{before}<tool_calls>[{', '.join(bodies)}]</tool_calls>"
    return before + "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def script(monkeypatch: pytest.MonkeyPatch, model: Jamba, *replies: str) -> None:
    """The next replies of ``model`` are these texts, in which marks outside strings are their tokens, and after each a stop
    token."""
    tokenizer, template = model.tokenizer, model.template
    assert template is not None
    in_strings = re.compile(r'"(?:[^"\\]|\\.)*"')
    texts = [in_strings.sub(lambda found: template.protect(found[0]), text) for text in replies]
    coming = iter([[*template.encode_text(text, start=False), min(tokenizer.stop_ids)] for text in texts])

    def sample(self: Any, logits: object) -> int:
        tokens: Iterator[int] | None = getattr(self, "scripted", None)
        if tokens is None:
            tokens = self.scripted = iter(next(coming))
        token = next(tokens)
        if self.constraint is not None:
            allowed = self.constraint.allowed()
            assert allowed is None or allowed[token], f"{tokenizer.pieces[token]!r} is not allowed"
            assert self.constraint.accept(token) == token
        return token

    monkeypatch.setattr(Sampler, "sample", sample)


def of_openai(calls: Sequence[tuple[str, str]], ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Calls in OpenAI's form."""
    ids = ids or [f"id{i}" for i in range(len(calls))]
    return [
        {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        for identity, (name, arguments) in zip(ids, calls, strict=True)
    ]
