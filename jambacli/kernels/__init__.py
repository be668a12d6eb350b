"""The backends that compute the model's operations, and the number of CPU threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from jambacli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor


MAX_THREADS = 1024


@dataclass(frozen=True)
class Ops:
    """One backend's implementation of the operations; ``kernels.reference`` defines each."""

    name: str
    embed: Callable[[torch.Tensor, QTensor], torch.Tensor]
    linear: Callable[[torch.Tensor, QTensor], torch.Tensor]
    mlp: Callable[[torch.Tensor, QTensor, QTensor, QTensor], torch.Tensor]
    experts: Callable[..., torch.Tensor]
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    causal_conv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    selective_scan: Callable[..., torch.Tensor]
    kv_store: Callable[[torch.Tensor, torch.Tensor], None]
    attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
    #: The operations for states in the precise mode, if they differ: see ``runtime.options.DeviceOptions``.
    precise: Ops | None = None


def reference_ops() -> Ops:
    """Plain torch: slow, runs on any device. All other backends are compared with it."""
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


def cpu_ops() -> Ops:
    """The operations of the C++ library, which must be available; torch computes formats that it lacks.

    A few rows are multiplied with the blocks directly; many rows with panels that are dequantized once for all rows. Decode
    uses the faster ``kernels.cpu.decode``, see ``runtime.cpu_decoder``.
    """
    from jambacli.kernels import reference
    from jambacli.kernels.cpu import decode, prefill
    from jambacli.kernels.cpu.structs import NATIVE_TYPES

    def embed(ids: torch.Tensor, w: QTensor) -> torch.Tensor:
        native = w.format.ggml_type in NATIVE_TYPES
        return decode.embed(ids, w) if native else reference.embed(ids, w)

    def linear(x: torch.Tensor, w: QTensor, precise: bool = False) -> torch.Tensor:
        if x.shape[0] <= decode.MOST_TOKENS and w.format.ggml_type in NATIVE_TYPES:
            return decode.linear(x.contiguous(), w)
        return prefill.linear(x, w, precise=precise)

    ops = Ops(
        name="cpu",
        embed=embed,
        linear=linear,
        mlp=prefill.mlp,
        experts=prefill.experts,
        rms_norm=prefill.rms_norm,
        causal_conv=prefill.causal_conv,
        selective_scan=prefill.selective_scan,
        kv_store=reference.kv_store,
        attention=prefill.attention,
    )
    precise = replace(
        ops,
        linear=partial(linear, precise=True),
        mlp=partial(prefill.mlp, precise=True),
        experts=partial(prefill.experts, precise=True),
    )
    return replace(ops, precise=precise)


def choose_ops() -> Ops:
    """The fastest operations for the CPU: those of the C++ library if it was built, else torch's."""
    from jambacli.kernels import cpu

    return cpu_ops() if cpu.available() else reference_ops()


def set_threads(n: int | None = None) -> int:
    """Set the number of CPU threads of this process (None: the number of its cores); returns the number.

    Torch's setting is the only one: the C++ kernels read it at every call and run on torch's own pool. Raises UsageError for
    more than MAX_THREADS, with which the system would kill the process.
    """
    if n is not None and n > MAX_THREADS:
        raise UsageError(
            f"exceeds the maximum of {MAX_THREADS:,}",
            field="threads",
            value=n,
            remedy="leave out {threads}",
        )
    import torch

    from jambacli.kernels.cpu import default_threads

    n = max(1, n or default_threads())
    torch.set_num_threads(n)
    return n
