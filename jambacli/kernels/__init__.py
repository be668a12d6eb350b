"""Which backend computes the model's operations, and the one place where threads are set; knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

    Linear = Callable[[torch.Tensor, QTensor], torch.Tensor]


@dataclass(frozen=True)
class Ops:
    """The operations a model is made of, as one backend computes them; ``kernels.reference`` says what each means."""

    name: str
    embed: Callable[[torch.Tensor, QTensor], torch.Tensor]
    linear: Linear
    mlp: Callable[[torch.Tensor, QTensor, QTensor, QTensor], torch.Tensor]
    experts: Callable[[torch.Tensor, torch.Tensor, QTensor, QTensor, QTensor, int], torch.Tensor]
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    causal_conv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    selective_scan: Callable[..., torch.Tensor]
    kv_store: Callable[[torch.Tensor, torch.Tensor], None]
    attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def reference_ops() -> Ops:
    """Plain torch: slow, on any device, and what every other backend is compared with."""
    from jambacli.kernels import reference as r

    return Ops(
        name="torch",
        embed=r.embed,
        linear=r.linear,
        mlp=r.mlp,
        experts=r.experts,
        rms_norm=r.rms_norm,
        causal_conv=r.causal_conv,
        selective_scan=r.selective_scan,
        kv_store=r.kv_store,
        attention=r.attention,
    )


def choose_ops() -> Ops:
    """The fastest operations for this machine's CPU: the C++ library's where it was built, torch's elsewhere."""
    return reference_ops()
