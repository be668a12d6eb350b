"""The options of replies and sessions: the same names in every place that lists them, and mistakes that are found."""

from __future__ import annotations

from dataclasses import fields

import pytest

from jambacli.api import Jamba
from jambacli.commands.options import DeviceArguments, GenerationArguments
from jambacli.engine.options import GenerationKeywords, GenerationOptions
from jambacli.engine.sampling import Sampling
from jambacli.errors import UsageError
from jambacli.runtime.options import DeviceKeywords, DeviceOptions
from jambacli.session.options import SessionKeywords, SessionOptions
from tests.support.small_models import small_model


def names(group: type) -> list[str]:
    return [f.name for f in fields(group)]


def test_keywords_are_the_fields_and_every_sampling_field_is_an_option() -> None:
    assert list(GenerationKeywords.__annotations__) == names(GenerationOptions)
    assert list(SessionKeywords.__annotations__) == names(SessionOptions)
    assert list(DeviceKeywords.__annotations__) == names(DeviceOptions)
    assert set(names(Sampling)) <= set(names(GenerationOptions))


def test_the_command_line_offers_every_option() -> None:
    offered = {"temperature" if n == "temp" else n for n in names(GenerationArguments)}
    assert set(names(Sampling)) | {"max_tokens", "stop"} <= offered
    assert set(names(DeviceOptions)) <= offered & set(names(DeviceArguments))


def test_options_replace_the_defaults_that_they_set() -> None:
    chosen = GenerationOptions(temperature=0, seed=5).sampling(Sampling(top_k=7, temperature=0.9))
    assert (chosen.temperature, chosen.seed, chosen.top_k) == (0, 5, 7)


def test_a_value_out_of_range_is_refused_by_its_name_and_nothing_is_said() -> None:
    with pytest.raises(UsageError, match=r"^temperature 200 is outside 0 to 100$"):
        GenerationOptions(temperature=200)
    with small_model().session(store=False) as session:
        with pytest.raises(UsageError, match=r"^top_p 2 is outside 0 to 1$"):
            session.send("Hello.", top_p=2)
        assert not session.conversation.turns


def test_a_misspelt_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="devise"):
        Jamba.load("small", devise="cpu")  # type: ignore[call-arg]
    model = small_model()
    with pytest.raises(TypeError, match="contex"):
        model.session(contex=5)  # type: ignore[call-arg]
    with model.session(store=False) as session:
        for method in (session.send, session.complete):
            with pytest.raises(TypeError, match="temprature"):
                method("Hello.", temprature=0)  # type: ignore[call-arg]
        assert not session.conversation.turns
