"""Reads Hugging Face checkpoint directories: JSON files and safetensors.

Safetensors layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data (https://github.com/huggingface/safetensors). Headers are checked before use. Tensor bytes are read into the caller's
buffer instead of being mapped, so that resident memory stays at that buffer's size.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.values import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A hostile JSON text can take 20 times its size once parsed; real headers and indexes are under 2 MiB.
MAX_JSON_BYTES = 16 << 20
MAX_TENSORS = 1 << 20
MAX_OPEN_FILES = 16
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
logger = logging.getLogger(__name__)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: ``dtype`` as safetensors names it ("BF16"), ``offset`` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class ComputedTensor(StoredTensor):
    """A tensor whose bytes are computed from stored ones; ``path`` is the file of the largest of them."""

    def fill(self, checkpoint: Checkpoint, start: int, view: memoryview) -> None:
        """Fill ``view`` with the tensor's bytes from ``start``. Raises JambaError where a stored tensor is wrong."""
        raise NotImplementedError


class Checkpoint:
    """An opened checkpoint directory: ``config`` (config.json) and ``tensors`` by name, without their data.

    A context manager; files are opened when they are needed. ``Checkpoint.open`` raises JambaError for a directory
    without config.json or safetensors weights, BadFileError where one of them is damaged.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self._files: dict[Path, FileIO] = {}

    @classmethod
    def open(cls, folder: str | Path, check_config: Callable[[dict[str, Any]], object] | None = None) -> Checkpoint:
        """Open ``folder``; ``check_config`` is called with config.json before the weights are looked at, and may raise."""
        folder = Path(folder)
        if not folder.is_dir():
            raise JambaError(f"{folder}: no such checkpoint directory")
        if not (folder / "config.json").is_file():
            hint = "; it contains a LoRA adapter: merge it first" if (folder / "adapter_config.json").exists() else ""
            raise JambaError(f"{folder}: there is no config.json, so this is not a Hugging Face checkpoint{hint}")
        config = read_json(folder / "config.json")
        if check_config is not None:
            check_config(config)
        return cls(folder, config, _all_tensors(folder))

    def read_into(self, tensor: StoredTensor, start: int, buffer: Any) -> None:
        """Fill the writable ``buffer`` with ``tensor``'s bytes from ``start``; BadFileError where the file ends too early."""
        view = memoryview(buffer).cast("B")
        if start < 0 or start + view.nbytes > tensor.nbytes:
            raise ValueError(f"bytes {start} to {start + view.nbytes} are outside {tensor.name}")
        if isinstance(tensor, ComputedTensor):
            tensor.fill(self, start, view)
            return
        file, done = self._file(tensor.path), 0
        try:
            file.seek(tensor.offset + start)
            while done < view.nbytes and (count := file.readinto(view[done:])):
                done += count
        except OSError as error:
            raise JambaError(f"cannot read {tensor.path}: {error.strerror or error}") from error
        if done < view.nbytes:
            raise BadFileError(tensor.path, f"the file ends inside tensor {tensor.name}; download it again")

    def same_bytes(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors hold the same bytes."""
        if (one.dtype, one.nbytes) != (other.dtype, other.nbytes):
            return False
        for start in range(0, one.nbytes, 1 << 22):
            size = min(1 << 22, one.nbytes - start)
            parts = bytearray(size), bytearray(size)
            for tensor, part in zip((one, other), parts, strict=True):
                self.read_into(tensor, start, part)
            if parts[0] != parts[1]:
                return False
        return True

    def close(self) -> None:
        """Close every file."""
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _file(self, path: Path) -> FileIO:
        if path not in self._files:
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            try:
                file = path.open("rb", buffering=0)
                self._files[path] = file
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            except OSError as error:
                raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
        return self._files[path]


def read_bytes(path: Path, limit: int, what: str = "its kind") -> bytes:
    """A small file's bytes; JambaError where it cannot be read, BadFileError where it has more than ``limit`` bytes.

    ``what`` names the expected content, for the error.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > limit:
        raise BadFileError(path, f"the file is over {limit >> 20} MiB, too large for {what}")
    return raw


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text of ``path`` without a byte order mark; BadFileError for more than ``limit`` bytes or other text."""
    raw = read_bytes(path, limit)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``; BadFileError for anything else, or for more than ``limit`` bytes."""
    return _parse_json(path, read_text(path, limit), "the file")


def _parse_json(path: Path, text: str, what: str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadFileError(path, f"{what} has the key {_shown(twice)} twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        problem = error if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise BadFileError(path, f"{what} is not valid JSON: {problem}") from None
    if not isinstance(value, dict):
        raise BadFileError(path, f"{what} is not a JSON object")
    return value


def _all_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the files that transformers would load: model.safetensors, else those that the index names."""
    files = sorted(folder.glob("*.safetensors"))
    own = [path for path in files if path.name.startswith("model")] or files
    places: dict[str, str] = {}
    if (folder / SINGLE).is_file():
        used = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        places = _indexed_places(folder)
        used = [folder / name for name in sorted(set(places.values()))]
    elif not files:
        raise no_weights(folder, sorted(path.name for path in folder.iterdir()))
    else:
        used = own
        _require_all_parts(used)
    if left_out := [path.name for path in own if path not in used]:
        logger.warning("%s: using %s; left out: %s", folder, _listed([path.name for path in used]), _listed(left_out))
    tensors: dict[str, StoredTensor] = {}
    twice: list[str] = []
    for path in used:
        for name, tensor in read_header(path).items():
            if name in tensors:
                if name not in places:
                    raise BadFileError(path, f"tensor {_shown(name)} is also in {tensors[name].path.name}")
                twice.append(name)
            tensors[name] = tensor  # transformers takes the last, whatever the index says
    if twice:
        last = tensors[twice[0]].path.name
        logger.warning("%s: several files hold %s; that of %s is used", folder, _listed(twice), last)
    return tensors


def _indexed_places(folder: Path) -> dict[str, str]:
    """The file of each tensor that the index lists; the files must lie inside the directory.

    An index may list a tensor that is in none of them (a tied head), and lack one that is.
    """
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BadFileError(index, "weight_map is missing or empty")
    checked: set[str] = set()
    for file in places.values():
        if isinstance(file, str) and file in checked:
            continue
        if not isinstance(file, str) or not _is_inside(file):
            raise BadFileError(index, f"weight_map names the file {_shown(file)}, which is not inside the directory")
        if not file.endswith(".safetensors"):
            raise UnsupportedError(f"{index}: weight_map names {_shown(file)}, which is not a safetensors file")
        if not os.path.isfile(folder / file):  # noqa: PTH113 - Path.is_file raises for a name that is too long
            raise JambaError(
                f"{folder}: {_shown(file)} is missing, although {INDEX} names it; download the rest of the model"
            )
        checked.add(file)
    return places


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_inside(name: str) -> bool:
    """Whether a path from an index stays in the directory on every platform; symbolic links (the hub's cache) may leave it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not re.search(r"[\\:\0]", name)


def _require_all_parts(files: list[Path]) -> None:
    names = {path.name for path in files}
    for path in files:
        if match := _PART_NAME.fullmatch(path.name):
            count = int(match["count"])
            for number in range(1, min(count, MAX_TENSORS) + 1):
                part = f"{match['stem']}-{number:05d}-of-{count:05d}.safetensors"
                if part not in names:
                    raise JambaError(f"{path.parent}: part {part} is missing; download the rest of the model")


def no_weights(where: object, names: Iterable[str]) -> JambaError:
    """The error for a directory or repository with the files ``names``, without safetensors; it explains pickled weights."""
    pickled = next((name for name in names if name.endswith(_PICKLED) and name != "training_args.bin"), None)
    if pickled is not None:
        return UnsupportedError(
            f"{where}: the weights are pickled ({pickled}), and reading a pickle runs any code in it; if you trust "
            "it, AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST) writes safetensors"
        )
    return JambaError(f"{where}: there are no .safetensors weights")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a safetensors file by name, in file order; BadFileError naming what is wrong with the file.

    Checked: lengths against the file's size, dtypes, shapes against byte ranges, overlaps. Gaps are allowed.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                pickled = start[:2] == b"PK" or start[:1] == b"\x80"
                hint = "this is a pickle, not safetensors" if pickled else "truncated, or not a safetensors file"
                raise BadFileError(path, f"the header would take {length} bytes of a {size} byte file: {hint}")
            if length > MAX_JSON_BYTES:
                raise BadFileError(path, f"the header claims {length} bytes; at most {MAX_JSON_BYTES} are supported")
            raw = file.read(length)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = _parse_json(path, raw.decode(), "the header")
    except UnicodeDecodeError:
        raise BadFileError(path, "the header is not UTF-8 text; not a safetensors file") from None
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise BadFileError(path, f"the header lists {len(header)} tensors; at most {MAX_TENSORS} are supported")
    data_start = 8 + length
    tensors = {name: _stored(path, name, entry, data_start, size) for name, entry in header.items()}
    _refuse_overlaps(path, tensors)
    return tensors


def _stored(path: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    def bad(problem: str) -> BadFileError:
        return BadFileError(path, f"tensor {_shown(name)} {problem}")

    if not isinstance(entry, Mapping):
        raise bad("has no description")
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise bad(f"has the unknown dtype {_shown(dtype)}")
    if shape is None or len(shape) > 8:
        raise bad(f"has the invalid shape {_shown(entry.get('shape'))}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1] or data_start + offsets[1] > size:
        where = _shown(entry.get("data_offsets"))
        raise bad(f"lies at {where} of {size - data_start} bytes of data: the file is truncated or damaged")
    nbytes = DTYPE_BYTES[dtype]
    for n in shape:
        nbytes *= n
    if nbytes != offsets[1] - offsets[0]:
        raise bad(f"has {offsets[1] - offsets[0]} bytes, but {dtype} {list(shape)} takes {nbytes}")
    return StoredTensor(name, dtype, shape, path, data_start + offsets[0], nbytes)


def _counts(value: Any) -> tuple[int, ...] | None:
    ok = isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
    return tuple(value) if ok else None


def _refuse_overlaps(path: Path, tensors: dict[str, StoredTensor]) -> None:
    end, last = 0, ""
    for tensor in sorted((t for t in tensors.values() if t.nbytes), key=lambda t: t.offset):
        if tensor.offset < end:
            raise BadFileError(path, f"tensors {_shown(last)} and {_shown(tensor.name)} overlap")
        end, last = tensor.offset + tensor.nbytes, tensor.name


def _shown(value: Any) -> str:
    return shown(value if isinstance(value, str) else repr(value))
