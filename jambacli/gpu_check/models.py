"""Compares whole tiny models on the GPU with the CPU's reference: logits, greedy tokens, exchanged states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jambacli.gpu_check.needs import DECODE, DECODE_EXPERTS, PREFILL, PREFILL_EXPERTS, blocked_by
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.placement import Placement

if TYPE_CHECKING:
    from jambacli.gpu_check.results import Suite

#: The bound on the median relative error of logits with bf16 products.
LOGIT_ERROR = 2e-2
#: The bound with activations of int8.
INT8_ERROR = 5e-2
#: The share of decoded tokens that must keep the bound. If two experts are about equally probable, rounding decides which one
#: a token takes: its logits then differ by far more, and those of the following tokens by some.
SHARE_WITHIN = 0.75
#: Pieces of the prompt: one with enough tokens that weights are dequantized whole, then a short one. The tokens after them
#: exceed the first capacity of the KV cache (256 tokens), so that graphs are recorded again.
PROMPT = (200, 40)
_CTX = 512
_KERNELS = DECODE + DECODE_EXPERTS + PREFILL + PREFILL_EXPERTS + ("gemm",)
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 2048,  # and the vocabulary: products that take activations of int8
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "vocab_size": 2048,
}
# The interpreter takes a second per token even for this.
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "num_attention_heads": 2,
    "mamba_dt_rank": 32,
    "vocab_size": 96,
}


def models(suite: Suite, device: torch.device, shard: str = "0/1", wrong: Sequence[str] = ()) -> None:
    """Compare models of several file types, with all weights on the GPU and with some experts in host memory.

    ``shard``: "i/n", every n-th of them from the i-th on. Models that use a kernel of ``wrong`` are skipped.
    """
    rows = suite.results.setdefault("models", [])
    config = JambaConfig.from_hf(SHAPE if not suite.tiny else SHAPE | _TINY)
    quants = ("q4_k_m", "q8_0", "experts_int8") if not suite.tiny else ("q8_0",)
    runs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for quant in quants:
        for host_layers in (frozenset(), frozenset({config.n_layers - 1})):
            name = f"{quant}{', some experts in RAM' if host_layers else ''}"
            runs.append((name, partial(compare, config, quant, device, host_layers, suite.tiny)))
    if not suite.tiny:
        some = frozenset({1, 3})
        run = partial(compare, config, "q4_k_m", device, some, suite.tiny, cpu_kv=True)
        runs += [("q4_k_m, experts, keys and values in RAM", run), ("demo model", partial(demo_model, device))]
    first, step = (int(x) for x in shard.split("/"))
    for name, compared in runs[first::step]:
        if kernel := blocked_by(_KERNELS, _formats(config, name.split(",")[0]), wrong):
            suite.skip_for_kernel(f"model {name}", kernel)
            continue
        found = suite.attempt(f"model {name}", 20, compared)
        if found is not None:
            rows.append({"model": name, **found})
            suite.save()


def _formats(config: JambaConfig, quant: str) -> set[str]:
    """The formats of the weights of a random model; those of Q4_K_M for the demo model."""
    from jambacli.evaluation.synthetic import choices

    return {choice.format for choice in choices(config, "q4_k_m" if quant == "demo model" else quant).values()}


def demo_model(device: torch.device) -> dict[str, Any]:
    """Compare the demo model, loaded from its file."""
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.demo import demo_model_path
    from jambacli.runtime.cuda.load import put_on_gpu
    from jambacli.runtime.loader import from_gguf

    file = GGUFFile.open(demo_model_path())
    cpu = from_gguf(file, ops=reference_ops())
    plan = Placement(0, 0, 0, 0, frozenset(), cpu.config.n_moe_layers)
    gpu = put_on_gpu(cpu.config, file.qtensor, device, plan, source=file)
    return against(cpu, gpu, *PROMPT, 48)


def compare(
    config: JambaConfig,
    quant: str,
    device: torch.device,
    host_layers: frozenset[int],
    tiny: bool,
    *,
    cpu_kv: bool = False,
) -> dict[str, Any]:
    """Compare a random model, with the experts of ``host_layers`` in host memory."""
    from jambacli.evaluation.synthetic_gpu import GpuTensors
    from jambacli.runtime.cuda.load import put_on_gpu
    from jambacli.runtime.loader import build

    make = GpuTensors(config, quant, torch.device("cpu"))
    tensors = {name: make(name) for name in make.shapes()}
    cpu = build(config, tensors.__getitem__, ops=reference_ops())
    plan = Placement(0, 0, 0, 0, host_layers, config.n_moe_layers, host_kv=int(cpu_kv))
    gpu = put_on_gpu(config, tensors.__getitem__, device, plan)
    return against(cpu, gpu, *((5, 4, 4) if tiny else (*PROMPT, 24)))


def against(cpu: JambaModel, gpu: JambaModel, many: int, few: int, n_new: int) -> dict[str, Any]:
    """Run both models on a random prompt and ``n_new`` greedy tokens of the CPU, and compare them.

    The GPU takes the prompt in pieces of ``many`` and ``few`` tokens. Returns errors, agreement and whether all is well.
    """
    config = cpu.config
    ids = torch.randint(0, config.vocab_size, (many + few,), generator=torch.Generator().manual_seed(5))
    on_cpu, on_gpu = cpu.new_state(_CTX, "f16"), gpu.new_state(_CTX, "f16")
    expected = _logits(cpu, ids, on_cpu)
    got = torch.cat([_logits(gpu, part, on_gpu) for part in ids.split([many, few])])
    prefill_error = relative_error(got, expected)
    decode_errors, agree, decided = [], 0, 0
    token = int(expected[-1].argmax())
    for _ in range(n_new):
        expected, got = _logits(cpu, torch.tensor([token]), on_cpu), _logits(gpu, torch.tensor([token]), on_gpu)
        decode_errors.append(relative_error(got, expected))
        top = expected[0].topk(2).values
        if float(top[0] - top[1]) > 5 * LOGIT_ERROR * float(expected.std()):
            decided += 1
            agree += int(got[0].argmax()) == int(expected[0].argmax())
        token = int(expected[0].argmax())
    rounded = _rounded_error(cpu, gpu, ids[:1], min(n_new, 8))
    moved = _exchange(cpu, gpu, on_cpu, on_gpu, token)
    usual = sorted(decode_errors)[math.ceil(SHARE_WITHIN * n_new) - 1]
    ok = rounded is None or rounded < INT8_ERROR
    ok = (
        ok
        and prefill_error < LOGIT_ERROR
        and usual < LOGIT_ERROR
        and agree >= SHARE_WITHIN * decided
        and moved < LOGIT_ERROR
    )
    return {
        "ok": ok,
        "prefill_error": prefill_error,
        "decode_error": usual,
        "worst_decode_error": max(decode_errors),
        "int8_error": rounded,
        "greedy_agree": f"{agree}/{decided} (of {n_new})",
        "moved_state_error": moved,
    }


def _rounded_error(cpu: JambaModel, gpu: JambaModel, ids: torch.Tensor, n: int) -> float | None:
    """The usual error of ``n`` decode steps with activations of int8; None if no product takes them."""
    from jambacli.runtime.cuda.decoder import CudaDecoder

    if not isinstance(gpu.decoder, CudaDecoder) or not gpu.decoder.int8_products():
        return None
    on_cpu, on_gpu = cpu.new_state(_CTX, "f16"), gpu.new_state(_CTX, "f16", precise=False)
    errors = []
    for _ in range(n):
        expected, got = _logits(cpu, ids, on_cpu), _logits(gpu, ids, on_gpu)
        errors.append(relative_error(got, expected))
        ids = expected[-1].argmax()[None]
    return sorted(errors)[math.ceil(SHARE_WITHIN * n) - 1]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The median difference of logits over their standard deviation; infinite if ``got`` has a value that is not finite."""
    if not bool(torch.isfinite(got).all()):
        return math.inf
    return float(((got - expected).abs().median() / expected.std()).item())


def _logits(model: JambaModel, ids: torch.Tensor, state: Any) -> torch.Tensor:
    logits = model.forward(ids, state, logits="all")
    assert logits is not None
    return logits.float().cpu()


def _exchange(cpu: JambaModel, gpu: JambaModel, on_cpu: Any, on_gpu: Any, token: int) -> float:
    """Continue the CPU's state on the GPU and the GPU's on the CPU, moved as a file would: the larger error."""
    ids = torch.tensor([token])
    errors = []
    for source, model in ((on_cpu, gpu), (on_gpu, cpu)):
        fresh = model.new_state(_CTX, "f16")
        stop = source.position
        pairs = [(k.to(fresh.device), v.to(fresh.device)) for k, v in source.kv(0, stop)]
        fresh.load_kv(0, stop, pairs)
        saved = source.snapshot()
        fresh.restore(fresh.checkpoint(stop, saved.conv.to(fresh.device), saved.ssm.to(fresh.device)))
        owner = cpu if model is gpu else gpu
        expected = _logits(owner, ids, source)
        errors.append(relative_error(_logits(model, ids, fresh), expected))
    return max(errors)
