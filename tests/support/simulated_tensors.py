"""Tensors on a simulated GPU, and torch's operations on them.

An operation returns its result at once as uninitialized memory; the values appear when the simulated GPU does the work. What a
GPU would refuse raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

if TYPE_CHECKING:
    from tests.support.simulated_gpu import SimulatedGpu

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
_HOST = torch.device("cpu")


#: Operations that do not exist on a CPU, expressed by ones that do.
_ON_CPU: dict[Any, Callable[..., torch.Tensor]] = {
    aten.mm.dtype: lambda a, b, out_dtype: (a.float() @ b.float()).to(out_dtype),
}
#: Operations that accept indices in host memory, which torch copies to the GPU (and waits).
_TAKES_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
_UNINITIALIZED = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}


class SimulatedTensor(torch.Tensor):
    """A tensor on the simulated GPU. ``inside``: the CPU tensor that holds its values."""

    inside: torch.Tensor
    gpu: SimulatedGpu

    @staticmethod
    def __new__(cls, values: torch.Tensor, gpu: SimulatedGpu) -> SimulatedTensor:
        made: SimulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=GPU,
        )  # fmt: skip
        return made

    def __init__(self, values: torch.Tensor, gpu: SimulatedGpu) -> None:
        self.inside, self.gpu = values, gpu
        gpu.count(values)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        gpu = next(x.gpu for x in tree_flatten((args, kwargs))[0] if isinstance(x, SimulatedTensor))
        return _dispatch(gpu, func, args, kwargs or {})

    def tolist(self) -> Any:
        """As for any tensor; the host waits."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"


class SimulatedMode(TorchDispatchMode):
    """Intercepts operations that make GPU tensors from nothing or from host memory."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(self._gpu, func, args, kwargs or {})


def inside_of(x: Any) -> Any:
    return tree_map_only(SimulatedTensor, lambda t: t.inside, x)


def _dispatch(gpu: SimulatedGpu, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    simulated = [x for x in tensors if isinstance(x, SimulatedTensor)]
    wanted = kwargs.get("device")
    on_gpu = wanted.type == "cuda" if wanted is not None else bool(simulated)
    if not simulated and not on_gpu:
        if kwargs.pop("pin_memory", False):
            return gpu.pin(func(*args, **kwargs))
        return func(*args, **kwargs)
    if func is aten._to_copy.default:
        return _moved(gpu, args[0], on_gpu, kwargs)
    if func is aten.copy_.default:
        return _copied(gpu, args[0], args[1], bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False))
    kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    if "device" in kwargs:
        kwargs["device"] = _HOST
    if func in _UNINITIALIZED:
        if not on_gpu:
            return func(*inside_of(args), **kwargs)
        kwargs["device"] = torch.device("meta")
        return SimulatedTensor(_uninitialized(func(*_meta(inside_of(args)), **kwargs), gpu), gpu)
    if simulated and not on_gpu:
        raise NotImplementedError(f"{func} from the GPU to host memory is not simulated")
    _check_devices(func, args, tensors)
    return _computed(gpu, func, args, kwargs)


def _meta(x: Any) -> Any:
    """The same structure with meta tensors, which have shapes but no values."""
    return tree_map_only(
        torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), x
    )


def _uninitialized(like: torch.Tensor, gpu: SimulatedGpu) -> torch.Tensor:
    """New memory for a tensor of that shape, filled with values that make its use visible; if the GPU does not compute, with
    zeros, which take no physical memory."""
    if gpu.computes:
        x = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        return x.fill_(torch.nan) if x.is_floating_point() else x.fill_(113)
    if like.numel() == 0:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    reach = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
    pages = torch.from_numpy(np.zeros(reach * like.dtype.itemsize, np.uint8))
    return pages.view(like.dtype).as_strided(like.shape, like.stride())


def _check_devices(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    on_host = [x for x in tensors if not isinstance(x, SimulatedTensor) and x.dim() > 0]
    if on_host and not (func in _TAKES_INDICES and isinstance(args[0], SimulatedTensor)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but got cuda:0 and cpu, in {func}")


def _computed(gpu: SimulatedGpu, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    do = _ON_CPU.get(func, func)
    returns = func._schema.returns
    written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):  # a view
        return tree_map_only(torch.Tensor, lambda x: SimulatedTensor(x, gpu), do(*inside_of(args), **inside_of(kwargs)))
    if written:
        names = [func._schema.arguments[i].name for i in written]
        outs = [args[i] if i < len(args) else kwargs[name] for i, name in zip(written, names, strict=True)]
        a, k = inside_of(args), inside_of(kwargs)
        gpu.give(lambda: do(*a, **k))
        return outs[0] if len(outs) == 1 else tuple(outs)
    if not any("Tensor" in str(r.type) for r in returns):  # a number or a bool: the host waits for it
        gpu.wait(str(func))
        return do(*inside_of(args), **inside_of(kwargs))
    return _queued(gpu, do, func, args, kwargs)


def _queued(gpu: SimulatedGpu, do: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """New tensors at once; their values when the stream does the work."""
    a, k = inside_of(args), inside_of(kwargs)
    meta = _meta((a, k))
    if "device" in k:
        meta[1]["device"] = torch.device("meta")
    tensors = [x for x in tree_flatten((a, k))[0] if isinstance(x, torch.Tensor)]
    if not gpu.computes and tensors and all(x.nbytes < 1 << 20 for x in tensors):
        # Routing and row counts decide what is launched, so they are computed even if nothing else is.
        return tree_map_only(torch.Tensor, lambda x: SimulatedTensor(x, gpu), do(*a, **k))
    try:
        shapes = do(*meta[0], **meta[1])
    except (NotImplementedError, RuntimeError):  # the result's size depends on values: torch waits too
        gpu.wait(str(func))
        return tree_map_only(torch.Tensor, lambda x: SimulatedTensor(x, gpu), do(*a, **k))
    out = tree_map_only(torch.Tensor, lambda x: _uninitialized(x, gpu), shapes)

    def work() -> None:
        for x, y in zip(tree_flatten(out)[0], tree_flatten(do(*a, **k))[0], strict=True):
            x.copy_(y)

    made = tree_map_only(torch.Tensor, lambda x: SimulatedTensor(x, gpu), out)
    gpu.give(work)
    return made


def _moved(gpu: SimulatedGpu, x: torch.Tensor, on_gpu: bool, kwargs: dict[str, Any]) -> torch.Tensor:
    later = kwargs.get("non_blocking", False)
    rest = {k: v for k, v in kwargs.items() if k in ("dtype", "memory_format") and v is not None}
    if isinstance(x, SimulatedTensor) and on_gpu:
        made: torch.Tensor = _computed(gpu, aten._to_copy.default, (x,), rest)
        return made
    if isinstance(x, SimulatedTensor):
        gpu.wait("a copy to host memory")
        copy: torch.Tensor = aten._to_copy.default(x.inside, **rest)
        return copy
    like = torch.empty(x.shape, dtype=rest.get("dtype", x.dtype), device="meta")
    out = SimulatedTensor(_uninitialized(like, gpu), gpu)
    _copied(gpu, out, x, later)
    return out


def _copied(gpu: SimulatedGpu, to: torch.Tensor, source: torch.Tensor, later: bool) -> torch.Tensor:
    if isinstance(to, SimulatedTensor) and isinstance(source, SimulatedTensor):
        a, b = to.inside, source.inside
        gpu.give(lambda: _discard(a.copy_(b)))
    elif isinstance(to, SimulatedTensor):
        a = to.inside
        if later and gpu.pinned(source):
            gpu.give(lambda: _discard(a.copy_(source)))  # reads the values of that time
        else:
            if source.dim() > 0 or gpu.recording is not None:
                gpu.wait("a copy from ordinary memory")
            taken = source.clone() if gpu.computes else source
            gpu.give(lambda: _discard(a.copy_(taken)))
            if gpu.recording is None:
                gpu.wait("a copy from ordinary memory")
    else:
        assert isinstance(source, SimulatedTensor)
        b = source.inside
        if later and gpu.pinned(to):
            gpu.give(lambda: _discard(to.copy_(b)))
        else:
            gpu.wait("a copy to host memory")
            to.copy_(b)
    return to


def _discard(_: Any) -> None:
    return None


@dataclass(frozen=True)
class LowerRight:
    """As torch's ``causal_lower_right``."""

    rows: int
    columns: int


def _attention(q: Any, k: Any, v: Any, attn_mask: Any = None, **options: Any) -> torch.Tensor:
    """Torch's fused attention as one operation on the GPU."""
    if not all(isinstance(x, SimulatedTensor) for x in (q, k, v)):
        raise RuntimeError("Expected query, key, and value to be on the same device")
    mask = attn_mask
    if isinstance(mask, LowerRight):
        mask = torch.ones(mask.rows, mask.columns, dtype=torch.bool).tril(mask.columns - mask.rows)
    elif mask is not None and not isinstance(mask, SimulatedTensor):
        raise RuntimeError("Expected attn_mask to be on the same device as query")
    gpu, (a, b, c, d) = q.gpu, inside_of((q, k, v, mask))
    out = _uninitialized(torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device="meta"), gpu)
    made = SimulatedTensor(out, gpu)
    gpu.give(lambda: _discard(out.copy_(F.scaled_dot_product_attention(a, b, c, attn_mask=d, **options))))
    return made
