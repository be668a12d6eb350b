"""``jamba quantize --sensitivity``: the figures that formats are chosen by, from a file or measured into it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli import ui
from jambacli.commands.inputs import read_text
from jambacli.errors import JambaError, UsageError
from jambacli.units import counted, format_bytes, format_seconds, parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.evaluation.perplexity import Window
    from jambacli.gguf.reader import GGUFFile
    from jambacli.quantize.imatrix import Imatrix
    from jambacli.quantize.sensitivity import Sensitivity

_CTX = 512


def sensitivity_from(
    path: Path,
    file: GGUFFile,
    imatrix: Imatrix | None,
    texts: list[Path] | None,
    tokens: str,
    types: str | None,
    threads: int | None,
) -> Sensitivity:
    """The sensitivities in ``path``; what it lacks is measured on ``texts`` and written to it."""
    from jambacli.evaluation import sensitivity as s
    from jambacli.quantize.sensitivity import read_sensitivity, weights_id, write_sensitivity

    known = read_sensitivity(path) if path.exists() else None
    if known is not None and known.weights != weights_id(file):
        raise JambaError(f"{path} belongs to other weights than {file.path}; name another file")
    formats = _formats(types) if types is not None or known is None else known.formats
    wanted = s.wanted_formats(file, formats, known)
    if known is not None and not wanted:
        return known
    from jambacli.api import Jamba

    model = Jamba.load(file.path, device="cpu", threads=threads, progress=ui.loading)
    windows = _windows(model, texts, parse_size(tokens, "--calibration-tokens"))
    start = s.new_sensitivity(file, windows, formats, imatrix)
    if known is not None:
        if not known.same_measurement(start):
            raise JambaError(
                f"{path} is unfinished, and was begun with another text, importance matrix or number of tokens; "
                "name them as before, or another file"
            )
        start = known
    cost = s.cost(model.model, windows, wanted)
    roundings, tensors = counted(sum(map(len, wanted.values())), "rounding"), counted(len(wanted), "tensor")
    ui.note(
        f"measuring {roundings} of {tensors} on {start.tokens:,} tokens: the work "
        f"of reading {cost.tokens:,} tokens, {format_bytes(cost.memory)} of memory; {path} keeps what is done"
    )
    begun = time.monotonic()
    found = s.measure(
        model, windows, wanted, start, imatrix, progress=ui.progress, save=lambda part: write_sensitivity(path, part)
    )
    ui.note(f"wrote {path} in {format_seconds(time.monotonic() - begun)}")
    return found


def _formats(types: str | None) -> tuple[str, ...]:
    """``--measure-types``, in the order of their sizes; all candidates without it."""
    from jambacli.quantize.allocate import CANDIDATES

    if types is None:
        return CANDIDATES
    wanted = {part.strip().lower() for part in types.split(",") if part.strip()}
    unknown = sorted(wanted - set(CANDIDATES))
    if unknown or not wanted:
        raise UsageError(f"takes some of {', '.join(CANDIDATES)}", field="measure_types", value=types)
    return tuple(fmt for fmt in CANDIDATES if fmt in wanted)


def _windows(model: Jamba, texts: list[Path] | None, tokens: int) -> Sequence[Window]:
    from jambacli import data
    from jambacli.evaluation.sensitivity import scored_windows

    text = "\n".join(read_text(path) for path in texts) if texts else data.calibration_text()
    ids = model.tokenizer.encode(text)
    bos = model.tokenizer.bos_id if model.tokenizer.add_bos else None
    return scored_windows(ids[:tokens], bos, _CTX)
