"""Chats that never start over: exact resumption in new processes, tokens computed again, edits, kills, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jambacli.api import Jamba
from jambacli.cache.prefix_store import PrefixStore, blob_name
from jambacli.engine.generate import Thought
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError, UsageError
from jambacli.session import session_file
from jambacli.session.options import SessionOptions
from jambacli.session.session import Session
from tests.support.repository import REPO
from tests.support.small_models import small_file

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("models"), "f32")


@pytest.fixture
def model(model_file: Path) -> Jamba:
    return Jamba.load(model_file)


def say(session: Session, text: str, n: int = 12, **options: object) -> str:
    return "".join(session.send(text, max_tokens=n, **{**GREEDY, **options}))


_WORKER = """
import sys, json, hashlib
from jambacli import Jamba
path, name, n, resume, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", int(sys.argv[5])
model = Jamba.load(path, threads=2)
hashes = []
from jambacli.engine.sampling import Sampler
sample = Sampler.sample
def spy(self, logits):
    hashes.append(hashlib.sha256(logits.tobytes()).hexdigest())
    return sample(self, logits)
Sampler.sample = spy
with model.session(resume=name) if resume else model.session(name=name) as session:
    never = {t: float("-inf") for t in model.tokenizer.stop_ids}
    options = dict(max_tokens=n, temperature=1.0, top_p=1.0, seed=seed, logit_bias=never)
    pieces = session.extend(**options) if resume else session.complete("the quick brown fox", **options)
    for _ in pieces: pass
    print(json.dumps({"ids": session._reply_ids, "hashes": hashes, "prefilled": session.stats.prefilled_tokens}))
"""


def generate_in_new_process(path: Path, name: str, n: int, resume: bool, home: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(path), name, str(n), "1" if resume else "0", "7"],
        env={**os.environ, "JAMBA_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("quant", ["f32", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("experts", [16, 1])
def test_stopping_and_resuming_in_new_processes_is_exact_to_the_bit(quant: str, experts: int, tmp_path: Path) -> None:
    path = small_file(tmp_path, quant, experts)
    straight = generate_in_new_process(path, "straight", 200, False, tmp_path / "a")
    parts = [generate_in_new_process(path, "parts", 20, i > 0, tmp_path / "b") for i in range(10)]
    assert parts[-1]["ids"] == straight["ids"] and len(straight["ids"]) == 200
    # Every token was drawn from the same logits.
    assert [h for part in parts for h in part["hashes"]] == straight["hashes"]
    assert len(straight["hashes"]) == 200
    # The token drawn last in one process is fed in the next; nothing else is read again.
    assert [part["prefilled"] for part in parts[1:]] == [1] * 9


@pytest.mark.parametrize("quant", ["f32", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("experts", [16, 1])
def test_rewinding_and_replaying_is_exact_to_the_bit(quant: str, experts: int, tmp_path: Path) -> None:
    model = Jamba.load(small_file(tmp_path, quant, experts))
    head, a, b = [list(range(20 + i, 20 + i + n)) for i, n in ((0, 150), (7, 40), (3, 45))]

    def sequence() -> TokenSequence:
        made = TokenSequence(model.model, 1024, "f32", chunk=64)
        made.advance(head, boundaries=[150])
        return made

    once, back = sequence(), sequence()
    expected = once.advance(head + b).copy()
    back.advance(head + a)
    for token in (40, 41, 42):
        back.step(token)
    found = back.advance(head + b)
    assert back.counters.prefilled == len(head) + len(a) + len(b)
    assert np.array_equal(found, expected)
    for token in (50, 51, 52):
        assert np.array_equal(back.step(token), once.step(token))
    # In one go, other pieces meet other roundings: the tolerance of the runtime, float32 only.
    if quant == "f32":
        straight = model.logits(head + b)[-1].numpy()
        assert np.abs(found - straight).max() <= 1e-4 * np.abs(straight).max()


def test_resuming_in_one_process_is_exact(model: Jamba, model_file: Path) -> None:
    options = {
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 3,
        "logit_bias": {t: float("-inf") for t in model.tokenizer.stop_ids},
    }
    with model.session(name="straight") as session:
        list(session.complete("the lazy dog", max_tokens=40, **options))
        expected = list(session._reply_ids)
    with model.session(name="parts") as session:
        list(session.complete("the lazy dog", max_tokens=10, **options))
    for _ in range(3):
        with Jamba.load(model_file).session(resume="parts") as session:
            list(session.extend(max_tokens=10, **options))
            found = list(session._reply_ids)
            assert session.stats.prefilled_tokens <= 1  # the last token drawn had not been fed
    assert found == expected


def test_an_appended_turn_reads_only_what_is_new(model: Jamba) -> None:
    with model.session(store=False) as session:
        say(session, "How many herons were counted at the lake?")
        before = len(session.sequence.tokens)
        say(session, "And who counted them?")
        s = session.stats
        assert s.reused_tokens == before
        assert s.reused_tokens + s.prefilled_tokens == s.prompt_tokens


def test_regenerating_replays_at_most_eight_tokens(model: Jamba) -> None:
    with model.session(store=False) as session:
        say(session, "How many herons were counted at the lake? " * 5)
        first = session.conversation.turns[-1].ids
        list(session.answer(max_tokens=12, **GREEDY))
        assert session.stats.prefilled_tokens <= 8
        assert session.conversation.turns[-1].ids == first


@pytest.mark.parametrize("fresh", [False, True])
def test_edits_replay_from_the_edit_on(model: Jamba, model_file: Path, fresh: bool) -> None:
    session = model.session(name=f"edits-{fresh}")
    for i in range(8):
        say(session, f"Question {i}: how many herons were counted at the lake on day {i}?", 6)
    turns = session.conversation.turns
    if fresh:
        session.close()
        session = Jamba.load(model_file).session(resume=f"edits-{fresh}")
        turns = session.conversation.turns
    turns[-2].content = "Quite another last question?"
    list(session.answer(max_tokens=4, **GREEDY))
    new = len(model.tokenizer.encode("Quite another last question?"))
    header = len(model.tokenizer.encode("user\n")) + len(model.tokenizer.encode("assistant\n")) + 4
    assert session.stats.prefilled_tokens <= new + 8 + header
    at = 4  # the third question
    turns[at].content = "What was the third question?"
    del turns[at + 1 :]
    list(session.answer(max_tokens=4, **GREEDY))
    new = len(model.tokenizer.encode("What was the third question?"))
    assert session.stats.prefilled_tokens <= new + 8 + header
    session.close()


def test_a_new_process_gives_the_same_figures_and_text(model: Jamba, model_file: Path) -> None:
    with model.session(store=False) as one:
        say(one, "First the herons.")
        expected = say(one, "Then the lake.")
        figures = one.stats
    with model.session(name="two") as two:
        say(two, "First the herons.")
    with Jamba.load(model_file).session(resume="two") as again:
        assert say(again, "Then the lake.") == expected
        assert (again.stats.reused_tokens, again.stats.prefilled_tokens) == (
            figures.reused_tokens,
            figures.prefilled_tokens,
        )
        assert [t.content for t in again.conversation.turns if t.role == "user"] == [
            "First the herons.",
            "Then the lake.",
        ]


def test_documents_are_read_once(model: Jamba, model_file: Path) -> None:
    documents = [{"text": "Mira counted 42 herons at the lake. " * 30}]
    with model.session() as first:
        list(first.send("Who?", documents=documents, max_tokens=4, **GREEDY))
    with Jamba.load(model_file).session() as second:
        list(second.send("How many were there then?", documents=documents, max_tokens=4, **GREEDY))
        question = len(model.tokenizer.encode("How many were there then?"))
        assert second.stats.prefilled_tokens <= question + 64
        # A mode stands after the documents: they are not read again for it.
    with Jamba.load(model_file).session() as third:
        list(third.send("Who?", documents=documents, knobs={"mode": "cite", "is_set": True}, max_tokens=4, **GREEDY))
        assert third.stats.prefilled_tokens <= 64


def test_documents_that_the_template_has_no_place_for_are_taken_up_with_the_session(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    path = small_file(tmp_path, "f32", template=template)
    with Jamba.load(path).session(name="plain") as session:
        list(session.send("Who?", documents=[{"text": "Mira counted 42 herons."}], max_tokens=4, **GREEDY))
        turns = session.conversation.turns
        assert "42 herons" in (turns[0].plain or "")
    with Jamba.load(path).session(resume="plain") as again:
        assert again.conversation.turns == turns
        say(again, "And how many?")
        assert again.stats.replayed_document_tokens == 0


def test_an_interrupted_reply_is_kept(model: Jamba) -> None:
    with model.session(name="cut") as session:
        pieces = session.send("Tell me of herons.", max_tokens=50, temperature=0, stop=[])
        for i, _ in enumerate(pieces):
            if i == 5:
                pieces.close()
                break
        turn = session.conversation.turns[-1]
        assert turn.role == "assistant" and turn.ids
        say(session, "Go on.")
        assert session.stats.reused_tokens >= len(session._prompt) - 40
    assert [t["role"] for t in session_file.read("cut").turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("half_way", [True, False])
def test_a_reply_interrupted_within_a_pass_is_kept_and_gone_on_from(
    model: Jamba, monkeypatch: pytest.MonkeyPatch, half_way: bool
) -> None:
    from jambacli.model.state import SequenceState

    commit, passes = SequenceState.commit, 0

    def interrupted(state: SequenceState, tokens: int, **how: bool) -> None:
        nonlocal passes
        passes += 1
        if not half_way or passes != 5:
            commit(state, tokens, **how)
        if passes == 5:
            raise KeyboardInterrupt

    session, said = Session(model, SessionOptions(name="t")), []
    with session, monkeypatch.context() as patch:
        patch.setattr(SequenceState, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for piece in session.send("Who counted the herons?", temperature=0):
                said.append(piece)
        kept = session.conversation.turns[-1].content
        assert said and session.sequence.consistent
    with Session(model, SessionOptions(resume="t")) as again:
        assert again.conversation.turns[-1].content == kept
        list(again.send("And now?", max_tokens=3, temperature=0))
        tokens = list(again.sequence.tokens)
        logits = again.sequence.advance(tokens)
        assert np.abs(logits - model.logits(tokens)[-1].numpy()).max() < 1e-3 * np.abs(logits).max()


def test_states_of_others_are_refused_by_name(model: Jamba, tmp_path: Path) -> None:
    with model.session(name="mine") as session:
        say(session, "Hello.")
    other = Jamba.load(small_file(tmp_path, "q8_0"))
    with pytest.raises(JambaError, match=r"'mine' was made with small.*not with"):
        other.session(resume="mine")
    with pytest.raises(JambaError, match="keys and values as f16, not q8_0"):
        model.session(resume="mine", kv_type="q8_0")
    with pytest.raises(JambaError, match="no session 'nobody'"):
        model.session(resume="nobody")
    with pytest.raises(UsageError, match="already"):
        model.session(name="mine")
    with pytest.raises(UsageError, match="not valid"):
        model.session(name="../mine")


def test_a_session_goes_on_in_the_mode_it_was_made_in(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k_m")
    fast, precise = Jamba.load(path), Jamba.load(path, precise=True)
    for name, model in (("fast", fast), ("precise", precise)):
        with model.session(store=False) as session:
            say(session, "Tell me a story.", 12)
            tokens, logits = session.sequence.tokens, session.sequence.logits
        with model.session(name=name) as session:
            say(session, "Tell me a story.", 6)
        assert session_file.read(name).precise == model.model.precise
        with fast.session(resume=name) as session:
            assert session.state.precise == (name == "precise")
            list(session.extend(max_tokens=6, **GREEDY))
            assert session.stats.prefilled_tokens <= 1  # the token drawn last
            assert session.sequence.tokens == tokens and np.array_equal(session.sequence.logits, logits)
    with pytest.raises(JambaError, match="int8 activations"):
        precise.session(resume="fast")


def test_a_prefix_is_used_in_its_own_mode_only(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k_m")
    text = "the quick brown fox jumps over the lazy dog. " * 20
    reused = []
    for precise in (False, False, True, True):
        with Jamba.load(path, precise=precise).session() as session:
            list(session.complete(text, max_tokens=2, **GREEDY))
            reused.append(session.stats.reused_tokens > 0)
    assert reused == [False, True, False, True]


def test_a_model_file_that_was_replaced_is_said_to_have_changed(model: Jamba, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model_file.read_bytes())
    with Jamba.load(path).session(name="mine") as session:
        say(session, "Hello.")
    small_file(tmp_path, "q4_k").replace(path)
    with pytest.raises(JambaError, match=r"m\.gguf has changed since session 'mine' was saved"):
        Jamba.load(path).session(resume="mine")


def test_a_bias_on_no_token_of_the_model_is_refused_and_nothing_is_said(model: Jamba) -> None:
    session = model.session(store=False)
    for token in (model.config.vocab_size, -1):
        with pytest.raises(UsageError, match=f"logit_bias {token} is not a token of the model, whose tokens are 0 to"):
            session.send("Hello.", logit_bias={token: 1.0})
    assert not session.conversation.turns


def test_a_session_in_use_is_refused_but_can_be_read(model: Jamba, model_file: Path) -> None:
    with model.session(name="busy") as session:
        say(session, "Hello.")
        session.prefix_cache.flush()
        with pytest.raises(JambaError, match="open in another process"):
            Jamba.load(model_file).session(resume="busy")
        with Jamba.load(model_file).session(resume="busy", read_only=True) as reader:
            assert len(reader.conversation.turns) == 2
            with pytest.raises(UsageError, match="read-only"):
                say(reader, "More.")


def test_no_store_leaves_nothing_on_disk(model: Jamba, own_home: Path) -> None:
    with model.session(store=False) as session:
        say(session, "A secret.")
    assert not (own_home / "prefixes").exists() and not (own_home / "sessions").exists()
    for path in own_home.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_snapshots_go_back_and_forth(model: Jamba) -> None:
    with model.session(store=False) as session:
        list(session.complete("the quick brown", max_tokens=5, **GREEDY))
        state = session.state.snapshot()
        position = session.state.position
        before = session.sequence.step(30).copy()
        session.state.restore(state)
        del session.sequence.tokens[position:]
        assert np.array_equal(session.sequence.step(30), before)


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(590)])])
def test_killed_at_any_moment_a_session_opens_at_a_committed_turn(model_file: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killing", str(model_file), str(kills), str(kills)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["kills"] == kills and report["openings"] > kills // 2
    assert (report["failed"], report["lost"], report["inconsistent"], report["recomputed"]) == ([], [], 0, 0), report
    assert report["turns compared"] > 0 and report["same"], report
    assert "warning" not in done.stderr


_HAMMER = """
import random, sys, time
from jambacli import Jamba
from jambacli.session import session_file
model, seed = Jamba.load(sys.argv[1], threads=1), int(sys.argv[2])
rng, end, turns = random.Random(seed), time.monotonic() + float(sys.argv[3]), 0
documents = [{"text": f"Mira counted {n} herons at the lake. " * 20} for n in range(6)]
while time.monotonic() < end:
    mine = [n for n in session_file.names() if n.startswith(f"s{seed}-")]
    name = rng.choice(mine) if mine and rng.random() < 0.5 else f"s{seed}-{turns}"
    with model.session(resume=name) if name in mine else model.session(name=name) as session:
        for _ in range(rng.randrange(1, 4)):
            attached = [rng.choice(documents)] if rng.random() < 0.5 else None
            for _ in session.send(f"message {rng.randrange(9)}", documents=attached, max_tokens=3, temperature=0): pass
            turns += 1
    if len(mine) > 5:
        session_file.remove(mine[0])
print(turns)
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_hammer_one_store_for_a_minute(model_file: Path, own_home: Path) -> None:
    budget, seconds = 4_000_000, 60
    environment = {**os.environ, "JAMBA_HOME": str(own_home), "JAMBA_CACHE_BUDGET": str(budget)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, str(model_file), str(seed), str(seconds)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    results = [worker.communicate() for worker in workers]
    assert [(worker.returncode, err) for worker, (_, err) in zip(workers, results, strict=True)] == [(0, "")] * 2
    print("turns", [out.strip() for out, _ in results])
    store = PrefixStore(own_home / "prefixes", budget)
    # What is over the budget is at most what each had written since it last counted.
    assert 0 < store.stats()["bytes"] <= budget
    for path in (own_home / "prefixes" / "blobs").rglob("*"):
        assert not path.is_file() or blob_name(path.read_bytes()) == path.name
    model = Jamba.load(model_file)
    for name in session_file.names():
        with model.session(resume=name) as session:
            say(session, "And now?", 3)


def test_thoughts_come_apart_from_the_answer(model_file: Path) -> None:
    model = Jamba.load(model_file)
    think, end = model.tokenizer.marker_id("<think>"), model.tokenizer.marker_id("</think>")
    script = iter([think, *model.tokenizer.encode("hm the fox"), end, *model.tokenizer.encode("\n\nthe dog")])
    with model.session(store=False) as session:
        pieces = session.send("Who?", max_tokens=100, temperature=0)
        from jambacli.engine import generate as module

        class Scripted:
            def __init__(self, *_: object) -> None:
                self.random_state: dict = {}

            def sample(self, logits: object) -> int:
                return next(script, next(iter(model.tokenizer.stop_ids)))

            def forced(self) -> tuple[int, ...]:
                return ()

        import jambacli.session.session as session_module

        original, session_module.Sampler = session_module.Sampler, Scripted  # type: ignore[misc]
        try:
            said = list(pieces)
        finally:
            session_module.Sampler = original  # type: ignore[misc]
    assert module.Thought is Thought
    assert "".join(p for p in said if isinstance(p, Thought)) == "hm the fox"
    assert "".join(p for p in said if not isinstance(p, Thought)) == "the dog"
    turn = session.conversation.turns[-1]
    assert (turn.thoughts, turn.content) == ("hm the fox", "the dog")
