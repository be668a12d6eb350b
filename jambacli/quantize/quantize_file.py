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
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.background_writer import BackgroundWriter, Piece
from jambacli.gguf.experts_int8 import EXPERTS_INT8, EXPERTS_TYPE, scale_name
from jambacli.gguf.reader import SPLIT_NAME, GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.quantize import recipes
from jambacli.quantize.recipes import Choice, Facts, Options, Recipe
from jambacli.quantize.rows import FLOATS, BadRowError, Encoder, Error, Rows
from quant.formats import Format, get_format
from quant.imatrix import Imatrix

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


def output_path(source: GGUFFile, recipe: Recipe, output: Path | None) -> Path:
    """The file that ``output`` means: itself, the default name in that directory, or without one beside the source.

    UsageError where it is the source itself.
    """
    usual = default_output(source.path, recipe)
    path = usual if output is None else output / usual.name if output.is_dir() else output
    _refuse_input_as_output(source, path)
    return path


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
    encoder = Encoder(threads=request.threads, device=request.device)
    panels = list(_panels(plan))
    errors: dict[str, Error] = {}
    with GGUFWriter(output, split_max_size=request.split_max_size, force=request.force) as writer:
        _describe(writer, plan)
        for path in writer.planned_paths():
            _refuse_input_as_output(source, path)
        writer.begin()
        title = f"Quantizing to {request.recipe.label}"
        total = sum(p.stop - p.start for p in panels)
        largest = max(p.buffer_bytes for p in panels)
        with ui.progress(title, total) as advance, BackgroundWriter(writer, largest, advance) as out:
            for panel in panels[:_AHEAD]:
                source.advise(panel.name, panel.start, panel.stop, needed=True)
            for i, panel in enumerate(panels):
                if i + _AHEAD < len(panels):
                    ahead = panels[i + _AHEAD]
                    source.advise(ahead.name, ahead.start, ahead.stop, needed=True)
                buffer = out.take()
                error = _encode(source, encoder, panel, buffer, request.report)
                out.write(buffer, panel.pieces(), panel.stop - panel.start)
                source.advise(panel.name, panel.start, panel.stop, needed=False)
                if error:
                    errors.setdefault(panel.name, Error()).merge(error)
        writer.finish()
        return Result(tuple(writer.paths), errors)


@dataclass(frozen=True)
class _Panel:
    """Some rows of one tensor: ``rows`` of them from ``first``, and the columns' importance, float32 [n] or None."""

    choice: Choice
    have: Format
    want: Format
    first: int
    rows: int
    weights: np.ndarray | None

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def n(self) -> int:
        return self.choice.tensor.row

    @property
    def start(self) -> int:
        """Where the rows start in the source tensor, bytes; ``stop`` is where they end."""
        return self.first * self.have.row_bytes(self.n)

    @property
    def stop(self) -> int:
        return (self.first + self.rows) * self.have.row_bytes(self.n)

    @property
    def out_bytes(self) -> int:
        return self.rows * self.want.row_bytes(self.n)

    @property
    def scales_start(self) -> int:
        """Where the buffer holds ExpertsInt8's scales, after the levels."""
        return -(-self.out_bytes // 4) * 4

    @property
    def buffer_bytes(self) -> int:
        return self.scales_start + 4 * self.rows if self.want.name == "i8" else self.out_bytes

    def pieces(self) -> list[Piece]:
        """What of the filled buffer goes where."""
        pieces = [Piece(self.name, self.first * self.want.row_bytes(self.n), 0, self.out_bytes)]
        if self.want.name == "i8":
            pieces.append(Piece(scale_name(self.name), 4 * self.first, self.scales_start, self.buffer_bytes))
        return pieces


def _panels(plan: Plan) -> Iterator[_Panel]:
    """All tensors, panel by panel in the order of the output."""
    imatrix = plan.request.imatrix
    for choice in plan.choices:
        shape = choice.tensor.shape
        have, want = get_format(choice.tensor.format), get_format(choice.format)
        rows, step = _count(shape[:-1]), max(1, PANEL_VALUES // shape[-1])
        weights = imatrix.weights_for(choice.name, shape) if imatrix and have != want else None
        # Experts have columns weighted each for itself: a panel ends where its expert does.
        stretch = rows if weights is None or weights.ndim == 1 else shape[-2]
        for base in range(0, rows, stretch):
            columns = weights if weights is None or weights.ndim == 1 else weights[base // stretch]
            for first in range(base, base + stretch, step):
                yield _Panel(choice, have, want, first, min(step, base + stretch - first), columns)


def _encode(source: GGUFFile, encoder: Encoder, panel: _Panel, buffer: np.ndarray, report: bool) -> Error | None:
    rows = Rows(source.data(panel.name)[panel.start : panel.stop], panel.have, panel.n, _source_scales(source, panel))
    scales = buffer[panel.scales_start : panel.buffer_bytes].view("<f4") if panel.want.name == "i8" else None
    out = Rows(buffer[: panel.out_bytes], panel.want, panel.n, scales)
    try:
        encoder.encode(rows, out, panel.weights)
    except BadRowError as error:
        where = _row_name(panel.first + error.row, panel.choice.tensor.shape)
        raise BadFileError(source.path, f"tensor {panel.name}: {where} {error.problem}; nothing was written") from None
    except ValueError as error:
        raise JambaError(f"{source.path}: tensor {panel.name}: {error}") from error
    if not report or panel.have == panel.want:
        return None
    lost = Error()
    lost.add(encoder.decode(rows), encoder.decode(out))
    return lost


def _source_scales(source: GGUFFile, panel: _Panel) -> np.ndarray | None:
    """The row scales of a panel that is ExpertsInt8 already."""
    if panel.have.name != "i8":
        return None
    return source.data(scale_name(panel.name)).view("<f4")[panel.first : panel.first + panel.rows]


def _source_tensors(source: GGUFFile, keep_split: bool) -> list[recipes.Tensor]:
    """The source's tensors as the recipes see them, in the order that llama-quantize visits them."""
    infos = source.tensors
    if keep_split:
        names = sorted(infos, key=lambda name: (infos[name].part, infos[name].offset))
    else:
        names = recipes.visiting_order(infos)
    # ExpertsInt8's scales go with their stacks, or away with them.
    scales = {scale_name(name) for name, info in infos.items() if info.format.name == "i8"}
    names = [name for name in names if name not in scales]
    return [recipes.Tensor(name, infos[name].shape, infos[name].format.name) for name in names]


def _check_requantizing(source: GGUFFile, choices: list[Choice], allowed: bool) -> None:
    for choice in choices:
        have = choice.tensor.format
        if have == "i8" and not _has_scales(source, choice):
            raise BadFileError(source.path, f"tensor {choice.name} is i8 without F32 row scales beside it")
        if choice.format == have or have in FLOATS:
            continue
        if not allowed:
            raise JambaError(
                f"{source.path}: {choice.name} is {have} already, and quantizing again loses more than quantizing the "
                "original once; use --allow-requantize to do it all the same"
            )
        if have in ("i16", "i32", "i64", "f64"):
            raise UnsupportedError(f"{source.path}: {choice.name} is {have}, which holds no weights to quantize")


def _has_scales(source: GGUFFile, choice: Choice) -> bool:
    """Whether an I8 tensor has ExpertsInt8's row scales beside it."""
    scales = source.tensors.get(scale_name(choice.name))
    return scales is not None and scales.format.name == "f32" and scales.shape == choice.tensor.shape[:-1]


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
        if choice.format == "i8":
            writer.plan_tensor(scale_name(choice.name), choice.tensor.shape[:-1], "f32", part)


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
