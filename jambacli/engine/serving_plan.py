"""Whether this machine serves a number of users, and otherwise the command of an engine for several GPUs that does.

Arithmetic on sizes alone; never imports torch. docs/scaling.md says what is gained and lost.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from jambacli.engine.parallel import MOST_PARALLEL, sequence_bytes
from jambacli.hardware.devices import Device
from jambacli.model.config import CHECKPOINT_BYTES, JambaConfig
from jambacli.runtime.memory_plan import prefill_flops, scratch_bytes

#: Bytes of the GPUs that the command is worked out for, unless it says otherwise.
GPU_BYTES = 80 * 1000**3
# The share of a GPU that vLLM takes for weights and caches by default.
_GPU_SHARE = 0.9
# Activations, CUDA graphs and the context, bytes a GPU.
_GPU_OVERHEAD = 4 * 1000**3
# GPUs of one machine.
_MOST_IN_A_NODE = 8
# Prompts that a machine serves well leave it idle most of the time.
_SHARE_OF_TIME = 0.5


@dataclass(frozen=True)
class DevicePlan:
    """What a device can do for several users: ``at_once`` replies at a time (0: the model does not fit).

    ``sequence``: bytes of one user's context. ``read_seconds``: time to read one whole context, None if the rate is unknown.
    ``per_hour``: how many whole contexts it reads in an hour when half of its time goes to replies.
    """

    device: Device
    at_once: int
    sequence: int
    read_seconds: float | None
    per_hour: float | None


@dataclass(frozen=True)
class Handover:
    """A command of vLLM: ``gpus`` of ``gpu_bytes`` in ``nodes`` machines, ``quantized``: experts in int8."""

    command: str
    gpus: int
    nodes: int
    gpu_bytes: int
    quantized: bool


@dataclass(frozen=True)
class ServingPlan:
    """The plan for ``users`` with ``ctx`` tokens of context each.

    ``handover``: what serves them elsewhere; None where no number of GPUs is known that does.
    """

    users: int
    ctx: int
    kv_type: str
    devices: list[DevicePlan]
    handover: Handover | None

    @property
    def served(self) -> bool:
        """Whether a device of this machine takes all users at once."""
        return any(device.at_once >= self.users for device in self.devices)


def serving_plan(
    config: JambaConfig,
    weights: int,
    users: int,
    ctx: int,
    kv_type: str,
    devices: Sequence[Device],
    *,
    repository: str,
    name: str,
    family: str = "",
    handles: Sequence[str] = (),
    gpu_bytes: int = GPU_BYTES,
) -> ServingPlan:
    """The plan for ``users`` at a time; ``weights`` in bytes as they are on disk.

    ``repository``: what vLLM is to load, a repository of the hub or a directory. ``family``, ``handles``: the chat template's,
    as in ``gguf.summary``. ``gpu_bytes``: memory of each GPU of the other machine.
    """
    each = sequence_bytes(config, ctx, kv_type, drafts=True)
    plans = []
    for device in devices:
        room = device.available - weights - scratch_bytes(config) - CHECKPOINT_BYTES
        at_once = max(0, min(MOST_PARALLEL, room // each))
        seconds = prefill_flops(config, ctx) / device.flops if device.flops > 0 else None
        per_hour = None if seconds is None else 3600 * _SHARE_OF_TIME / seconds
        plans.append(DevicePlan(device, at_once, each, seconds, per_hour))
    handover = _handover(config, users, ctx, repository, name, family, handles, gpu_bytes)
    return ServingPlan(users, ctx, kv_type, plans, handover)


def tensor_parallel_sizes(config: JambaConfig) -> list[int]:
    """The numbers of GPUs of one machine over which vLLM can split the heads of this model."""
    heads, kv = config.n_heads, config.n_kv_heads
    if not kv:
        return [1]
    return [n for n in range(1, _MOST_IN_A_NODE + 1) if heads % n == 0 and (kv % n == 0 or n % kv == 0)]


def _handover(
    config: JambaConfig,
    users: int,
    ctx: int,
    repository: str,
    name: str,
    family: str,
    handles: Sequence[str],
    gpu_bytes: int,
) -> Handover | None:
    contexts = users * (ctx * config.kv_bytes_per_token("f16") + config.state_bytes())
    for nodes in (1, 2, 4, 8):
        for quantized in (False, True) if config.n_moe_layers else (False,):
            need = _vllm_weights(config, quantized) + contexts
            for tensor in tensor_parallel_sizes(config):
                # The layers of a model are split over machines, its matrices over the GPUs of each.
                if nodes > 1 and tensor < max(tensor_parallel_sizes(config)):
                    continue
                room = int(gpu_bytes * _GPU_SHARE) - _GPU_OVERHEAD
                if need <= room * tensor * nodes:
                    command = _command(repository, name, ctx, tensor, nodes, quantized, family, handles)
                    return Handover(command, tensor * nodes, nodes, gpu_bytes, quantized)
    return None


def _vllm_weights(config: JambaConfig, quantized: bool) -> int:
    """Bytes of the weights in bf16, or with the experts' matrices in int8."""
    total = 2 * config.params()
    if quantized:
        total -= config.n_moe_layers * config.n_experts * 3 * config.hidden * config.ffn
    return total


def _command(
    repository: str,
    name: str,
    ctx: int,
    tensor: int,
    nodes: int,
    quantized: bool,
    family: str,
    handles: Sequence[str],
) -> str:
    words = ["vllm", "serve", repository, "--served-model-name", name, "--max-model-len", str(ctx)]
    words += ["--tensor-parallel-size", str(tensor)]
    if nodes > 1:
        words += ["--pipeline-parallel-size", str(nodes), "--distributed-executor-backend", "ray"]
    # AI21 asks for the state in float32; in 16 bits it drifts over a long text.
    words += ["--mamba-ssm-cache-dtype", "float32", "--enable-prefix-caching"]
    if quantized:
        words += ["--quantization", "experts_int8"]
    if "tools" in handles:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes" if family == "ChatML" else "jamba"]
    if "thinking" in handles:
        words += ["--reasoning-parser", "deepseek_r1"]
    return shlex.join([*words, "--enable-prompt-tokens-details"])
