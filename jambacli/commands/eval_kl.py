"""``jamba eval kl``: how far a model's predictions are from a reference's, or from those that a file holds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import eval_common as c
from jambacli.commands import options as o
from jambacli.errors import UsageError
from jambacli.units import format_bytes, parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.evaluation.base_logits import BaseLogits, Chunks
    from jambacli.evaluation.kl import Divergence, PositionRange, TokenFigures
    from jambacli.evaluation.perplexity import Window

_Named = tuple[str, Path | None]


@o.measurement_options
def kl(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to measure, e.g. a quantized one.")],
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[REFERENCE]", help="The model to compare it with, e.g. the bf16 file; not with --base."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            "-f",
            help="A text file (- for stdin); several make a row each. Default: the demo model's held-out text.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=FILE", help="A text file and the name of its row; repeatable."),
    ] = None,
    random: Annotated[
        str | None, typer.Option("--random", help="Use this many random tokens (fixed seed) instead of a text.")
    ] = None,
    ctx: c.WindowSize = "512",
    tokens: c.Limit = None,
    as_llama: c.AsLlama = False,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FILE", help="Compare with a file of --save-base or of llama-perplexity."),
    ] = None,
    save_base: Annotated[
        Path | None,
        typer.Option(
            "--save-base",
            metavar="FILE",
            help="Write the reference's log probabilities, which llama-perplexity can read too.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --save-base if it exists.")] = False,
    *,
    arguments: o.DeviceArguments,
    as_json: c.Json = False,
) -> None:
    """Measure the Kullback-Leibler divergence from a reference model, and how often the top tokens agree."""
    from jambacli.evaluation.base_logits import BaseLogits
    from jambacli.evaluation.kl import by_position, by_text, compare, statistics

    named = _named(text, classes)
    _check(model, reference, random, base, save_base, named)
    if save_base is not None:
        written = _save_base(reference or model, save_base, named, ctx, tokens, force, arguments)
        if reference is None:
            print(json.dumps(written)) if as_json else None
            return
        base = save_base
    file = None if base is None else BaseLogits(base)
    need = c.size(ctx) if file is None else file.chunks.n_ctx
    measured = arguments.load_model(model, need)
    standard = file or arguments.load_model(reference or "", need)
    windows, counts = _all_windows(measured, standard, named, random, ctx, tokens, as_llama)
    with ui.progress("Comparing", sum(len(w.ids) for w in windows), "tokens") as done:
        figures = compare(measured, standard, windows, arguments.kv_type or "f16", done)
    rows = by_text(figures, counts) if len(counts) > 1 else []
    total, ranges = statistics(figures), by_position(figures)
    names = [name for name, _ in named]
    if as_json:
        print(
            json.dumps(
                _json(measured, standard, total, ranges, dict(zip(names, rows, strict=False))), ensure_ascii=False
            )
        )
        return
    _print(total, ranges, list(zip(names, rows, strict=False)), figures)


def _named(text: list[Path] | None, classes: list[str] | None) -> list[_Named]:
    """The texts with the names of their rows."""
    named: list[_Named] = [(path.stem if str(path) != "-" else "stdin", path) for path in text or ()]
    for part in classes or ():
        name, sep, path = part.partition("=")
        if not (sep and name and path):
            raise UsageError("is not NAME=FILE", field="classes", value=part)
        named.append((name, Path(path)))
    for name in {name for name, _ in named}:
        if sum(name == other for other, _ in named) > 1:
            raise UsageError(f"two texts are called {name}; name them with --class NAME=FILE")
    return named or [("held-out text", None)]


def _check(
    model: str,
    reference: str | None,
    random: str | None,
    base: Path | None,
    save_base: Path | None,
    named: list[_Named],
) -> None:
    if random is not None and (named[0][1] is not None or base is not None or save_base is not None):
        raise UsageError("give --text or --random, not both; files of log probabilities have texts")
    if base is not None and save_base is not None:
        raise UsageError("contradict each other", field=("base", "save_base"), remedy="choose one")
    if base is not None and reference is not None:
        raise UsageError(f"--base takes the place of a reference model: leave out {reference} or --base")
    if reference is None and base is None and save_base is None:
        raise UsageError(f"there is nothing to compare {model} with: give a reference model or --base FILE")


def _save_base(
    name: str, path: Path, named: list[_Named], ctx: str, tokens: str | None, force: bool, arguments: o.DeviceArguments
) -> dict[str, Any]:
    """Write the log probabilities of the model called ``name``; returns what JSON says of it."""
    from jambacli.evaluation.base_logits import Chunks, write_base
    from jambacli.files import refuse_existing

    refuse_existing(path, force)
    model = arguments.load_model(name, c.size(ctx))
    parts = _chunks(model, named, c.size(ctx), tokens)
    chunks = Chunks([ids for part in parts for ids in part.ids], c.size(ctx))
    write_base(path, model, chunks, arguments.kv_type or "f16", ui.progress)
    ui.note(f"wrote {path}: {len(chunks.ids)} windows of {chunks.n_ctx} tokens, {format_bytes(path.stat().st_size)}")
    return {**c.about(model), "base": str(path), "windows": len(chunks.ids), "ctx": chunks.n_ctx}


def _chunks(model: Jamba, named: list[_Named], ctx: int, tokens: str | None) -> list[Chunks]:
    from jambacli.evaluation.base_logits import chunks_of

    return [chunks_of(model, c.text_of(path), ctx, c.limit(tokens)) for _, path in named]


def _all_windows(
    model: Jamba,
    standard: Jamba | BaseLogits,
    named: list[_Named],
    random: str | None,
    ctx: str,
    tokens: str | None,
    as_llama: bool,
) -> tuple[list[Window], list[int]]:
    """The windows of all texts, and how many each has."""
    from jambacli.evaluation.base_logits import BaseLogits, bos_of, same_text
    from jambacli.evaluation.kl import random_windows

    if isinstance(standard, BaseLogits):
        windows = standard.chunks.windows(bos_of(model))
        if named[0][1] is None and standard.chunks.n_ctx:
            return windows, [len(windows)]
        parts = _chunks(model, named, standard.chunks.n_ctx, tokens)
        same_text(standard, parts)
        return windows, [len(part.ids) for part in parts]
    if random is not None:
        windows = random_windows(standard.config.vocab_size, parse_size(random, "--random"), c.size(ctx))
        return windows, [len(windows)]
    each = [c.windows_of(standard, path, ctx, tokens, as_llama) for _, path in named]
    return [window for windows in each for window in windows], [len(windows) for windows in each]


def _json(
    model: Jamba,
    standard: Jamba | BaseLogits,
    total: Divergence,
    ranges: list[PositionRange],
    texts: dict[str, Divergence],
) -> dict[str, Any]:
    from jambacli.api import Jamba

    reference = c.about(standard) if isinstance(standard, Jamba) else {"base": str(standard.path)}
    return {
        "model": c.about(model),
        "reference": reference,
        **c.plain(asdict(total)),
        "by_position": [{"first": r.first, "last": r.last, **c.plain(asdict(r.divergence))} for r in ranges],
        "by_class": [{"class": name, **c.plain(asdict(row))} for name, row in texts.items()],
    }


def _error(value: float, places: int) -> str:
    return f" ± {value:.{places}f}" if math.isfinite(value) else ""


def _print(
    total: Divergence, ranges: list[PositionRange], texts: list[tuple[str, Divergence]], figures: TokenFigures
) -> None:
    c.table(
        [
            ("KL(reference, model)", "nats"),
            ("mean", f"{total.mean:.6f}{_error(total.mean_error, 6)}"),
            ("median", f"{total.median:.6f}{_error(total.median_error, 6)}"),
            ("99th percentile", f"{total.p99:.6f}{_error(total.p99_error, 6)}"),
            ("99.9th percentile", f"{total.p999:.6f}{_error(total.p999_error, 6)}"),
            ("maximum", f"{total.maximum:.6f}"),
            ("same top token", f"{total.top1:.3%} ± {total.top1_error:.3%}"),
            ("RMS change of p", f"{total.rms_p:.3%} ± {total.rms_p_error:.3%}"),
            ("mean change of p", f"{total.mean_p:.3%} ± {total.mean_p_error:.3%}"),
            ("perplexity ratio", f"{total.ratio:.6f}{_error(total.ratio_error, 6)}"),
            ("its logarithm", f"{total.ln_ratio:.6f}{_error(total.ln_ratio_error, 6)}"),
            ("tokens", f"{total.tokens:,}"),
        ]
    )
    rows = [(f"{r.first:,} to {r.last:,}", r.divergence) for r in ranges]
    for head, part in (("position", rows), ("text", texts)):
        if len(part) > 1:
            print()
            c.table(
                [
                    (head, "mean KL", "99%", "99.9%", "same top", "RMS of p", "perplexity ratio", "tokens"),
                    *map(_row, part),
                ]
            )


def _row(named: tuple[str, Divergence]) -> tuple[str, ...]:
    name, d = named
    return (
        name,
        f"{d.mean:.6f}{_error(d.mean_error, 6)}",
        f"{d.p99:.4f}{_error(d.p99_error, 4)}",
        f"{d.p999:.4f}{_error(d.p999_error, 4)}",
        f"{d.top1:.2%} ± {d.top1_error:.2%}",
        f"{d.rms_p:.2%} ± {d.rms_p_error:.2%}",
        f"{d.ratio:.5f}{_error(d.ratio_error, 5)}",
        f"{d.tokens:,}",
    )
