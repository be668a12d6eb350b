"""Files with rotated heads."""

from __future__ import annotations

from pathlib import Path

from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.quantize import quantize_file
from jambacli.quantize.fold import RotatedHeads
from jambacli.quantize.recipes import RecipeOptions, get_recipe, parse_tensor_type


def rotated(source: Path, target: Path, quant: str = "f32", **more: object) -> Path:
    with GGUFFile.open(source) as file:
        fold = RotatedHeads.of(keys.jamba_config(file.metadata, file.tensors))
        options = RecipeOptions(tensor_types=[parse_tensor_type(".=f32")] if quant == "f32" else [])
        recipe = get_recipe("f16" if quant == "f32" else quant)
        request = quantize_file.Request(recipe, options, fold=fold, **more)  # type: ignore[arg-type]
        return quantize_file.quantize(quantize_file.plan(file, request), target).paths[0]
