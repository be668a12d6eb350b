"""Several replies at once: the same tokens as alone, prefixes read once, no long waits, no error that spreads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jambacli import Jamba
from jambacli.engine import parallel as parallel_module
from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_job import Job, Request
from jambacli.engine.batch_steps import BatchSteps
from jambacli.engine.batch_worker import BatchWorker
from jambacli.engine.generate import Generated, generate
from jambacli.engine.lookup import Lookup, Prediction, StepCosts
from jambacli.engine.parallel import default_parallel, sequence_bytes
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError, UsageError
from jambacli.model.config import CHECKPOINT_BYTES, MAX_DRAFT
from jambacli.model.state import ContextFullError
from tests.support.drafts import certain, draft_all
from tests.support.sequences import ids
from tests.support.small_models import small_file, small_model

CHUNK = 64


@pytest.fixture(scope="module", params=["f32", "q4_k"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    """In plain torch, and quantized with the C++ step decoder where that is built; read in chunks of 64 tokens."""
    if request.param == "f32":
        loaded = small_model()
    else:
        loaded = Jamba.load(small_file(tmp_path_factory.mktemp("models"), request.param), device="cpu")
    return chunked(loaded)


def chunked(loaded: Jamba, chunk: int = CHUNK) -> Jamba:
    model = dataclasses.replace(loaded.model, prefill_chunk=chunk)
    return Jamba(model, loaded.metadata, loaded.name, loaded.path)


@pytest.fixture
def small() -> Jamba:
    return chunked(small_model())


def prompt(n: int, seed: int = 0, **more: Any) -> Request:
    """A request that never ends by a stop token, greedy unless it says otherwise."""
    return Request(
        **{"ids": ids(n, seed), "sampling": Sampling(temperature=0), "max_tokens": 12, "stop_ids": frozenset(), **more}
    )


def alone(model: Jamba, request: Request) -> list[int]:
    """The tokens of the reply by a sequence of its own and the plain loop."""
    sequence = TokenSequence(model.model, 4096)
    sequence.advance(list(request.ids), request.boundaries)
    result = Generated()
    sampler = Sampler(request.sampling, request.ids, request.constraint)
    stop_ids = model.tokenizer.stop_ids if request.stop_ids is None else request.stop_ids
    for _ in generate(
        sequence,
        sampler,
        model.tokenizer,
        max_tokens=request.max_tokens,
        stops=request.stops,
        stop_ids=stop_ids,
        result=result,
    ):
        pass
    return result.ids


def engine(model: Jamba, parallel: int = 8, **more: Any) -> BatchEngine:
    return BatchEngine(model, **{"parallel": parallel, "ctx": 4096, **more})


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prefill passes from here on."""
    found: list[int] = []
    prefilled = TokenSequence.prefilled

    def counted(sequence: TokenSequence, tokens: list[int], stop: int, *rest: Any) -> None:
        found.append(stop - len(sequence.tokens))
        prefilled(sequence, tokens, stop, *rest)

    monkeypatch.setattr(TokenSequence, "prefilled", counted)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_request_gives_the_same_tokens_alone_and_among_others(model: Jamba, seed: int) -> None:
    rng = random.Random(seed)
    samplings = [
        Sampling(temperature=0),
        Sampling(temperature=1, seed=7),
        Sampling(temperature=0.8, top_p=0.9, repeat_penalty=1.3, seed=8),
    ]
    head = ids(150, 99)
    requests = []
    for i in range(16):
        own = ids(rng.choice([1, 5, 40, 64, 100, 200]), 1000 * seed + i)
        # Half of them begin with the same tokens, and know at which.
        shared, boundaries = (head, [150]) if i % 2 else ([], [3, 20])
        requests.append(
            Request(
                ids=shared + own,
                boundaries=boundaries,
                sampling=rng.choice(samplings),
                max_tokens=rng.randrange(1, 30),
                stop_ids=frozenset(),
            )
        )
    expected = [alone(model, r) for r in requests]
    jobs: dict[int, Job] = {}
    leaving: dict[int, Job] = {}
    with engine(model, parallel=8) as several:
        order = rng.sample(range(16), 16)
        while order or not several.idle:
            while order and rng.random() < 0.4:
                i = order.pop()
                jobs[i] = several.submit(requests[i])
            # Others come, perhaps with the same prompt, and leave in the queue, while they are read or in the middle.
            if order and rng.random() < 0.5:
                i = rng.randrange(16)
                leaving[i] = several.submit(dataclasses.replace(requests[i], max_tokens=60))
            for job in leaving.values():
                if rng.random() < 0.2:
                    job.cancel()
            several.step()
    assert [jobs[i].result.ids for i in range(16)] == expected
    assert all(job.error is None and job.result.finish == "length" for job in jobs.values())
    assert all(job.phase == "done" and job.error is None for job in leaving.values())
    for i, job in leaving.items():
        assert job.result.ids[: len(expected[i])] == expected[i][: len(job.result.ids)]


@pytest.mark.parametrize("seed", range(4))
def test_drafts_change_nothing(model: Jamba, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    requests = [
        prompt(30 + 10 * i, i, max_tokens=60, sampling=Sampling(temperature=0.3 * i, seed=i), lookup=True)
        for i in range(4)
    ]
    expected = [alone(model, r) for r in requests]
    right = [reply[n:] for reply in expected for n in range(60)]

    def predict(lookup: Lookup, most: int, forced: object = ()) -> Prediction:
        """The tokens that follow in one of the replies, perhaps with a wrong one among them."""
        found = rng.choice(right)[: max(0, min(most, rng.randrange(6)))]
        return certain([rng.randrange(300) if rng.random() < 0.2 else token for token in found])

    draft_all(monkeypatch, predict)
    with engine(model, parallel=3) as several:
        waiting = list(requests)
        jobs: list[Job] = []
        extra: list[Job] = []
        while waiting or not several.idle:
            if waiting and rng.random() < 0.1:
                jobs.append(several.submit(waiting.pop(0)))
            if rng.random() < 0.05 and waiting:
                extra.append(several.submit(prompt(20, rng.randrange(9), max_tokens=rng.randrange(1, 9))))
            several.step()
        several.run()
    assert [job.result.ids for job in jobs] == expected
    assert sum(job.counters.drafted for job in jobs) > 0
    assert all(job.error is None for job in jobs + extra)


def test_right_drafts_take_fewer_steps_and_can_be_switched_off(model: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    request = prompt(40, 3, max_tokens=120, lookup=True)
    expected = alone(model, request)
    jobs: list[Job] = []
    draft_all(monkeypatch, lambda _, most, __=(): certain(expected[len(jobs[-1].result.ids) :][: min(most, 5)]))
    with engine(model, parallel=4) as several:
        for lookup in (True, False):
            jobs.append(several.submit(dataclasses.replace(request, lookup=lookup)))
            several.run()
    drafted, without = jobs
    assert drafted.result.ids == without.result.ids == expected
    assert drafted.counters.accepted > 90 and drafted.counters.steps < 30
    assert without.counters.drafted == 0


def test_several_replies_that_repeat_themselves_are_drafted_in_the_same_steps(
    model: Jamba, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self, tokens: 1 + 0.1 * (tokens - 1))  # not this machine's
    # A bias makes each reply one token, again and again.
    requests = [
        prompt(
            60,
            seed,
            max_tokens=80,
            lookup=seed < 3,
            sampling=Sampling(temperature=0, logit_bias={20 + seed: 1000.0}),
        )
        for seed in range(4)
    ]
    expected = [alone(model, r) for r in requests]
    passes: list[int] = []
    forward = BatchSteps._forward

    def counted(steps: BatchSteps, spans: Any) -> Any:
        passes.append(sum(len(p.ids) for p in spans))
        return forward(steps, spans)

    monkeypatch.setattr(BatchSteps, "_forward", counted)
    with engine(model, parallel=4) as several:
        jobs = [several.submit(r) for r in requests]
        several.run()
    assert [job.result.ids for job in jobs] == expected
    *drafted, plain = (job.counters for job in jobs)
    assert all(c.accepted > 40 and c.steps < 40 for c in drafted) and plain.drafted == 0
    assert max(passes[-75:]) <= 4 + 3 * MAX_DRAFT


def test_text_stops_and_thoughts_are_those_of_the_plain_loop(small: Jamba) -> None:
    free = prompt(50, 3, max_tokens=40)
    with engine(small) as several:
        text = "".join(several.stream(free))
        assert len(text) > 8
        stop = text[5:8]
        job = several.submit(dataclasses.replace(free, stops=(stop,)))
        several.run()
        assert job.result.text == text[: text.index(stop)] and job.result.finish == "stop"
        assert job.result.ids == alone(small, dataclasses.replace(free, stops=(stop,)))
        first = alone(small, free)[0]
        ended = several.submit(dataclasses.replace(free, stop_ids=frozenset([first])))
        several.run()
        assert ended.result.ids == [] and ended.result.finish == "stop"


def test_equal_prefixes_are_read_once(small: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    head = ids(500, 1)
    requests = [prompt(0, ids=head + ids(20 + i, i), boundaries=[500]) for i in range(6)]
    expected = [alone(small, r) for r in requests]
    read = reads(monkeypatch)
    with engine(small, parallel=4) as several:
        jobs = [several.submit(r) for r in requests]
        several.run()
    assert sum(read) == 500 + sum(20 + i for i in range(6))
    assert [job.result.ids for job in jobs] == expected
    assert [job.counters.reused for job in jobs] == [0, *[500] * 5]


def test_the_same_prompt_many_times_is_read_once_and_has_one_answer(
    model: Jamba, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = prompt(300, 2, max_tokens=10)
    expected = alone(model, request)
    read = reads(monkeypatch)
    with engine(model) as several:
        jobs = [several.submit(request) for _ in range(8)]
        several.run()
    assert sum(read) == 300
    assert [job.result.ids for job in jobs] == [expected] * 8


def test_many_short_prompts_are_read_together(model: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bulk, replies that end one after another do not make each next prompt a pass of its own."""
    requests = [prompt(20 + i % 5, i, max_tokens=4 + 3 * i) for i in range(24)]
    passes: list[int] = []
    forward = BatchSteps._forward

    def counted(steps: BatchSteps, spans: Any) -> Any:
        read = sum(len(span.ids) > 16 for span in spans)
        passes.extend([read] if read else [])
        return forward(steps, spans)

    monkeypatch.setattr(BatchSteps, "_forward", counted)
    ended: dict[int, list[int]] = {}

    def end(i: int, job: Job | None, error: Exception | None) -> None:
        assert job is not None and error is None
        ended[i] = job.result.ids

    with engine(model) as several:
        several.run_all(((i, functools.partial(requests.__getitem__, i)) for i in range(24)), end)
    assert sum(passes) == 24 and len(passes) <= 14
    assert [ended[i] for i in range(24)] == [alone(model, r) for r in requests]


def test_a_prefix_that_is_shared_within_a_chunk_only_is_not_reused_inexactly(small: Jamba) -> None:
    head = ids(100, 1)  # ends in the middle of a chunk, and no boundary says so
    a, b = (prompt(0, ids=head + ids(60, i)) for i in (2, 3))
    with engine(small) as several:
        first, second = several.submit(a), several.submit(b)
        several.run()
        assert second.counters.reused == 64  # whole chunks
    assert [first.result.ids, second.result.ids] == [alone(small, a), alone(small, b)]


def test_a_long_prompt_never_holds_up_a_running_answer_for_more_than_a_chunk(small: Jamba) -> None:
    """Counted in steps and tokens: time would depend on the machine."""
    read: list[int] = []
    with engine(small, ctx=40_000) as several:
        answer = several.submit(prompt(10, 1, max_tokens=600))
        several.step()
        several.step()
        tokens = len(answer.result.ids)
        long = several.submit(prompt(30_000, 2, max_tokens=2), on_read=read.append)
        steps = 0
        while long.phase in ("waiting", "reading"):
            before = sum(read)
            several.step()
            steps += 1
            # At least one token of the answer in every step, and no more than a chunk read between two.
            assert len(answer.result.ids) >= tokens + steps and sum(read) - before <= CHUNK
        assert steps == -(-30_000 // CHUNK)
        several.run()
    assert long.error is None and answer.error is None


def test_short_prompts_do_not_wait_for_a_long_one(small: Jamba) -> None:
    with engine(small, ctx=40_000) as several:
        long = several.submit(prompt(5000, 1, max_tokens=1))
        several.step()
        short = several.submit(prompt(100, 2, max_tokens=1))
        for _ in range(6):
            several.step()
        assert short.phase == "done" and long.phase == "reading"


def test_cancelled_requests_leave_checkpoints_for_the_next(small: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    request = prompt(640, 4)
    expected = alone(small, request)
    with engine(small) as several:
        cut = several.submit(request)
        for _ in range(5):
            several.step()
        cut.cancel()
        several.run()
        assert cut.phase == "done" and cut.error is None and cut.result.finish == "interrupted"
        read = reads(monkeypatch)
        again = several.submit(request)
        several.run()
        assert sum(read) == 640 - 5 * CHUNK and again.result.ids == expected
        # In the queue, and in the middle of an answer.
        running = [several.submit(prompt(20, i, max_tokens=50)) for i in range(8)]
        waiting = several.submit(request)
        for _ in range(12):
            several.step()
        assert several.queue_position(waiting) == 0
        said = len(running[0].result.ids)
        assert said
        running[0].cancel()
        waiting.cancel()
        several.run()
        assert waiting.phase == "done" and len(running[0].result.ids) == said
        assert all(len(job.result.ids) == 50 for job in running[1:])


def test_the_one_whose_prefix_others_wait_for_may_leave(small: Jamba) -> None:
    request = prompt(640, 4)
    with engine(small) as several:
        first, second, third = (several.submit(request) for _ in range(3))
        for _ in range(3):
            several.step()
        assert second.phase == "waiting"
        first.cancel()
        several.run()
        assert second.counters.reused == 3 * CHUNK and third.counters.reused == 640
        assert second.result.ids == third.result.ids == alone(small, request)


def test_an_error_stays_with_its_request(small: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [prompt(50 + i, i, max_tokens=20) for i in range(3)]
    expected = [alone(small, r) for r in good]

    def broken(_: str) -> None:
        raise ValueError("the client is gone")

    with engine(small) as several:
        for wrong, kind in (
            (prompt(0), UsageError),
            (prompt(0, ids=[1, 10_000]), UsageError),
            (prompt(4097), ContextFullError),
            (prompt(4000, reserve=97), ContextFullError),
            (prompt(10, sampling=Sampling(logit_bias={10_000: 1.0})), UsageError),
        ):
            with pytest.raises(kind):
                several.submit(wrong)
        jobs = [several.submit(r) for r in good]
        callback = several.submit(prompt(70, 9), on_text=broken)
        nan = several.submit(prompt(71, 10))
        full = several.submit(prompt(4090, 11, max_tokens=50))
        stepped = TokenSequence.stepped

        def spoiled(sequence: TokenSequence, token: int, logits: torch.Tensor, began: float, *draft: Any) -> Any:
            if sequence.tokens[:70] == list(nan.ids[:70]):
                logits = logits * float("nan")
            return stepped(sequence, token, logits, began, *draft)

        monkeypatch.setattr(TokenSequence, "stepped", spoiled)
        several.run()
        assert isinstance(callback.error, ValueError) and "NaN" in str(nan.error)
        assert full.error is None and full.result.finish == "context" and len(full.result.ids) == 6
        assert [job.result.ids for job in jobs] == expected


def test_a_pass_that_fails_for_one_sequence_goes_on_for_the_others(
    small: Jamba, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.model.state import SequenceState

    requests = [prompt(50 + i, i, max_tokens=20) for i in range(3)]
    expected = [alone(small, r) for r in requests]
    with engine(small) as several:
        jobs = [several.submit(r) for r in requests]
        while len(jobs[1].result.ids) < 8:
            several.step()
        begin, victim = SequenceState.begin, list(several._slots)[1].sequence.state

        def out_of_memory(state: SequenceState, *arguments: Any, **more: Any) -> None:
            if state is victim:
                raise MemoryError("no room for keys and values")
            begin(state, *arguments, **more)

        monkeypatch.setattr(SequenceState, "begin", out_of_memory)
        several.run()
    assert isinstance(jobs[1].error, MemoryError) and jobs[1].result.ids == expected[1][: len(jobs[1].result.ids)]
    assert [jobs[0].result.ids, jobs[2].result.ids] == [expected[0], expected[2]]


def test_an_interrupted_step_loses_nothing(small: Jamba) -> None:
    """Ctrl-C may come between the tokens of two sequences of one step."""
    requests = [prompt(50 + i, i, max_tokens=20) for i in range(3)]
    calls = 0

    def interrupted(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise KeyboardInterrupt

    with engine(small) as several:
        jobs = [several.submit(r, on_text=interrupted) for r in requests]
        while not several.idle:
            with contextlib.suppress(KeyboardInterrupt):
                several.step()
    assert [job.error for job in jobs] == [None] * 3


def test_prefixes_go_through_the_store_and_are_exact(
    own_home: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from jambacli.cache.prefix_store import PrefixStore

    stored = chunked(Jamba.load(small_file(tmp_path, "q8_0"), device="cpu"))

    def open_store(sequence: TokenSequence) -> PrefixCache:
        return PrefixCache(PrefixStore(), state_spaces(stored.fingerprint, sequence.state), sequence.state.layout)

    a = prompt(0, ids=ids(300, 1) + ids(30, 2), boundaries=[300])
    b = prompt(0, ids=ids(300, 1) + ids(31, 3), boundaries=[300])
    with engine(stored, open_store=open_store) as several:
        "".join(several.stream(a))
    read = reads(monkeypatch)
    with engine(stored, open_store=open_store) as several:
        job = several.submit(b)
        several.run()
    assert sum(read) == 31 and job.counters.reused == 300
    assert job.result.ids == alone(stored, b)


def test_without_exactness_a_reply_is_reused_in_the_next_turn(small: Jamba) -> None:
    with engine(small, exact=False) as several:
        first = several.submit(prompt(100, 1, max_tokens=10))
        several.run()
        more = first.ids + first.result.ids + ids(30, 5)
        second = several.submit(prompt(0, ids=more))
        several.run()
        assert second.counters.reused >= 100 + 9
    with engine(small) as exact:
        "".join(exact.stream(prompt(100, 1, boundaries=[64], max_tokens=10)))
        job = exact.submit(prompt(0, ids=more))
        exact.run()
        assert job.counters.reused == CHUNK


def test_a_thread_of_its_own_serves_many_threads(small: Jamba) -> None:
    import threading

    requests = [prompt(60 + i, i, max_tokens=15) for i in range(12)]
    expected = [alone(small, r) for r in requests]
    texts: dict[int, str] = {}
    with engine(small, parallel=4) as reference:
        known = ["".join(reference.stream(r)) for r in requests]
    with BatchWorker(engine(small, parallel=4)) as worker:

        def ask(i: int) -> None:
            pieces: Iterator[str] = worker.stream(requests[i])
            if i % 3 == 2:  # a client that vanishes
                next(pieces, None)
                pieces.close()  # type: ignore[attr-defined]
                return
            texts[i] = "".join(pieces)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with pytest.raises(UsageError):
            next(worker.stream(prompt(0)))
    assert expected and texts == {i: known[i] for i in range(12) if i % 3 != 2}


def test_a_worker_survives_a_step_that_fails(small: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchWorker(engine(small)) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(BatchSteps, "read", _raise(RuntimeError("a bug")))
            with pytest.raises(JambaError, match="a bug"):
                list(worker.stream(prompt(50, 1)))
        assert "".join(worker.stream(prompt(50, 1, max_tokens=20)))


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_the_engine_checks_its_options(small: Jamba) -> None:
    with pytest.raises(UsageError, match="parallel"):
        engine(small, parallel=0)
    assert np.array_equal(engine(small).submit(prompt(5)).array, np.array(ids(5)))


@pytest.mark.parametrize("parallel", [1, 32])
def test_many_sequences_take_the_memory_that_was_planned(
    tmp_path: Any, parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jambacli.model.config.CHECKPOINT_BYTES", 0)  # as few as are kept in any case
    model, ctx = chunked(Jamba.load(small_file(tmp_path, "q8_0"), device="cpu")), 300
    draft_all(monkeypatch, lambda _, most, __=(): certain(ids(max(0, min(most, 15)))))
    with engine(model, parallel=parallel, ctx=ctx) as many:
        for i in range(parallel):
            many.submit(prompt(270, i, max_tokens=30, boundaries=range(20, 270, 20), lookup=True))
        taken = 0
        while many.step():
            sequences = [slot.sequence for slot in many._slots]
            copies = sum(c.nbytes for sequence in sequences for c in sequence.checkpoints.values())
            taken = max(taken, copies + sum(sequence.state.nbytes for sequence in sequences))
    planned = parallel * sequence_bytes(model.config, ctx, drafts=True)
    assert 0.9 * planned < taken <= planned


@pytest.mark.parametrize(("free", "expected"), [(0.1, 1), (2.5, 2), (5.5, 5), (100.0, 8)])
def test_as_many_run_at_once_as_fit(free: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().model
    one = sequence_bytes(model.config, 1000, drafts=model.decoder is not None)
    available = int(2 * (CHECKPOINT_BYTES + free * one)) + 2
    monkeypatch.setattr(parallel_module, "devices", lambda: [SimpleNamespace(available=available)])
    assert default_parallel(model, 1000) == expected
