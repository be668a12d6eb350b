"""Small Jamba checkpoints quantized in each published format, with the values that they stand for.

Everything is packed here from the formats' descriptions, bit by bit, so that it does not share code with the converter.
``quantize`` rewrites a plain checkpoint in place and returns what its tensors mean: the truth for a conversion.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
#: One matrix [out, in] (or a stack of them) under ``name`` -> what is stored for it, and the values it stands for.
Quantizer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]

# Every sum is a multiple of 32, which GPTQ and AWQ need: the tools leave other matrices alone.
CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "mamba_dt_rank": 32,
}
GROUP = 32


def read(folder: Path) -> Tensors:
    """The tensors of model.safetensors."""
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: Tensors) -> None:
    """Replace model.safetensors."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def stack_experts(tensors: Tensors) -> Tensors:
    """The tensors with each layer's experts as transformers holds them: gate_up_proj [E, 2 rows, width] and down_proj."""
    out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    bases = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for base in bases:
        count = len({n.split(".experts.")[1].split(".")[0] for n in tensors if n.startswith(f"{base}.experts.")})
        matrix = {
            kind: torch.stack([tensors[f"{base}.experts.{e}.{kind}_proj.weight"] for e in range(count)])
            for kind in ("gate", "up", "down")
        }
        out[f"{base}.experts.gate_up_proj"] = torch.cat([matrix["gate"], matrix["up"]], 1)
        out[f"{base}.experts.down_proj"] = matrix["down"]
    return out


def is_quantized(name: str) -> bool:
    """Whether quantizers take this tensor: the weights of linear layers and stacks of experts, not the head."""
    return name.endswith(("_proj.weight", "experts.gate_up_proj", "experts.down_proj"))


def quantize(folder: Path, quantizer: Quantizer, config: dict[str, Any], *, stacked: bool = False) -> Tensors:
    """Quantize the checkpoint in ``folder``, and return its tensors with the values that they now stand for."""
    tensors = read(folder)
    if stacked:
        tensors = stack_experts(tensors)
    stored, truth = dict(tensors), dict(tensors)
    for name in filter(is_quantized, tensors):
        del stored[name]
        parts, truth[name] = quantizer(name, tensors[name].float())
        assert not parts.keys() & stored.keys()
        stored |= parts
    write(folder, stored)
    edit_config(folder, quantization_config=config)
    return truth


def bit_stream(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values [n, count] as one stream of bits per row: int32 [n, words]."""
    v = values.numpy().astype(np.int64)
    stream = ((v[:, :, None] >> np.arange(bits)) & 1).reshape(v.shape[0], -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    words = (stream.reshape(v.shape[0], -1, 32) << np.arange(32)).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def whole_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values [n, count] with ``32 // bits`` of them in each word: int32 [n, words]."""
    v, per = values.numpy().astype(np.int64), 32 // bits
    v = np.pad(v, ((0, 0), (0, -v.shape[1] % per))).reshape(v.shape[0], -1, per)
    return torch.from_numpy((v << (np.arange(per) * bits)).sum(-1).astype(np.uint32).view(np.int32))


def fit(
    matrix: torch.Tensor, group: int, bits: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned integers [out, in], zero points and scales [out, groups] of ``matrix`` [out, in] in groups along the rows."""
    parts = matrix.unflatten(1, (-1, group))
    top = (1 << bits) - 1
    if symmetric:
        scale = parts.abs().amax(-1) * 2 / top
        zero = torch.full_like(scale, 1 << (bits - 1))
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scale = (high - low) / top
        zero = (-low / scale).round().clamp(1, top)
    scale = scale.half().float()
    q = (parts / scale[..., None] + zero[..., None]).round().clamp(0, top)
    return q.flatten(1), zero, scale


def spread(small: torch.Tensor, group: int) -> torch.Tensor:
    """[out, groups] -> [out, in]."""
    return small.repeat_interleave(group, 1)


# --- FP8 ---


def fp8(tiles: tuple[int, int] | None, suffix: str, dtype: torch.dtype = torch.float32) -> Quantizer:
    """FP8 with a scale per tile of rows and columns (0: all of them), as ``NAME + suffix``; without tiles a lone number."""

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        *stack, rows, columns = matrix.shape
        height, width = (tiles[0] or rows, tiles[1] or columns) if tiles else (rows, columns)
        down, across = -(-rows // height), -(-columns // width)
        scale = torch.empty(*stack, down, across)
        for i in range(down):
            for j in range(across):
                tile = matrix[..., i * height : (i + 1) * height, j * width : (j + 1) * width]
                scale[..., i, j] = tile.abs().amax((-2, -1)) / 448
        scale = scale.to(dtype)
        wide = scale.float().repeat_interleave(height, -2)[..., :rows, :].repeat_interleave(width, -1)[..., :columns]
        q = (matrix / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        if tiles is None and not stack:
            scale = scale.reshape(())
        values = q.float() * wide
        return {name: q, name + suffix: scale}, values.to(dtype).float() if dtype != torch.float32 else values

    return quantizer


def power_of_two(quantizer: Quantizer, suffix: str, dtype: torch.dtype) -> Quantizer:
    """``quantizer`` of FP8 with scales that are powers of two, stored as their exponents plus 127."""

    def exponents(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        parts, _ = quantizer(name, matrix)
        scale = parts[name + suffix]
        stored = (torch.ceil(torch.log2(scale)) + 127).to(torch.uint8)
        wide = [n // m for n, m in zip(matrix.shape[-2:], scale.shape[-2:], strict=True)]
        powers = torch.exp2(stored.float() - 127).repeat_interleave(wide[0], -2).repeat_interleave(wide[1], -1)
        values = (matrix / powers).to(torch.float8_e4m3fn)
        return {name: values, name + suffix: stored.view(dtype)}, values.float() * powers

    return exponents


# --- compressed-tensors ---


def compressed_int8(symmetric: bool, dtype: torch.dtype = torch.float32) -> Quantizer:
    """int-quantized: int8 with a scale, and a zero point, per channel."""

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        flat = matrix.flatten(0, -2)
        q, zero, scale = fit(flat, flat.shape[1], 8, symmetric)
        small, scale = (*matrix.shape[:-1], 1), scale.to(dtype)
        values = (q - zero) * scale.float()
        parts = {name: (q - 128).to(torch.int8).view(matrix.shape), f"{name}_scale": scale.view(small)}
        if not symmetric:
            parts[f"{name}_zero_point"] = (zero - 128).to(torch.int8).view(small)
        return parts, values.to(dtype).float().view(matrix.shape)

    return quantizer


def compressed_packed(
    bits: int,
    group: int,
    symmetric: bool,
    *,
    packed_zeros: bool = True,
    whole: bool = False,
    order: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Quantizer:
    """pack-quantized: integers in 32-bit words along the rows; ``group`` 0 is a scale per channel, ``order`` has a g_idx."""
    pack = whole_words if whole else bit_stream

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        flat = matrix.flatten(0, -2)
        rows, width = flat.shape
        size = group or width
        places = torch.randperm(width, generator=torch.Generator().manual_seed(rows)) if order else torch.arange(width)
        q, zero, scale = fit(flat[:, places], size, bits, symmetric)
        scale = scale.to(dtype)
        values = ((q - spread(zero, size)) * spread(scale.float(), size)).to(dtype).float()
        back = places.argsort()
        q, values = q[:, back], values[:, back]
        lead = matrix.shape[:-1]
        parts = {
            f"{name}_packed": pack(q, bits).view(*lead, -1),
            f"{name}_scale": scale.view(*lead, -1),
            f"{name}_shape": torch.tensor(matrix.shape),
        }
        if order:
            parts[f"{name}_g_idx"] = (back // size).int()
        if not symmetric and packed_zeros:
            stacked = zero.view(-1, matrix.shape[-2], zero.shape[1])
            words = torch.stack([pack(z.T.contiguous(), bits).T for z in stacked])
            parts[f"{name}_zero_point"] = words if matrix.dim() > 2 else words[0]
        elif not symmetric:
            parts[f"{name}_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8).view(*lead, -1)
        return parts, values.view(matrix.shape)

    return quantizer


def compressed_config(kind: str, bits: int, form: str, strategy: str, **weights: Any) -> dict[str, Any]:
    """quantization_config as llm-compressor writes it."""
    arguments = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False} | weights
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*router"],
        "kv_cache_scheme": None,
    }


# --- GPTQ and AWQ ---


def three_bit_words(values: torch.Tensor) -> torch.Tensor:
    """GPTQ's packing of 3-bit values [n, count]: 32 of them in three words, the 11th and the 22nd in two words each."""
    v = values.numpy().astype(np.uint64).reshape(values.shape[0], -1, 32)
    words = np.zeros((*v.shape[:2], 3), np.uint64)
    for i in range(10):
        words[..., 0] |= v[..., i] << np.uint64(3 * i)
        words[..., 1] |= v[..., 11 + i] << np.uint64(3 * i + 1)
        words[..., 2] |= v[..., 22 + i] << np.uint64(3 * i + 2)
    words[..., 0] |= (v[..., 10] & np.uint64(3)) << np.uint64(30)
    words[..., 1] |= (v[..., 10] >> np.uint64(2)) | ((v[..., 21] & np.uint64(1)) << np.uint64(31))
    words[..., 2] |= v[..., 21] >> np.uint64(1)
    return torch.from_numpy(words.reshape(v.shape[0], -1).astype(np.uint32).view(np.int32))


def gptq(
    bits: int,
    group: int,
    symmetric: bool,
    *,
    version: int = 1,
    order: bool = False,
    index: bool = True,
    bias: bool = False,
) -> Quantizer:
    """qweight, qzeros, scales and g_idx; ``group`` 0 is all input features. The first version stores zero points less one."""
    pack = three_bit_words if bits == 3 else lambda v: whole_words(v, bits)

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        module, (rows, width) = name.removesuffix(".weight"), matrix.shape
        size = group or width
        places = torch.randperm(width, generator=torch.Generator().manual_seed(rows)) if order else torch.arange(width)
        q, zero, scale = fit(matrix[:, places], size, bits, symmetric)
        values = ((q - spread(zero, size)) * spread(scale, size)).half().float()
        back = places.argsort()
        parts = {
            f"{module}.qweight": pack(q[:, back]).T,
            f"{module}.qzeros": pack((zero - int(version == 1)).T.contiguous()),
            f"{module}.scales": scale.T.half(),
        }
        if index:
            parts[f"{module}.g_idx"] = (back // size).int()
        if bias and not module.endswith("dt_proj"):
            parts[f"{module}.bias"] = torch.zeros(rows, dtype=torch.float16)
        return parts, values[:, back]

    return quantizer


def awq(group: int) -> Quantizer:
    """AWQ "gemm": words of eight output features in the order 0 2 4 6 1 3 5 7."""

    def pack(values: torch.Tensor) -> torch.Tensor:
        eights = values.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return whole_words(eights.flatten(1), 4)

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        module, size = name.removesuffix(".weight"), group or matrix.shape[1]
        q, zero, scale = fit(matrix, size, 4, False)
        values = ((q - spread(zero, size)) * spread(scale, size)).half().float()
        parts = {
            f"{module}.qweight": pack(q.T.contiguous()),
            f"{module}.qzeros": pack(zero.T.contiguous()),
            f"{module}.scales": scale.T.half(),
        }
        return parts, values

    return quantizer


# --- bitsandbytes ---


def bnb_int8(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """int8 with SCB, by bitsandbytes."""
    from bitsandbytes import functional

    module = name.removesuffix(".weight")
    q, scale, _ = functional.int8_vectorwise_quant(matrix.half())
    values = functional.int8_vectorwise_dequant(q, scale)
    return {name: q, f"{module}.SCB": scale, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}, values


def bnb_four_bit(
    kind: str, nested: bool, dtype: torch.dtype, block: int = 64, storage: torch.dtype = torch.uint8
) -> Quantizer:
    """nf4 or fp4 with its statistics, by bitsandbytes."""
    from bitsandbytes import functional

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        packed, state = functional.quantize_4bit(
            matrix.to(dtype), blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage
        )
        parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        # As one row: the CPU kernel of 0.50 takes wrong blocks where they do not divide the width, a GPU's does not.
        state.shape = torch.Size((1, matrix.numel()))
        values = functional.dequantize_4bit(packed, state).float().view(matrix.shape)
        return {name: packed} | parts, values

    return quantizer
