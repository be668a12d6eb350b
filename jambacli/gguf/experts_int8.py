"""How a GGUF file holds ExpertsInt8: the metadata key and the tensors' names. The layout is in docs/experts_int8.md."""

from __future__ import annotations

EXPERTS_TYPE = "jamba.experts.quantization"
"""Metadata key: its value is EXPERTS_INT8 where the expert stacks are I8 with separate F32 row scales."""
EXPERTS_INT8 = "experts_int8"


def scale_name(name: str) -> str:
    """The name of an expert stack's row scales: ``….weight`` becomes ``….row_scale``."""
    return name.removesuffix("weight") + "row_scale"
