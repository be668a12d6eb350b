"""How a GGUF file carries ExpertsInt8: the tensors' names and the key that tells; knows nothing of the arithmetic.

``docs/experts_int8.md`` describes the layout for other readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXPERTS_TYPE = "jamba.experts.quantization"
"""Metadata key; the string "experts_int8" in a file whose expert stacks are I8 with F32 row scales beside them."""
EXPERTS_INT8 = "experts_int8"


def is_experts_int8(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says that its experts are ExpertsInt8."""
    return metadata.get(EXPERTS_TYPE) == EXPERTS_INT8


def scale_name(name: str) -> str:
    """The tensor of row scales that belongs to an expert stack: ``….weight`` to ``….row_scale``."""
    return name.removesuffix("weight") + "row_scale"
