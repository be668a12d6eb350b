"""Puts a model on a card: which operations, which weights where. Knows nothing of how they are computed, or of files.

Where Triton's kernels cannot run (no triton, one too old, an old card), the same model runs on the card through plain torch,
slower, and one line says why.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from jambacli import ui
from jambacli.errors import JambaError, UsageError
from jambacli.kernels import choose_ops, reference_ops
from jambacli.model.attention import Attention
from jambacli.model.config import KV_TYPES, JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.model.moe import MoE
from jambacli.runtime.cuda.memory import card_sizes, expert_layer, is_matrix
from jambacli.runtime.cuda.placement import Placement, place
from jambacli.runtime.cuda.upload import Uploader
from jambacli.runtime.loader import GetTensor, build
from quant.formats import FORMATS, QTensor

if TYPE_CHECKING:
    from jambacli.kernels.triton.repack import Packed


def free_memory(device: torch.device) -> int:
    """Bytes free on a card, what this process has let go of included."""
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def upload(w: QTensor, device: torch.device, send: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Packed:
    """A matrix in planes on the card. A format without kernels becomes f16 there. ``send`` as ``repack``."""
    from jambacli.kernels import reference
    from jambacli.kernels.triton.repack import LAYOUTS, repack

    if w.format.name not in LAYOUTS:
        ui.warn(f"{w.format.name} has no GPU kernel: its weights are kept as f16 on the card")
        values = reference.dequantize(w).to(torch.float16)
        w = QTensor(values.view(-1).view(torch.uint8), FORMATS["f16"], w.shape)
    return repack(w, device, send)


def uploader(tensor: GetTensor, device: torch.device, host_layers: frozenset[int]) -> GetTensor:
    """``tensor`` with what it gives on the card: matrices in planes, experts of ``host_layers`` as they are."""
    send = Uploader(device) if device.type == "cuda" else None

    def get(name: str) -> QTensor:
        w = tensor(name)
        layer = expert_layer(name)
        if layer is not None and layer in host_layers:
            return QTensor(w.data.cpu(), w.format, w.shape, None if w.scale is None else w.scale.cpu())
        if is_matrix(name):
            return upload(w, device, send)
        return QTensor(w.data.to(device), w.format, w.shape, w.scale)

    return get


def put_on_card(
    config: JambaConfig,
    tensor: GetTensor,
    device: torch.device,
    plan: Placement,
    *,
    dtype: torch.dtype | None = None,
    graphs: bool = True,
    source: Any = None,
) -> JambaModel:
    """The model with its weights where ``plan`` says, computed by Triton's kernels. ``tensor`` as ``loader.build``.

    ``dtype``: what matrix units multiply (the card's own choice by default). Runs on the CPU under Triton's
    interpreter too.
    """
    from jambacli.kernels.triton.ops import TritonOps, compute_dtype, triton_ops
    from jambacli.runtime.cuda.decoder import CudaDecoder, decodable
    from jambacli.runtime.cuda.offload import HostExperts, HostKeys, host_attention, host_step

    dtype = dtype or compute_dtype(device)
    cpu = choose_ops()
    host = HostExperts(device, cpu, TritonOps(dtype).mlp) if plan.host_layers else None
    keys = HostKeys(device) if plan.host_kv else None
    ops = triton_ops(dtype, host, keys)
    model = build(config, uploader(tensor, device, plan.host_layers), ops=ops, source=source)
    model = dataclasses.replace(model, chunk=plan.chunk)
    if keys is not None:
        model = dataclasses.replace(model, kv_device=torch.device("cpu"))
    if not decodable(model.layers):
        return model
    steps = {
        i: host_step(layer.ffn, layer.ffn_norm, layer.eps, cpu)
        for i, layer in enumerate(model.layers)
        if i in plan.host_layers and isinstance(layer.ffn, MoE)
    }
    attention = {
        i: host_attention(_at_home(layer.mixer, i, tensor), layer.attn_norm, layer.eps, cpu)
        for i, layer in enumerate(model.layers)
        if keys is not None and isinstance(layer.mixer, Attention)
    }
    decoder = CudaDecoder(
        config,
        model.token_embd,
        model.layers,
        model.output_norm,
        model.output,
        dtype,
        host=steps,
        attention=attention,
        graphs=graphs,
    )
    return dataclasses.replace(model, decoder=decoder)


def _at_home(m: Attention, layer: int, tensor: GetTensor) -> Attention:
    """The same attention with its weights' blocks in the computer's memory."""

    def get(name: str) -> QTensor:
        w = tensor(f"blk.{layer}.{name}.weight")
        return QTensor(w.data.cpu(), w.format, w.shape, None if w.scale is None else w.scale.cpu())

    return dataclasses.replace(m, q=get("attn_q"), k=get("attn_k"), v=get("attn_v"), output=get("attn_output"))


def through_torch(config: JambaConfig, tensor: GetTensor, device: torch.device, source: Any = None) -> JambaModel:
    """The model on the card through plain torch: slow, but with any format and any card that torch supports."""

    def get(name: str) -> QTensor:
        w = tensor(name)
        return QTensor(w.data.to(device), w.format, w.shape, None if w.scale is None else w.scale.to(device))

    return build(config, get, ops=reference_ops(), source=source)


# Numbers of tokens for which a pass launches different kernels: one; a few; more than a small tile's rows; so many that
# weights are expanded and the scan is cut into chunks.
_LENGTHS = (1, 3, 40, 300)


def try_out(model: JambaModel, lengths: Sequence[int] = _LENGTHS) -> None:
    """Run a token, then more at once: what does not compile or does not fit on this card shows now, not in an answer.

    Only a few where nothing is compiled, and with experts in RAM: more would have all of them read from the file and sent
    to the card. Raises whatever the card's software raises, and JambaError for logits that are no numbers.
    """
    from jambacli.kernels.triton.repack import Packed

    visiting = any(isinstance(y.ffn, MoE) and not isinstance(y.ffn.gate, Packed) for y in model.layers)
    lengths = [n for n in lengths if n < 10 or (model.ops.name == "triton" and not visiting)]
    state = model.new_state(sum(lengths))
    for n in lengths:
        logits = model.forward(torch.zeros(n, dtype=torch.int64), state)
        if logits is None or not bool(torch.isfinite(logits).all()):
            raise JambaError("a first token on the card gives no numbers")


def load_on_card(
    config: JambaConfig,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    tensor: GetTensor,
    device: torch.device,
    *,
    ctx: int,
    kv_type: str = "f16",
    gpu_memory: int | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
    ram: int | None = None,
    say: Callable[[str], None] = ui.note,
    source: Any = None,
) -> JambaModel:
    """Plan and load: ``tensors`` are (format, shape) by name, to plan with; the rest as ``place`` and ``put_on_card``.

    ``ram``: bytes free in the computer's memory; where what stays there needs more, the line about the plan says so.
    Raises JambaError when the model does not fit, UsageError for a KV type there is not.
    """
    from jambacli.kernels.triton import why_not

    if kv_type not in KV_TYPES:
        raise UsageError(f"KV type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
    plan = place(
        config, card_sizes(tensors), ctx, kv_type, free_memory(device), gpu_memory=gpu_memory, cpu_experts=cpu_experts,
        cpu_kv=cpu_kv,
    )  # fmt: skip
    torch.cuda.set_device(device)
    problem = why_not(device.index or 0)
    if problem is not None:
        if plan.host_layers or plan.host_kv:
            left = "experts" if plan.host_layers else "keys and values"
            raise JambaError(f"{problem}; without it {left} cannot stay in RAM: use --device cpu")
        say(f"{problem}: computing on the card through plain torch, which is slower")
        return through_torch(config, tensor, device, source)
    say(plan.describe(ram))
    return put_on_card(config, tensor, device, plan, source=source)
