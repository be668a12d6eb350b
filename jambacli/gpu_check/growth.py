"""A KV cache that grows under recorded graphs: right logits afterwards, the old cache let go, no more memory than planned."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.evaluation.bench import fill_randomly
from jambacli.evaluation.synthetic_gpu import GpuTensors
from jambacli.gpu_check.models import LOGIT_ERROR, SHAPE, relative_error
from jambacli.gpu_check.needs import DECODE, DECODE_EXPERTS, blocked_by
from jambacli.kernels.triton.ops import TritonOps, compute_dtype
from jambacli.kernels.triton.repack import LAYOUTS
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.load import put_on_gpu
from jambacli.runtime.cuda.placement import Placement

if TYPE_CHECKING:
    from jambacli.gpu_check.results import Suite
    from jambacli.model.jamba import JambaModel

#: Tokens of the caches' first allocation, see ``model.state``.
FIRST = 256


def growth(suite: Suite, device: torch.device, full_size: Any = None, wrong: Sequence[str] = ()) -> None:
    """Compare logits around a growth of the cache with single operations, which record nothing; then measure ``full_size()``,
    memory against the plan. Not if a kernel of ``wrong`` is needed."""
    rows = suite.results.setdefault("growth", [])
    if kernel := blocked_by(DECODE + DECODE_EXPERTS, LAYOUTS, wrong):
        suite.skip_for_kernel("growth of a cache", kernel)
        return
    found = suite.attempt("growth of a cache", 15, partial(grown, device, suite.tiny))
    if found is not None:
        rows.append(found)
        suite.save()
    if full_size is not None:
        found = suite.attempt("growth at full size", 40, full_size)
        if found is not None:
            rows.append(found)
            suite.save()


def grown(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Decode until a step is a graph, read a prompt that makes the cache grow, and decode on."""
    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "vocab_size": 96,
    }
    config = JambaConfig.from_hf(SHAPE | small | {"mamba_dt_rank": 32} if tiny else SHAPE)
    make = GpuTensors(config, "q8_0", torch.device("cpu"))
    tensors = {name: make(name) for name in make.shapes()}
    plan = Placement(0, 0, 0, 0, frozenset(), config.n_moe_layers)
    return around_a_growth(put_on_gpu(config, tensors.__getitem__, device, plan), 4 if tiny else 40)


def around_a_growth(model: JambaModel, prompt: int) -> dict[str, Any]:
    """The same with any model in planes and ``prompt`` tokens; its decoder is compared with single operations on the same
    weights."""
    single = dataclasses.replace(model, decoder=None, ops=TritonOps(compute_dtype(model.device)).as_ops())
    states = model.new_state(4 * FIRST), single.new_state(4 * FIRST)
    for state in states:
        fill_randomly(state, FIRST - 4)
    worst = 0.0

    def both(*ids: int) -> None:
        nonlocal worst
        got, expected = (
            m.forward(torch.tensor(ids), s) for m, s in zip((model, single), states, strict=True)
        )  # fmt: skip
        assert got is not None
        assert expected is not None
        worst = max(worst, relative_error(got.cpu(), expected.cpu()))

    for token in (1, 2, 3):  # launched, recorded, replayed
        both(token)
    before = [weakref.ref(x) for cache in states[0].caches for x in (cache.k, cache.v)]
    old = [cache.k.shape[0] for cache in states[0].caches]
    recorded = getattr(model.decoder, "recorded", None)
    both(*range(4, 4 + prompt))
    held = sum(tensor() is not None for tensor in before)
    for token in (5, 6, 7):
        both(token)
    return {
        "test": "logits around a growth",
        "ok": worst < LOGIT_ERROR and held == 0,
        "error": worst,
        "recorded": recorded,
        "capacity": [old[0], states[0].caches[0].k.shape[0]] if old else [],
        "old_caches_held": held,
    }


def peak_of_growth(
    model: JambaModel, device: torch.device, ctx: int, depth: int, prompt: int, planned: int
) -> dict[str, Any]:
    """Memory of a context of ``depth`` random tokens, three decoded ones, a prompt that makes the cache grow, and one more."""
    state = model.new_state(ctx, "f16")
    fill_randomly(state, depth)
    old = state.caches[0].k.shape[0]
    for _ in range(3):
        model.forward(torch.tensor([1]), state)
    for part in torch.ones(prompt, dtype=torch.int64).split(model.prefill_chunk):
        model.forward(part, state, logits="none")
    model.forward(torch.tensor([1]), state)
    peak = int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
    return {
        "test": f"growth at {depth} tokens",
        "ok": peak is None or peak <= planned,
        "capacity": [old, state.caches[0].k.shape[0]],
        "peak_memory": peak,
        "planned": planned,
    }
