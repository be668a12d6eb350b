"""Run AI21's Jamba models locally, quantized, from GGUF files. The Python API is ``Jamba``; nothing heavy is imported here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jambacli.api import Jamba as Jamba

# Threads of torch's OpenMP runtime that wait for work spin 300,000 pauses first: 16 ms where a pause takes 140 cycles, a
# whole time slice lost on a machine with other work. Read when torch is loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["Jamba", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Jamba":
        from jambacli.api import Jamba

        return Jamba
    raise AttributeError(f"module 'jambacli' has no attribute {name!r}")
