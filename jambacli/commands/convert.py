"""``jamba convert``: converts a Hugging Face checkpoint to a GGUF file."""

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
    """The type of the matrices; all other tensors are f32."""

    auto = "auto"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="An HF checkpoint directory, or a hub repository as OWNER/NAME.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .gguf to write; default: NAME-TYPE.gguf in the current directory."),
    ] = None,
    type: Annotated[
        Type, typer.Option("--type", case_sensitive=False, help="Type of the matrices; auto: as in the checkpoint.")
    ] = Type.auto,
    split_max_size: Annotated[
        str | None,
        typer.Option("--split-max-size", metavar="SIZE", help="Split into files of at most this size, e.g. 10G."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the file.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the files written.")] = False,
) -> None:
    """Convert a Hugging Face Jamba checkpoint to GGUF."""
    from jambacli.cache.fingerprint import record
    from jambacli.convert import to_gguf
    from jambacli.hub.checkpoints import find_checkpoint

    limit = None if split_max_size is None else parse_size(split_max_size, "--split-max-size")
    to_gguf.check_output(output, limit, force)
    folder = find_checkpoint(source)
    start = time.monotonic()
    done = to_gguf.convert(
        folder, output, type=type.value, split_max_size=limit, force=force, name=name, progress=ui.progress
    )
    took = time.monotonic() - start
    record(done.paths[0])
    where = done.paths[0] if len(done.paths) == 1 else f"{done.paths[0]} and {len(done.paths) - 1} more parts"
    ui.note(
        f"wrote {where}: {done.type}, {done.tensors} tensors, {format_bytes(done.nbytes)} in {format_seconds(took)} "
        f"({format_bytes(done.nbytes / max(took, 1e-3))}/s)"
    )
    if as_json:
        files = [str(path) for path in done.paths]
        print(json.dumps({"type": done.type, "tensors": done.tensors, "bytes": done.nbytes, "files": files}))
