"""Replies that are stopped: by ``session.stop()``, by Ctrl-C in Python, by a front end's Ctrl-C. Nothing is read twice."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli.api import Jamba
from jambacli.engine.generate import Reply
from jambacli.engine.sequence import TokenSequence
from jambacli.interrupts import interrupts_held, interrupts_stop
from jambacli.model.jamba import Layer
from jambacli.model.state import ContextFullError, SequenceState
from jambacli.session.conversation import thought_marks
from jambacli.session.session import Session
from jambacli.text.template import TemplateError
from tests.support.small_models import small_file

LONG = "How many herons were counted at the lake on that day? " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    return Jamba.load(small_file(tmp_path_factory.mktemp("models"), "q8_0"))


def endless(model: Jamba, n: int) -> dict[str, Any]:
    """Options of a reply of n tokens, which the model does not end; without thoughts, which history leaves out."""
    never = {*model.tokenizer.stop_ids, *thought_marks(model.tokenizer)} - {None}
    return {
        "max_tokens": n,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 5,
        "logit_bias": dict.fromkeys(never, float("-inf")),
    }


class Moment:
    """Calls ``act`` within the n-th of the steps that a reply is made of: layers, decoded tokens, drawn tokens, copies."""

    PLACES = ((Layer, "forward"), (TokenSequence, "stepped"), (Reply, "push"), (SequenceState, "snapshot"))

    def __init__(self, act: Callable[[], None], at: int) -> None:
        self.act, self.at, self.count = act, at, 0

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.act()
            return original(*arguments, **named)

        return call

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in self.PLACES:
                patch.setattr(owner, name, self._counted(getattr(owner, name)))
            yield


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def said(pieces: Iterator[str]) -> str:
    """The text of a reply up to a Ctrl-C."""
    text = ""
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            text += piece
    return text


def stopped(session: Session, pieces: Iterator[str], way: str, at: int) -> int:
    """Stop the reply in its ``at``-th step; returns how many steps there were."""
    moment = Moment(session.stop if way == "stop" else interrupt, at)
    with moment.hooked():
        if way == "front end":
            with interrupts_stop(session.stop):
                list(pieces)
        else:
            said(pieces)
    return moment.count


def check_next_turn(session: Session) -> None:
    """The next turn reads only its own message: every token of the turns before it is reused but the one drawn last."""
    turns = session.conversation.turns
    assert [t.role for t in turns] == ["user", "assistant"] * (len(turns) // 2)
    kept = len(session.conversation.render(add_generation_prompt=False).ids)
    list(session.send("Go on.", **endless(session.model, 2)))
    own = session.stats.prompt_tokens - kept
    assert own < 30
    assert session.stats.prefilled_tokens <= own + 1 + 4  # the mark at the end of a reply and the line break after it


@pytest.mark.parametrize("stops", [6, pytest.param(34, marks=[pytest.mark.slow, pytest.mark.timeout(590)])])
@pytest.mark.parametrize("way", ["stop", "Ctrl-C", "front end"])
def test_stopped_at_any_moment_nothing_is_read_twice(model: Jamba, way: str, stops: int) -> None:
    rng = random.Random(stops)
    length = 200 if stops > 10 else 40
    options = endless(model, length)
    with model.session(store=False) as session:
        list(session.send("First.", **options))
        steps = stopped(session, session.send(LONG, **options), way, 10**9)
        reading = 4 * 3 + 3  # a few layers and copies of the prompt's passes
    before = during = 0
    for i in range(stops):
        at = rng.randrange(1, reading) if i % 2 else rng.randrange(reading, steps + 1)
        with model.session(store=False) as session:
            list(session.send("First.", **options))
            stopped(session, session.send(LONG, **options), way, at)
            ended_early = session.stats.finish == "interrupted"
            turns = len(session.conversation.turns)
            assert turns in (2, 4) and (turns == 4 or ended_early)
            before, during = before + (turns == 2), during + (turns == 4)
            assert session.sequence.consistent and not session.replying
            if turns == 4 and i % 3 == 0:
                stopped(session, session.extend(**options), way, rng.randrange(1, 40))
            check_next_turn(session)
    assert before >= stops // 4 and during >= stops // 4


@pytest.mark.parametrize("way", ["stop", "Ctrl-C", "front end"])
def test_a_stopped_reply_goes_on_bit_for_bit(model: Jamba, way: str) -> None:
    options, text = endless(model, 60), "How many herons?"
    with model.session(store=False) as session:
        list(session.send(text, **options))
        straight, logits = session._reply_ids, session.sequence.logits
    assert len(straight) == 60
    with model.session(store=False) as session:
        pieces = session.send(text, **options)
        next(pieces)
        stopped(session, pieces, way, 9)
        for _ in range(4):
            stopped(session, session.extend(**endless(model, 60 - len(session._reply_ids))), way, 9)
        left = 60 - len(session._reply_ids)
        assert 0 < left < 60
        list(session.extend(**endless(model, left)))
        assert session.stats.prefilled_tokens <= 1 and session._reply_ids == straight
        assert session.sequence.logits is not None and np.array_equal(session.sequence.logits, logits)


def test_a_reply_is_stopped_from_another_thread(model: Jamba) -> None:
    with model.session(store=False) as session:
        pieces = session.send("Tell me all of it.", **endless(model, 5000))
        thread, count = threading.Thread(target=session.stop), 0
        for _ in pieces:
            count += 1
            if count == 5:
                thread.start()
                thread.join()
        assert count < 50 and session.stats.finish == "interrupted"
        assert session.conversation.turns[-1].role == "assistant"
        session.stop()  # nothing is in progress
        assert list(session.send("Go on.", **endless(model, 4))) and session.stats.finish == "length"


def test_a_message_that_is_stopped_while_it_is_read_is_taken_back(model: Jamba) -> None:
    with model.session(store=False) as session:
        list(session.send("First.", **endless(model, 30)))
        turns, reply = list(session.conversation.turns), list(session._reply_ids)
        with Moment(session.stop, 3).hooked():
            assert list(session.send(LONG, **endless(model, 5))) == []
        assert session.conversation.turns == turns and session.stats.finish == "interrupted"
        list(session.extend(**endless(model, 3)))  # the last reply is still the last one
        assert session._reply_ids[:30] == reply and len(session._reply_ids) == 33


def test_a_stop_ends_the_rendering_of_the_prompt(model: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.session(store=False) as session:
        list(session.send("First.", **endless(model, 30)))
        turns, reply = list(session.conversation.turns), list(session._reply_ids)

        def hostile(*_: object, **__: object) -> None:
            session.stop()
            raise TemplateError("model", "the process that renders it ended")

        cancelled: list[bool] = []
        monkeypatch.setattr(model, "cancel_rendering", lambda: cancelled.append(True))
        with monkeypatch.context() as patched:
            patched.setattr("jambacli.session.session.render_reply", hostile)
            assert list(session.send("Second.", **endless(model, 5))) == []
        assert cancelled and session.conversation.turns == turns and session.stats.finish == "interrupted"
        list(session.extend(**endless(model, 3)))  # the last reply is still the last one
        assert session._reply_ids[:30] == reply and len(session._reply_ids) == 33


def test_a_message_that_is_sent_again_goes_on_where_its_reading_was_stopped(model: Jamba) -> None:
    with model.session(store=False) as session:
        with Moment(session.stop, 7).hooked():  # in the second pass
            assert list(session.send(LONG, **endless(model, 5))) == []
        read = session.stats.prefilled_tokens
        assert 0 < read < session.stats.prompt_tokens
        list(session.send(LONG, **endless(model, 5)))
        assert session.stats.reused_tokens == read


def test_a_message_that_does_not_fit_is_taken_back(model: Jamba) -> None:
    with model.session(store=False, ctx=200) as session:
        list(session.send("First.", **endless(model, 5)))
        turns = list(session.conversation.turns)
        with pytest.raises(ContextFullError):
            list(session.send(LONG, **endless(model, 5)))
        assert session.conversation.turns == turns
        list(session.send("Second.", **endless(model, 5)))
        assert [t.content for t in session.conversation.turns if t.role == "user"] == ["First.", "Second."]


def test_a_regeneration_that_is_stopped_before_a_token_leaves_the_old_reply(model: Jamba) -> None:
    with model.session(store=False) as session:
        list(session.send("First.", **endless(model, 5)))
        turns = list(session.conversation.turns)
        pieces = session.answer(**endless(model, 5))
        session.stop()
        assert list(pieces) == [] and session.conversation.turns == turns


def test_a_reply_that_was_left_open_ends_when_another_one_begins(model: Jamba) -> None:
    with model.session(store=False) as session:
        open_one = session.send("First.", **endless(model, 50))
        next(open_one)
        assert session.replying
        list(session.send("Second.", **endless(model, 5)))
        assert [t.role for t in session.conversation.turns] == ["user", "assistant"] * 2
        assert list(open_one) == [] and not session.replying


def test_ctrl_c_is_held_back_until_the_end_of_a_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held() as came:
        interrupt()
        assert came.asked
        done.append("block")
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), interrupts_held():  # out of a block that never ends
        for _ in range(3):
            interrupt()
            done.append("press")
    assert done == ["block", "press", "press"]


def test_a_front_ends_second_ctrl_c_leaves() -> None:
    stops = []
    with interrupts_stop(lambda: stops.append(1)) as came:
        interrupt()
        assert came.asked and stops == [1]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_stop(lambda: stops.append(2)), interrupts_held():
        interrupt()
        assert stops == [1]  # held back
    assert stops == [1, 2]


def test_other_threads_hold_nothing_back() -> None:
    seen = []

    def work() -> None:
        with interrupts_held() as held, interrupts_stop(lambda: None) as came:
            seen.append((held.asked, came.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, False)]


def test_a_stopped_session_is_saved(model: Jamba, own_home: Path) -> None:
    options = endless(model, 60)
    with model.session(name="s") as session:
        with interrupts_stop(session.stop):
            for i, _ in enumerate(session.send(LONG, **options)):
                if i == 9:
                    interrupt()
        content, held = session.conversation.turns[-1].content, len(session.sequence.tokens)
    assert session.stats.finish == "interrupted"
    with model.session(resume="s") as again:
        assert again.conversation.turns[-1].content == content
        assert len(again.sequence.tokens) == held
        check_next_turn(again)
