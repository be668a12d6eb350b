"""Chat messages -> token ids through the model's own Jinja template.

A template is code from a model file, so it runs in jinja2's immutable sandbox, in a process with limits (``template_process``).
Markers inside a user's text must stay text: before rendering, a sentinel character is inserted into every marker in the
content, and it is removed again when the text between the template's own markers is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jambacli.errors import BadFileError, UsageError
from jambacli.text.template_protocol import Kind
from jambacli.text.template_renderer import Renderer

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

MAX_TEMPLATE = 1 << 20
# Unicode noncharacters, reserved for use inside a program. They mark places in a rendering; in content they become U+FFFD, so
# that no text can forge a mark.
SENTINEL, FENCE_OPEN, FENCE_CLOSE = "\ufded", "\ufdee", "\ufdef"
_RESERVED = {ord(c): "\ufffd" for c in (SENTINEL, FENCE_OPEN, FENCE_CLOSE)}
# Markup that belongs to an assistant turn: templates look for it in the content of earlier turns.
_ASSISTANT_OWN = frozenset(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_calls>",
        "</tool_calls>",
        "<citations>",
        "</citations>",
    ]
)

Message = Mapping[str, Any]


class TemplateError(BadFileError):
    """A chat template that does not work; another one may."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(path, problem, remedy="give one that works with {chat_template}")


class ChatTemplate:
    """A model's compiled chat template."""

    def __init__(self, source: str, tokenizer: Tokenizer, path: object = "model") -> None:
        """Compile ``source``. Raises TemplateError naming ``path`` when it is not a valid template or is too long."""
        self._renderer = compiled(source, path)
        self.source = source
        self._tokenizer = tokenizer
        self._path = path

    def render(
        self,
        messages: Sequence[Message],
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation, as transformers' apply_chat_template renders it (``tokenize=False``)."""
        return self._render(messages, documents, tools, add_generation_prompt, variables)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation: the template's own markers are single tokens, markers inside content stay text.

        If the tokenizer adds bos, the ids begin with exactly one, whether or not the template writes it. Raises UsageError
        when the template refuses the conversation, TemplateError when it fails.
        """
        text = self._render(
            [self.protect_message(m) for m in messages],
            self.protect(documents),
            self.protect(tools),
            add_generation_prompt,
            {k: self.protect(v) for k, v in variables.items()},
        )
        return self.encode_text(text)

    def encode_text(self, text: str, *, start: bool = True) -> list[int]:
        """Token ids of a rendering of protected messages. ``start``: it is the start of the sequence, where bos is added."""
        ids: list[int] = []
        tokenizer = self._tokenizer
        pattern = tokenizer.marker_pattern("all")
        at = 0
        for match in pattern.finditer(text) if pattern else ():
            token = tokenizer.marker_id(match[0])
            if token is None:
                continue
            ids += tokenizer.encode(text[at : match.start()].replace(SENTINEL, ""))
            ids.append(token)
            at = match.end()
        ids += tokenizer.encode(text[at:].replace(SENTINEL, ""))
        if start and tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def _render(
        self,
        messages: Sequence[Message],
        documents: Sequence[Mapping[str, Any]] | None,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        tokenizer = self._tokenizer
        eos = tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.stop_ids, default=None)
        ids = {"bos": tokenizer.bos_id, "eos": eos, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
        ids |= {"sep": tokenizer.sep_id, "cls": tokenizer.cls_id, "mask": tokenizer.mask_id}
        # One that the model does not have is undefined, as in transformers.
        names = {f"{name}_token": tokenizer.pieces[i] for name, i in ids.items() if i is not None}
        # Absent documents and tools are None, as transformers passes them: templates test "is not none".
        kind, text = self._renderer.render(
            {
                **names,
                **variables,
                "messages": list(messages),
                "documents": list(documents) if documents is not None else None,
                "tools": list(tools) if tools is not None else None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        if kind is Kind.TEXT:
            return text
        if kind is Kind.REFUSED:
            raise UsageError(f"the chat template refuses this conversation: {text}")
        raise TemplateError(self._path, f"the chat template fails on this conversation: {text}")

    def cancel(self) -> None:
        """Let a rendering in another thread fail at once."""
        self._renderer.cancel()

    def protect_message(self, message: Message) -> dict[str, Any]:
        """``message`` with the markers in its text protected, except an assistant's own in its content (thoughts, calls)."""
        own = _ASSISTANT_OWN if message.get("role") == "assistant" else frozenset()
        none = frozenset[str]()
        return {
            k: v if k == "role" else self.protect(v, none if k == "tool_calls" else own) for k, v in message.items()
        }

    def protect(self, value: Any, own: frozenset[str] = frozenset()) -> Any:
        """``value`` with the sentinel inserted into every marker in its strings, except those in ``own``."""
        if isinstance(value, str):
            value = value.translate(_RESERVED)
            pattern = self._tokenizer.marker_pattern("all")
            if pattern is None:
                return value
            known = self._tokenizer.marker_id

            def protected(text: str) -> str:
                return text if text in own or known(text) is None else text[0] + SENTINEL + text[1:]

            return pattern.sub(lambda match: protected(match[0]), value)
        if isinstance(value, Mapping):
            return {self.protect(k, own): self.protect(v, own) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(v, own) for v in value]
        return value


def compiled(source: str, path: object) -> Renderer:
    """A template that was compiled. Raises TemplateError naming ``path`` when it is not a valid one or is too long."""
    if len(source) > MAX_TEMPLATE:
        raise TemplateError(
            path, f"the chat template is {len(source):,} characters long; the limit is {MAX_TEMPLATE:,}"
        )
    renderer = Renderer(source, SENTINEL + FENCE_OPEN + FENCE_CLOSE)
    kind, text = renderer.compile()
    if kind is not Kind.TEXT:
        raise TemplateError(path, f"the chat template does not parse: {text}")
    return renderer
