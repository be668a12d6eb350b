"""The working memory that a plan counts, against every allocation of a pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda import memory, offload
from jambacli.runtime.cuda.memory import GpuSizes, estimated_sizes, gpu_sizes, prefill_bytes
from jambacli.runtime.cuda.placement import Placement
from quant.formats import FORMATS, QTensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

MIXTURE = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
}
SHAPES = {
    "mixture": MIXTURE,
    "dense": MIXTURE | {"num_experts": 1, "intermediate_size": 512},
    "wide attention": MIXTURE | {"mamba_expand": 1, "num_key_value_heads": 4, "intermediate_size": 256},
}


class Watch(TorchDispatchMode):
    """Counts the bytes of live tensors that were made in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor) or x.untyped_storage().data_ptr() in inputs:
                continue
            storage = x.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in self._known:
                self._known[storage.data_ptr()] = weakref.finalize(
                    storage, self._gone, storage.data_ptr(), storage.nbytes()
                )
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return out

    def _gone(self, address: int, nbytes: int) -> None:
        self._known.pop(address, None)
        self.now -= nbytes


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels do nothing: only their memory matters."""
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(InterpretedFunction, "run", lambda *args, **options: None)
    # Their results are not stored: uninitialized values may be NaN.
    monkeypatch.setattr("jambacli.kernels.reference.kv_store", lambda x, cache: None)


def made(config: JambaConfig, fmt: str) -> dict[str, QTensor]:
    """Tensors of zeros. A router of zeros sends all tokens to the same experts, which is the worst case."""
    from jambacli.gguf.jamba_metadata import expected_tensors
    from jambacli.runtime.cuda.memory import is_matrix

    found = {}
    for name, shape in expected_tensors(config).items():
        form = FORMATS[fmt if is_matrix(name) and shape[-1] % FORMATS[fmt].block == 0 else "f32"]
        n = torch.Size(shape).numel()
        data = torch.zeros(n // form.block * form.block_bytes, dtype=torch.uint8)
        scale = torch.ones(shape[:-1]) if fmt == "i8" and form.name == "i8" else None
        found[name] = QTensor(data, form, shape, scale)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kv_type", "n", "past"), [("f16", 768, 0), ("q8_0", 256, 512), ("f32", 384, 100)])
def test_a_pass_takes_the_counted_memory(
    shape: str, kv_type: str, n: int, past: int, unlaunched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.runtime.cuda.load import put_on_gpu

    for module in ("jambacli.kernels.triton.ops", "jambacli.runtime.cuda.memory"):
        monkeypatch.setattr(f"{module}.DEQUANTIZED_PANEL_VALUES", 1 << 18)
    for module in ("jambacli.kernels.triton.attention", "jambacli.runtime.cuda.memory"):
        monkeypatch.setattr(f"{module}.MASK_VALUES", 1 << 15)
        monkeypatch.setattr(f"{module}.CONVERT_VALUES", 1 << 14)
    config = JambaConfig.from_hf(SHAPES[shape])
    tensors = made(config, "q8_0")
    model = put_on_gpu(config, tensors.__getitem__, torch.device("cpu"), Placement(0, 0, 0, 0, frozenset(), 2))
    state = model.new_state(past + n, kv_type)
    if past:
        state.begin(past)
        state.commit(past)
    state._reserve(past + n)
    with Watch() as watch:
        model.forward(torch.zeros(n, dtype=torch.int64), state)
    counted = prefill_bytes(config, past + n, kv_type, n, None)
    assert watch.most <= counted <= 1.25 * watch.most, (watch.most, counted)


@pytest.mark.parametrize("fmt", ["q8_0", "i8", "q5_0", "bf16"])
def test_streamed_experts_take_the_counted_memory(fmt: str, unlaunched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda.load import put_on_gpu

    monkeypatch.setattr(memory, "REPACK_VALUES", 1 << 16)
    monkeypatch.setattr("jambacli.kernels.triton.repack._CPU_VALUES", 1 << 16)
    monkeypatch.setattr(memory, "MASK_VALUES", 1)
    config = JambaConfig.from_hf(MIXTURE)
    tensors = made(config, fmt)
    sizes = gpu_sizes({name: (w.format.name, w.shape) for name, w in tensors.items()})
    plan = Placement(0, 0, 0, 0, frozenset({1, 3}), 2)
    model = put_on_gpu(config, tensors.__getitem__, torch.device("cpu"), plan)
    n = 600
    state = model.new_state(n)
    state._reserve(n)
    with Watch() as watch:
        model.forward(torch.zeros(n, dtype=torch.int64), state)
    slot = sizes.slot[3]
    # On one device both the page-locked and the GPU half of a slot are counted; on a GPU only the latter.
    expected = prefill_bytes(config, n, "f16", n, sizes.repacked[3]) + 2 * slot
    assert watch.most - 2 * slot <= expected <= 1.3 * (watch.most - 2 * slot), (watch.most, expected)


def test_planes_are_counted_to_the_byte() -> None:
    from jambacli.runtime.cuda.load import upload

    config = JambaConfig.from_hf(MIXTURE)
    for fmt in ("q4_0", "q5_0", "q8_0", "i8", "q6_k", "f32"):
        tensors = {name: w for name, w in made(config, fmt).items() if memory.is_matrix(name)}
        packed = {name: upload(w, torch.device("cpu")).nbytes for name, w in tensors.items()}
        sizes = gpu_sizes({name: (w.format.name, w.shape) for name, w in tensors.items()})
        assert sizes.total == sum(packed.values()), fmt
        for layer, nbytes in sizes.experts.items():
            assert nbytes == sum(n for name, n in packed.items() if name.startswith(f"blk.{layer}.ffn"))


def test_a_slot_holds_an_expert_to_the_byte() -> None:
    config = JambaConfig.from_hf(MIXTURE)
    for fmt in ("q4_0", "i8", "q6_k", "f16"):
        tensors = made(config, fmt)
        stacks = [tensors[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
        sizes = gpu_sizes({name: (w.format.name, w.shape) for name, w in tensors.items()})
        assert sizes.slot[1] == sum(size for w in stacks for size in offload._aligned_sizes(w))
        data = torch.zeros(sizes.slot[1], dtype=torch.uint8)
        packed = offload._repack(data, tuple(stacks))
        own = sum(p.nbytes for p in packed if p.q.untyped_storage().data_ptr() != data.untyped_storage().data_ptr())  # type: ignore[union-attr]
        assert sizes.repacked[1] == own


def test_the_estimate_is_near_the_exact_sizes() -> None:
    config = shape_config("jamba-mini")
    for quant in ("q4_k_m", "q8_0"):
        chosen = choices(config, quant)
        exact = gpu_sizes({name: (c.format, c.tensor.shape) for name, c in chosen.items()})
        weights = sum(c.nbytes for c in chosen.values())
        experts = sum(c.nbytes for name, c in chosen.items() if "_exps" in name)
        estimated = estimated_sizes(config, weights, experts)
        assert exact.total <= estimated.total <= 1.04 * exact.total
        for part in ("experts", "slot", "repacked"):
            some, all_ = getattr(estimated, part), getattr(exact, part)
            assert some.keys() == all_.keys()
            assert max(some.values()) == pytest.approx(max(all_.values()), rel=0.2)


def test_stacks_are_repacked_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole stack of experts never lies on the device as blocks and as planes."""
    from jambacli.evaluation.synthetic import random_weight
    from jambacli.kernels.triton import repack

    monkeypatch.setattr(repack, "_CPU_VALUES", 1024)
    device = torch.device("meta")
    sent: list[int] = []

    def send(piece: torch.Tensor) -> torch.Tensor:
        sent.append(piece.nbytes)
        return piece.to(device)

    for fmt in ("q4_k", "q6_k", "q8_0", "q3_k"):
        w = random_weight(fmt, (4, 8, 512))
        sent.clear()
        packed = repack.repack(w, device, send)
        assert packed.nbytes == repack.repack(w).nbytes
        assert sum(sent) == w.data.nbytes
        assert max(sent) <= w.data.nbytes // 16


def test_sizes_without_experts_are_fixed() -> None:
    config = shape_config("jamba-3b")
    sizes = gpu_sizes({name: (c.format, c.tensor.shape) for name, c in choices(config, "q4_k_m").items()})
    assert sizes == GpuSizes(sizes.fixed)
    assert sizes.total == sizes.fixed
    assert dataclasses.asdict(sizes)["slot"] == {}
