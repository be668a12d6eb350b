"""The C++ kernels for CPUs, through ctypes; knows nothing of models, files or torch tensors beyond their addresses.

``available()`` says whether the library was built; without it every caller uses ``kernels.reference``. Kernels run on
torch's own OpenMP pool, so there is one pool in the process.
"""

from __future__ import annotations

from jambacli.kernels.cpu.library import available, cpu_features, default_threads, library, set_isa

__all__ = ["available", "cpu_features", "default_threads", "library", "set_isa"]
