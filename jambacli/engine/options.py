"""The options of one reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from jambacli.engine.sampling import Sampling


class GenerationKeywords(TypedDict, total=False):
    """The fields of GenerationOptions, as keyword arguments of ``session.send`` and the like."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_last_n: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    max_tokens: int | None
    stop: Sequence[str]
    schema: Mapping[str, Any] | None
    cite: int | None
    lookup: bool | None
    think: bool | None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of one reply.

    The fields of ``Sampling`` by the same names, None for the session's or the model's own. ``max_tokens``: the longest
    reply. ``stop``: texts before which it ends. ``schema``: a JSON schema that it must follow (see
    ``engine.constraints``). ``cite``: how many documents it may cite after JSON of the schema. ``lookup``: whether
    earlier text, such as documents, provides drafts of the next tokens, several of which a step confirms; the reply is
    the same. None: where the device has a fast step of several tokens. ``think``: whether the model may think before it
    answers (see ``session.thinking``), None for what its chat template does. Raises UsageError for a value out of its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_last_n: int | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    schema: Mapping[str, Any] | None = None
    cite: int | None = None
    lookup: bool | None = None
    think: bool | None = None

    def __post_init__(self) -> None:
        self.sampling(Sampling())

    def chosen_sampling(self) -> dict[str, Any]:
        """The sampling fields that are not None."""
        values = {f.name: getattr(self, f.name) for f in fields(Sampling)}
        return {name: value for name, value in values.items() if value is not None}

    def sampling(self, defaults: Sampling) -> Sampling:
        """How tokens are chosen: ``defaults`` with the fields that are not None here."""
        return replace(defaults, **self.chosen_sampling())
