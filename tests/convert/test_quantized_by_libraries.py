"""Checkpoints that the quantizers' own libraries packed, against what these libraries dequantize. Optional packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jambacli.api import Jamba
from jambacli.convert.quantized.matrices import DequantizedTensor, torch_dtype
from jambacli.convert.source import open_source
from jambacli.convert.to_gguf import convert
from tests.support import quantized_checkpoints as q
from tests.support.checkpoints import make_checkpoint
from tests.support.quantized_formats import FORMATS


def values_of(folder: Path) -> q.Tensors:
    """Every quantized tensor of the checkpoint in ``folder``, as the converter reads it."""
    found = {}
    with open_source(folder) as source:
        for name, tensor in source.checkpoint.tensors.items():
            if isinstance(tensor, DequantizedTensor):
                data = bytearray(tensor.nbytes)
                source.checkpoint.read_into(tensor, 0, data)
                found[name] = torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)).view(tensor.shape).float()
    return found


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8 block": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 64]}),
    "int8 channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int8 asymmetric": ("naive-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    **{
        f"packed {bits} bits": ("pack-quantized", {"num_bits": bits, "strategy": "group", "group_size": 32})
        for bits in (1, 2, 3, 4, 5, 6, 7, 8)
    },
    "packed 4 bits asymmetric": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "packed 3 bits asymmetric": ("pack-quantized", {"num_bits": 3, "strategy": "channel", "symmetric": False}),
    "packed 4 bits tensor asymmetric": ("pack-quantized", {"num_bits": 4, "strategy": "tensor", "symmetric": False}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", SCHEMES)
def test_as_compressed_tensors(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    form, weights = SCHEMES[name]
    config = q.compressed_config("int", 8, form, "tensor")
    config["config_groups"]["group_0"]["weights"] = {"type": "int", "symmetric": True, "dynamic": False} | weights
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    assert scheme.weights is not None
    arguments, compressor = scheme.weights, BaseCompressor.get_value_from_registry(form)

    def quantizer(weight: str, matrix: torch.Tensor) -> tuple[q.Tensors, torch.Tensor]:
        low, high = ranges(matrix, weights)
        scale, zero = calculate_qparams(low, high, arguments)
        parts = {"weight": matrix.to(dtype), "weight_scale": scale.to(dtype), "weight_zero_point": zero}
        packed = compressor.compress(parts, scheme)
        values = compressor.decompress(packed, scheme)["weight"].float()
        return {weight.removesuffix("weight") + part: tensor for part, tensor in packed.items()}, values

    make_checkpoint(tmp_path, "dense", dtype="bfloat16", **q.CONFIG)
    truth = q.quantize(tmp_path, quantizer, config)
    found = values_of(tmp_path)
    assert len(found) > 20
    for weight, values in found.items():
        assert torch.equal(values, truth[weight]), weight


def ranges(matrix: torch.Tensor, weights: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and largest values for which a scale is needed, in the shape of the scales."""
    if weights["strategy"] == "tensor":
        return matrix.min().reshape(1), matrix.max().reshape(1)
    if weights["strategy"] == "block":
        height, width = weights["block_structure"]
        padded = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % width, 0, -matrix.shape[0] % height))
        tiles = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        return tiles.amin((1, 3)), tiles.amax((1, 3))
    groups = matrix.unflatten(1, (-1, weights.get("group_size", matrix.shape[1])))
    return groups.amin(-1), groups.amax(-1)


@pytest.mark.parametrize("name", ["fp8 per tensor", "packed int4", "packed int8", "deepseek per tensor", "bnb int8"])
def test_logits_as_transformers_loads_the_same_directory(tmp_path: Path, name: str) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("bitsandbytes" if name.startswith("bnb") else "compressed_tensors")
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, JambaForCausalLM

    form = FORMATS[name]
    shape = "dense" if name.startswith("bnb") else "moe4"  # bitsandbytes' experts load in no current transformers
    make_checkpoint(tmp_path, shape, dtype="bfloat16", **q.CONFIG)
    q.quantize(tmp_path, form.quantizer(), form.config)
    options: dict[str, Any] = {
        "compressed-tensors": {"quantization_config": CompressedTensorsConfig(dequantize=True)},
        "fp8": {"quantization_config": FineGrainedFP8Config(dequantize=True)},
    }.get(form.config["quant_method"], {})
    theirs = JambaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options).eval()
    if name.startswith("bnb"):
        theirs = theirs.dequantize()
    ids = torch.randint(0, 512, (24,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = theirs.float()(ids[None]).logits[0]
    convert(tmp_path, tmp_path / "m.gguf", type="f32")
    got = Jamba.load(tmp_path / "m.gguf").logits(ids.tolist())
    assert (got - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
