"""``jamba quantize``: writes a smaller GGUF file, or shows what it would hold."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jambacli import ui
from jambacli.commands.flags import flag
from jambacli.commands.quantize_sensitivity import sensitivity_from
from jambacli.errors import JambaError, UsageError, name_options
from jambacli.kernels import MAX_THREADS
from jambacli.units import counted, format_bytes, format_seconds, parse_size

if TYPE_CHECKING:
    from jambacli.quantize.error_stats import ErrorStats
    from jambacli.quantize.quantize_file import QuantizePlan, Result
    from jambacli.quantize.recipes import Recipe

T = TypeVar("T")


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN.gguf", help="The model: a .gguf file (any part of a split one) or the name of a pulled model."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT.gguf]",
            help="A file or directory; default: next to the input, or the current directory for a pulled model.",
        ),
    ] = None,
    type: Annotated[
        str,
        typer.Option("--type", help="q4_k_m, q8_0, iq4_xs, experts_int8 ...; an unknown type prints the list."),
    ] = "q4_k_m",
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix: a GGUF file or the older .dat.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose names match; repeatable."),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            metavar="BITS",
            help="Choose types for the least divergence at these bits per weight, e.g. 4.85.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Choose types for the least divergence in a file of this size, e.g. 24G."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            "--sensitivity", metavar="FILE", help="Choose by these figures; what the file lacks is measured into it."
        ),
    ] = None,
    calibration_tokens: Annotated[
        str, typer.Option("--calibration-tokens", help="Measure for --sensitivity on this many tokens of the text.")
    ] = "4096",
    measure_types: Annotated[
        str | None,
        typer.Option(
            "--measure-types",
            metavar="TYPES",
            help="Measure only these, e.g. q3_k,q5_k; the rest is estimated.",
        ),
    ] = None,
    output_type: Annotated[str | None, typer.Option("--output-type", help="Type of the output matrix.")] = None,
    embedding_type: Annotated[
        str | None,
        typer.Option("--embedding-type", "--token-embedding-type", help="Type of the token embedding."),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="Use the same type for all matrices, without the mixture.")
    ] = False,
    rotate_kv: Annotated[
        bool,
        typer.Option(
            "--rotate-kv",
            help="Rotate the heads of keys and values: the same model, for KV caches of few bits in any program.",
        ),
    ] = False,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="Write as many parts as the input has.")] = False,
    split_max_size: Annotated[
        str | None,
        typer.Option("--split-max-size", metavar="SIZE", help="Split into files of at most this size, e.g. 10G."),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Round better in the same formats: for the inputs that each layer has on a calibration text, or by --imatrix.",
        ),
    ] = False,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text for --refine and --sensitivity; repeatable; default: a mixture that comes with the program.",
        ),
    ] = None,
    refine_tokens: Annotated[
        int | None,
        typer.Option(
            "--refine-tokens", metavar="N", min=64, help="Tokens of it to use, spread over all; default: 16384."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, max=MAX_THREADS, help="CPU threads; default: the cores.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or a CUDA device: cuda, cuda:1.")] = "cpu",
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Also quantize tensors that are quantized already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the table and the final size; write nothing.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Show each tensor's RMS and worst error afterwards.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result, or the table of --dry-run or --report, as JSON.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
) -> None:
    """Quantize a GGUF file exactly as llama-quantize does, tensor for tensor and byte for byte; with --refine, better."""
    from jambacli.cache.fingerprint import record
    from jambacli.commands import refinement
    from jambacli.files import refuse_existing
    from jambacli.gguf.jamba_metadata import jamba_config
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.resolve import resolve_model
    from jambacli.quantize import fold, quantize_file, recipes
    from jambacli.quantize.imatrix import read_imatrix

    refinement.check(refine, None if sensitivity else calibration, refine_tokens, imatrix, device)
    if refine and rotate_kv:
        raise UsageError(
            "rounds the file's own weights",
            field="refine",
            remedy="write a bf16 file with {rotate_kv} first, then refine that",
        )
    path = resolve_model(source)
    if path.is_dir():
        raise UsageError(f"{path} is a directory; convert a checkpoint to a .gguf with: jamba convert {path}")
    if output is None and path.name != Path(source).name:
        output = Path()  # the store holds only pulled models, so the output does not go beside the input
    recipe = _parsed("type", recipes.get_recipe, type)
    options = recipes.RecipeOptions(
        tensor_types=[_parsed("tensor_type", recipes.parse_tensor_type, text) for text in tensor_type or ()],
        output=None if output_type is None else _parsed("output_type", recipes.parse_format, output_type),
        embedding=None if embedding_type is None else _parsed("embedding_type", recipes.parse_format, embedding_type),
        pure=pure,
        has_imatrix=imatrix is not None or refine,
    )
    request = quantize_file.Request(
        recipe,
        options,
        None if imatrix is None else read_imatrix(imatrix),
        keep_split=keep_split,
        split_max_size=None if split_max_size is None else parse_size(split_max_size, "--split-max-size"),
        threads=threads,
        device=_device(device),
        allow_requantize=allow_requantize,
        report=report,
        force=force,
        size=None if size is None else parse_size(size, "--size"),
        target=target,
    )
    if sensitivity is not None and not request.chooses:
        request = replace(request, recipe=_allocated_recipe(recipe))
    if sensitivity is None and measure_types is not None:
        raise UsageError("--measure-types is about the figures of --sensitivity FILE")
    with GGUFFile.open(path) as file:
        if rotate_kv:
            config = jamba_config(file.metadata, file.tensors)
            request = replace(request, fold=fold.RotatedHeads.of(config))
        if sensitivity is not None:
            figures = sensitivity_from(
                sensitivity, file, request.imatrix, calibration, calibration_tokens, measure_types, threads
            )
            request = replace(request, sensitivity=figures)
        chunks: list[list[int]] = []
        if refine:
            names: tuple[str, ...] = ()
            if imatrix is None or calibration:
                chunks, names = refinement.chunks_of(file, calibration, refine_tokens)
            request = replace(request, refinement=quantize_file.Refinement(names, sum(map(len, chunks))))
        plan = quantize_file.plan(file, request)
        written = quantize_file.output_path(file, plan.request.recipe, output)
        if not (dry_run or keep_split or split_max_size):
            refuse_existing(written, force)
        _show_notes(plan)
        if dry_run:
            print(json.dumps(_plan_json(plan), indent=2) if as_json else "\n".join(_plan_lines(plan)))
            return
        start = time.monotonic()
        try:
            result = _refined(plan, chunks, written) if chunks else quantize_file.quantize(plan, written, ui.progress)
        except KeyboardInterrupt:
            ui.warn(f"interrupted; {written} was not written" + ("; the same command continues" if chunks else ""))
            raise
        _show_result(plan, result, time.monotonic() - start)
    record(result.paths[0])
    if as_json:
        print(json.dumps(_report_json(plan, result) if report else _result_json(plan, result), indent=2))
    elif report:
        print("\n".join(_report_lines(plan, result)))


def _refined(plan: QuantizePlan, chunks: list[list[int]], target: Path) -> Result:
    from jambacli.quantize import quantize_file
    from jambacli.quantize.refine import refine

    if plan.request.threads is not None:
        from jambacli.kernels import set_threads

        set_threads(plan.request.threads)
    with refine(plan, chunks, target, ui.progress) as refined:
        result = quantize_file.quantize(plan, target, ui.progress, refined.tensors)
        refined.close()
    return result


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{flag(option)}: {error}") from error


def _allocated_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the size of ``recipe``'s mixture whose types are chosen by figures."""
    from jambacli.quantize.recipes import RECIPES

    found = RECIPES.get(recipe.name.replace("_k_m", "_k_x"))
    if found is None or not found.allocated:
        known = ", ".join(name for name, recipe in RECIPES.items() if recipe.allocated)
        raise UsageError(f"--sensitivity chooses types for --type {known}, or for --target or --size")
    return found


def _device(name: str) -> str:
    if name == "cpu":
        return name
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "none"
    if kind not in ("cpu", "cuda"):
        raise UsageError("is not a device; use cpu, cuda or cuda:N", field="device", value=name)
    if kind == "cuda" and not torch.cuda.is_available():
        raise JambaError("is not available: torch finds no CUDA device; use cpu", field="device", value=name)
    return name


def _show_notes(plan: QuantizePlan) -> None:
    """Print what the user should know before it runs: fallbacks, options without effect, tensors the imatrix lacks."""
    groups: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for choice in plan.fallbacks:
        groups[choice.fallback_from or "", choice.format, choice.tensor.row].append(choice.name)
    for (recipe_format, fmt, row), names in groups.items():
        tensors = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        ui.note(f"rows of {row} do not fit {recipe_format}: {tensors} will be {fmt} instead")
    for unused in plan.unused_options:
        ui.warn(" ".join(filter(None, [flag(unused.option), unused.value, name_options(unused.reason, flag)])))
    if plan.unweighted:
        some = ", ".join(plan.unweighted[:3]) + (" ..." if len(plan.unweighted) > 3 else "")
        count = counted(len(plan.unweighted), "tensor")
        ui.note(f"the imatrix has no entry for {count}, quantized without importance weights: {some}")


def _show_result(plan: QuantizePlan, result: Result, took: float) -> None:
    first, rest = result.paths[0], len(result.paths) - 1
    where = f"{first} and {rest} more part{'s' if rest > 1 else ''}" if rest else str(first)
    rate = sum(info.nbytes for info in plan.source.tensors.values()) / max(took, 1e-3)
    ui.note(
        f"wrote {where}: {plan.request.recipe.label}, {format_bytes(plan.size)}, {plan.bits_per_weight:.2f} bits per "
        f"weight, in {format_seconds(took)} ({format_bytes(rate)}/s read)"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _aligned(rows: Iterable[tuple[str, ...]], right: int) -> list[str]:
    """Rows as lines of padded columns; those from number ``right`` on are aligned right."""
    table = list(rows)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(w) if i >= right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _allocation_lines(plan: QuantizePlan) -> list[str]:
    """The chosen types by kind of tensor and layer, what they cost, and llama-quantize's arguments for them."""
    from jambacli.quantize.allocate import kind_of, tensor_type_patterns
    from jambacli.quantize.recipes import layer_of

    if plan.allocation is None:
        return []
    chosen: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for c in plan.choices:
        if c.name in plan.allocation.formats:
            chosen[kind_of(c.name)][c.format].append(layer_of(c.name))
    rows = [("kind", "types and their layers")]
    for kind, formats in chosen.items():
        parts = [fmt if layers == [-1] else f"{fmt}: {', '.join(map(str, layers))}" for fmt, layers in formats.items()]
        rows.append((kind, "; ".join(parts)))
    based = (
        f"predicted mean KL: {plan.allocation.predicted:.5f}, the sum of what each tensor costs alone"
        if plan.allocation.measured
        else "chosen by kinds of tensors; --sensitivity FILE measures this model's own"
    )
    patterns = [f"--tensor-type '{pattern}'" for pattern in tensor_type_patterns(plan.choices)]
    return ["", *_aligned(rows, right=2), "", based, "", "The same with llama-quantize:", *patterns]


def _plan_lines(plan: QuantizePlan) -> list[str]:
    rows = [("tensor", "shape", "from", "to", "size")]
    rows += [(c.name, _shape(c.tensor.shape), c.tensor.format, c.format, format_bytes(c.nbytes)) for c in plan.choices]
    return [
        *_aligned(rows, right=4),
        "",
        f"{plan.request.recipe.label}: {format_bytes(plan.size)} ({plan.size} bytes), {plan.bits_per_weight:.2f} bits per "
        f"weight; the input has {format_bytes(plan.source.size)}",
        *_allocation_lines(plan),
    ]


def _plan_json(plan: QuantizePlan) -> dict[str, Any]:
    from jambacli.quantize.allocate import tensor_type_patterns

    allocation = plan.allocation
    chosen = (
        {}
        if allocation is None
        else {
            "tensor_types": tensor_type_patterns(plan.choices),
            "predicted_kl": allocation.predicted if allocation.measured else None,
        }
    )
    return {
        **chosen,
        "type": plan.request.recipe.name,
        "bytes": plan.size,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "weights": plan.weights,
        "tensors": [
            {
                "name": c.name,
                "shape": list(c.tensor.shape),
                "from": c.tensor.format,
                "to": c.format,
                "bytes": c.nbytes,
                "fallback_from": c.fallback_from,
            }
            for c in plan.choices
        ],
    }


def _result_json(plan: QuantizePlan, result: Result) -> dict[str, Any]:
    return {**_plan_json(plan), "files": [str(path) for path in result.paths]}


def _changed(plan: QuantizePlan, result: Result) -> list[tuple[str, str, ErrorStats]]:
    formats = {c.name: c.format for c in plan.choices}
    return [(name, formats[name], error) for name, error in result.errors.items()]


def _report_lines(plan: QuantizePlan, result: Result) -> list[str]:
    from jambacli.quantize.error_stats import ErrorStats

    rows = [("tensor", "to", "RMS error", "of RMS", "worst")]
    total = ErrorStats()
    for name, fmt, error in _changed(plan, result):
        rows.append((name, fmt, f"{error.rms:.3e}", f"{error.relative:.3%}", f"{error.worst:.3e}"))
        total.merge(error)
    rows.append(("all of them", "", f"{total.rms:.3e}", f"{total.relative:.3%}", f"{total.worst:.3e}"))
    return _aligned(rows, right=2)


def _report_json(plan: QuantizePlan, result: Result) -> dict[str, Any]:
    return {
        "type": plan.request.recipe.name,
        "bytes": plan.size,
        "files": [str(path) for path in result.paths],
        "tensors": [
            {"name": name, "to": fmt, "rms": error.rms, "relative_rms": error.relative, "worst": error.worst}
            for name, fmt, error in _changed(plan, result)
        ],
    }
