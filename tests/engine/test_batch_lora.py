"""Requests with different adapters in one engine, and what they store: nothing of one is used for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from jambacli import Jamba
from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_job import Request
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.engine.sampling import Sampling
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError
from jambacli.hub.demo import demo_model_path
from jambacli.session.options import SessionOptions
from tests.support.adapters import adapter_for


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    """The demo model with an adapter that changes what it says."""
    path = demo_model_path()
    lora = adapter_for(tmp_path_factory.mktemp("lora") / "lora.gguf", path, size=0.3)
    return Jamba.load(path, device="cpu", loras=[lora])


def request(model: Jamba, scale: float | None, seed: int) -> Request:
    ids = model.tokenizer.encode("The report says that the river is high.")
    adapters = None if scale is None else model.loras.scaled([scale])
    return Request(ids=ids, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=6, adapters=adapters)


def test_replies_are_those_of_each_alone(model: Jamba) -> None:
    scales = [None, 0.0, 1.0, 0.5, 0.0, 0.5]
    alone = []
    for i, scale in enumerate(scales):
        with BatchEngine(model, parallel=1, ctx=128) as engine:
            job = engine.submit(request(model, scale, i))
            engine.run()
            alone.append(job.result.ids)
    for parallel in (4, 1):  # one place: it changes its adapters from request to request
        with BatchEngine(model, parallel=parallel, ctx=128) as engine:
            jobs = [engine.submit(request(model, scale, i)) for i, scale in enumerate(scales)]
            engine.run()
            assert [job.result.ids for job in jobs] == alone
            assert all(job.error is None for job in jobs)


def test_stored_prefixes_belong_to_their_adapters(model: Jamba) -> None:
    def open_store(sequence: TokenSequence) -> PrefixCache:
        state = sequence.state
        weights = model.weights_with(state.adapters)
        return PrefixCache(PrefixStore(), state_spaces(weights.name, state), state.layout, weights.in_use)

    reused = []
    for scale in (1.0, 0.0, 0.5, 1.0, 0.0, None):
        with BatchEngine(model, parallel=1, ctx=128, open_store=open_store, exact=False) as engine:
            job = engine.submit(request(model, scale, 0))
            engine.run()
            reused.append(job.counters.reused > 0)
    assert reused == [False, False, False, True, True, True]


def test_a_session_goes_on_with_its_adapters_only(model: Jamba) -> None:
    with model.session(SessionOptions(ctx=128, name="adapted")) as session:
        "".join(session.send("Hello", max_tokens=3))
    with model.session(SessionOptions(ctx=128, resume="adapted")) as session:
        assert len(session.conversation.turns) == 2
    plain = Jamba.load(demo_model_path(), device="cpu")
    with pytest.raises(JambaError, match="adapted"):
        plain.session(SessionOptions(ctx=128, resume="adapted"))


def test_the_path_of_the_adapter_does_not_matter(model: Jamba, tmp_path: Path) -> None:
    """An adapter that was moved, or written again, is the same one."""
    ((adapter, _),) = model.loras.parts
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(adapter.path.read_bytes())
    assert Jamba.load(demo_model_path(), device="cpu", loras=[moved]).fingerprint == model.fingerprint
