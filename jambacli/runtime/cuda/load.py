"""Loads a model on a GPU: makes the memory plan, uploads the weights, chooses the operations, runs a trial.

If Triton's kernels cannot run (Triton is missing or too old, or the GPU is), plain torch computes on the GPU instead, more
slowly, and a warning says why.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from jambacli.errors import JambaError
from jambacli.kernels import Ops, choose_ops, reference_ops
from jambacli.model.attention import Attention
from jambacli.model.config import JambaConfig, check_gpu_kv_type
from jambacli.model.jamba import JambaModel, Layer
from jambacli.model.moe import MoE
from jambacli.runtime.cuda.memory import expert_layer, gpu_sizes, is_matrix
from jambacli.runtime.cuda.model import surviving
from jambacli.runtime.cuda.placement import PREFILL_CHUNK, Placement, place
from jambacli.runtime.cuda.upload import Uploader, with_planes
from jambacli.runtime.loader import GetTensor, build
from jambacli.runtime.options import DeviceOptions
from jambacli.units import format_bytes
from quant.formats import QTensor

if TYPE_CHECKING:
    from jambacli.kernels.triton.repack import Packed
    from jambacli.runtime.cuda.decoder import CudaDecoder

logger = logging.getLogger(__name__)


def free_memory(device: torch.device) -> int:
    """Bytes free on a GPU, after releasing unused memory of this process."""
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def upload(w: QTensor, device: torch.device, send: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Packed:
    """A matrix in planes on the GPU; a format without kernels is converted to f16. ``send`` as in ``repack``."""
    from jambacli.kernels.triton.repack import LAYOUTS, repack

    if w.format.name not in LAYOUTS:
        logger.warning("%s has no GPU kernel: its weights are kept as f16 on the GPU", w.format.name)
    return repack(with_planes(w), device, send)


def uploader(tensor: GetTensor, device: torch.device, host_layers: frozenset[int]) -> GetTensor:
    """``tensor`` with its result on the GPU, matrices in planes; experts of ``host_layers`` stay blocks in host memory."""
    send = Uploader(device) if device.type == "cuda" else None

    def get(name: str) -> QTensor:
        w = tensor(name)
        layer = expert_layer(name)
        if layer is not None and layer in host_layers:
            return _moved(w, torch.device("cpu"))
        if is_matrix(name):
            return upload(w, device, send)
        return QTensor(w.data.to(device), w.format, w.shape, w.scale)

    return get


def _moved(w: QTensor, device: torch.device) -> QTensor:
    """The same blocks on ``device``."""
    return QTensor(w.data.to(device), w.format, w.shape, None if w.scale is None else w.scale.to(device))


def put_on_gpu(
    config: JambaConfig,
    tensor: GetTensor,
    device: torch.device,
    plan: Placement,
    *,
    dtype: torch.dtype | None = None,
    graphs: bool = True,
    source: Any = None,
) -> JambaModel:
    """The model with its weights placed as in ``plan``, computed by Triton's kernels. ``tensor`` as in ``loader.build``.

    ``dtype``: operand type of the matrix units (default: the best of this GPU). Also runs on the CPU under Triton's
    interpreter.
    """
    from jambacli.kernels.triton.ops import TritonOps, compute_dtype
    from jambacli.runtime.cuda.decoder import CudaDecoder, decodable
    from jambacli.runtime.cuda.offload import HostExperts, HostKeys, host_attention, host_ffn

    dtype = dtype or compute_dtype(device)
    cpu = choose_ops()
    keys = HostKeys(device) if plan.host_kv else None
    kernels = TritonOps(dtype, None, keys)
    if config.n_moe_layers:  # even if all are on the GPU: when memory runs out, some move to host memory
        kernels.host = HostExperts(device, cpu, kernels.mlp)
    model = build(config, uploader(tensor, device, plan.host_layers), ops=kernels.as_ops(), source=source)
    model = dataclasses.replace(model, prefill_chunk=plan.chunk)
    spill = _Spill(tensor, cpu)
    if keys is not None:
        model = dataclasses.replace(model, kv_device=torch.device("cpu"))
    if not decodable(model.layers):
        return surviving(model, spill, kernels)
    ffn_on_host = {
        i: host_ffn(layer.ffn, layer.ffn_norm, layer.eps, cpu)
        for i, layer in enumerate(model.layers)
        if i in plan.host_layers and isinstance(layer.ffn, MoE)
    }
    attention_on_host = {
        i: host_attention(_attention_in_host_memory(layer.mixer, i, tensor), layer.mixer_norm, layer.eps, cpu)
        for i, layer in enumerate(model.layers)
        if keys is not None and isinstance(layer.mixer, Attention)
    }
    decoder = CudaDecoder(
        config,
        model.embedding,
        model.layers,
        model.output_norm,
        model.output,
        dtype,
        host_ffn=ffn_on_host,
        host_attention=attention_on_host,
        graphs=graphs,
    )
    spill.decoder = decoder
    # Precise unless ``decode_mode.chosen`` finds int8 to be faster.
    model = dataclasses.replace(model, decoder=decoder, precise=True, mode_measured=True)
    return surviving(model, spill, kernels)


class _Spill:
    """Moves the experts of one layer after another to host memory, the last layers first; see ``GpuModel.spill``."""

    def __init__(self, tensor: GetTensor, cpu: Ops) -> None:
        self._tensor, self._cpu = tensor, cpu
        self.decoder: CudaDecoder | None = None

    def __call__(self, layers: tuple[Layer, ...]) -> tuple[int, Layer] | None:
        from jambacli.kernels.triton.repack import Packed
        from jambacli.runtime.cuda.offload import host_ffn

        for i in reversed(range(len(layers))):
            layer = layers[i]
            if not (isinstance(layer.ffn, MoE) and isinstance(layer.ffn.gate, Packed)):
                continue
            gate, up, down = (
                _moved(self._tensor(f"blk.{i}.ffn_{part}_exps.weight"), torch.device("cpu"))
                for part in ("gate", "up", "down")
            )
            ffn = dataclasses.replace(layer.ffn, gate=gate, up=up, down=down)
            moved = dataclasses.replace(layer, ffn=ffn)
            if self.decoder is not None:
                self.decoder.move_experts(i, moved, host_ffn(ffn, layer.ffn_norm, layer.eps, self._cpu))
            return i, moved
        return None


def _attention_in_host_memory(m: Attention, layer: int, tensor: GetTensor) -> Attention:
    """The same attention layer with its weights as blocks in host memory."""

    def get(name: str) -> QTensor:
        return _moved(tensor(f"blk.{layer}.{name}.weight"), torch.device("cpu"))

    return dataclasses.replace(
        m, q_proj=get("attn_q"), k_proj=get("attn_k"), v_proj=get("attn_v"), out_proj=get("attn_output")
    )


def through_torch(config: JambaConfig, tensor: GetTensor, device: torch.device, source: Any = None) -> JambaModel:
    """The model on the GPU through plain torch: slow, but for any format and any GPU that torch supports."""
    model = build(config, lambda name: _moved(tensor(name), device), ops=reference_ops(), source=source)
    return surviving(dataclasses.replace(model, prefill_chunk=PREFILL_CHUNK))


# Prompt lengths that use different kernels: one token, whose third step is a recorded graph; a few; more than the rows of a
# small tile; enough to dequantize whole matrices and to split the scan into chunks; and for mixtures each expert's matrices.
_TRIAL_LENGTHS = (1, 1, 1, 3, 40, 300)
_TRIAL_OF_EXPERTS = 600


def trial_run(model: JambaModel, lengths: Sequence[int] | None = None) -> None:
    """Run a few passes, so that compile errors and a lack of memory appear now, not during an answer.

    Only the short ones if nothing is compiled, or with experts in host memory: longer ones would read all of these from the
    file and send them to the GPU. Raises whatever torch, Triton and CUDA raise, JambaError for logits that are not finite.
    """
    from jambacli.kernels.triton.repack import Packed

    offloaded = any(isinstance(y.ffn, MoE) and not isinstance(y.ffn.gate, Packed) for y in model.layers)
    if lengths is None:
        lengths = (*_TRIAL_LENGTHS, _TRIAL_OF_EXPERTS) if model.config.n_moe_layers else _TRIAL_LENGTHS
    lengths = [n for n in lengths if n < 10 or (model.ops.name == "triton" and not offloaded)]
    state = model.new_state(sum(lengths))
    for n in lengths:
        logits = model.forward(torch.zeros(n, dtype=torch.int64), state)
        if logits is None or not bool(torch.isfinite(logits).all()):
            raise JambaError("the trial run on the GPU gave logits that are not finite numbers")


def load_on_gpu(
    config: JambaConfig,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    tensor: GetTensor,
    device: torch.device,
    options: DeviceOptions = DeviceOptions(),  # noqa: B008
    *,
    ctx: int,
    kv_type: str = "f16",
    free_ram: int | None = None,
    source: Any = None,
) -> JambaModel:
    """Plan for ``ctx`` tokens of ``kv_type`` and load; ``tensors`` as in ``gpu_sizes``, ``tensor`` as in ``loader.build``.

    ``free_ram``: bytes of free host memory; the log record about the plan says if that is too little. Raises JambaError if
    the model does not fit, UsageError for an unknown KV type or an impossible number of layers. If memory runs out during
    the upload, the plan is made again for less.
    """
    check_gpu_kv_type(kv_type)
    limit = options.gpu_memory
    torch.cuda.set_device(device)
    while True:
        plan = place(
            config, gpu_sizes(tensors), ctx, kv_type, free_memory(device), gpu_memory=limit,
            cpu_experts=options.cpu_experts, cpu_kv=options.cpu_kv,
        )  # fmt: skip
        try:
            return _load_as_planned(config, tensor, device, plan, options, free_ram, source)
        except torch.OutOfMemoryError:
            # Another program takes memory too. Once less than the smallest plan is left, ``place`` says so.
            limit = int(0.85 * plan.budget)
        logger.warning("the GPU is out of memory (another program?): planning with %s", format_bytes(limit))


def _load_as_planned(
    config: JambaConfig, tensor: GetTensor, device: torch.device, plan: Placement, options: DeviceOptions,
    free_ram: int | None, source: Any,
) -> JambaModel:  # fmt: skip
    from jambacli.kernels.triton import why_not

    problem = why_not(device.index or 0)
    if problem is not None:
        if plan.host_layers or plan.host_kv:
            kept = "experts" if plan.host_layers else "keys and values"
            raise JambaError(f"{problem}; without it {kept} cannot stay in RAM", remedy="use {device} cpu")
        logger.info("%s: using plain torch on the GPU, which is slower", problem)
        return through_torch(config, tensor, device, source)
    remedy = (
        "{cpu_experts} sets how many layers keep their experts in RAM"
        if plan.host_layers and options.cpu_experts is None
        else None
    )
    logger.info("%s", JambaError(plan.describe(free_ram), remedy=remedy))  # worded as an error: it names an option
    from jambacli.runtime.cuda.decode_mode import chosen
    from jambacli.runtime.cuda.self_check import checked

    model = checked(put_on_gpu(config, tensor, device, plan, source=source), tensor)
    return model if options.precise else chosen(model)
