"""A tiny model through the Triton kernels against the reference: prefill, decode, experts in RAM, moved states."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from jambacli.gpu_check.models import relative_error
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.placement import Placement
from jambacli.runtime.loader import build
from quant.formats import QTensor
from tests.support.log_lines import log_lines
from tests.support.triton_model import SHAPE, tiny_config, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter takes a second per token even for this: two layers, 64 wide, in formats with blocks of 32 values.
SMALL = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "mamba_dt_rank": 32,
    "vocab_size": 96,
    "num_attention_heads": 2,
}


def pair(
    config: JambaConfig, tensors: dict[str, QTensor], host_layers: set[int], *, cpu_kv: bool = False
) -> tuple[JambaModel, JambaModel]:
    from jambacli.runtime.cuda.load import put_on_gpu

    plan = Placement(0, 0, 0, 0, frozenset(host_layers), config.n_moe_layers, host_kv=int(cpu_kv))
    gpu = put_on_gpu(config, tensors.__getitem__, DEVICE, plan, dtype=torch.float32)
    return build(config, tensors.__getitem__, ops=reference_ops()), gpu


def check(
    config: JambaConfig,
    tensors: dict[str, QTensor],
    host_layers: set[int],
    kv_type: str,
    tolerance: float,
    cpu_kv: bool = False,
) -> None:
    cpu, gpu = pair(config, tensors, host_layers, cpu_kv=cpu_kv)
    ids = torch.randint(0, config.vocab_size, (6,), generator=torch.Generator().manual_seed(3))
    on_host, on_gpu = cpu.new_state(32, kv_type), gpu.new_state(32, kv_type)
    for part in (ids[:3], ids[3:4], ids[4:5]):
        expected, got = cpu.forward(part, on_host), gpu.forward(part, on_gpu)
        assert expected is not None
        assert got is not None
        assert relative_error(got.cpu(), expected) < tolerance
    # A state from the GPU continues on the CPU: the same bytes, the same values.
    moved = cpu.new_state(32, kv_type)
    moved.load_kv(0, 5, [(k.cpu(), v.cpu()) for k, v in on_gpu.kv(0, 5)])
    saved = on_gpu.snapshot()
    moved.restore(moved.checkpoint(5, saved.conv.cpu(), saved.ssm.cpu()))
    expected, got = cpu.forward(ids[5:], moved), gpu.forward(ids[5:], on_gpu)
    assert expected is not None
    assert got is not None
    assert relative_error(got.cpu(), expected) < tolerance


@pytest.mark.parametrize(("host_layers", "kv_type"), [(set(), "f32"), ({1}, "f16")])
def test_a_small_model_equals_the_reference(host_layers: set[int], kv_type: str) -> None:
    config = JambaConfig.from_hf(SMALL)
    # Experts in RAM go through the C++ kernels, which round activations to eight bits.
    check(config, tiny_tensors(config, "legacy"), host_layers, kv_type, 2e-2 if host_layers else 2e-4)


def test_a_step_reads_its_token_on_the_gpu() -> None:
    """So the recorded graph includes the embedding."""
    from jambacli.kernels import reference
    from jambacli.kernels.triton.interleave import natural

    config = JambaConfig.from_hf(SMALL)
    tensors = tiny_tensors(config, "legacy")
    _, gpu = pair(config, tensors, set())
    steps = gpu.decoder._bind(gpu.new_state(8)).stretches[0]
    # Embedding, Mamba, experts or network and attention with its three kernels in one step, output.
    assert len(steps) == gpu.decoder.launches(gpu.new_state(8)) == 1 + 4 + 6 + 2 * 2 + 1
    gpu.decoder._buffers.token.fill_(7)
    steps[0]()
    expected = reference.embed(torch.tensor([7]), tensors["token_embd.weight"])
    got = natural(gpu.decoder._buffers.x.cpu(), config.hidden)
    assert torch.allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_keys_and_values_in_ram(kv_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import upload

    monkeypatch.setattr(upload, "PIECE", 300)  # so small that these caches use both buffers several times
    config = JambaConfig.from_hf(SMALL)
    tensors = tiny_tensors(config, "legacy")
    _, gpu = pair(config, tensors, set(), cpu_kv=True)
    assert gpu.kv_device == torch.device("cpu")
    assert gpu.new_state(8).caches[0].k.device.type == "cpu"
    assert len(gpu.decoder._bind(gpu.new_state(8)).stretches) == 3  # the attention layer is between two stretches
    check(config, tensors, set(), kv_type, 2e-2, cpu_kv=True)


@pytest.mark.slow
@pytest.mark.parametrize("formats", ["k", "int8"])
def test_a_model_of_four_layers_equals_the_reference(formats: str) -> None:
    config = tiny_config()
    check(config, tiny_tensors(config, formats), set(), "f32", 2e-4)


@pytest.mark.parametrize("formats", ["legacy", "int8"])
def test_many_tokens_through_experts_in_ram_are_streamed(formats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import offload

    monkeypatch.setattr(offload, "MAX_CPU_TOKENS", 1)
    config = JambaConfig.from_hf(SMALL)
    cpu, gpu = pair(config, tiny_tensors(config, formats), {1})
    ids = torch.arange(5)
    expected, got = cpu.forward(ids, cpu.new_state(8)), gpu.forward(ids, gpu.new_state(8))
    assert expected is not None
    assert got is not None
    assert relative_error(got.cpu(), expected) < 1e-3


def test_if_streaming_fails_the_cpu_computes_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jambacli.runtime.cuda import offload

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: the link is down\nand more")

    monkeypatch.setattr(offload, "MAX_CPU_TOKENS", 1)
    monkeypatch.setattr(offload.HostExperts, "_send", broken)
    config = JambaConfig.from_hf(SMALL)
    cpu, gpu = pair(config, tiny_tensors(config, "legacy"), {1})
    on_host, on_gpu = cpu.new_state(8), gpu.new_state(8)
    with log_lines() as lines:
        for _ in range(2):
            expected, got = cpu.forward(torch.arange(4), on_host), gpu.forward(torch.arange(4), on_gpu)
            assert expected is not None
            assert got is not None
            assert relative_error(got.cpu(), expected) < 2e-2
    said = "\n".join(lines)
    assert said.count("experts cannot be streamed to the GPU (CUDA error: the link is down)") == 1


def test_without_page_locked_memory_uploads_work_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jambacli.runtime.cuda import offload, upload

    def none_left(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(upload, "page_locked", none_left)
    monkeypatch.setattr(upload, "_warned", False)
    monkeypatch.setattr(offload, "MAX_CPU_TOKENS", 1)
    source = torch.randn(1000, 3)
    with log_lines() as lines:
        assert torch.equal(upload.Uploader(DEVICE, 1024)(source).cpu(), source)
        config = JambaConfig.from_hf(SMALL)
        cpu, gpu = pair(config, tiny_tensors(config, "legacy"), {1})
        expected, got = cpu.forward(torch.arange(5), cpu.new_state(8)), gpu.forward(torch.arange(5), gpu.new_state(8))
    assert expected is not None
    assert got is not None
    assert relative_error(got.cpu(), expected) < 1e-3
    assert sum("no page-locked memory" in line for line in lines) == 1


def test_the_trial_run_covers_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels.triton import conv
    from jambacli.runtime.cuda.load import trial_run

    config = JambaConfig.from_hf(SMALL)
    tensors = tiny_tensors(config, "legacy")
    gpu = pair(config, tensors, set())[1]
    trial_run(gpu, (1, 3, 12))
    seen: list[int] = []
    forward = type(gpu).forward
    monkeypatch.setattr(
        type(gpu), "forward", lambda self, ids, state: seen.append(len(ids)) or forward(self, ids, state)
    )
    trial_run(pair(config, tensors, {1})[1], (1, 3, 12))
    assert seen == [1, 3]  # it does not read all experts in RAM

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(conv, "causal_conv", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        trial_run(pair(config, tensors, set())[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can record graphs")
def test_decode_goes_on_if_graphs_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = JambaConfig.from_hf(SMALL)
    cpu, gpu = pair(config, tiny_tensors(config, "legacy"), set())
    # A torch without CUDA refuses to make a graph, as a driver may.
    monkeypatch.setattr(gpu.decoder, "_graphs", True)
    on_host, on_gpu = cpu.new_state(8, "f32"), gpu.new_state(8, "f32")
    with log_lines() as lines:
        for token in (3, 4):
            expected, got = cpu.forward(torch.tensor([token]), on_host), gpu.forward(torch.tensor([token]), on_gpu)
            assert expected is not None
            assert got is not None
            assert relative_error(got, expected) < 2e-4
    assert any("CUDA graphs do not work" in line for line in lines)
