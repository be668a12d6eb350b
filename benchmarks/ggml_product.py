"""A product of one matrix with a few tokens, computed by ggml: the functions of a built libggml-cpu.so, through ctypes.

The product is a graph of one node in ggml's CPU backend on one thread, as llama.cpp runs it: the activations are converted to
the type that the kernel takes, then multiplied. With ``repacked`` the weights lie in the buffer type in which ggml interleaves
the rows of some types for its fastest kernels (llama.cpp does so by default); otherwise they lie as in the file. Function
signatures are those of ggml.h, ggml-alloc.h, ggml-backend.h and ggml-cpu.h of llama.cpp's build 11434.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

_GRAPH_BYTES = 1 << 20  # structs of a few tensors and of a graph of the default size

_P, _N, _S = c_void_p, c_int64, c_size_t
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_new_tensor_2d": (_P, [_P, c_int, _N, _N]),
    "ggml_mul_mat": (_P, [_P, _P, _P]),
    "ggml_new_graph": (_P, [_P]),
    "ggml_build_forward_expand": (None, [_P, _P]),
    "ggml_free": (None, [_P]),
    "ggml_backend_cpu_init": (_P, []),
    "ggml_backend_cpu_set_n_threads": (None, [_P, c_int]),
    "ggml_backend_cpu_buffer_type": (_P, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, [_P, _P]),
    "ggml_backend_buffer_free": (None, [_P]),
    "ggml_backend_supports_op": (c_bool, [_P, _P]),
    "ggml_backend_tensor_set": (None, [_P, _P, _S, _S]),
    "ggml_backend_tensor_get": (None, [_P, _P, _S, _S]),
    "ggml_backend_graph_compute": (c_int, [_P, _P]),
}
_REPACK = "_Z35ggml_backend_cpu_repack_buffer_typev"  # a C++ function without arguments
_FEATURES = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "neon", "dotprod", "matmul_int8")


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", _S), ("mem_buffer", _P), ("no_alloc", c_bool)]


class Ggml:
    """A loaded libggml-cpu.so (libggml-base.so comes with it). Raises JambaError where it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        try:
            self.functions = ctypes.CDLL(str(path))
            self.functions.ggml_init.restype, self.functions.ggml_init.argtypes = _P, [_InitParams]
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self.functions, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise JambaError(f"{path} is no ggml library that can be used: {error}") from None
        self.functions.ggml_cpu_init()
        self._backend = self.functions.ggml_backend_cpu_init()
        self.functions.ggml_backend_cpu_set_n_threads(self._backend, 1)
        #: The instruction sets that the library was compiled for.
        self.features = [name for name in _FEATURES if self._has(name)]

    def _has(self, feature: str) -> bool:
        function = getattr(self.functions, f"ggml_cpu_has_{feature}", None)
        return bool(function is not None and function())

    def product(self, w: QTensor, x: torch.Tensor, *, repacked: bool) -> GgmlProduct | None:
        """x @ w.T for x float32 [m, in] and w [out, in]; None where ggml has no interleaved form of the type and shape."""
        buffer_type = self.functions.ggml_backend_cpu_buffer_type()
        if repacked:
            repack = getattr(self.functions, _REPACK, None)
            if repack is None:
                return None
            repack.restype = _P
            buffer_type = repack()
        made = GgmlProduct(self, buffer_type, w, x, self._backend)
        if not made.supported:
            made.close()
            return None
        made.fill(w, x)
        return made


class GgmlProduct:
    """One product in ggml's memory; ``run`` computes it."""

    def __init__(self, ggml: Ggml, weight_buffer: int, w: QTensor, x: torch.Tensor, backend: int) -> None:
        f = ggml.functions
        self._f, self._backend = f, backend
        rows, cols = w.shape
        # Released in reverse order by ``close``.
        self._held = contextlib.ExitStack()
        weights, values = (self._context() for _ in range(2))
        self._w = f.ggml_new_tensor_2d(weights, w.format.ggml_type, cols, rows)
        self._allocate(weights, weight_buffer)
        self._x = f.ggml_new_tensor_2d(values, 0, cols, x.shape[0])
        self._y = f.ggml_mul_mat(values, self._w, self._x)
        self._graph = f.ggml_new_graph(values)
        f.ggml_build_forward_expand(self._graph, self._y)
        self._allocate(values, f.ggml_backend_cpu_buffer_type())
        self._shape = (x.shape[0], rows)
        self.supported = bool(f.ggml_backend_supports_op(backend, self._y))

    def _context(self) -> int:
        context: int = self._f.ggml_init(_InitParams(_GRAPH_BYTES, None, True))
        self._held.callback(self._f.ggml_free, context)
        return context

    def _allocate(self, context: int, buffer_type: int) -> None:
        buffer = self._f.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        self._held.callback(self._f.ggml_backend_buffer_free, buffer)

    def fill(self, w: QTensor, x: torch.Tensor) -> None:
        """Copy the weights (ggml interleaves them here) and the activations."""
        x = x.contiguous()
        self._f.ggml_backend_tensor_set(self._w, w.data.data_ptr(), 0, w.nbytes)
        self._f.ggml_backend_tensor_set(self._x, x.data_ptr(), 0, x.nbytes)

    @property
    def run(self) -> Callable[[], object]:
        """A call that computes the product."""
        compute, backend, graph = self._f.ggml_backend_graph_compute, self._backend, self._graph
        return lambda: compute(backend, graph)

    def result(self) -> torch.Tensor:
        """The product, float32 [m, out]."""
        import torch

        y = torch.empty(self._shape)
        self._f.ggml_backend_tensor_get(self._y, y.data_ptr(), 0, y.nbytes)
        return y

    def close(self) -> None:
        """Release ggml's memory."""
        self._held.close()
