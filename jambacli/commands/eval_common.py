"""What the measurements of ``jamba eval`` share: options, windows of texts, tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli.commands.inputs import read_text
from jambacli.units import parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.evaluation.perplexity import Window

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WindowSize = Annotated[str, typer.Option("--ctx", "-c", help="Tokens per window, e.g. 512 or 2k.")]
Limit = Annotated[str | None, typer.Option("--tokens", "-n", help="Use at most this many tokens of the text.")]
AsLlama = Annotated[
    bool,
    typer.Option(
        "--as-llama-perplexity",
        help="Cut the text as llama-perplexity does: whole windows, BOS in place of the first token, the second half scored.",
    ),
]


def size(ctx: str) -> int:
    """``--ctx`` as a number of tokens."""
    return parse_size(ctx, "--ctx")


def limit(tokens: str | None) -> int | None:
    """``--tokens`` as a number, None without it."""
    return None if tokens is None else parse_size(tokens, "--tokens")


def text_of(path: Path | None) -> str:
    """The text of a file; None for the demo model's held-out text."""
    from jambacli import data

    return data.held_out_text() if path is None else read_text(path)


def windows_of(model: Jamba, text: Path | None, ctx: str, tokens: str | None, as_llama: bool = False) -> list[Window]:
    """The windows of a file's text, or of its first ``tokens``."""
    from jambacli.evaluation.base_logits import bos_of, chunks_of
    from jambacli.evaluation.perplexity import cut

    if as_llama:
        return chunks_of(model, text_of(text), size(ctx), limit(tokens)).windows(bos_of(model))
    return cut(model.tokenizer, text_of(text), size(ctx), limit(tokens))


def about(model: Jamba) -> dict[str, Any]:
    """The model's names and its file type, for JSON."""
    from jambacli.gguf import jamba_metadata as keys
    from jambacli.gguf.summary import FILE_TYPES

    return {
        "model": model.name,
        "file": model.path.name if model.path else model.name,
        "path": str(model.path),
        "type": FILE_TYPES.get(model.metadata.get(keys.FILE_TYPE, -1), "?"),
    }


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Figures for JSON, which has no NaN: null where there is no figure."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def table(rows: list[tuple[str, ...]]) -> None:
    """Print rows as a Markdown table; the first one is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if n == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
