"""Which kernels were found wrong, and which parts of the check do not make sense without them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from jambacli.kernels.triton.repack import LAYOUTS

# The beginning of a case's name -> its kernel, the longer beginnings first.
_BEGINNINGS = (
    ("rms_norm", "norm"),
    ("conv", "convolution"),
    ("scan step", "scan step"),
    ("scan", "scan"),
    ("attention", "attention"),
    ("dequantize", "dequantize"),
    ("embed", "embed"),
    ("gemv", "gemv"),
    ("gemm", "gemm"),
    ("product", "gemv"),
    ("alive", "gemv"),
    ("sampling", "sampling"),
    ("experts one token", "experts step"),
    ("experts", "experts"),
    ("real size: experts", "experts"),
)
#: Cases of one kernel in one format that may be wrong before its other cases are skipped.
ENOUGH = 3
#: The kernel of a decode step with activations of int8, which is not needed.
ROUNDED = ("int8",)
#: Kernels of a decode step and of prefill; of mixtures also those after them.
DECODE, PREFILL = ("embed", "gemv", "scan step", "attention"), ("embed", "dequantize", "norm", "convolution", "scan")
DECODE_EXPERTS, PREFILL_EXPERTS = ("experts step",), ("experts",)


def kernel_of(case: str) -> str:
    """The kernel that a comparison of this name checks, with the format of its weights if it has one: "gemv q4_k", "scan"."""
    kernel = next((kernel for beginning, kernel in _BEGINNINGS if case.startswith(beginning)), "")
    if " int8 " in case:  # activations of int8, not a weight's format
        kernel = "int8"
    if not kernel:  # at real sizes: some rows times a matrix, or one
        kernel = "gemm" if " rows times " in case else "gemv"
    words = case.replace(" in bf16", "").replace(",", " ").split()  # that of the activations
    fmt = next((word for word in words if word in LAYOUTS), None)
    return kernel if fmt is None or kernel in ("attention", "scan step") else f"{kernel} {fmt}"


def wrong_kernels(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The kernels, as ``kernel_of`` names them, of the comparisons that do not hold."""
    return sorted({kernel_of(row["case"]) for row in rows if not row["ok"]})


def blocked_by(needed: Iterable[str], formats: Collection[str], wrong: Iterable[str]) -> str | None:
    """The first wrong kernel that something needs which uses the kernels ``needed`` with weights in ``formats``."""
    for name in wrong:
        kernel, _, fmt = name.rpartition(" ") if name.split()[-1] in LAYOUTS else (name, "", "")
        if kernel in needed and (not fmt or fmt in formats):
            return name
    return None
