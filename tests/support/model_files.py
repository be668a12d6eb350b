"""Writes a transformers Jamba as a GGUF file of any file type, without a vocabulary and without ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jambacli.evaluation.synthetic import choices
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.writer import GGUFWriter
from jambacli.model.config import JambaConfig
from jambacli.quantize.recipes import get_recipe
from quant import quantize
from tests.support.transformers_model import tensors


def write(path: Path, hf: Any, quant: str = "f32") -> Path:
    """The model with each matrix in the format that the file type ``quant`` gives it."""
    config, values = JambaConfig.from_hf(hf.config.to_dict()), tensors(hf)
    chosen = choices(config, quant)
    with GGUFWriter(path) as writer:
        for key, value, kind in keys.config_metadata(config):
            writer.add(key, value, kind)
        writer.add(keys.FILE_TYPE, 0 if quant == "f32" else get_recipe(quant).file_type, "u32")
        writer.add("jamba.vocab_size", config.vocab_size, "u32")
        writer.add(keys.TOKENIZER_MODEL, "none", "str")
        for name, choice in chosen.items():
            writer.plan_tensor(name, choice.tensor.shape, choice.format)
        writer.begin()
        for name, choice in chosen.items():
            writer.write_tensor(name, in_format(values[name], choice.format).numpy())
    return path


def in_format(x: torch.Tensor, fmt: str) -> torch.Tensor:
    """The bytes of float32 ``x`` in a format, uint8 [bytes]."""
    if fmt in ("f32", "f16", "bf16"):
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[fmt]
        return x.contiguous().to(dtype).view(-1).view(torch.uint8)
    return quantize(x.contiguous(), fmt).view(-1)
