"""Sequence state: what a checkpoint restores, when it is refused, and how much memory a sequence takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jambacli.errors import JambaError, UnsupportedError, UsageError
from jambacli.kernels import Ops
from jambacli.model.config import GPU_KV_TYPES, MAX_DRAFT, JambaConfig, check_gpu_kv_type
from jambacli.model.jamba import JambaModel
from jambacli.model.state import ContextFullError, SequenceState
from tests.support.checkpoints import BASE, random_model
from tests.support.transformers_model import from_transformers


@pytest.fixture(scope="module")
def model(ops: Ops) -> JambaModel:
    return from_transformers(random_model("moe4", seed=3), ops)


def ids(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 512, (n,), generator=torch.Generator().manual_seed(seed))


def run(model: JambaModel, state: SequenceState, tokens: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Logits of every position, with the tokens split into pieces of these sizes."""
    out = []
    for piece in tokens.split(pieces):
        logits = model.forward(piece, state, logits="all")
        assert logits is not None
        out.append(logits)
    return torch.cat(out)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16"])
def test_restore_and_replay_is_bit_identical(model: JambaModel, kv_type: str) -> None:
    tokens, pieces = ids(60), [17, 1, 1, 30, 11]
    straight = run(model, model.new_state(60, kv_type), tokens, pieces)
    state = model.new_state(60, kv_type)
    run(model, state, tokens[:18], pieces[:2])
    checkpoint = state.snapshot()
    run(model, state, tokens[18:], pieces[2:])
    for _ in range(2):
        state.restore(checkpoint)
        assert state.position == 18
        again = run(model, state, tokens[18:], pieces[2:])
        assert torch.equal(again, straight[18:])
        checkpoint = checkpoint if state.restorable(checkpoint) else state.snapshot()


def test_state_continues_in_another_object_from_its_stored_parts(model: JambaModel) -> None:
    tokens = ids(50)
    straight = run(model, model.new_state(64), tokens, [30, 5, 15])
    old = model.new_state(64)
    run(model, old, tokens[:35], [30, 5])
    stored, pairs = old.snapshot(), [[(k.clone(), v.clone()) for k, v in old.kv(a, b)] for a, b in ((0, 20), (20, 35))]
    new = model.new_state(300)
    new.load_kv(0, 20, pairs[0])
    new.load_kv(20, 35, pairs[1])
    new.restore(new.checkpoint(35, stored.conv, stored.ssm))
    assert torch.equal(run(model, new, tokens[35:], [15]), straight[35:])


def test_branches_share_their_past_until_it_is_overwritten(model: JambaModel) -> None:
    state = model.new_state(100)
    run(model, state, ids(20), [20])
    early = state.snapshot()
    run(model, state, ids(20, 1), [20])
    late = state.snapshot()
    state.restore(early)
    state.restore(late)  # nothing was written between: still whole
    state.restore(early)
    run(model, state, ids(5, 2), [5])
    assert state.restorable(early)
    assert not state.restorable(late)
    with pytest.raises(JambaError, match="checkpoint at token 40 no longer belongs"):
        state.restore(late)
    run(model, state, ids(40, 3), [40])  # longer than the old branch, but not the old branch
    assert not state.restorable(late)
    state.restore(early)
    assert state.position == 20


def test_a_checkpoint_belongs_to_its_state(model: JambaModel) -> None:
    one, other = model.new_state(10), model.new_state(10)
    run(model, one, ids(5), [5])
    run(model, other, ids(5), [5])
    with pytest.raises(JambaError, match="no longer belongs"):
        other.restore(one.snapshot())


def test_snapshot_does_not_follow_the_state(model: JambaModel) -> None:
    state = model.new_state(10)
    run(model, state, ids(4), [4])
    checkpoint = state.snapshot()
    before = checkpoint.conv.clone(), checkpoint.ssm.clone()
    run(model, state, ids(4, 1), [4])
    assert torch.equal(checkpoint.conv, before[0])
    assert torch.equal(checkpoint.ssm, before[1])
    assert not torch.equal(checkpoint.ssm, state.ssm)


def test_full_context_refuses_and_changes_nothing(model: JambaModel) -> None:
    state = model.new_state(12)
    first = run(model, state, ids(10), [10])
    with pytest.raises(ContextFullError, match="it holds 10 tokens, 3 more do not fit into 12"):
        model.forward(ids(3), state)
    assert state.position == 10
    run(model, state, ids(2, 1), [2])
    fresh = model.new_state(12)
    assert torch.equal(run(model, fresh, ids(10), [10]), first)


@pytest.mark.parametrize("bad", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(model: JambaModel, bad: int) -> None:
    state = model.new_state(8)
    with pytest.raises(JambaError, match=f"token {bad} is not in the vocabulary of 512"):
        model.forward(torch.tensor([1, bad]), state)
    assert state.position == 0
    assert not state.interrupted


def test_interrupted_pass_must_be_restored(model: JambaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ids(50)
    straight = run(model, model.new_state(64), tokens, [20, 30])
    state = model.new_state(64)
    run(model, state, tokens[:20], [20])
    checkpoint = state.snapshot()

    calls = 0
    original = type(model.layers[0]).forward

    def interrupted(self: Any, *args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(type(model.layers[0]), "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.forward(tokens[20:], state)
    monkeypatch.undo()
    with pytest.raises(JambaError, match="interrupted"):
        model.forward(tokens[20:], state)
    with pytest.raises(JambaError, match="interrupted"):
        state.snapshot()
    state.restore(checkpoint)
    assert torch.equal(run(model, state, tokens[20:], [30]), straight[20:])


def config(**changes: Any) -> JambaConfig:
    return JambaConfig.from_hf(BASE | changes)


def test_memory_is_what_the_config_computes(model: JambaModel) -> None:
    c = model.config
    state = model.new_state(100_000)
    assert state.nbytes == c.state_bytes()
    run(model, state, ids(300), [300])
    assert state.nbytes == c.state_bytes() + 300 * c.kv_bytes_per_token("f16")
    run(model, state, ids(1), [1])
    assert state.nbytes == c.state_bytes() + 600 * c.kv_bytes_per_token("f16")  # doubled
    assert state.snapshot().nbytes == c.state_bytes()
    before = state.nbytes
    state.reserve_history(1 + MAX_DRAFT)  # what the longest draft takes: the memory plan counts it
    assert state.nbytes == before + c.draft_bytes()
    small = model.new_state(310)
    run(model, small, ids(305), [300, 5])
    assert small.nbytes == c.state_bytes() + 310 * c.kv_bytes_per_token("f16")  # never beyond the context


def test_blocks_need_heads_of_whole_blocks() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 32; this model's have 16"):
        SequenceState(config(), 16, "q8_0")
    for kv_type, row in (("q8_0", 34), ("q5_1", 24), ("q4_0", 18)):
        state = SequenceState(config(hidden_size=128), 16, kv_type)
        assert state.caches[0].k.shape == (0, 2, row)
        assert state.caches[0].k.dtype == torch.uint8


def test_a_gpu_refuses_types_without_kernels_there() -> None:
    for name in GPU_KV_TYPES:
        check_gpu_kv_type(name)
    for name in ("q5_1", "q4_0"):
        with pytest.raises(UnsupportedError, match=f"KV type {name} is not supported on a GPU; use kv_type q8_0"):
            check_gpu_kv_type(name)
    with pytest.raises(UsageError, match="int3"):
        check_gpu_kv_type("int3")


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="kv_type 'int3' is not one of f32, f16, bf16, q8_0, q5_1, q4_0"):
        SequenceState(config(), 16, "int3")
    with pytest.raises(UsageError, match="ctx 0 is below 1"):
        SequenceState(config(), 0)


def test_foreign_keys_are_refused(model: JambaModel) -> None:
    state, other = model.new_state(50), model.new_state(50, "f32")
    run(model, other, ids(10), [10])
    with pytest.raises(JambaError, match="another KV type"):
        state.load_kv(0, 10, list(other.kv(0, 10)))
    with pytest.raises(JambaError, match="leave a gap"):
        state.load_kv(5, 10, list(other.kv(5, 10)))
    with pytest.raises(ContextFullError, match="do not fit"):
        model.new_state(5, "f32").load_kv(0, 10, list(other.kv(0, 10)))
    with pytest.raises(JambaError, match="not in the state"):
        list(other.kv(0, 11))
    with pytest.raises(JambaError, match="other sizes"):
        state.checkpoint(3, torch.zeros(1, 2, 3), state.ssm)


def test_a_model_without_attention_keeps_no_keys(ops: Ops) -> None:
    hf = random_model("moe4", seed=1, num_hidden_layers=3, attn_layer_period=8, attn_layer_offset=4)
    model = from_transformers(hf, ops)
    tokens = ids(12)
    straight = run(model, model.new_state(20), tokens, [7, 5])
    old = model.new_state(20)
    run(model, old, tokens[:7], [7])
    new = model.new_state(20)
    new.load_kv(0, 7, list(old.kv(0, 7)))
    new.restore(new.checkpoint(7, old.conv, old.ssm))
    assert torch.equal(run(model, new, tokens[7:], [5]), straight[7:])
