"""The options of replies and sessions: the same names in every place that lists them, and mistakes that are found."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from jambacli.api import Jamba
from jambacli.commands.options import DeviceArguments, GenerationArguments
from jambacli.engine.options import GenerationKeywords, GenerationOptions
from jambacli.engine.sampling import RANGES, Sampling
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
    assert set(names(Sampling)) | {"max_tokens", "stop", "lookup"} <= offered
    assert set(names(DeviceOptions)) <= offered & set(names(DeviceArguments))


#: A valid value of every sampling option that is not its default, as a caller of Python gives it.
VALUES = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.5,
    "min_p": 0.1,
    "typical_p": 0.8,
    "repeat_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "penalty_last_n": 9,
    "logit_bias": {5: -1.5},
    "seed": 3,
}


def test_every_sampling_field_has_a_value_in_these_tests() -> None:
    assert sorted(VALUES) == sorted(names(Sampling))


@pytest.mark.parametrize("name", names(Sampling))
def test_every_option_of_the_command_line_reaches_the_sampler(name: str) -> None:
    value = VALUES[name]
    given = ["5=-1.5"] if name == "logit_bias" else value
    arguments = GenerationArguments(**{"temp" if name == "temperature" else name: given})
    assert arguments.generation().sampling(Sampling()) == replace(Sampling(), **{name: value})


def test_the_other_options_of_a_reply_are_passed_on() -> None:
    chosen = GenerationArguments(max_tokens=7, stop=["END"]).generation()
    assert (chosen.max_tokens, chosen.stop) == (7, ["END"])
    assert GenerationArguments().generation() == GenerationOptions()
    for text, value in (("on", True), ("off", False), (None, None)):
        assert GenerationArguments(lookup=text).generation().lookup is value


# The seed has its own limit, and a bias is a number for each token; both are tested in tests/engine/test_sampling.py.
@pytest.mark.parametrize("name", [n for n in names(Sampling) if n not in ("seed", "logit_bias")])
def test_every_numeric_field_of_sampling_has_a_range(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, high * 2 + 1, float("nan")):
        with pytest.raises(UsageError, match=f"^{name} .* is outside"):
            GenerationOptions(**{name: value})


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
