"""``jamba lora``: LoRA adapters, from PEFT to GGUF, and merged into a model."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.errors import UsageError
from jambacli.kernels import MAX_THREADS
from jambacli.units import counted, format_bytes, format_seconds

app = typer.Typer(help="Convert LoRA adapters, and merge them into models.", no_args_is_help=True)


class Type(StrEnum):
    """The type of an adapter's matrices."""

    auto = "auto"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter as PEFT saves it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .gguf to write, or its directory; default: the current directory."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Check names and sizes against this model.")
    ] = None,
    type: Annotated[
        Type, typer.Option("--type", case_sensitive=False, help="Type of the matrices; auto: as in the adapter.")
    ] = Type.auto,
    name: Annotated[str | None, typer.Option("--name", help="The adapter's name in the file.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with what was written.")] = False,
) -> None:
    """Convert a LoRA adapter of PEFT to GGUF, for --lora and for llama.cpp."""
    from jambacli.convert import lora
    from jambacli.hub.resolve import resolve_model

    done = lora.convert(
        source,
        output or Path(),
        type=type.value,
        base=None if base is None else resolve_model(base),
        name=name,
        force=force,
        progress=ui.progress,
    )
    ranks = str(done.ranks[0]) if len(done.ranks) == 1 else f"{done.ranks[0]} to {done.ranks[-1]}"
    ui.note(
        f"wrote {done.path}: {counted(done.pairs, 'weight')} with adapters of rank {ranks}, {done.type}, "
        f"{format_bytes(done.nbytes)}"
    )
    if as_json:
        print(
            json.dumps(
                {
                    "file": str(done.path),
                    "bytes": done.nbytes,
                    "type": done.type,
                    "weights": done.pairs,
                    "ranks": list(done.ranks),
                }
            )
        )


@app.command()
def merge(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="The model: a .gguf file or a pulled model.")],
    lora: Annotated[list[str], typer.Option("--lora", metavar="FILE[:SCALE]", help="The adapter to add; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .gguf to write, or its directory.")],
    type: Annotated[
        str | None,
        typer.Option("--type", help="q4_k_m, q8_0, bf16 ...: quantize the sum; default: each tensor's own type."),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix: a GGUF file or the older .dat.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, max=MAX_THREADS, help="CPU threads; default: the cores.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the files written.")] = False,
) -> None:
    """Add LoRA adapters to a model's weights, and write the sum as a model."""
    from jambacli.cache.fingerprint import record
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.resolve import resolve_model
    from jambacli.quantize import merge_lora, recipes
    from jambacli.quantize.imatrix import read_imatrix

    path = resolve_model(source)
    if path.is_dir():
        raise UsageError(f"{path} is a directory; convert a checkpoint to a .gguf with: jamba convert {path}")
    try:
        recipe = None if type is None else recipes.get_recipe(type)
    except ValueError as error:
        raise UsageError(f"--type: {error}") from error
    start = time.monotonic()
    with GGUFFile.open(path) as file:
        done = merge_lora.merge(
            file,
            lora,
            output,
            recipe=recipe,
            imatrix=None if imatrix is None else read_imatrix(imatrix),
            threads=threads,
            force=force,
            progress=ui.progress,
        )
    record(done.paths[0])
    ui.note(
        f"wrote {done.paths[0]}: {counted(done.merged, 'weight')} merged, {format_bytes(done.nbytes)}, in "
        f"{format_seconds(time.monotonic() - start)}"
    )
    if as_json:
        print(json.dumps({"files": [str(p) for p in done.paths], "bytes": done.nbytes, "merged": done.merged}))
