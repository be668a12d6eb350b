"""The choice of implementation: the C++ library for host memory, or torch on any device."""

from __future__ import annotations

from quant.formats import Format

BACKENDS = ("auto", "native", "torch")


def uses_native(backend: str, device: object, available: bool, fmt: Format) -> bool:
    """Whether the C++ library is used for data on ``device`` ("cpu", "cuda:1" or a torch.device).

    ``available`` says whether it is built and implements ``fmt``. ValueError for an unknown backend, and for "native"
    where it cannot be used.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    on_cpu = str(device).partition(":")[0] == "cpu"
    if backend == "native" and not on_cpu:
        raise ValueError(f"the native backend works on CPU tensors, not on {device}")
    if backend == "native" and not available:
        raise ValueError(f"the C++ library is not built or does not implement {fmt.name}")
    return backend != "torch" and available and on_cpu
