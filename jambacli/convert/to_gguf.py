"""Converts a Hugging Face Jamba checkpoint to a GGUF file, in panels: runs of a few megabytes of a matrix.

Quantized weights are dequantized as they are read. A panel is read into a buffer, converted to the output type and written
to its final offset while the next ones are being read, so that only a few panels are in memory. A tensor that has the
output type already is copied.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.convert.chat_templates import chat_templates, template_metadata
from jambacli.convert.hf_checkpoint import DTYPE_BYTES, Checkpoint, ComputedTensor
from jambacli.convert.model_card import general_metadata, model_name
from jambacli.convert.source import check_config, open_source
from jambacli.convert.tensor_names import Planned, SourcePiece
from jambacli.convert.vocabulary import tokenizer_metadata
from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import refuse_existing
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.writer import GGUFWriter
from jambacli.model.config import JambaConfig
from jambacli.progress import Progress, no_progress
from jambacli.units import format_count
from quant.formats import Format, get_format

if TYPE_CHECKING:
    import torch

__all__ = ["TYPES", "Converted", "check_config", "check_output", "convert"]

TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
CONVERT_PANEL_BYTES = 4 << 20  # small enough that a panel is converted in the processor's cache
READ_AHEAD = 3  # panels
QUANTIZATION_VERSION = 2
# llama.cpp's llama_ftype, the number general.file_type holds.
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_PERIODS = {
    keys.ATTENTION_PERIOD: ("attn_layer_period", 8),
    keys.ATTENTION_OFFSET: ("attn_layer_offset", 4),
    keys.EXPERT_PERIOD: ("expert_layer_period", 2),
    keys.EXPERT_OFFSET: ("expert_layer_offset", 1),
}


@dataclass(frozen=True)
class Converted:
    """What ``convert`` wrote: the files, their total size, the type of the matrices, and the number of tensors."""

    paths: list[Path]
    nbytes: int
    type: str
    tensors: int


def convert(
    folder: Path,
    output: Path | None = None,
    *,
    type: str = "auto",
    split_max_size: int | None = None,
    force: bool = False,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Converted:
    """Convert the checkpoint in ``folder`` to ``output`` (or its split parts, each of at most ``split_max_size`` bytes).

    Without ``output``, or with a directory, the file is named after model and type. ``type`` is one of TYPES; "auto" is the
    type of most of the checkpoint's bytes, for quantized ones the type in config.json. Matrices take that type, except
    those that llama.cpp expects in f32, and rows that q8_0's blocks of 32 do not divide, which become f16. ``name``
    replaces the model's name. After an error or an interrupt no part of the output is left. Raises JambaError;
    BadFileError and UnsupportedError name the file and what is wrong with it.
    """
    if type not in TYPES:
        raise UsageError(f"is not one of {', '.join(TYPES)}", field="type", value=type)
    with open_source(folder) as source:
        checkpoint, config, planned = source.checkpoint, source.config, source.planned
        kind = source.type if type == "auto" else type
        path = _output_path(output, name or model_name(folder, checkpoint.config), kind)
        with GGUFWriter(path, split_max_size=split_max_size, force=force) as writer:
            for key, value, value_type in _metadata(folder, checkpoint.config, config, name, kind):
                _add(writer, folder, key, value, value_type)
            formats = {tensor.name: _format(tensor, kind) for tensor in planned}
            for tensor in planned:
                writer.plan_tensor(tensor.name, tensor.shape, formats[tensor.name])
            writer.begin()
            _write(checkpoint, planned, formats, writer, progress)
            writer.finish()
            return Converted(writer.paths, sum(p.stat().st_size for p in writer.paths), kind, len(planned))


def _write(
    checkpoint: Checkpoint,
    planned: list[Planned],
    formats: Mapping[str, Format],
    writer: GGUFWriter,
    progress: Progress,
) -> None:
    import torch

    total = sum(piece.nbytes for tensor in planned for piece in tensor.pieces)
    threads = torch.get_num_threads()
    # Panels are small: waiting for a second thread at each of them costs more than it gains, above all on a busy machine.
    torch.set_num_threads(1)
    try:
        with (
            progress("Converting", total) as advance,
            contextlib.closing(_read_ahead(checkpoint, _panels(planned, formats))) as panels,
        ):
            offsets = dict.fromkeys(formats, 0)
            for tensor in planned:
                if not tensor.pieces:
                    writer.write_tensor(tensor.name, bytes(formats[tensor.name].row_bytes(math.prod(tensor.shape))))
            for panel, data in panels:
                name = panel.tensor.name
                out = data if panel.copied else _convert_panel(data, panel, formats[name])
                writer.write_at(name, offsets[name], out)
                offsets[name] += memoryview(out).nbytes
                advance(panel.nbytes)
    finally:
        torch.set_num_threads(threads)


def check_output(output: Path | None, split_max_size: int | None, force: bool) -> None:
    """Raise the errors that ``convert`` would raise for this output, before anything is downloaded or read."""
    if split_max_size is not None and split_max_size < 1:
        raise UsageError("must be at least 1 byte", field="split_max_size")
    if output is None or output.is_dir():
        return
    if not output.parent.is_dir():
        raise JambaError(f"cannot write {output}: there is no directory {output.parent}")
    if split_max_size is None:
        refuse_existing(output, force)


def _output_path(output: Path | None, name: str, kind: str) -> Path:
    if output is not None and not output.is_dir():
        return output
    stem = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"
    return (output or Path()) / f"{stem[:120]}-{kind.upper()}.gguf"


def _format(tensor: Planned, kind: str) -> Format:
    if tensor.keep_f32:
        return get_format("f32")
    fmt = get_format(kind)
    return fmt if tensor.shape[-1] % fmt.block == 0 else get_format("f16")


def _metadata(
    folder: Path, values: Mapping[str, Any], config: JambaConfig, name: str | None, kind: str
) -> Iterator[tuple[str, Any, str]]:
    rows = keys.config_metadata(config)
    yield rows[0]  # general.architecture comes first, as the specification recommends
    yield from general_metadata(folder, values, name=name, size_label=format_count(config.params()))
    yield keys.FILE_TYPE, _FILE_TYPES[kind], "u32"
    yield "general.quantization_version", QUANTIZATION_VERSION, "u32"
    yield from (row for row in rows[1:] if row[0] not in _PERIODS)
    # From config.json: eight layers alone do not tell a period of 8 from one of 5.
    for key, (field, default) in _PERIODS.items():
        yield key, values.get(field, default), "u32"
    templates = chat_templates(folder)
    yield from tokenizer_metadata(folder, values, config.vocab_size, templates.get("default"))
    yield from template_metadata(templates)


def _add(writer: GGUFWriter, folder: Path, key: str, value: Any, value_type: str) -> None:
    try:
        writer.add(key, value, value_type)
    except UnicodeEncodeError:
        raise BadFileError(folder, f"the text for {key} is not valid Unicode") from None


@dataclass(frozen=True)
class _Panel:
    """A run of a piece's bytes that is read in one call. ``copied``: it is written unchanged."""

    tensor: Planned
    piece: SourcePiece
    start: int
    nbytes: int
    copied: bool


def _panels(planned: list[Planned], formats: Mapping[str, Format]) -> Iterator[_Panel]:
    """All panels of all tensors, in order."""
    for tensor in planned:
        for piece in tensor.pieces:
            copied = formats[tensor.name].name.upper() == piece.tensor.dtype and not tensor.negated_exp
            whole_rows = not copied or isinstance(piece.tensor, ComputedTensor)
            step = _panel_bytes(piece, tensor.shape[-1]) if whole_rows else CONVERT_PANEL_BYTES
            for start in range(0, piece.nbytes, step):
                yield _Panel(tensor, piece, piece.start + start, min(step, piece.nbytes - start), copied)


def _read_ahead(checkpoint: Checkpoint, panels: Iterator[_Panel]) -> Generator[tuple[_Panel, memoryview]]:
    """Each panel with its bytes, which are valid until the next panel; a thread reads ahead."""
    buffers = [memoryview(bytearray(CONVERT_PANEL_BYTES)) for _ in range(READ_AHEAD + 1)]
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[_Panel, memoryview, Future[None]]] = deque()
        for i, panel in enumerate(panels):
            data = buffers[i % len(buffers)][: panel.nbytes]
            waiting.append((panel, data, pool.submit(checkpoint.read_into, panel.piece.tensor, panel.start, data)))
            if len(waiting) == len(buffers):
                yield _next_panel(waiting)
        while waiting:
            yield _next_panel(waiting)


def _next_panel(waiting: deque[tuple[_Panel, memoryview, Future[None]]]) -> tuple[_Panel, memoryview]:
    panel, data, read = waiting.popleft()
    read.result()
    return panel, data


def _panel_bytes(piece: SourcePiece, width: int) -> int:
    """Bytes to convert in one step: whole rows where they fit, else part of a row in whole blocks."""
    row = width * DTYPE_BYTES[piece.tensor.dtype]
    return CONVERT_PANEL_BYTES // row * row if row <= CONVERT_PANEL_BYTES else CONVERT_PANEL_BYTES


def _convert_panel(data: memoryview, panel: _Panel, fmt: Format) -> Any:
    """A panel's bytes in ``fmt``: through f32, rounded to nearest even, as torch and ggml do."""
    import torch

    dtypes = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
    values = torch.frombuffer(data, dtype=dtypes[panel.piece.tensor.dtype])
    if fmt.name == "q8_0":
        from quant import quantize

        if values.dtype == torch.float64:
            values = values.float()
        width = panel.tensor.shape[-1]
        return _bytes(quantize(values.view(-1, width if values.numel() % width == 0 else fmt.block), fmt.name))
    # Plain casts, because they keep a NaN or an infinity as llama.cpp's converter does; ``quantize`` refuses both.
    values = values.float()
    if panel.tensor.negated_exp:
        values = -torch.exp(values)
    if fmt.name == "f16":
        return _bytes(_to_f16(values, panel.tensor.name))
    return _bytes(values if fmt.name == "f32" else values.to(torch.bfloat16))


def _to_f16(values: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    half = values.to(torch.float16)
    largest = torch.stack(torch.aminmax(values)).abs().max()
    # ``not <``: with a NaN the largest value is unknown, and the slower check is needed too.
    if not bool(largest < 65520) and bool((torch.isinf(half) & torch.isfinite(values)).any()):
        raise JambaError(f"tensor {name} has values beyond the range of f16 (65504)", remedy="use {type} bf16 or f32")
    return half


def _bytes(values: torch.Tensor) -> Any:
    import torch

    return values.contiguous().view(torch.uint8).numpy().reshape(-1)
