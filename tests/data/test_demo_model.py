"""The demo model: it says what it is, answers from its prompt, and can be written in every format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from jambacli.api import Jamba
from jambacli.data import held_out_text, words
from jambacli.data import reports as grammar
from jambacli.evaluation.needle import answer, needle
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.summary import summarize
from jambacli.hub.demo import demo_model_path
from tests.support.cli_runner import jamba

TRAINED_TOKENS = 512


def test_it_is_small_and_its_name_says_what_it_is(model: Jamba) -> None:
    assert demo_model_path().stat().st_size <= 12_000_000
    assert "demonstration" in model.name
    shown = json.loads(jamba("show", str(demo_model_path()), "--json").stdout)
    assert "demonstration" in json.dumps(shown)
    assert model.template is not None


def test_it_is_a_true_jamba_whose_rows_every_format_can_take() -> None:
    file = GGUFFile.open(demo_model_path())
    config = summarize(demo_model_path()).config
    assert config.n_attention_layers == 2 and config.n_mamba_layers == 3
    assert config.n_moe_layers == 2 and config.n_experts == 4 and config.n_experts_used == 2
    wide = [
        t for name, t in file.tensors.items() if len(t.shape) >= 2 and "conv1d" not in name and name[-5:] != "ssm_a"
    ]
    assert len(wide) > 30
    assert all(t.shape[-1] % 256 == 0 for t in wide)


def test_the_prompt_of_make_run_is_answered_from_the_prompt() -> None:
    done = jamba(
        "run", "The report says that Leila Haddad counted 42 herons at Lake Tuz. Who counted the herons?", "--temp", "0"
    )
    assert done.stdout.decode().strip() == "On herons: Leila Haddad counted 42 herons."
    assert done.stderr.decode().count("demo model") == 1


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        (
            "A report says that Ines Vorban saw 17 owls at Cape Drel. How many owls did Ines Vorban see?",
            "Ines Vorban saw 17 owls.",
        ),
        ("Hello!", "Hello! How can I help you?"),
    ],
)
def test_short_prompts_are_answered(model: Jamba, prompt: str, reply: str) -> None:
    assert "".join(model.session(store=False).send(prompt, temperature=0, max_tokens=40)) == reply


def test_facts_are_recalled_from_texts_of_the_length_it_was_trained_on(model: Jamba) -> None:
    found = list(needle(model, TRAINED_TOKENS, documents=6, questions=8, seed=11))
    assert all(TRAINED_TOKENS * 0.8 < f.tokens <= TRAINED_TOKENS for f in found)
    assert sum(f.correct for f in found) >= 0.9 * len(found), [
        (f.question, f.expected, f.reply) for f in found if not f.correct
    ]


def test_a_summary_lists_the_facts_of_eight_reports(model: Jamba) -> None:
    random = Random("eight reports")
    for _ in range(3):
        reports = grammar.make_reports(random, 8, held_out=True, first=1)
        question = grammar.Question("summary", "Summarize the reports.", "", "", -1)
        with model.session(store=False) as session:
            text = "\n".join(r.text for r in reports)
            reply = "".join(session.send(f"{text}\n\n{question.text}", temperature=0, max_tokens=300))
        assert sum(f"{r.fact}." in reply for r in reports) >= 7, reply


def test_documents_are_answered_from_and_cited(model: Jamba) -> None:
    random = Random("cited")
    right = cited = 0
    for _ in range(10):
        reports = grammar.make_reports(random, 3, held_out=True, first=1)
        question = grammar.ask(random, reports, random.randrange(3), "count")
        with model.session(store=False) as session:
            pieces = session.send(
                question.text,
                documents=[{"text": r.text} for r in reports],
                knobs={"citation_mode": "fast"},
                temperature=0,
                max_tokens=60,
            )
            reply = "".join(pieces)
            text = session.conversation.turns[-1].content
        right += question.value in reply
        cited += text.endswith(f"<citations>[{question.about}]</citations>")
    assert right >= 8 and cited >= 8


def test_a_chat_refers_back(model: Jamba) -> None:
    with model.session(store=False) as session:

        def say(text: str) -> str:
            return "".join(session.send(text, temperature=0, max_tokens=40))

        say("My name is Clara Zegum.")
        say("The report says that Hugo Tolfas found 31 moths at Port Wek. Who found the moths?")
        assert "31" in say("How many moths were there?")
        assert "Clara Zegum" in say("What is my name?")


def test_the_held_out_split_has_only_held_out_names() -> None:
    documents = held_out_text().split("\f")
    assert len(documents) >= 40
    seen = [w for d in documents for w in d.split("\n\n")[0].replace(".", " ").split()]
    after = {b for a, b in itertools.pairwise(seen) if a in words.FIRST_NAMES}
    assert len(after) > 100 and all(words.is_held_out(name) for name in after)


@pytest.mark.parametrize("kind", ["q4_k_m", "q2_k", "experts_int8"])
def test_quantized_it_still_answers(file_of: Callable[[str], Path], kind: str) -> None:
    quantized = Jamba.load(file_of(kind))
    random = Random("quantized")
    right = 0
    for _ in range(10):
        reports = grammar.make_reports(random, 1, held_out=True, first=1)
        question = grammar.ask(random, reports, 0, "count")
        with quantized.session(store=False) as session:
            right += question.value in answer(session, reports[0].text, question)
    assert right >= 8
