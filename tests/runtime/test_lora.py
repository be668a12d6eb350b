"""LoRA adapters at run time, against the same model with the products added to its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli import Jamba
from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.gguf.jamba_metadata import jamba_config
from jambacli.gguf.reader import GGUFFile
from jambacli.kernels import cpu, reference
from jambacli.kernels.low_rank import AdaptedTensor, adapted, low_rank
from jambacli.model.jamba import JambaModel, Span
from jambacli.model.lora import AdapterSet
from jambacli.runtime.loader import build
from jambacli.runtime.lora import delta, load_adapters, parse_lora
from quant.formats import FORMATS, QTensor
from tests.support import jamba_gguf
from tests.support.adapters import adapter_for, is_linear, random_pairs, write_adapter
from tests.support.weights import random_weight

SHAPES = {
    "dense": jamba_gguf.Shape(layers=3, hidden=256, ffn=512, experts=1, attention=(1,), vocab=96),
    "moe": jamba_gguf.Shape(layers=3, hidden=256, ffn=256, experts=4, attention=(1,), moe=(0, 2), vocab=96),
}
IDS = torch.arange(40) * 7 % 90 + 3
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built here")


@pytest.fixture(scope="module", params=list(SHAPES))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A random model in f32, and two adapters of all its linear layers."""
    folder = tmp_path_factory.mktemp(request.param)
    model = jamba_gguf.write(folder / "model.gguf", SHAPES[request.param], kind="f32")
    one = adapter_for(folder / "one.gguf", model, rank=4, seed=1)
    two = adapter_for(
        folder / "two.gguf", model, rank=3, seed=2, which=lambda name: is_linear(name) and "ssm" not in name
    )
    return model, one, two


def logits(model: JambaModel, *, step: int = 64, adapters: AdapterSet | None = None) -> torch.Tensor:
    """The logits after each of IDS, read in pieces."""
    state = model.new_state(64, "f32", adapters=adapters)
    rows = [model.forward(part, state, logits="all") for part in IDS.split(step)]
    return torch.cat([r for r in rows if r is not None])


def merged(path: Path, adapters: AdapterSet) -> JambaModel:
    """The model with the products added to its weights."""
    file = GGUFFile.open(path)

    def tensor(name: str) -> QTensor:
        weight, low = file.qtensor(name), adapters.low(name)
        if not low:
            return weight
        values = reference.dequantize(weight) + sum(delta(part, weight.shape[-2]) for part in low)
        return QTensor(values.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], weight.shape)

    return build(jamba_config(file.metadata, file.tensors), tensor, source=file)


def test_adapters_compute_what_added_weights_do(files: tuple[Path, Path, Path]) -> None:
    """Reading, single tokens and several at once; one adapter, and two with scales."""
    path, one, two = files
    for loras in ([one], [f"{one}:0.5", (two, -1.5)]):
        model = Jamba.load(path, device="cpu", loras=loras).model
        exact = logits(merged(path, model.adapters))
        plain = logits(model.with_adapters(AdapterSet()), adapters=AdapterSet())
        assert (exact - plain).abs().max() > 0.05  # they change something
        for step in (64, 1, 8):
            assert (logits(model, step=step) - exact).abs().max() < 5e-4  # their sums are of another order


@needs_kernels
def test_tokens_have_the_bits_of_single_ones_whatever_is_in_the_step(files: tuple[Path, Path, Path]) -> None:
    """Steps with several tokens, several sequences, other adapters, and other numbers of threads."""
    path, one, two = files
    model = Jamba.load(path, device="cpu", loras=[one, (two, 0.5)]).model
    sets = [model.adapters, model.adapters.scaled([0, 1]), model.adapters.scaled([0, 0])]
    alone = [logits(model, step=1, adapters=s) for s in sets]
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[1], alone[2])
    assert torch.equal(logits(model, step=8), alone[0])
    states = [model.new_state(64, "f32", adapters=s) for s in (*sets, sets[0])]
    rows: list[list[torch.Tensor]] = [[] for _ in states]
    for part in IDS.split(4):
        for i, out in enumerate(model.forward_spans([Span(state, part, "all") for state in states])):
            assert out is not None
            rows[i].append(out)
    for i, expected in enumerate((*alone, alone[0])):
        assert torch.equal(torch.cat(rows[i]), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        assert torch.equal(logits(model, step=1), alone[0])
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_pieces_of_prompts_read_together_have_the_bits_of_each_alone(files: tuple[Path, Path, Path]) -> None:
    path, one, _ = files
    model = Jamba.load(path, device="cpu", loras=[one]).model
    parts = [IDS[:20], IDS[5:40], IDS[2:21]]
    alone = [model.forward(ids, model.new_state(64), logits="all") for ids in parts]
    together = model.forward_spans([Span(model.new_state(64), ids, "all") for ids in parts])
    for a, b in zip(alone, together, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_a_scale_of_zero_is_the_model_without_the_adapter(files: tuple[Path, Path, Path]) -> None:
    path, one, _ = files
    off = Jamba.load(path, device="cpu", loras=[(one, 0.0)])
    plain = Jamba.load(path, device="cpu")
    assert torch.equal(logits(off.model), logits(plain.model))
    assert off.fingerprint == plain.fingerprint


def test_the_fingerprint_tells_adapters_and_scales_apart(files: tuple[Path, Path, Path]) -> None:
    path, one, two = files
    choices: list[list[tuple[Path, float]]] = [[], [(one, 1.0)], [(one, 0.5)], [(two, 1.0)], [(one, 1.0), (two, 1.0)]]
    models = [Jamba.load(path, device="cpu", loras=loras) for loras in choices]
    names = [model.fingerprint for model in models]
    assert len(set(names)) == len(names)
    assert names == [Jamba.load(path, device="cpu", loras=loras).fingerprint for loras in choices]
    for model in models:
        assert [model.weights.are(name) for name in names] == [name == model.fingerprint for name in names]


def adapted_weight(fmt: str, *shape: int) -> AdaptedTensor:
    pairs = random_pairs({"w": shape}, rank=5)["w"]
    low = low_rank(*map(torch.from_numpy, pairs), 0.7)
    second = low_rank(*map(torch.from_numpy, random_pairs({"w": shape}, rank=2, seed=3)["w"]), -1.0)
    weight = adapted(random_weight(fmt, shape), (low, second))
    assert isinstance(weight, AdaptedTensor)
    return weight


@needs_kernels
@pytest.mark.parametrize("fmt", ["f32", "bf16", "q8_0", "q4_k", "i8", "iq4_nl"])
def test_products_beside_quantized_weights_are_exact(fmt: str) -> None:
    """What the kernels add to the product of a quantized weight is the product of the pair, of every kind of call."""
    from jambacli.kernels.cpu import decode, prefill

    x = torch.randn(37, 256, generator=torch.Generator().manual_seed(1))
    for rows in (40, 37, 256):  # 37: no multiple of what is multiplied at a time
        w = adapted_weight(fmt, rows, 256)
        expected = sum((p.product(x, rows) for p in w.low), torch.zeros(37, rows))
        for call in (lambda x, w: decode.linear(x, w, precise=True), prefill.linear):
            added = call(x, w) - call(x, w.base)
            assert (added - expected).abs().max() <= 2e-5 * expected.abs().max()


@needs_kernels
@pytest.mark.parametrize("fmt", ["f32", "q8_0"])
def test_networks_of_experts_are_those_of_the_reference(fmt: str) -> None:
    from jambacli.kernels.cpu import prefill

    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(1))
    gate, up = adapted_weight(fmt, 4, 288, 256), adapted_weight(fmt, 4, 288, 256)
    down = adapted_weight(fmt, 4, 256, 288)
    router = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    expected = reference.experts(x, router, gate, up, down, 2)
    plain = reference.experts(x, router, gate.base, up.base, down.base, 2)
    got = prefill.experts(x, router, gate, up, down, 2, precise=True)
    most = {"f32": 1e-4, "q8_0": 0.02}[fmt]
    assert (got - expected).abs().max() <= most * expected.abs().max()
    assert (expected - plain).abs().max() > 5 * most * expected.abs().max()


def test_a_scale_follows_the_name() -> None:
    assert parse_lora("a/b.gguf:0.5") == (Path("a/b.gguf"), 0.5)
    assert parse_lora("a:b.gguf") == (Path("a:b.gguf"), 1.0)
    assert parse_lora((Path("x.gguf"), 2)) == (Path("x.gguf"), 2.0)
    for scale in ("nan", "inf", "1e9"):
        with pytest.raises(UsageError, match="scale outside"):
            parse_lora(f"x.gguf:{scale}")


def test_what_does_not_fit_is_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, one, _ = files
    with GGUFFile.open(path) as file:

        def refused(name: Path, error: type[JambaError], words: str) -> None:
            with pytest.raises(error, match=words):
                load_adapters([name], file.tensors, path)

        good = {"blk.0.ssm_in.weight": (np.zeros((2, 256), np.float32), np.zeros((1024, 2), np.float32))}
        wrong = {"blk.0.ssm_in.weight": (np.zeros((2, 128), np.float32), np.zeros((1024, 2), np.float32))}
        nan = {"blk.0.ssm_in.weight": (np.full((2, 256), np.nan, np.float32), np.zeros((1024, 2), np.float32))}
        missing = {"blk.7.attn_q.weight": (np.zeros((2, 256), np.float32), np.zeros((256, 2), np.float32))}
        embedding = {"token_embd.weight": (np.zeros((2, 96), np.float32), np.zeros((256, 2), np.float32))}
        apart = {"blk.0.ssm_in.weight": (np.zeros((2, 256), np.float32), np.zeros((1024, 3), np.float32))}
        refused(path, BadFileError, "it is a model")
        refused(write_adapter(tmp_path / "1", wrong), BadFileError, "another model")
        refused(write_adapter(tmp_path / "2", nan), BadFileError, "NaN")
        refused(write_adapter(tmp_path / "3", missing), BadFileError, "another model")
        refused(write_adapter(tmp_path / "4", embedding), UnsupportedError, "only linear layers")
        refused(write_adapter(tmp_path / "5", apart), BadFileError, "do not fit each other")
        refused(write_adapter(tmp_path / "6", good, alpha=float("nan")), BadFileError, "adapter.lora.alpha")
        refused(write_adapter(tmp_path / "7", good, arch="llama"), UnsupportedError, "only jamba")
        refused(write_adapter(tmp_path / "8", good, adapter_type="dora"), UnsupportedError, "only lora")
        refused(tmp_path / "none.gguf", JambaError, "none.gguf")
        with pytest.raises(UsageError, match="named twice"):
            load_adapters([one, one], file.tensors, path)
    with pytest.raises(UnsupportedError, match="LoRA adapter, not a model"):
        Jamba.load(one, device="cpu")


def test_a_model_that_takes_no_adapters_says_so(files: tuple[Path, Path, Path]) -> None:
    path, one, _ = files
    model = Jamba.load(path, device="cpu", loras=[one]).model
    bare = dataclasses.replace(model, adapt=None)
    with pytest.raises(JambaError, match="cannot be applied"):
        bare.forward(IDS, bare.new_state(64))


def test_damaged_adapters_are_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Every truncation gives an error, never a crash."""
    path, one, _ = files
    whole = one.read_bytes()
    with GGUFFile.open(path) as file:
        for size in (0, 3, 20, 100, 500, 2000, len(whole) // 2, len(whole) - 1):
            cut = tmp_path / "cut.gguf"
            cut.write_bytes(whole[:size])
            with pytest.raises(JambaError):
                load_adapters([cut], file.tensors, path)
