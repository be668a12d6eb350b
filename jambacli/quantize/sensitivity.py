"""How much each tensor's rounding costs: the KL divergence of a model in which one tensor alone has a format.

Measured by ``evaluation.sensitivity``, kept in a JSON file, used by ``allocate`` to choose formats.

    {"jamba_sensitivity": 1, "weights": ID of the weights, "text": sha256 of the token ids, "tokens": number of scored tokens,
     "imatrix": sha256 of the importance weights or "", "quantizer": "plain", "formats": ["q3_k", ...],
     "kl": {"blk.0.ssm_in.weight": {"q4_k": 0.00123, ...}, ...}}
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.errors import BadFileError, JambaError
from jambacli.files import atomic_write, open_regular
from quant.formats import FORMATS

if TYPE_CHECKING:
    from jambacli.gguf.reader import GGUFFile
    from jambacli.quantize.imatrix import Imatrix

logger = logging.getLogger(__name__)

_VERSION = 1
_MOST_BYTES = 64 << 20
_SAMPLE = 4096
_MOST_NATS = 1e6


@dataclass(frozen=True)
class Sensitivity:
    """``kl``: for a tensor's name and a format's, the mean KL divergence in nats when this tensor alone has that format."""

    weights: str
    """Of which weights: see ``weights_id``."""
    text: str
    """sha256 of the token ids it was measured on."""
    tokens: int
    """Number of tokens whose predictions were compared."""
    imatrix: str
    """sha256 of the importance weights, "" without."""
    quantizer: str
    """Name of the way of rounding: "plain" or "refined"."""
    formats: tuple[str, ...] = ()
    """The formats to measure; a row that does not fit one has its stand-in's figure."""
    kl: dict[str, dict[str, float]] = field(default_factory=dict)

    def same_measurement(self, other: Sensitivity) -> bool:
        """Whether figures of the two belong together: the same weights, text, importance and rounding."""
        return {**asdict(self), "kl": None} == {**asdict(other), "kl": None}

    def check(self, file: GGUFFile, imatrix: Imatrix | None) -> None:
        """JambaError for figures of other weights than those in ``file``; a warning for those with another imatrix."""
        if self.weights != weights_id(file):
            raise JambaError("belongs to other weights than those of the input", field="sensitivity")
        if self.imatrix != imatrix_id(imatrix):
            logger.warning("the sensitivities were measured with another importance matrix, or without one")


def weights_id(file: GGUFFile) -> str:
    """A name for the weights in a file: a hash of every tensor's name, shape, format, first and last bytes."""
    found = hashlib.sha256()
    for name in sorted(file.tensors):
        info, data = file.tensors[name], file.data(name)
        found.update(f"{name!a} {info.shape} {info.format.name}\n".encode())
        found.update(data.reshape(-1)[:_SAMPLE].tobytes())
        found.update(data.reshape(-1)[-_SAMPLE:].tobytes())
    return found.hexdigest()[:32]


def imatrix_id(imatrix: Imatrix | None) -> str:
    """A hash of importance weights, "" for none."""
    if imatrix is None:
        return ""
    found = hashlib.sha256()
    for name in sorted(imatrix.entries):
        found.update(name.encode("utf-8", "surrogateescape"))
        found.update(imatrix.entries[name].tobytes())
    return found.hexdigest()[:32]


def write_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """Write the file, atomically. Raises JambaError where it cannot be written."""
    with atomic_write(path, durable=False) as file:
        text = json.dumps({"jamba_sensitivity": _VERSION, **asdict(sensitivity)}, indent=1, ensure_ascii=True)
        file.write(text.encode())


def read_sensitivity(path: Path) -> Sensitivity:
    """Read such a file. JambaError where it cannot be read, BadFileError, naming the field, where it is something else."""
    try:
        with open_regular(path) as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > _MOST_BYTES:
        raise BadFileError(path, "too large for a file of sensitivities")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadFileError(path, "not a file of sensitivities: it is not JSON") from None
    if not isinstance(found, dict) or found.get("jamba_sensitivity") != _VERSION:
        raise BadFileError(path, f'not a file of sensitivities: "jamba_sensitivity" is not {_VERSION}')
    for name in ("weights", "text", "imatrix", "quantizer"):
        if not isinstance(found.get(name), str):
            raise BadFileError(path, f"damaged: {name} is not a text")
    tokens = found.get("tokens")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens < 1 << 40:
        raise BadFileError(path, "damaged: tokens is not a number of tokens")
    formats = found.get("formats")
    if not isinstance(formats, list) or not all(isinstance(fmt, str) and fmt in FORMATS for fmt in formats):
        raise BadFileError(path, "damaged: formats is not a list of formats")
    kl = found.get("kl")
    if not isinstance(kl, dict):
        raise BadFileError(path, "damaged: kl is not an object")
    return Sensitivity(
        weights=found["weights"],
        text=found["text"],
        tokens=tokens,
        imatrix=found["imatrix"],
        quantizer=found["quantizer"],
        formats=tuple(formats),
        kl={name: _figures(path, name, figures) for name, figures in kl.items()},
    )


def _figures(path: Path, name: str, figures: object) -> dict[str, float]:
    if not isinstance(figures, Mapping):
        raise BadFileError(path, f"damaged: kl of {name!a} is not an object")
    for fmt, value in figures.items():
        if fmt not in FORMATS:
            raise BadFileError(path, f"damaged: {name!a} has a figure for {fmt!a}, which is no format")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_NATS:
            raise BadFileError(path, f"damaged: the figure of {name!a} for {fmt} is not a number of nats")
    return {fmt: float(value) for fmt, value in figures.items()}
