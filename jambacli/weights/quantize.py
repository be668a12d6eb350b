"""Quantizes a GGUF file into another, panel by panel; knows nothing of arguments, of rendering or of block arithmetic.

The result is llama-quantize's, byte for byte: the same tensors in the same order with the same types, the same metadata.
Reading ahead, encoding and writing overlap; what is held is a handful of panels, whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli import ui
from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.weights import keys
from jambacli.weights.background import BackgroundWriter
from jambacli.weights.experts_int8 import EXPERTS_INT8, EXPERTS_TYPE
from jambacli.weights.gguf import SPLIT_NAME, GGUFFile
from jambacli.weights.panels import FLOATS, BadRowError, Encoder, Error
from jambacli.weights.writer import GGUFWriter
from quant import recipes
from quant.formats import Format, get_format
from quant.imatrix import Imatrix
from quant.recipes import Choice, Facts, Options, Recipe

if TYPE_CHECKING:
    import numpy as np

PANEL_VALUES = 1 << 22
_AHEAD = 16  # panels read ahead of the one being encoded: enough to keep a disk busy, little enough to stay cached
QUANTIZATION_VERSION = 2
_IMATRIX_KEY_BYTES = 127  # llama.cpp's overrides hold no longer strings


@dataclass(frozen=True)
class Request:
    """What is wanted of one run."""

    recipe: Recipe
    options: Options = field(default_factory=Options)
    imatrix: Imatrix | None = None
    keep_split: bool = False
    split_max_size: int | None = None
    threads: int | None = None
    device: str = "cpu"
    allow_requantize: bool = False
    report: bool = False
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """What becomes of every tensor of ``source``, in the order of the output."""

    source: GGUFFile
    request: Request
    choices: tuple[Choice, ...]
    size: int
    """Bytes of the output, all parts and headers."""
    unweighted: tuple[str, ...]
    """Tensors that an imatrix was given for in vain: it has no entry for them."""

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(_count(c.tensor.shape) for c in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Of the output file, metadata included."""
        return self.size * 8 / self.weights

    @property
    def fallbacks(self) -> tuple[Choice, ...]:
        """Tensors whose rows the wanted format does not divide."""
        return tuple(c for c in self.choices if c.fallback_from)

    @property
    def idle_wishes(self) -> list[str]:
        """What the user asked for that changes nothing, one phrase each: a pattern that finds no tensor, say."""
        options = self.request.options
        changing = [c.name for c in self.choices if not c.kept]
        idle = [
            f"--tensor-type {pattern.pattern}={fmt} finds no tensor that is quantized"
            for pattern, fmt in options.tensor_types
            if not any(pattern.search(name) for name in changing)
        ]
        tied = keys.OUTPUT not in self.source.tensors
        if options.output and tied and (options.embedding or (options.pure and self.request.recipe.base not in FLOATS)):
            why = "--embedding-type" if options.embedding else "--pure"
            idle.append(f"--output-type has no effect: the embedding is the output here, and {why} decides")
        return idle


@dataclass(frozen=True)
class Result:
    """What ``quantize`` wrote: its files, and with ``report`` each changed tensor's error."""

    paths: tuple[Path, ...]
    errors: dict[str, Error]


def default_output(source: Path, recipe: Recipe) -> Path:
    """Where the output goes when nobody says: beside the input, the type in its name replaced or added."""
    split = SPLIT_NAME.fullmatch(source.name)
    stem = split["stem"] if split else source.name.removesuffix(".gguf")
    kinds = "|".join(sorted({"f32", "f16", "bf16", "fp16", "fp32", *recipes.RECIPES}, key=len, reverse=True))
    stem = re.sub(rf"[-._](?:{kinds})$", "", stem, flags=re.IGNORECASE)
    return source.with_name(f"{stem}-{recipe.label}.gguf")


def plan(source: GGUFFile, request: Request) -> Plan:
    """Settle every tensor's format, before anything is read or written.

    JambaError, naming tensor or file, for another architecture, a source that is quantized already, a row that does
    not fit, an imatrix of another model, or options that contradict each other.
    """
    if request.keep_split and request.split_max_size is not None:
        raise UsageError("--keep-split and --split-max-size contradict each other; choose one")
    config = keys.jamba_config(source.metadata, source.tensors)
    gqa = config.n_heads // config.n_kv_heads if config.layer_is_attention[0] else 0
    try:
        choices = recipes.plan(
            _source_tensors(source, request.keep_split),
            Facts(config.n_layers, config.n_experts, gqa),
            request.recipe,
            request.options,
        )
    except ValueError as error:
        raise JambaError(f"{source.path}: {error}") from error
    _check_requantizing(source, choices, request.allow_requantize)
    unweighted: tuple[str, ...] = ()
    if request.imatrix is not None:
        try:
            request.imatrix.check({name: info.shape for name, info in source.tensors.items()})
        except ValueError as error:
            raise JambaError(str(error)) from error
        unweighted = tuple(
            c.name for c in choices if c.format not in FLOATS and c.name not in request.imatrix.entries and not c.kept
        )
    plan = Plan(source, request, tuple(choices), 0, unweighted)
    with GGUFWriter(Path("unwritten.gguf"), split_max_size=request.split_max_size, force=True) as writer:
        _describe(writer, plan)
        size = writer.planned_size()
        writer.abort()
    return Plan(source, request, plan.choices, size, unweighted)


def quantize(plan: Plan, output: Path) -> Result:
    """Write the quantized model to ``output`` (or its parts); with ``report``, measure what the encoding lost.

    JambaError for an output that exists (without ``force``) or is the input, for a NaN or an infinity (naming tensor and
    row), for weights too large for their format, for a disk that is full. On any error, and when interrupted, nothing
    is left behind and nothing that stood there is touched.
    """
    source, request = plan.source, plan.request
    _refuse_input_as_output(source, output)
    encoder = Encoder(threads=request.threads, device=request.device)
    panels = list(_panels(plan))
    errors: dict[str, Error] = {}
    with GGUFWriter(output, split_max_size=request.split_max_size, force=request.force) as writer:
        _describe(writer, plan)
        writer.begin()
        title = f"Quantizing to {request.recipe.label}"
        total = sum(p.stop - p.start for p in panels)
        largest = max(p.out_bytes for p in panels)
        with ui.progress(title, total) as advance, BackgroundWriter(writer, largest, advance) as out:
            for panel in panels[:_AHEAD]:
                source.advise(panel.name, panel.start, panel.stop, needed=True)
            for i, panel in enumerate(panels):
                if i + _AHEAD < len(panels):
                    ahead = panels[i + _AHEAD]
                    source.advise(ahead.name, ahead.start, ahead.stop, needed=True)
                buffer = out.take()
                error = _encode(source, encoder, panel, buffer, request.report)
                out.write(panel.name, panel.offset, buffer, panel.out_bytes, panel.stop - panel.start)
                source.advise(panel.name, panel.start, panel.stop, needed=False)
                if error:
                    errors.setdefault(panel.name, Error()).merge(error)
        writer.finish()
        return Result(tuple(writer.paths), errors)


@dataclass(frozen=True)
class _Panel:
    """Some rows of one tensor: bytes ``start`` to ``stop`` of the source, to be written at ``offset`` of the output."""

    choice: Choice
    have: Format
    want: Format
    first_row: int
    start: int
    stop: int
    offset: int
    out_bytes: int
    weights: np.ndarray | None

    @property
    def name(self) -> str:
        return self.choice.name


def _panels(plan: Plan) -> Iterator[_Panel]:
    """All tensors, panel by panel in the order of the output."""
    imatrix = plan.request.imatrix
    for choice in plan.choices:
        shape = choice.tensor.shape
        have, want = get_format(choice.tensor.format), get_format(choice.format)
        n, rows = shape[-1], _count(shape[:-1])
        weights = imatrix.weights_for(choice.name, shape) if imatrix and have != want else None
        stretch = rows // len(weights) if weights is not None and weights.ndim == 2 else rows
        step = max(1, PANEL_VALUES // n)
        for base in range(0, rows, stretch):
            columns = weights[base // stretch] if weights is not None and weights.ndim == 2 else weights
            for first in range(base, base + stretch, step):
                count = min(step, base + stretch - first)
                yield _Panel(
                    choice,
                    have,
                    want,
                    first,
                    start=first * have.row_bytes(n),
                    stop=(first + count) * have.row_bytes(n),
                    offset=first * want.row_bytes(n),
                    out_bytes=count * want.row_bytes(n),
                    weights=columns,
                )


def _encode(source: GGUFFile, encoder: Encoder, panel: _Panel, buffer: np.ndarray, report: bool) -> Error | None:
    n = panel.choice.tensor.shape[-1]
    data = source.data(panel.name)[panel.start : panel.stop]
    out = buffer[: panel.out_bytes]
    try:
        encoder.encode(data, panel.have, panel.want, n, panel.weights, out)
    except BadRowError as error:
        where = _row_name(panel.first_row + error.row, panel.choice.tensor.shape)
        raise BadFileError(source.path, f"tensor {panel.name}: {where} {error.problem}; nothing was written") from None
    except ValueError as error:
        raise JambaError(f"{source.path}: tensor {panel.name}: {error}") from error
    if not report or panel.have == panel.want:
        return None
    lost = Error()
    lost.add(encoder.decode(data, panel.have, n), encoder.decode(out, panel.want, n))
    return lost


def _source_tensors(source: GGUFFile, keep_split: bool) -> list[recipes.Tensor]:
    """The source's tensors as the recipes see them, in the order that llama-quantize visits them."""
    infos = source.tensors
    if keep_split:
        names = sorted(infos, key=lambda name: (infos[name].part, infos[name].offset))
    else:
        names = recipes.visiting_order(infos)
    return [recipes.Tensor(name, infos[name].shape, infos[name].format.name) for name in names]


def _check_requantizing(source: GGUFFile, choices: list[Choice], allowed: bool) -> None:
    for choice in choices:
        have = choice.tensor.format
        if choice.format == have or have in FLOATS:
            continue
        if not allowed:
            raise JambaError(
                f"{source.path}: {choice.name} is {have} already, and quantizing again loses more than quantizing the "
                "original once; use --allow-requantize to do it all the same"
            )
        if have.startswith("i") and have[1:].isdigit():
            raise UnsupportedError(f"{source.path}: {choice.name} is {have}, which holds no weights to quantize")


def _describe(writer: GGUFWriter, plan: Plan) -> None:
    """Metadata and tensors, in llama-quantize's order: what was there, then what changed."""
    recipe, imatrix = plan.request.recipe, plan.request.imatrix
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
    if recipe.name == EXPERTS_INT8:
        rows.append((EXPERTS_TYPE, EXPERTS_INT8, "str"))
    writer.copy_metadata(plan.source.metadata, skip={EXPERTS_TYPE, *(key for key, _, _ in rows)})
    for key, value, kind in rows:
        writer.add(key, value, kind)
    for choice in plan.choices:
        part = plan.source.tensors[choice.name].part if plan.request.keep_split else 0
        writer.plan_tensor(choice.name, choice.tensor.shape, choice.format, part)


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


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
