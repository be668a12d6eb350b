"""How a task about documents is put to a model: by the modes of its chat template, or in words where it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jambacli.session.conversation import Conversation
from jambacli.text.markup import CITATIONS, CITATIONS_END


@dataclass(frozen=True)
class Task:
    """What to do with the documents: an instruction or a question.

    ``schema``: the reply is JSON of that schema. ``citations``: the reply names documents in a section after the text or the
    JSON (see ``documents.citations``).
    """

    text: str
    citations: bool = False
    schema: Mapping[str, Any] | None = None


class Modes:
    """The modes of a conversation's template, None for a model without one."""

    def __init__(self, conversation: Conversation | None) -> None:
        self._conversation = conversation
        self._known: dict[str, bool] = {}

    def knobs(self, task: Task) -> dict[str, Any] | None:
        """The template's modes for the task, None when it has none."""
        if self._conversation is None:
            return None
        knobs: dict[str, Any] = {}
        if task.citations and self._has("citation_mode", "fast"):
            knobs["citation_mode"] = "fast"
        if task.schema is not None and self._has("response_format", "json_object"):
            knobs["response_format"] = "json_object"
        return {"is_set": True, **knobs} if knobs else None

    def instruction(self, task: Task) -> str:
        """The text after the documents: the task, with instructions for anything that the template has no mode for."""
        text = task.text
        if task.schema is not None:
            text += f"\n\nReply in JSON that follows this schema: {json.dumps(task.schema, ensure_ascii=False)}"
        if task.citations and not self._has("citation_mode", "fast"):
            what = "answer" if task.schema is None else "JSON"
            text += (
                f"\n\nAfter the {what}, list the IDs of the documents it is based on, like this: "
                f"{CITATIONS}[2, 5]{CITATIONS_END}"
            )
        return text

    def _has(self, knob: str, value: str) -> bool:
        if self._conversation is None:
            return False
        if knob not in self._known:
            self._known[knob] = self._conversation.takes(**{knob: value})
        return self._known[knob]
