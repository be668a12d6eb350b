"""What ``quantize --refine`` takes: the calibration texts as chunks of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.commands.inputs import read_text
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.gguf.reader import GGUFFile

#: Calibration tokens by default: by computation three quarters of an hour for 3 billion weights on two cores.
TOKENS = 16384


def check(refine: bool, calibration: list[Path] | None, tokens: int | None, imatrix: Path | None, device: str) -> None:
    """Raise UsageError for options that do not go together."""
    for option, value in (("calibration", calibration), ("refine_tokens", tokens)):
        if value is not None and not refine:
            remedy = "give {refine} or {sensitivity} too" if option == "calibration" else "give {refine} too"
            raise UsageError("has no effect alone", field=option, remedy=remedy)
    if refine and device != "cpu":
        raise UsageError("works on the CPU only", field="refine", remedy="leave out {device}")
    if refine and imatrix is not None and tokens is not None and calibration is None:
        raise UsageError(
            "has no effect where an imatrix alone is used", field="refine_tokens", remedy="use {calibration}"
        )


def chunks_of(
    file: GGUFFile, calibration: list[Path] | None, tokens: int | None
) -> tuple[list[list[int]], tuple[str, ...]]:
    """The chunks of token ids to calibrate on, and the names of the texts; by default the built-in mixture."""
    from jambacli import data
    from jambacli.quantize import imatrix_collect
    from jambacli.quantize.refine import spread
    from jambacli.text.tokenizer import Tokenizer

    tokens = TOKENS if tokens is None else tokens
    names = tuple(str(path) for path in calibration or ()) or ("built in",)
    texts = [read_text(path) for path in calibration] if calibration else [data.calibration_text()]
    size = min(imatrix_collect.CHUNK, tokens)
    chunks, _ = imatrix_collect.chunks_of(Tokenizer(file.metadata, file.path.name), texts, size)
    return spread(chunks, tokens), names
