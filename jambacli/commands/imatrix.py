"""``jamba imatrix``: collects an importance matrix for ``quantize`` from texts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.commands.inputs import read_text
from jambacli.commands.open_documents import open_documents
from jambacli.errors import UsageError
from jambacli.startup import importing
from jambacli.units import counted, format_seconds, parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.quantize.imatrix_collect import Sums

# Stacks of experts that are named one by one.
_NAMED = 8


@o.measurement_options
def imatrix(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, best in bf16: a name or a .gguf file.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Files, directories, globs, - for stdin, read as in ask; default: a mixture that comes with the program.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write; .dat means the older format.")
    ] = Path("imatrix.gguf"),
    ctx: Annotated[str, typer.Option("--ctx", "-c", help="Tokens of a chunk.")] = "512",
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Use at most this many chunks.")] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge",
            metavar="FILE",
            help="Add an earlier imatrix of this model; repeatable. Without TEXT, only these.",
        ),
    ] = None,
    all_experts: Annotated[
        bool,
        typer.Option("--all-experts", help="Show every token to every expert, weighted by the router. Slower."),
    ] = False,
    output_matrix: Annotated[
        bool, typer.Option("--output-matrix", "--process-output", help="Collect for the output matrix too.")
    ] = False,
    markup: Annotated[
        bool, typer.Option("--markup", "--parse-special", help="Read markers such as <|eom|> in TEXT as their tokens.")
    ] = False,
    format: Annotated[
        str | None, typer.Option("--format", help="gguf, or legacy for older programs; default: by the file's name.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
    *,
    arguments: o.DeviceArguments,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the figures.")] = False,
) -> None:
    """Collect an importance matrix: how much each column of each weight matters on a text.

    Run the same command again after an interruption: it continues where it stopped.
    """
    from jambacli.files import refuse_existing

    refuse_existing(output, force)
    size = parse_size(ctx, "--ctx")
    if size < 2:
        raise UsageError("leaves nothing to read; give at least 2", field="ctx", value=ctx)
    given = [] if not texts else _texts(texts, output)
    with importing():
        from jambacli.quantize import imatrix_collect as c

    kind = c.check_format(format, output)
    earlier = [c.read_sums(path, size) for path in merge or ()]
    loaded = arguments.load_model(model, size)
    began = time.monotonic()
    if texts or not earlier:
        found = _collected(
            loaded, given, output, size, chunks, earlier, all_experts, output_matrix, markup, arguments.kv_type or "f16"
        )
    else:
        found = c.merge(earlier)
    for path, sums in zip(merge or (), earlier, strict=True):
        c.shapes_match(sums, _shapes(loaded), path)
    (c.write_legacy if kind == "legacy" else c.write_gguf)(found, output, force=force)
    c.finish(output)
    took = time.monotonic() - began
    _show_few(found)
    ui.note(
        f"wrote {output}: {counted(len(found.squares), 'weight')}, {counted(found.chunks, 'chunk')} in "
        f"{format_seconds(took)}"
    )
    if as_json:
        print(json.dumps(_json(found, output, took)))


def _collected(
    loaded: Jamba,
    given: list[tuple[str, str]],
    output: Path,
    size: int,
    limit: int | None,
    earlier: list[Sums],
    all_experts: bool,
    output_matrix: bool,
    markup: bool,
    kv_type: str,
) -> Sums:
    from jambacli import data
    from jambacli.quantize import imatrix_collect as c

    given = given or [("built in", data.calibration_text())]
    names = [name for name, _ in given]
    runs, total = c.chunks_of(loaded.tokenizer, [text for _, text in given], size, markup=markup)
    runs = runs if limit is None else runs[:limit]
    ui.note(f"using {sum(map(len, runs)):,} of {total:,} tokens, in {counted(len(runs), 'chunk')}")
    return c.collect(
        loaded.model,
        runs,
        output,
        identity=loaded.fingerprint,
        datasets=names,
        start=c.merge(earlier) if earlier else None,
        all_experts=all_experts,
        output_matrix=output_matrix,
        kv_type=kv_type,
        progress=ui.progress,
    )


def _texts(arguments: list[str], output: Path) -> list[tuple[str, str]]:
    """The names and texts: plain text as it stands, to the character, other files as ``ask`` reads them."""
    from jambacli.documents.load import is_plain

    found: list[tuple[str, str]] = []
    for argument in arguments:
        path = Path(argument)
        if argument != "-" and is_plain(path):
            found.append((argument, read_text(path)))
        else:
            found += [(document.name, document.text) for document in open_documents([argument], output)]
    return found


def _shapes(loaded: Jamba) -> dict[str, tuple[int, ...]]:
    from jambacli.gguf.jamba_metadata import expected_tensors

    return expected_tensors(loaded.config)


def _show_few(found: Sums) -> None:
    """Warn of experts that saw few tokens: their importance is a guess."""
    few = found.few()
    if not few:
        return
    count = sum(len(experts) for name, experts in few.items() if "gate_exps" in name)
    ui.warn(
        f"{counted(count, 'expert')} saw fewer than 64 tokens; give more text of the kinds that you use, or --all-experts"
    )
    stacks = [(name, experts) for name, experts in few.items() if "gate_exps" in name]
    for name, experts in stacks[:_NAMED]:
        seen = ", ".join(f"{i} ({n:,.0f})" for i, n in experts[:12])
        ui.warn(f"layer {name.split('.')[1]}: {'expert' if len(experts) == 1 else 'experts'} {seen}")
    if len(stacks) > _NAMED:
        ui.warn(f"and in {counted(len(stacks) - _NAMED, 'more layer')}")


def _json(found: Sums, output: Path, took: float) -> dict[str, Any]:
    return {
        "file": str(output),
        "weights": len(found.squares),
        "chunks": found.chunks,
        "tokens": found.chunks * found.chunk,
        "seconds": round(took, 3),
        "few": {name: [[i, n] for i, n in experts] for name, experts in found.few().items()},
    }
