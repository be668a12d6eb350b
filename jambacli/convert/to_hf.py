"""Writes a Hugging Face checkpoint from a GGUF file, in panels: config, weights in safetensors, tokenizer, chat templates.

Floats keep their type and their bits; quantized weights are dequantized. config.json is written last, so a directory
without one holds an export that was not finished.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import quant
from jambacli.convert.hf_settings import config_json, generation_config, model_card
from jambacli.convert.tensor_names import HEAD, hub_names, keeps_f32
from jambacli.convert.tokenizer_export import tokenizer_files
from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.files import atomic_write
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.experts_int8 import scale_name
from jambacli.gguf.reader import GGUFFile
from jambacli.model.config import JambaConfig
from jambacli.progress import Progress, no_progress
from quant.formats import FLOATS
from quant.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

TYPES = ("auto", "f32", "f16", "bf16")
#: Bytes of a file of weights at most, as transformers splits them.
SHARD_BYTES = 5 * 1000**3
_PANEL_VALUES = 1 << 21
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_WIDTH = {"f32": 4, "f16": 2, "bf16": 2}
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
# Steps of float32 around log(-a) in which the number is searched whose exponential is -a.
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote: the files, their total size, the type of the matrices, and the number of tensors.

    ``dequantized``: the formats of weights that were quantized, most bytes first.
    """

    folder: Path
    paths: tuple[Path, ...]
    nbytes: int
    type: str
    tensors: int
    dequantized: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the checkpoint: ``rows`` rows of the GGUF tensor ``source`` from row ``first``, written as ``kind``."""

    name: str
    shape: tuple[int, ...]
    kind: str
    source: str
    first: int
    rows: int

    @property
    def width(self) -> int:
        """Values of a row."""
        return math.prod(self.shape) // self.rows

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _WIDTH[self.kind]


def export(
    file: GGUFFile,
    folder: Path,
    *,
    type: str = "auto",
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress = no_progress,
) -> Exported:
    """Write the model in ``file`` to the directory ``folder`` as transformers and vLLM load it.

    ``type`` is one of TYPES; "auto" keeps the type of each float tensor and makes bf16 of quantized weights. A tensor that
    GGUF holds in f32 whatever the model's type takes that type only where it loses nothing. Without ``force`` the
    directory must be new, empty, or an export that was interrupted. After an error nothing is left of the output. Raises
    JambaError; BadFileError and UnsupportedError name what the file has that a checkpoint cannot hold.
    """
    if type not in TYPES:
        raise UsageError(f"is not one of {', '.join(TYPES)}", field="type", value=type)
    if shard_bytes < 1:
        raise UsageError("must be at least 1 byte", field="shard_size", value=shard_bytes)
    config = keys.jamba_config(file.metadata, file.tensors, path=file.path)
    kind = _main_type(file) if type == "auto" else type
    small = {
        "generation_config.json": _json(generation_config(file.metadata)),
        **tokenizer_files(file.metadata, file.path, config.context_length),
        "README.md": model_card(file.metadata),
    }
    settings = _json(config_json(config, file.metadata, kind, file.path))  # before anything is written
    tensors = list(_plan(file, config, kind, type))
    shards = _split(tensors, shard_bytes)
    names = _shard_names(len(shards))
    made = _prepare(folder, force)
    written: list[Path] = []
    try:
        with progress("Exporting", sum(t.nbytes for t in tensors)) as advance:
            for name, shard in zip(names, shards, strict=True):
                written.append(folder / name)
                with atomic_write(folder / name, recorded=True) as out:
                    _write_shard(file, shard, out, advance)
        if len(names) > 1:
            small[_INDEX] = _json(_index(names, shards))
        for name, text in {**small, _CONFIG: settings}.items():
            written.append(folder / name)
            (folder / name).parent.mkdir(exist_ok=True)
            with atomic_write(folder / name) as out:
                out.write(text.encode())
    except BaseException:
        _take_back(folder, written, made)
        raise
    size = sum(path.stat().st_size for path in written)
    return Exported(folder, tuple(written), size, kind, len(tensors), _quantized(file))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _quantized(file: GGUFFile) -> tuple[str, ...]:
    sizes: dict[str, int] = {}
    for info in file.tensors.values():
        if info.format.name not in FLOATS:
            sizes[info.format.name] = sizes.get(info.format.name, 0) + info.nbytes
    return tuple(sorted(sizes, key=lambda name: -sizes[name]))


def _main_type(file: GGUFFile) -> str:
    """The type of most bytes of the matrices, bf16 where any of them is quantized."""
    sizes = dict.fromkeys(("bf16", "f16", "f32"), 0)
    for name, info in file.tensors.items():
        if keeps_f32(name, info.shape):
            continue
        if info.format.name not in sizes:
            return "bf16"
        sizes[info.format.name] += info.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _plan(file: GGUFFile, config: JambaConfig, kind: str, type: str) -> Iterator[_Tensor]:
    """Every tensor of the checkpoint in the model's order."""
    for source, shape in keys.expected_tensors(config).items():
        info = file.tensors[source]
        fmt = info.format.name
        if fmt in ("i8", "i16", "i32", "i64", "f64") and not (fmt == "i8" and scale_name(source) in file.tensors):
            raise UnsupportedError(f"{file.path}: tensor {source} is {fmt}, which holds no weights of a checkpoint")
        own = kind
        if keeps_f32(source, shape):
            own = kind if kind == "f32" or _fits(file, source, kind) else "f32"
        elif type == "auto" and fmt in _DTYPES:
            own = fmt
        names = hub_names(source, shape)
        rows = math.prod(shape[:-1]) if len(shape) > 1 else 1
        for i, name in enumerate(names):
            each = shape[1:] if len(names) > 1 else shape
            if source.endswith("ssm_conv1d.weight"):
                each = (shape[0], 1, shape[1])
            yield _Tensor(name, each, own, source, i * (rows // len(names)), rows // len(names))
        if source == keys.TOKEN_EMBD and config.tied_embeddings:
            # vLLM does not tie the head by itself; transformers ties equal matrices again.
            yield _Tensor(HEAD, shape, own, source, 0, rows)


def _fits(file: GGUFFile, source: str, kind: str) -> bool:
    """Whether all values of a small tensor are numbers of type ``kind`` exactly."""
    import torch

    values = _values(file, source, 0, None)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    if source.endswith(".ssm_a"):
        short = torch.log(-values.double()).to(dtype)
        return bool((_negated_exp(short.float()) == values).all())
    return bool((values.to(dtype).float() == values).all())


def _values(file: GGUFFile, source: str, first: int, rows: int | None) -> torch.Tensor:
    """Rows of a GGUF tensor as float32 [rows, n]."""
    import torch

    info = file.tensors[source]
    n = info.shape[-1]
    row = info.format.row_bytes(n)
    stop = None if rows is None else (first + rows) * row
    data = file.data(source)[first * row : stop]
    found = Rows(data, info.format, n, _scales(file, source, first, data.size // row))
    return torch.from_numpy(quant.dequantize(found))


def _scales(file: GGUFFile, source: str, first: int, rows: int) -> np.ndarray | None:
    fmt = file.tensors[source].format.name
    if fmt == "i8":
        return file.data(scale_name(source)).view("<f4")[first : first + rows]
    if fmt == "nvfp4" and (factors := file.factors(source)) is not None:
        found: np.ndarray = factors.flatten().numpy()[first : first + rows]
        return found
    return None


def _negated_exp(values: torch.Tensor) -> torch.Tensor:
    """What transformers, vLLM and ``to_gguf`` make of A_log."""
    import torch

    return -torch.exp(values)


def a_log(a: torch.Tensor) -> torch.Tensor:
    """A_log, float32, of ``a`` (float32, no value above 0), so that -exp(A_log) is ``a`` again, to the bit where float32 has
    such a number: it does where ``a`` was computed so."""
    import torch

    best = torch.log(-a.double()).float()
    found = _negated_exp(best) == a
    at = best.clone()
    for toward in (math.inf, -math.inf):
        at = best.clone()
        for _ in range(_NEIGHBOURS):
            at = torch.nextafter(at, torch.tensor(toward))
            hit = ~found & (_negated_exp(at) == a)
            best, found = torch.where(hit, at, best), found | hit
    return best


def _split(tensors: list[_Tensor], limit: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    if count > 99_999:
        raise JambaError(f"this would make {count:,} files", remedy="use a larger {shard_size}")
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _index(names: list[str], shards: list[list[_Tensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard)},
        "weight_map": {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }


def _prepare(folder: Path, force: bool) -> bool:
    """Create the directory; whether it is new. Raises JambaError where it holds something else than an unfinished export."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            return True
        if not folder.is_dir():
            raise JambaError(f"cannot write {folder}: it is a file; give the name of a directory")
        inside = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise JambaError(f"cannot write {folder}: {error.strerror or error}") from error
    ours = [name for name in inside if _is_ours(name)]
    if not force and (_CONFIG in inside or len(ours) < len(inside)):
        other = _CONFIG if _CONFIG in inside else next(name for name in inside if name not in ours)
        raise JambaError(
            f"{folder} is not empty: it holds {other}", remedy="choose another name, or use {force} to replace it"
        )
    # Weights of an older export under other names would be read beside the new ones.
    for name in ours:
        if name.endswith((".safetensors", _INDEX)) or name == _CONFIG:
            (folder / name).unlink()
    return False


def _is_ours(name: str) -> bool:
    shard = name.startswith("model") and name.endswith((".safetensors", _INDEX))
    small = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")
    return shard or name in (*small, _CONFIG, "additional_chat_templates") or name.endswith(".part")


def _take_back(folder: Path, written: list[Path], made: bool) -> None:
    for path in written:
        path.unlink(missing_ok=True)
    for path in (folder / "additional_chat_templates", folder):
        with ExitStack() as ignored:
            ignored.push(lambda kind, *_: kind is not None and issubclass(kind, OSError))
            if path != folder or made:
                path.rmdir()


def _write_shard(file: GGUFFile, shard: list[_Tensor], out: BinaryIO, advance: Any) -> None:
    """The safetensors format: the header's length (u64), the header in JSON padded to 8 bytes, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.kind],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for tensor in shard:
        info = file.tensors[tensor.source]
        row = info.format.row_bytes(info.shape[-1])
        step = max(1, _PANEL_VALUES // tensor.width)
        for first in range(tensor.first, tensor.first + tensor.rows, step):
            rows = min(step, tensor.first + tensor.rows - first)
            data = _panel(file, tensor, first, rows)
            out.write(data.data)
            file.advise(tensor.source, first * row, (first + rows) * row, needed=False)
            advance(data.nbytes)


def _panel(file: GGUFFile, tensor: _Tensor, first: int, rows: int) -> np.ndarray:
    """The bytes of some rows as the checkpoint holds them."""
    import torch

    info = file.tensors[tensor.source]
    log = tensor.source.endswith(".ssm_a")
    if info.format.name == tensor.kind and not log:  # not through floats, which could change the bits of a NaN
        row = info.format.row_bytes(info.shape[-1])
        return file.data(tensor.source)[first * row : (first + rows) * row]
    values = _values(file, tensor.source, first, rows)
    if log:
        if not bool((values <= 0).all()):
            raise BadFileError(file.path, f"tensor {tensor.source} has values above 0, which no A_log gives")
        values = a_log(values)
    if tensor.kind == "f16" and bool((values.to(torch.float16).isinf() & values.isfinite()).any()):
        raise JambaError(
            f"tensor {tensor.source} has values beyond the range of f16 (65504)", remedy="use {type} bf16 or f32"
        )
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[tensor.kind]
    found: np.ndarray = values.to(dtype).contiguous().view(torch.uint8).numpy().reshape(-1)
    return found
