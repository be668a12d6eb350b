"""Every quantized format of a checkpoint, by name: how a test makes it, and what it must say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.support import quantized_checkpoints as q

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Format:
    """A way to quantize, its configuration, and what a summary says about it. ``stacks``: it can store stacks of experts."""

    quantizer: Callable[[], q.Quantizer]
    config: dict[str, Any]
    said: str
    stacks: bool = True


def compressed(bits: int, group: int, symmetric: bool, **options: Any) -> Format:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    config = q.compressed_config("int", bits, "pack-quantized", symmetric=symmetric, **strategy)
    said = f"int{bits}, " + (f"groups of {group}" if group else "a scale per channel")
    return Format(
        lambda: q.compressed_packed(bits, group, symmetric, **options), config, said, not options.get("order")
    )


def gptq(bits: int, group: int, symmetric: bool, **options: Any) -> Format:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "sym": symmetric}
    config |= {
        "desc_act": bool(options.get("order")),
        "checkpoint_format": f"gptq{'_v2' * (options.get('version') == 2)}",
    }
    said = f"int{bits}, " + (f"groups of {group}" if group else "a scale per channel")
    return Format(lambda: q.gptq(bits, group, symmetric, **options), config, said, False)


def four_bit(kind: str, nested: bool, dtype: torch.dtype, **options: Any) -> Format:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    said = f"{kind}, blocks of {options.get('block', 64)}"
    return Format(lambda: q.bnb_four_bit(kind, nested, dtype, **options), config, said)


def float8(strategy: str, tiles: tuple[int, int], said: str, dtype: torch.dtype = BF16, **weights: Any) -> Format:
    config = q.compressed_config("float", 8, "float-quantized", strategy, **weights)
    return Format(lambda: q.fp8(tiles, "_scale", dtype), config, said)


FORMATS = {
    "fp8 per tensor": float8("tensor", (0, 0), "fp8, one scale", F32),
    "fp8 per channel": float8("channel", (1, 0), "fp8, a scale per channel"),
    "fp8 in ragged blocks": float8("block", (96, 40), "fp8, blocks of", block_structure=[96, 40]),
    "fp8 groups": float8("group", (1, 32), "fp8, groups of 32", F16, group_size=32),
    "deepseek blocks": Format(
        lambda: q.fp8((48, 80), "_scale_inv"), {"quant_method": "fp8", "weight_block_size": [48, 80]}, "fp8, blocks of"
    ),
    "deepseek per tensor": Format(lambda: q.fp8(None, "_scale_inv"), {"quant_method": "fp8"}, "fp8, one scale"),
    "deepseek powers of two": Format(
        lambda: q.power_of_two(q.fp8((32, 32), "_scale_inv"), "_scale_inv", torch.float8_e8m0fnu),
        {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
        "fp8, blocks of 32 x 32",
    ),
    "mxfp8": Format(
        lambda: q.power_of_two(q.fp8((1, 32), "_scale"), "_scale", torch.uint8),
        q.compressed_config("float", 8, "mxfp8-quantized", "group", group_size=32),
        "fp8, groups of 32",
    ),
    "fbgemm": Format(lambda: q.fp8((1, 0), "_scale"), {"quant_method": "fbgemm_fp8"}, "fp8, a scale per channel"),
    "modelopt fp8": Format(
        lambda: q.fp8(None, "_scale"), {"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8, one scale"
    ),
    "int8 symmetric": Format(
        lambda: q.compressed_int8(True, BF16),
        q.compressed_config("int", 8, "int-quantized", "channel"),
        "int8, a scale",
    ),
    "int8 asymmetric": Format(
        lambda: q.compressed_int8(False),
        q.compressed_config("int", 8, "naive-quantized", "channel", symmetric=False),
        "int8, a scale per channel",
    ),
    "packed int4": compressed(4, 32, True),
    "packed int4 per channel": compressed(4, 0, True, dtype=BF16),
    "packed int4 asymmetric": compressed(4, 32, False),
    "packed int4 asymmetric per channel": compressed(4, 0, False),
    "packed int4 with plain zeros": compressed(4, 32, False, packed_zeros=False),
    "packed int4 reordered": compressed(4, 32, True, order=True),
    "packed int8": compressed(8, 32, True),
    "packed int8 asymmetric": compressed(8, 32, False),
    "packed int3": compressed(3, 32, False),
    "packed int3 in whole words": compressed(3, 32, False, whole=True),
    "packed int6": compressed(6, 32, True),
    "gptq int4": gptq(4, 32, True),
    "gptq int4 asymmetric": gptq(4, 32, False),
    "gptq int4 asymmetric v2": gptq(4, 32, False, version=2),
    "gptq int4 reordered": gptq(4, 32, True, order=True),
    "gptq int4 without g_idx": gptq(4, 32, True, index=False),
    "gptq int4 per channel": gptq(4, 0, False),
    "gptq int4 with zero biases": gptq(4, 32, True, bias=True),
    "gptq int2": gptq(2, 32, False),
    "gptq int3": gptq(3, 32, False),
    "gptq int3 reordered v2": gptq(3, 32, False, version=2, order=True),
    "gptq int8": gptq(8, 32, False),
    "awq": Format(
        lambda: q.awq(32),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        "int4, groups of 32",
        False,
    ),
    "awq per channel": Format(
        lambda: q.awq(0),
        {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM", "zero_point": True},
        "int4, a scale per channel",
        False,
    ),
    "bnb int8": Format(
        lambda: q.bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8, a scale per channel", False
    ),
    "bnb nf4": four_bit("nf4", False, BF16),
    "bnb nf4 nested": four_bit("nf4", True, BF16),
    "bnb fp4 nested": four_bit("fp4", True, F16, block=128),
    "bnb fp4": four_bit("fp4", False, F32),
    "bnb nf4 stored as bf16": four_bit("nf4", True, BF16, storage=BF16),
}
