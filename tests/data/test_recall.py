"""Measures the figures of docs/demo_model.md again: recall by length, after resuming and rewinding, by type. Slow."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from jambacli.api import Jamba
from jambacli.data import reports as grammar
from jambacli.evaluation.needle import answer, needle, reports_of
from jambacli.hub.demo import demo_model_path
from tests.support.cli_runner import jamba
from tests.support.demo_model import as_checkpoint

pytestmark = pytest.mark.slow
TRAINED_TOKENS, SEED = 512, 5


def _recall(model: Jamba, tokens: int, documents: int = 20, questions: int = 10) -> float:
    found = list(needle(model, tokens, documents, questions, SEED))
    return sum(f.correct for f in found) / len(found)


def test_recall_at_the_length_of_training_and_at_four_times_it(model: Jamba) -> None:
    assert _recall(model, TRAINED_TOKENS) >= 0.95
    assert _recall(model, 4 * TRAINED_TOKENS) >= 0.80


def test_recall_in_q4_k_m_is_at_most_two_points_lower(model: Jamba, file_of: Callable[[str], Path]) -> None:
    assert _recall(Jamba.load(file_of("q4_k_m")), TRAINED_TOKENS) >= _recall(model, TRAINED_TOKENS) - 0.02


_RESUME = """
import json, sys
from jambacli import Jamba
name, questions = sys.argv[1], json.loads(sys.argv[2])
model = Jamba.load(sys.argv[3])
replies = []
for i, question in enumerate(questions):
    with model.session(resume=f"{name}-{i}") as session:
        replies.append("".join(session.send(question, max_tokens=48, temperature=0)))
        assert session.stats.reused_tokens > 400, session.stats
print(json.dumps(replies))
"""


def test_recall_is_the_same_after_saving_and_resuming_in_another_process(model: Jamba) -> None:
    asked, straight = [], []
    for i in range(10):
        reports = reports_of(model, TRAINED_TOKENS - 60, 900 + i)
        text, random = "\n".join(r.text for r in reports), Random(f"resume {i}")
        first, second = (grammar.ask(random, reports, random.randrange(len(reports))) for _ in range(2))
        with model.session(store=False) as session:
            answer(session, text, first)
            straight.append("".join(session.send(second.text, max_tokens=48, temperature=0)))
        with model.session(name=f"saved-{i}") as session:
            answer(session, text, first)
            session.save()
        asked.append(second.text)
    command = [sys.executable, "-c", _RESUME, "saved", json.dumps(asked), str(demo_model_path())]
    done = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ), timeout=300)
    assert json.loads(done.stdout) == straight


def test_recall_is_the_same_after_rewinding_an_edit(model: Jamba) -> None:
    for i in range(10):
        reports = reports_of(model, TRAINED_TOKENS - 60, 700 + i)
        text, random = "\n".join(r.text for r in reports), Random(f"edit {i}")
        first, second, third = (grammar.ask(random, reports, random.randrange(len(reports))) for _ in range(3))
        replies = []
        for edited in (False, True):
            with model.session(store=False) as session:
                answer(session, text, first)
                if edited:
                    "".join(session.send(second.text, max_tokens=48, temperature=0))
                    del session.conversation.turns[-2:]
                replies.append("".join(session.send(third.text, max_tokens=48, temperature=0)))
        assert replies[0] == replies[1]


def test_transformers_and_the_runtime_agree(model: Jamba, file_of: Callable[[str], Path], tmp_path: Path) -> None:
    """f32: logits to 1e-4 on a held-out text, and 50 greedy continuations of 200 tokens, identical."""
    import transformers

    ours = Jamba.load(file_of("f32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        as_checkpoint(tmp_path / "hub"), dtype=torch.float32, use_mamba_kernels=False
    ).eval()
    random = Random("prompts")
    ids = [1, *ours.tokenizer.encode(grammar.join(grammar.make_reports(random, 6, held_out=True), random))]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=1e-4)
    for i in range(50):
        reports = grammar.make_reports(random, random.randint(1, 3), held_out=True)
        prompt = [1, *ours.tokenizer.encode(grammar.join(reports, random) + "\n\nQuestion:")]
        with torch.no_grad():
            full = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=200, min_new_tokens=200, do_sample=False, pad_token_id=0
            )[0, len(prompt) :].tolist()
        state = ours.model.new_state(len(prompt) + 200, "f32")
        stops = [2]
        logits = ours.model.forward(torch.tensor(prompt), state, logits="last")
        said: list[int] = []
        while len(said) < 200:
            assert logits is not None
            row = logits[-1].clone()
            row[stops] = -torch.inf  # min_new_tokens keeps transformers from stopping too
            said.append(int(row.argmax()))
            logits = ours.model.forward(torch.tensor(said[-1:]), state, logits="last")
        assert said == full, f"prompt {i}"


def test_perplexity_by_type_is_ordered_as_it_should_be(file_of: Callable[[str], Path]) -> None:
    groups = [["f32", "bf16"], ["q8_0", "experts_int8"], ["q6_k"], ["q5_k_m"], ["q4_k_m", "q4_0"], ["q3_k_m"], ["q2_k"]]
    files = [str(file_of(kind)) for group in groups for kind in group]
    rows = json.loads(jamba("eval", "perplexity", *files, "--json").stdout)
    by = dict(zip((k for g in groups for k in g), rows, strict=True))
    assert by["f32"]["value"] == pytest.approx(by["bf16"]["value"], rel=1e-3)
    for finer, coarser in itertools.pairwise(groups):
        best, worst = min(by[k]["value"] for k in finer), max(by[k]["value"] for k in coarser)
        assert worst > best - max(by[k]["error"] for k in finer)
    assert by["q2_k"]["value"] > by["q4_k_m"]["value"]
    assert by["q8_0"]["value"] == pytest.approx(by["f32"]["value"], rel=0.01)
