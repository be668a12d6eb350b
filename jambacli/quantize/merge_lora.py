"""Adds LoRA adapters to a model's weights and writes the sum as a model, panel by panel.

A weight is dequantized, the products of its adapters are added in float32, and the sum is rounded to the type that the weight
had, or to that of a recipe. A weight without adapters is copied where its type stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jambacli.errors import UnsupportedError
from jambacli.files import refuse_existing
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.layout import copied_metadata, file_size
from jambacli.gguf.reader import GGUFFile
from jambacli.progress import Progress, no_progress
from jambacli.quantize import quantize_file
from jambacli.quantize.recipes import Choice, Recipe, RecipeOptions
from jambacli.runtime.lora import LoraName, load_adapters
from quant.formats import get_format

if TYPE_CHECKING:
    import numpy as np

    from jambacli.kernels.low_rank import LowRank
    from jambacli.quantize.imatrix import Imatrix

# Stands for the types that the weights have.
_OWN_TYPES = Recipe("own types", 0, "f32")
#: What is added to rows ``first`` to ``first + count`` of a weight: float32 [count, n].
Addition: TypeAlias = Callable[[int, int], "np.ndarray"]


@dataclass(frozen=True)
class Merged:
    """What ``merge`` wrote: the files, their size, and how many weights had adapters."""

    paths: tuple[Path, ...]
    nbytes: int
    merged: int


def merge(
    source: GGUFFile,
    loras: Sequence[LoraName],
    output: Path,
    *,
    recipe: Recipe | None = None,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Merged:
    """Write ``source`` with these adapters added to ``output``, or under a name made from the source's in that directory.

    ``recipe``: the types of the result; None: each weight keeps its own. Nothing is left after an error. Raises JambaError for
    adapters that do not fit, and as ``quantize_file.quantize`` does.
    """
    keys.jamba_config(source.metadata, source.tensors)
    adapters = load_adapters(loras, source.tensors, source.path)
    found = {name: low for name in source.tensors if (low := adapters.low(name))}
    added = {name: _addition(low, tuple(source.tensors[name].shape)) for name, low in found.items()}
    target = output / f"{source.path.stem}-merged.gguf" if output.is_dir() else output
    refuse_existing(target, force)
    options = RecipeOptions(has_imatrix=imatrix is not None)
    request = quantize_file.Request(
        recipe or _OWN_TYPES,
        options,
        imatrix,
        threads=threads,
        allow_requantize=True,
        force=force,
        added=added,
    )
    plan = _same_types(source, request) if recipe is None else quantize_file.plan(source, request)
    done = quantize_file.quantize(plan, target, progress, title="Merging")
    return Merged(done.paths, sum(path.stat().st_size for path in done.paths), len(added))


def _addition(parts: Iterable[LowRank], shape: tuple[int, ...]) -> Addition:
    """What the adapters ``parts`` add to a weight of this shape, all experts' rows one after another."""
    n_out, n_in = shape[-2:]

    def rows(first: int, count: int) -> np.ndarray:
        import torch

        out = torch.zeros(count, n_in)
        for low in parts:
            at = first
            while at < first + count:
                expert, row = divmod(at, n_out)
                some = min(n_out - row, first + count - at)
                one = low if len(shape) == 2 else low.expert(expert)
                out[at - first : at - first + some] += one.b[:, row : row + some].T @ (one.a * one.scale)
                at += some
        values: np.ndarray = out.numpy()
        return values

    return rows


def _same_types(source: GGUFFile, request: quantize_file.Request) -> quantize_file.QuantizePlan:
    """A plan in which every tensor keeps its type."""
    choices = [Choice(tensor, tensor.format) for tensor in quantize_file.source_tensors(source, keep_split=True)]
    for choice in choices:
        if choice.name in request.added and not get_format(choice.format).writable:
            raise UnsupportedError(
                f"{source.path}: {choice.name} is {choice.format}, which cannot be written", remedy="choose a {type}"
            )
    if request.imatrix is not None:
        request.imatrix.check({name: info.shape for name, info in source.tensors.items()})
    metadata = copied_metadata(source.metadata)
    tensors = quantize_file.output_tensors(source, choices)
    size = file_size(metadata, tensors, split_max_size=None)
    return quantize_file.QuantizePlan(source, request, tuple(choices), metadata, tensors, size, ())
