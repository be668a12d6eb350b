"""Run AI21's Jamba models locally, quantized, from GGUF files. ``Jamba`` is the Python API, imported when first used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jambacli.api import Jamba as Jamba

# Idle threads of torch's OpenMP runtime spin for 300,000 pauses: 16 ms where a pause takes 140 cycles, a whole time slice on
# a busy machine. The variable is read when torch is loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["Jamba", "__version__"]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name == "Jamba":
            from jambacli.api import Jamba

            return Jamba
        raise AttributeError(f"module 'jambacli' has no attribute {name!r}")
