"""Reads an importance matrix in either of llama.cpp's formats; knows nothing of what the weights are used for.

The GGUF one holds, for a tensor NAME, ``NAME.in_sum2`` f32 [experts, n] (sums of squared inputs per column) and
``NAME.counts`` f32 [experts, 1] (how many inputs each saw; one row for a matrix that is no stack of experts).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import BadFileError, JambaError
from quant.imatrix import Imatrix, checked, read_legacy

if TYPE_CHECKING:
    import numpy as np

    from jambacli.gguf.reader import GGUFFile

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: str | Path) -> Imatrix:
    """The imatrix in ``path``: a GGUF file by its first four bytes, else the legacy format; JambaError naming the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        if not is_gguf:
            return read_legacy(path)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise JambaError(str(error)) from error
    from jambacli.gguf.reader import GGUFFile

    with GGUFFile.open(path) as file:
        return _from_gguf(path, file)


def _from_gguf(path: Path, file: GGUFFile) -> Imatrix:
    if not any(name.endswith(_SUMS) for name in file.tensors):
        raise BadFileError(path, f"not an imatrix: no tensor's name ends in {_SUMS}")
    entries: dict[str, np.ndarray] = {}
    for full in file.tensors:
        name = full.removesuffix(_SUMS).removesuffix(_COUNTS)
        if name == full or name in entries:
            continue
        entries[name] = _means(path, name, _floats(path, file, name + _SUMS), _floats(path, file, name + _COUNTS))
    datasets = file.metadata.get("imatrix.datasets", [])
    chunks = file.metadata.get("imatrix.chunk_count", 0)
    return Imatrix(
        str(path),
        entries,
        tuple(datasets) if isinstance(datasets, list) else (),
        chunks if isinstance(chunks, int) and 0 <= chunks < 1 << 31 else 0,
    )


def _floats(path: Path, file: GGUFFile, name: str) -> np.ndarray:
    import numpy as np

    if name not in file.tensors:
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is missing")
    if (fmt := file.tensors[name].format.name) != "f32":
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is {fmt}, it must be f32")
    return np.frombuffer(file.data(name).tobytes(), "<f4")


def _means(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts; an expert that saw nothing weighs every column alike."""
    import numpy as np

    if not counts.size or sums.size % counts.size:
        raise BadFileError(path, f"damaged imatrix: {sums.size} sums and {counts.size} counts for {name!a}")
    rows: Any = sums.reshape(counts.size, -1)
    seen = counts > 0
    means = np.ones_like(rows)
    np.divide(rows, counts[:, None], out=means, where=seen[:, None])
    try:
        return checked(path, name, means.reshape(-1))
    except ValueError as error:
        raise JambaError(str(error)) from error
