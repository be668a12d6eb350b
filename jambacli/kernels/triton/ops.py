"""The operations of ``kernels.Ops`` on a CUDA GPU.

One row uses the matrix-vector kernels, a few dozen the matrix kernel that dequantizes in registers, and more rows weights
that are dequantized once into bf16 (fp16 on GPUs without bf16) and cuBLAS. Weights are ``Packed``, except experts that the
plan keeps in host memory: those are GGUF blocks, and ``host`` computes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from jambacli.kernels import Ops, reference
from jambacli.kernels.triton import attention as attend
from jambacli.kernels.triton import conv, dequant, experts, gemm, gemv, norm, scan
from jambacli.kernels.triton.launch import as_packed
from jambacli.kernels.triton.limits import DEQUANTIZED_PANEL_VALUES, FEW_ROWS
from jambacli.kernels.triton.repack import Packed, select

if TYPE_CHECKING:
    from quant.formats import QTensor


class HostExperts(Protocol):
    """Computes a layer's experts whose weights are in host memory."""

    def __call__(
        self, x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
    ) -> torch.Tensor:
        """See ``reference.experts``; x and the result are on the GPU."""


class HostKeys(Protocol):
    """Stores keys and values in host memory, and computes attention over them, for a model on a GPU."""

    def store(self, x: torch.Tensor, cache: torch.Tensor) -> None:
        """See ``reference.kv_store``; x is on the GPU, the cache in host memory."""

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See ``reference.attention``; q and the result are on the GPU, k and v in host memory. Products in ``dtype``."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """The operand type of the device's matrix units: bfloat16, or float16 on GPUs without it (Turing)."""
    if device.type != "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x float32 [T, in] times weight [out, in] in its own type: float32 [T, out].

    In float16 each row is first scaled to a largest value of 1: activations of trained Jambas exceed float16's range.
    """
    dtype = weight.dtype
    if dtype == torch.float16:
        largest = x.abs().amax(1, keepdim=True).clamp_(min=1e-20)
        return _multiply((x / largest).to(dtype), weight) * largest
    return _multiply(x.to(dtype), weight)


def _multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if x.is_cuda and x.dtype != torch.float32:
        try:
            return torch.mm(x, weight.T, out_dtype=torch.float32)
        except (TypeError, RuntimeError) as error:  # this torch or GPU has no products into float32
            if isinstance(error, torch.OutOfMemoryError):
                raise
    return (x @ weight.T).float()


#: Kernels that can be replaced: the product of one row, of some rows, of some rows by expert, three operations, and the product
#: of one row rounded to int8.
KERNELS = ("gemv", "gemm", "experts", "norm", "convolution", "scan", "int8")


class TritonOps:
    """The operations with products in ``dtype``; ``host`` and ``keys`` compute experts and attention in host memory.

    ``without``: kernels that are not used, by their names in ``KERNELS``; slower ways replace them.
    """

    def __init__(self, dtype: torch.dtype, host: HostExperts | None = None, keys: HostKeys | None = None) -> None:
        self.dtype = dtype
        self.host, self._keys = host, keys
        self.without: set[str] = set()

    def embed(self, ids: torch.Tensor, w: QTensor) -> torch.Tensor:
        """See ``reference.embed``; ids may be on any device."""
        packed = as_packed(w)
        device = packed.data.device
        return dequant.embed(ids.to(device), packed)

    def _few(self, rows: int) -> bool:
        """Whether the kernel that dequantizes in registers multiplies that many rows."""
        return 1 < rows <= FEW_ROWS and self.dtype != torch.float16 and "gemm" not in self.without

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See ``reference.rms_norm``."""
        return (reference if "norm" in self.without else norm).rms_norm(x, weight, eps)

    def causal_conv(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """See ``reference.causal_conv``."""
        return (reference if "convolution" in self.without else conv).causal_conv(x, weight, bias, state)

    def selective_scan(self, *arguments: torch.Tensor) -> torch.Tensor:
        """See ``reference.selective_scan``."""
        return (reference if "scan" in self.without else scan).selective_scan(*arguments)

    def linear(self, x: torch.Tensor, w: QTensor) -> torch.Tensor:
        """See ``reference.linear``."""
        packed = as_packed(w)
        if x.shape[0] == 1 and "gemv" not in self.without:
            return gemv.gemv(x, packed)
        if self._few(x.shape[0]):
            return gemm.gemm(x, packed, dtype=self.dtype)
        n_out, n_in = packed.shape
        panel = max(1, DEQUANTIZED_PANEL_VALUES // n_in)
        if n_out <= panel:
            return product(x, dequant.dequantize(packed, self.dtype))
        out = torch.empty(x.shape[0], n_out, device=x.device)
        for first in range(0, n_out, panel):
            n = min(panel, n_out - first)
            out[:, first : first + n] = product(x, dequant.dequantize(packed, self.dtype, first, n))
        return out

    def mlp(self, x: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor) -> torch.Tensor:
        """See ``reference.mlp``."""
        alike = gate.format == up.format and gate.shape == up.shape
        if alike and x.shape[0] == 1 and "gemv" not in self.without:
            return self.linear(gemv.gemv(x, as_packed(gate), up=as_packed(up)), down)
        if alike and self._few(x.shape[0]):
            return self.linear(gemm.gemm(x, as_packed(gate), up=as_packed(up), dtype=self.dtype), down)
        gated = self.linear(x, gate)
        return self.linear(norm.gate_up(gated, self.linear(x, up), out=gated), down)

    def experts(
        self, x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
    ) -> torch.Tensor:
        """See ``reference.experts``."""
        if not isinstance(gate, Packed):
            assert self.host is not None, "experts in host memory need ``host``"
            return self.host(x, router, gate, up, down, top_k)
        up, down = as_packed(up), as_packed(down)
        alike = gate.format == up.format
        if alike and x.shape[0] == 1 and not self.without & {"experts", "gemv"}:
            logits = reference.linear(x, _as_f32(router))
            return experts.one_token(x[0].contiguous(), logits[0], gate, up, down, top_k)[None]
        few = x.shape[0] * top_k <= FEW_ROWS * router.shape[0]
        if alike and few and self.dtype != torch.float16 and not self.without & {"experts", "gemm"}:
            return experts.many_tokens(x, router, gate, up, down, top_k, self.dtype)
        weights, chosen = experts.choose(x, router, top_k)
        expert, token, place = experts.sort_by_expert(chosen)
        rows = x[token]
        y = torch.empty_like(rows)
        stops = torch.bincount(expert, minlength=router.shape[0]).cumsum(0).tolist()  # waits for the GPU
        for e, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            if start < stop:
                mine = select(gate, e), select(up, e), select(down, e)
                y[start:stop] = self.mlp(rows[start:stop], *mine)
        return experts.weigh(y, place, weights)

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
        """See ``reference.attention``."""
        if self._keys is not None:
            return self._keys.attention(q, k, v, n_past, attention_dtype(k, self.dtype))
        if q.shape[0] > 1:
            return attend.prefill(q, k, v, n_past, attention_dtype(k, self.dtype))
        position = torch.full((1,), n_past, dtype=torch.int32, device=q.device)
        out = torch.empty(q.shape[1:], device=q.device)
        scratch = attend.DecodeScratch(q.shape[1], q.shape[2], n_past + 1, q.device)
        attend.decode(q[0], k, v, position, scratch, out, attention_dtype(k, self.dtype))
        return out.view(1, -1)

    def as_ops(self) -> Ops:
        """These operations as an ``Ops``."""
        return Ops(
            name="triton",
            embed=self.embed,
            linear=self.linear,
            mlp=self.mlp,
            experts=self.experts,
            rms_norm=self.rms_norm,
            causal_conv=self.causal_conv,
            selective_scan=self.selective_scan,
            kv_store=reference.kv_store if self._keys is None else self._keys.store,
            attention=self.attention,
        )


def attention_dtype(cache: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The operand type of attention's products: the cache's own type if matrix units support it, else ``dtype``."""
    if cache.dtype == torch.uint8 or (cache.dtype == torch.bfloat16 and dtype == torch.float16):
        return dtype
    return cache.dtype


def _as_f32(x: torch.Tensor) -> QTensor:
    from quant.formats import FORMATS, QTensor

    return QTensor(x.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], tuple(x.shape))
