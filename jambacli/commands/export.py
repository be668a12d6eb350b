"""``jamba export``: writes a Hugging Face checkpoint from a GGUF file."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.units import format_bytes, format_seconds, parse_size


class Type(StrEnum):
    """The type of the matrices."""

    auto = "auto"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .gguf file or the name of a pulled model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write; it must be new or empty.")],
    type: Annotated[
        Type,
        typer.Option(
            "--type", case_sensitive=False, help="Type of the matrices; auto: as in the file, bf16 where quantized."
        ),
    ] = Type.auto,
    shard_size: Annotated[
        str, typer.Option("--shard-size", metavar="SIZE", help="Largest file of weights, e.g. 2G.")
    ] = "5G",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the checkpoint in the directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the files written.")] = False,
) -> None:
    """Export a GGUF model as a Hugging Face checkpoint, for transformers, vLLM or fine-tuning."""
    from jambacli.convert import to_hf
    from jambacli.errors import UsageError
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.resolve import resolve_model

    limit = parse_size(shard_size, "--shard-size")
    path = resolve_model(model)
    if path.is_dir():
        raise UsageError(f"{path} is a directory, and export makes one from a .gguf file")
    start = time.monotonic()
    with GGUFFile.open(path) as file:
        done = to_hf.export(file, folder, type=type.value, shard_bytes=limit, force=force, progress=ui.progress)
    took = time.monotonic() - start
    if done.dequantized:
        ui.note(
            f"the file's weights are {', '.join(done.dequantized)}: the checkpoint holds their values in {done.type}, not "
            "the original ones; where the original checkpoint exists, use that"
        )
    ui.note(
        f"wrote {folder}: {done.type}, {done.tensors} tensors, {format_bytes(done.nbytes)} in {format_seconds(took)} "
        f"({format_bytes(done.nbytes / max(took, 1e-3))}/s)"
    )
    if as_json:
        files = [str(path) for path in done.paths]
        print(json.dumps({"type": done.type, "tensors": done.tensors, "bytes": done.nbytes, "files": files}))
