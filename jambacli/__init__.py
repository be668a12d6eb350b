"""Run AI21's Jamba models locally, quantized, from GGUF files. The Python API is ``Jamba``; nothing heavy is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jambacli.engine.api import Jamba as Jamba

__version__ = "0.1.0"
__all__ = ["Jamba", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Jamba":
        from jambacli.engine.api import Jamba

        return Jamba
    raise AttributeError(f"module 'jambacli' has no attribute {name!r}")
