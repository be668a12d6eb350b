"""What each kind of turn reads again, in tokens, through the command and the API; the figures `--stats` prints.

A ChatML model with a made-up vocabulary, in which a header costs what it costs with a real one; Reasoning-3B's own
template where it is beside the checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jambacli.session.session as session_module
from benchmarks.made_up_vocabulary import chat_vocabulary
from jambacli.api import Jamba
from jambacli.session.session import Session
from tests.support.cli_runner import jamba
from tests.support.small_models import small_file

Figures = dict[str, int]
_KEYS = ("prompt", "reused", "prefilled", "generated")
_STATS = re.compile(r"stats: prompt (\d+) reused (\d+) prefilled (\d+) generated (\d+)")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = {key: value for key, value, _ in chat_vocabulary(2000)}
    template = str(vocabulary.pop("tokenizer.chat_template"))
    return small_file(tmp_path_factory.mktemp("models"), "f32", vocabulary=vocabulary, template=template)


@pytest.fixture(scope="module")
def model(path: Path) -> Jamba:
    return Jamba.load(path)


def figures(text: str) -> list[Figures]:
    return [dict(zip(_KEYS, map(int, found), strict=True)) for found in _STATS.findall(text)]


def arguments(path: Path, session: str) -> list[str]:
    return ["chat", str(path), "--stats", "--temp", "0", "-n", "5", "--session", session]


def chat(path: Path, session: str, *lines: str) -> list[Figures]:
    done = jamba(*arguments(path, session), stdin="".join(f"{line}\n" for line in lines).encode())
    assert done.returncode == 0, done.stderr
    return figures(done.stderr.decode())


def length(model: Jamba, text: str) -> int:
    return len(model.tokenizer.encode(text))


EARLY = [f"question {i} of the herons and the lake, please" for i in range(24)]
LATE = ["a rather long last message about many herons " * 6, "/regenerate", "/edit another last message", "/edit 4 x y"]


def check(model: Jamba, found: list[Figures], before: Figures) -> None:
    """The bounds that every way of running EARLY + LATE keeps; ``before``: the turn before the long one."""
    appended, again, edited, far = found
    # Header and end of the new message are new too; the reply before is not read again, but for its last token.
    assert appended["prefilled"] <= length(model, LATE[0]) + 16
    assert appended["reused"] >= before["prompt"] + before["generated"] - 1
    assert again["prefilled"] <= 8
    assert edited["prefilled"] <= length(model, "another last message") + 8
    assert far["prefilled"] <= length(model, "x y") + 8
    for each in found:
        assert each["reused"] + each["prefilled"] == each["prompt"]


def test_what_each_turn_reads_again(path: Path, model: Jamba) -> None:
    found = chat(path, "one", *EARLY, *LATE)
    check(model, found[24:], found[23])
    # Twenty turns back costs no more than the message: what stands before it is not read.
    assert found[27]["reused"] >= 3 * 15


def test_reopening_gives_the_same_figures(
    path: Path, model: Jamba, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = chat(path, "straight", *EARLY, *LATE)
    monkeypatch.setenv("JAMBA_HOME", str(own_home / "another"))  # where nothing is known of that chat
    chat(path, "parts", *EARLY)
    parts = [figure for line in LATE for figure in chat(path, "parts", line)]
    assert parts == straight[24:]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_new_processes_give_the_same_figures(path: Path, model: Jamba, own_home: Path) -> None:
    def process(home: str, *lines: str) -> list[Figures]:
        done = subprocess.run(
            [sys.executable, "-m", "jambacli", *arguments(path, "s")],
            input="".join(f"{line}\n" for line in lines),
            env={**os.environ, "JAMBA_HOME": str(own_home / home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return figures(done.stderr)

    straight = process("straight", *EARLY, *LATE)
    process("parts", *EARLY)
    parts = [figure for line in LATE for figure in process("parts", line)]
    print(straight[24:])
    assert parts == straight[24:]
    check(model, parts, straight[23])


class _Scripted:
    """Stands in for the sampler: says what it is told, since random weights never close a thought."""

    script: Iterator[int]
    random_state: dict[str, object]

    def __init__(self, *_: object) -> None:
        self.random_state = {}

    def sample(self, _: object) -> int:
        return next(_Scripted.script)

    def forced(self) -> tuple[int, ...]:
        return ()


@pytest.fixture(scope="module")
def reasoning(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with Reasoning-3B's own template and a real vocabulary, ChatML's markers in four unused places."""
    from tests.support.vocabularies import sentencepiece_metadata

    metadata = sentencepiece_metadata(shared_data / "jamba-1.5-tokenizer.model")
    for place, marker in enumerate(["<|im_start|>", "<|im_end|>", "<think>", "</think>"], 600):
        metadata["tokenizer.ggml.tokens"][place] = marker
        metadata["tokenizer.ggml.token_type"][place] = 3
    metadata["tokenizer.ggml.eot_token_id"] = 601
    template = (shared_data / "jamba-reasoning-3b-chat-template.jinja").read_text(encoding="utf-8")
    return small_file(tmp_path_factory.mktemp("models"), "q8_0", vocabulary=metadata, template=template)


@pytest.mark.parametrize("reopened", [False, True])
def test_stripped_thoughts_cost_only_the_last_reply(
    reasoning: Path, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    monkeypatch.setattr(session_module, "Sampler", _Scripted)
    model = Jamba.load(reasoning)
    session = model.session(name="think")
    tokenizer = model.tokenizer
    end, stop = tokenizer.marker_id("</think>"), tokenizer.marker_id("<|im_end|>")
    assert end is not None and stop is not None

    def say(session: Session, message: str, thought: str, answer: str) -> Figures:
        _Scripted.script = iter([*tokenizer.encode(thought), end, *tokenizer.encode("\n\n" + answer), stop])
        list(session.send(message))
        turn = session.conversation.turns[-1]
        assert (turn.thoughts, turn.content) == (thought, answer)
        s = session.stats
        return {"prefilled": s.prefilled_tokens, "reused": s.reused_tokens, "prompt": s.prompt_tokens}

    previous = ""
    for i in range(4):
        message = f"Tell me of the {400 * i} herons that Mira counted. " * (1 + 10 * i)
        answer = f"There were {i} of them, " + "and more, " * 10
        found = say(session, message, "Well, I should count them first. " * 30, answer)
        if i:
            # The message before, however long, and all before it stay; of the reply before only what history keeps.
            assert found["prefilled"] - length(model, message) <= length(model, previous) + 64
        previous = answer
        if reopened:
            session.close()
            session = model.session(resume="think")
    session.close()
    # Regenerating and editing keep their bounds under this template too.
    with model.session(resume="think") as session:
        _Scripted.script = iter([end, stop])
        list(session.answer())
        assert session.stats.prefilled_tokens <= 8
        session.conversation.turns[-2].content = "Quite another question?"
        _Scripted.script = iter([end, stop])
        list(session.answer())
        assert session.stats.prefilled_tokens <= length(model, "Quite another question?") + 8
