"""Whole tiny models on the CPU's reference and on the card: the same tokens, the same logits. Knows nothing of timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.placement import Placement

if TYPE_CHECKING:
    from jambacli.gpu_check.suite import Suite

#: The bound on the median relative error of logits where matrix units multiply bf16.
LOGIT_ERROR = 2e-2
#: The share of decoded tokens that must keep to it: where two experts are about as probable, rounding decides which one a
#: token takes; that token's logits then differ by far more, and those of the next by some.
MOST = 0.75
#: Tokens of the prompt: so many that weights are expanded, then a few over a past; with those after them keys and values
#: grow out of their first room (256 tokens), so that graphs are recorded again.
PROMPT = (200, 40)
_CTX = 512
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "vocab_size": 1024,
}


def models(suite: Suite, device: torch.device, shard: str = "0/1") -> None:
    """Compare models in several types, with all weights on the card and with some experts behind, and their states.

    ``shard``: which of them, "i/n" being every n-th from the i-th on.
    """
    rows = suite.results.setdefault("models", [])
    config = JambaConfig.from_hf(SHAPE if not suite.tiny else SHAPE | {"intermediate_size": 256, "vocab_size": 320})
    quants = ("q4_k_m", "q8_0", "experts_int8") if not suite.tiny else ("q4_k_m",)
    runs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for quant in quants:
        for behind in (frozenset(), frozenset({3})):
            name = f"{quant}{', some experts in RAM' if behind else ''}"
            runs.append((name, partial(compare, config, quant, device, behind, suite.tiny)))
    if not suite.tiny:
        some = frozenset({1, 3})
        run = partial(compare, config, "q4_k_m", device, some, suite.tiny, cpu_kv=True)
        runs += [("q4_k_m, experts, keys and values in RAM", run), ("the embedded one", partial(embedded, device))]
    mine, of = (int(x) for x in shard.split("/"))
    for name, compared in runs[mine::of]:
        found = suite.attempt(f"model {name}", 20, compared)
        if found is not None:
            rows.append({"model": name, **found})
            suite.save()


def embedded(device: torch.device) -> dict[str, Any]:
    """The package's own small model, from its file, on the CPU and on the card."""
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.demo import demo_model_path
    from jambacli.runtime.cuda.load import put_on_card
    from jambacli.runtime.loader import from_gguf

    file = GGUFFile.open(demo_model_path())
    cpu = from_gguf(file, ops=reference_ops())
    plan = Placement(0, 0, 0, 0, frozenset(), cpu.config.n_moe_layers)
    card = put_on_card(cpu.config, file.qtensor, device, plan, source=file)
    return against(cpu, card, *PROMPT, 48)


def compare(
    config: JambaConfig, quant: str, device: torch.device, behind: frozenset[int], tiny: bool, *, cpu_kv: bool = False
) -> dict[str, Any]:
    """The same random model on the CPU and on the card: errors of prefill and decode, greedy tokens, states exchanged."""
    from jambacli.evaluation.synthetic_gpu import CardTensors
    from jambacli.runtime.cuda.load import put_on_card
    from jambacli.runtime.loader import build

    make = CardTensors(config, quant, torch.device("cpu"))
    tensors = {name: make(name) for name in make.shapes()}
    cpu = build(config, tensors.__getitem__, ops=reference_ops())
    plan = Placement(0, 0, 0, 0, behind, config.n_moe_layers, host_kv=int(cpu_kv))
    card = put_on_card(config, tensors.__getitem__, device, plan)
    return against(cpu, card, *((5, 4, 4) if tiny else (*PROMPT, 24)))


def against(cpu: JambaModel, card: JambaModel, many: int, few: int, n_new: int) -> dict[str, Any]:
    """Both models on a random prompt and the CPU's greedy ``n_new`` tokens after it; the card reads ``many``, then ``few``."""
    config = cpu.config
    ids = torch.randint(0, config.vocab_size, (many + few,), generator=torch.Generator().manual_seed(5))
    here, there = cpu.new_state(_CTX, "f16"), card.new_state(_CTX, "f16")
    expected = _logits(cpu, ids, here)
    got = torch.cat([_logits(card, part, there) for part in ids.split([many, few])])
    prefill_error = relative_error(got, expected)
    decode_errors, agree, decided = [], 0, 0
    token = int(expected[-1].argmax())
    for _ in range(n_new):
        expected, got = _logits(cpu, torch.tensor([token]), here), _logits(card, torch.tensor([token]), there)
        decode_errors.append(relative_error(got, expected))
        top = expected[0].topk(2).values
        if float(top[0] - top[1]) > 5 * LOGIT_ERROR * float(expected.std()):
            decided += 1
            agree += int(got[0].argmax()) == int(expected[0].argmax())
        token = int(expected[0].argmax())
    moved = _exchange(cpu, card, here, there, token)
    usual = sorted(decode_errors)[math.ceil(MOST * n_new) - 1]
    ok = prefill_error < LOGIT_ERROR and usual < LOGIT_ERROR and agree >= MOST * decided and moved < LOGIT_ERROR
    return {
        "ok": ok,
        "prefill_error": prefill_error,
        "decode_error": usual,
        "worst_decode_error": max(decode_errors),
        "greedy_agree": f"{agree}/{decided} (of {n_new})",
        "moved_state_error": moved,
    }


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The median difference of logits over their standard deviation; infinite where one is not a number."""
    if not bool(torch.isfinite(got).all()):
        return math.inf
    return float(((got - expected).abs().median() / expected.std()).item())


def _logits(model: JambaModel, ids: torch.Tensor, state: Any) -> torch.Tensor:
    logits = model.forward(ids, state, logits="all")
    assert logits is not None
    return logits.float().cpu()


def _exchange(cpu: JambaModel, card: JambaModel, here: Any, there: Any, token: int) -> float:
    """Move the CPU's state to the card and the card's to the CPU, as files do, and go on: the larger error."""
    ids = torch.tensor([token])
    errors = []
    for source, model in ((here, card), (there, cpu)):
        fresh = model.new_state(_CTX, "f16")
        stop = source.position
        pairs = [(k.to(fresh.device), v.to(fresh.device)) for k, v in source.kv(0, stop)]
        fresh.load_kv(0, stop, pairs)
        saved = source.snapshot()
        fresh.restore(fresh.checkpoint(stop, saved.conv.to(fresh.device), saved.ssm.to(fresh.device)))
        owner = cpu if model is card else card
        expected = _logits(owner, ids, source)
        errors.append(relative_error(_logits(model, ids, fresh), expected))
    return max(errors)
