"""Quantizes one GGUF file into another, panel by panel.

The result is llama-quantize's, byte for byte: the same tensors in the same order with the same types, the same metadata.
Reading ahead, quantizing and writing overlap. Only a few panels are in memory at a time, so any model size works.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import quant
from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.background_writer import BackgroundWriter
from jambacli.gguf.experts_int8 import EXPERTS_INT8, EXPERTS_TYPE, scale_name
from jambacli.gguf.layout import TensorSpec, copied_metadata, file_size
from jambacli.gguf.reader import SPLIT_NAME, GGUFFile
from jambacli.gguf.values import encode_value
from jambacli.gguf.writer import GGUFWriter
from jambacli.progress import Progress, no_progress
from jambacli.quantize import allocate, recipes
from jambacli.quantize.error_stats import ErrorStats
from jambacli.quantize.fold import Fold, RotatedHeads
from jambacli.quantize.panels import Panel, split_into_panels
from jambacli.quantize.recipes import Choice, Facts, Recipe, RecipeOptions
from quant.formats import FLOATS, get_format
from quant.native import NonFiniteRowError
from quant.overflow import overflowed_row
from quant.refine_rows import search_rows
from quant.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from jambacli.quantize.allocate import Allocation
    from jambacli.quantize.imatrix import Imatrix
    from jambacli.quantize.sensitivity import Sensitivity

_READ_AHEAD = 16  # panels: enough to keep a disk busy, few enough to stay in the page cache
QUANTIZATION_VERSION = 2
_IMATRIX_KEY_BYTES = 127  # the longest string in llama.cpp's metadata overrides


@dataclass(frozen=True)
class Refinement:
    """That blocks are to be refined: the names of the calibration texts and their ``tokens``; 0: by the imatrix alone."""

    datasets: tuple[str, ...] = ()
    tokens: int = 0


@dataclass(frozen=True)
class Request:
    """How a file is to be quantized: the recipe, its options, and how to run and to write."""

    recipe: Recipe
    options: RecipeOptions = field(default_factory=RecipeOptions)
    imatrix: Imatrix | None = None
    keep_split: bool = False
    split_max_size: int | None = None
    threads: int | None = None
    device: str = "cpu"
    allow_requantize: bool = False
    report: bool = False
    force: bool = False
    size: int | None = None
    """Bytes of the output, metadata included: the formats are chosen for the least divergence at this size."""
    target: float | None = None
    """The same as bits per weight."""
    sensitivity: Sensitivity | None = None
    """What the choice is based on; None for figures by kind of tensor."""

    fold: Fold | None = None
    refinement: Refinement | None = None

    added: Mapping[str, Callable[[int, int], np.ndarray]] = field(default_factory=dict)
    """By tensor: what to add to its rows from number ``first`` on, float32 [count, n] for (first, count)."""

    @property
    def chooses(self) -> bool:
        """Whether formats are chosen by their divergence."""
        return self.recipe.allocated or self.size is not None or self.target is not None


@dataclass(frozen=True)
class UnusedOption:
    """An option that changes nothing: its Python name, its value where it has one, and why (``{name}`` is an option)."""

    option: str
    reason: str
    value: str | None = None


@dataclass(frozen=True)
class QuantizePlan:
    """The format of every tensor of ``source``, in the order of the output."""

    source: GGUFFile
    request: Request
    choices: tuple[Choice, ...]
    metadata: dict[str, bytes]
    """The output's metadata, encoded."""
    tensors: tuple[TensorSpec, ...]
    """The output's tensors, in file order."""
    size: int
    """Bytes of the output, all parts and headers."""
    unweighted: tuple[str, ...]
    """Tensors to be quantized for which the imatrix has no entry."""
    allocation: Allocation | None = None
    """How formats were chosen by their divergence, None where the recipe's mixture decides."""

    @property
    def weights(self) -> int:
        """The number of weights in the model."""
        return sum(math.prod(c.tensor.shape) for c in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Of the output file, metadata included."""
        return self.size * 8 / self.weights

    @property
    def fallbacks(self) -> tuple[Choice, ...]:
        """Tensors that take another format because the recipe's block length does not divide their rows."""
        return tuple(c for c in self.choices if c.fallback_from)

    @property
    def unused_options(self) -> list[UnusedOption]:
        """Options that change nothing, such as a pattern that finds no tensor."""
        options = self.request.options
        quantized = [c.name for c in self.choices if not c.kept]
        unused = [
            UnusedOption("tensor_type", "finds no tensor that is quantized", f"{pattern.pattern}={fmt}")
            for pattern, fmt in options.tensor_types
            if not any(pattern.search(name) for name in quantized)
        ]
        tied = keys.OUTPUT not in self.source.tensors
        if options.output and tied and (options.embedding or (options.pure and self.request.recipe.base not in FLOATS)):
            decides = "{embedding_type}" if options.embedding else "{pure}"
            reason = f"has no effect: the output matrix is the token embedding, and {decides} decides its type"
            unused.append(UnusedOption("output_type", reason))
        return unused


@dataclass(frozen=True)
class Result:
    """The files that ``quantize`` wrote and, with ``report``, the error of each quantized tensor."""

    paths: tuple[Path, ...]
    errors: dict[str, ErrorStats]


def default_output(source: Path, recipe: Recipe) -> Path:
    """The default name of the output: next to the input, with the type in its name replaced or added."""
    split = SPLIT_NAME.fullmatch(source.name)
    stem = split["stem"] if split else source.name.removesuffix(".gguf")
    kinds = "|".join(sorted({"f32", "f16", "bf16", "fp16", "fp32", *recipes.RECIPES}, key=len, reverse=True))
    stem = re.sub(rf"[-._](?:{kinds}|\d+\.\d\dbpw)$", "", stem, flags=re.IGNORECASE)
    return source.with_name(f"{stem}-{recipe.label}.gguf")


def output_path(source: GGUFFile, recipe: Recipe, output: Path | None) -> Path:
    """The file to write: ``output``, or the default name in that directory, or (None) the default name next to the source.

    UsageError where it is the source itself.
    """
    default = default_output(source.path, recipe)
    path = default if output is None else output / default.name if output.is_dir() else output
    _refuse_input_as_output(source, path)
    return path


def plan(source: GGUFFile, request: Request) -> QuantizePlan:
    """Decide every tensor's format, before weights are read or anything is written.

    JambaError, naming tensor or file, for another architecture, a source that is quantized already, a row that does
    not fit, an imatrix of another model, or options that contradict each other.
    """
    if request.keep_split and request.split_max_size is not None:
        raise UsageError("contradict each other", field=("keep_split", "split_max_size"), remedy="choose one")
    config = keys.jamba_config(source.metadata, source.tensors)
    gqa = config.n_heads // config.n_kv_heads if config.layer_is_attention[0] else 0
    try:
        choices = recipes.plan(
            source_tensors(source, request.keep_split),
            Facts(config.n_layers, config.n_experts, gqa),
            request.recipe,
            request.options,
        )
    except ValueError as error:
        raise JambaError(f"{source.path}: {error}") from error
    _check_requantizing(source, choices, request.allow_requantize, request.fold)
    choices = _without_used_factors(source, choices)
    allocation = None
    if request.chooses:
        choices, request, allocation = _allocated(source, choices, request)
        _check_requantizing(source, choices, request.allow_requantize, request.fold)
    unweighted: tuple[str, ...] = ()
    if request.imatrix is not None:
        request.imatrix.check({name: info.shape for name, info in source.tensors.items()})
        unweighted = tuple(
            c.name for c in choices if c.format not in FLOATS and c.name not in request.imatrix.entries and not c.kept
        )
    metadata, tensors = _output_metadata(source, request), output_tensors(source, choices, request.keep_split)
    size = file_size(metadata, tensors, split_max_size=request.split_max_size)
    return QuantizePlan(source, request, tuple(choices), metadata, tensors, size, unweighted, allocation)


def _allocated(
    source: GGUFFile, choices: list[Choice], request: Request
) -> tuple[list[Choice], Request, Allocation | None]:
    """The choices with the formats of the least divergence at the wanted size, and the request with a recipe of that name."""
    allocate.check(request.recipe, request.options, request.size, request.target)
    if request.sensitivity is not None:
        request.sensitivity.check(source, request.imatrix)
    metadata = _output_metadata(source, request)

    def size_of(some: list[Choice]) -> int:
        tensors = output_tensors(source, some, request.keep_split)
        return file_size(metadata, tensors, split_max_size=request.split_max_size)

    weights = sum(math.prod(c.tensor.shape) for c in choices)
    size = request.size
    if request.target is not None:
        size = int(request.target * weights / 8)
    pinned = {c.name for c in choices if allocate.is_pinned(c, request.options)}
    chosen, allocation = allocate.allocated(
        choices, size_of, size_of(choices) if size is None else size, request.sensitivity, pinned
    )
    if not request.recipe.allocated:
        bits = size_of(chosen) * 8 / weights if request.target is None else request.target
        request = replace(request, recipe=allocate.recipe_for(chosen, f"{bits:.2f}bpw"))
    return chosen, request, allocation


def quantize(
    plan: QuantizePlan,
    output: Path,
    progress: Progress = no_progress,
    refined: Mapping[str, np.ndarray] | None = None,
    *,
    title: str | None = None,
) -> Result:
    """Write the quantized model to ``output`` (or its parts); with ``report``, measure the error of each tensor. ``title``: of
    the progress.

    ``refined``: blocks of tensors that are written as they are, uint8 [bytes] by name (``quantize.refine``).

    JambaError for an output that exists (without ``force``) or is the input, for a NaN or an infinity (naming tensor and
    row), for weights too large for their format, and for a full disk. After an error or an interrupt, no part of the output
    is left and files that existed before are unchanged.
    """
    source, request = plan.source, plan.request
    panels = list(split_into_panels(plan.choices, request.imatrix))
    errors: dict[str, ErrorStats] = {}
    with GGUFWriter(output, split_max_size=request.split_max_size, force=request.force) as writer:
        for key, encoded in plan.metadata.items():
            writer.add_encoded(key, encoded)
        for tensor in plan.tensors:
            writer.plan_tensor(tensor.name, tensor.shape, tensor.format, tensor.part)
        for path in writer.planned_paths():
            _refuse_input_as_output(source, path)
        writer.begin()
        title = title or f"Quantizing to {request.recipe.label}"
        total = sum(p.stop - p.start for p in panels)
        largest = max(p.buffer_bytes for p in panels)
        with progress(title, total) as advance, BackgroundWriter(writer, largest, advance) as out:
            for panel in panels[:_READ_AHEAD]:
                source.advise(panel.name, panel.start, panel.stop, needed=True)
            for i, panel in enumerate(panels):
                if i + _READ_AHEAD < len(panels):
                    ahead = panels[i + _READ_AHEAD]
                    source.advise(ahead.name, ahead.start, ahead.stop, needed=True)
                buffer = out.take()
                error = _quantize_panel(plan, panel, buffer, refined or {})
                out.write(buffer, panel.pieces(), panel.stop - panel.start)
                source.advise(panel.name, panel.start, panel.stop, needed=False)
                if error:
                    errors.setdefault(panel.name, ErrorStats()).merge(error)
        writer.finish()
        return Result(tuple(writer.paths), errors)


def _quantize_panel(
    plan: QuantizePlan, panel: Panel, buffer: np.ndarray, refined: Mapping[str, np.ndarray]
) -> ErrorStats | None:
    source, request = plan.source, plan.request
    folded = request.fold is not None and request.fold.changes(panel.name)
    rows = _source_rows(source, panel)
    if request.fold is not None and folded:
        panel, rows = _folded(source, panel, request.fold)
    if (added := request.added.get(panel.name)) is not None:
        import numpy as np

        values = quant.dequantize(rows, threads=request.threads)
        values += added(panel.first, panel.rows)
        rows = Rows(values.reshape(-1).view(np.uint8), get_format("f32"), panel.n)
    scale = buffer[panel.scales_start : panel.buffer_bytes].view("<f4") if panel.target.name == "i8" else None
    out = Rows(buffer[: panel.out_bytes], panel.target, panel.n, scale)
    try:
        if panel.name in refined:
            first = panel.first * panel.target.row_bytes(panel.n)
            out.data[:] = refined[panel.name][first : first + panel.out_bytes]
        else:
            quant.quantize(
                rows, panel.target.name, panel.weights, out=out, threads=request.threads, device=request.device
            )
            if request.refinement is not None and panel.weights is not None:
                search_rows(rows, out, panel.weights, request.threads)
    except NonFiniteRowError as error:
        raise _bad_row(source, panel, error.row, "holds a NaN or an infinity") from None
    except ValueError as error:
        raise JambaError(f"{source.path}: tensor {panel.name}: {error}") from error
    if panel.target != panel.source or panel.source.name not in FLOATS or added is not None:
        bad = overflowed_row(out.data.reshape(out.count, -1), panel.target.name)
        if bad is not None:
            copied = panel.source == panel.target and added is None
            problem = (
                "a block with an infinite or NaN scale" if copied else f"weights too large for {panel.target.name}"
            )
            raise _bad_row(source, panel, bad, f"has {problem}")
    if not request.report or panel.source == panel.target:
        return None
    stats = ErrorStats()
    stats.add(quant.dequantize(rows, threads=request.threads), quant.dequantize(out, threads=request.threads))
    return stats


def _source_rows(source: GGUFFile, panel: Panel) -> Rows:
    data = source.data(panel.name)[panel.start : panel.stop]
    return Rows(data, panel.source, panel.n, _source_scales(source, panel))


def _folded(source: GGUFFile, panel: Panel, fold: Fold) -> tuple[Panel, Rows]:
    """The panel with its changed values, as float32 rows, and the importance that its columns have then."""

    def read(first: int, count: int) -> np.ndarray:
        values: np.ndarray = quant.dequantize(_source_rows(source, replace(panel, first=first, rows=count)))
        return values

    values = fold.rows(panel.name, panel.first, panel.rows, read)
    f32 = get_format("f32")
    weights = None if panel.weights is None else fold.importance(panel.name, panel.weights)
    return replace(panel, source=f32, weights=weights), Rows(values.view("u1").reshape(-1), f32, panel.n)


def _bad_row(source: GGUFFile, panel: Panel, row: int, problem: str) -> BadFileError:
    where = _row_name(panel.first + row, panel.choice.tensor.shape)
    return BadFileError(source.path, f"tensor {panel.name}: {where} {problem}; nothing was written")


def _source_scales(source: GGUFFile, panel: Panel) -> np.ndarray | None:
    """The row scales of a panel that is ExpertsInt8 already, or NVFP4 with factors."""
    if panel.source.name == "nvfp4" and (factors := source.factors(panel.name)) is not None:
        rows: np.ndarray = factors.flatten().numpy()[panel.first : panel.first + panel.rows]
        return rows
    if panel.source.name != "i8":
        return None
    return source.data(scale_name(panel.name)).view("<f4")[panel.first : panel.first + panel.rows]


def source_tensors(source: GGUFFile, keep_split: bool = False) -> list[recipes.Tensor]:
    """The source's tensors as the recipes see them, in the order that llama-quantize visits them."""
    infos = source.tensors
    if keep_split:
        names = sorted(infos, key=lambda name: (infos[name].part, infos[name].offset))
    else:
        names = recipes.visiting_order(infos)
    # ExpertsInt8's scales are written, or left out, with their stacks.
    scales = {scale_name(name) for name, info in infos.items() if info.format.name == "i8"}
    names = [name for name in names if name not in scales]
    return [recipes.Tensor(name, infos[name].shape, infos[name].format.name) for name in names]


def _check_requantizing(source: GGUFFile, choices: list[Choice], allowed: bool, fold: Fold | None) -> None:
    for choice in choices:
        fmt = choice.tensor.format
        if fmt == "i8" and not _has_scales(source, choice):
            raise BadFileError(source.path, f"tensor {choice.name} is i8 without separate F32 row scales")
        changed = fold is not None and fold.changes(choice.name)
        if (choice.format == fmt and not changed) or fmt in FLOATS:
            continue
        if not allowed:
            raise JambaError(
                f"{source.path}: {choice.name} is {fmt} already, and quantizing again loses more than quantizing the "
                "original once",
                remedy="use {allow_requantize} to do it anyway",
            )
        if fmt in ("i16", "i32", "i64", "f64"):
            raise UnsupportedError(f"{source.path}: {choice.name} is {fmt}, which holds no weights to quantize")


def _without_used_factors(source: GGUFFile, choices: list[Choice]) -> list[Choice]:
    """The choices without the factors of weights that get another format: their values are multiplied by these."""
    used: set[str] = set()
    for choice in choices:
        source.factors(choice.name)  # refuses those that are not supported
        if choice.format != choice.tensor.format and choice.name.endswith(".weight"):
            used |= {choice.name.removesuffix("weight") + kind for kind in ("scale", "input_scale")}
    return [choice for choice in choices if choice.name not in used]


def _has_scales(source: GGUFFile, choice: Choice) -> bool:
    """Whether an I8 tensor has ExpertsInt8's row scales."""
    scales = source.tensors.get(scale_name(choice.name))
    return scales is not None and scales.format.name == "f32" and scales.shape == choice.tensor.shape[:-1]


def _output_metadata(source: GGUFFile, request: Request) -> dict[str, bytes]:
    """The output's metadata, encoded, in llama-quantize's order: the source's, then what quantizing adds or changes."""
    recipe, imatrix = request.recipe, request.imatrix
    rows: list[tuple[str, str | int, str]] = [
        ("general.quantization_version", QUANTIZATION_VERSION, "u32"),
        (keys.FILE_TYPE, recipe.file_type, "u32"),
    ]
    if imatrix is not None:
        rows.append(("quantize.imatrix.file", _cut(imatrix.path), "str"))
        if imatrix.datasets:
            rows.append(("quantize.imatrix.dataset", _cut(imatrix.datasets[0]), "str"))
        rows.append(("quantize.imatrix.entries_count", len(imatrix.entries), "u32"))
        if imatrix.chunks:
            rows.append(("quantize.imatrix.chunks_count", imatrix.chunks, "u32"))
    if (refinement := request.refinement) is not None and refinement.tokens:
        rows.append(("quantize.refine.dataset", _cut(", ".join(refinement.datasets)), "str"))
        rows.append(("quantize.refine.tokens", refinement.tokens, "u32"))
    if recipe.name == EXPERTS_INT8:
        rows.append((EXPERTS_TYPE, EXPERTS_INT8, "str"))
    if isinstance(request.fold, RotatedHeads):
        rows.append((keys.ROTATED_HEADS, True, "bool"))
    values = copied_metadata(source.metadata, skip={EXPERTS_TYPE, *(key for key, _, _ in rows)})
    return values | {key: encode_value(key, value, kind) for key, value, kind in rows}


def output_tensors(source: GGUFFile, choices: list[Choice], keep_split: bool = False) -> tuple[TensorSpec, ...]:
    """The tensors to write; ExpertsInt8's scales follow their stacks."""
    specs: list[TensorSpec] = []
    for choice in choices:
        part = source.tensors[choice.name].part if keep_split else 0
        specs.append(TensorSpec(choice.name, choice.tensor.shape, get_format(choice.format), part))
        if choice.format == "i8":
            specs.append(TensorSpec(scale_name(choice.name), choice.tensor.shape[:-1], get_format("f32"), part))
    return tuple(specs)


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:_IMATRIX_KEY_BYTES].decode("utf-8", "surrogateescape")


def _refuse_input_as_output(source: GGUFFile, output: Path) -> None:
    for path in source.paths:
        if output.exists() and output.samefile(path):
            raise UsageError(f"{output} is the input; choose another name for the output")


def _row_name(row: int, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "it"
    if len(shape) == 2:
        return f"row {row}"
    return f"row {row % shape[-2]} of expert {row // shape[-2]}"
