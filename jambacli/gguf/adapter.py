"""LoRA adapters as GGUF files, in llama.cpp's format.

Metadata: general.type "adapter", adapter.type "lora", general.architecture of the model, adapter.lora.alpha (f32). Tensors:
pairs NAME.lora_a [rank, in] and NAME.lora_b [out, rank], NAME being the model's tensor, with [experts] in front for a stack.
The product that is added is b (a x), times alpha / rank; an alpha of 0 or none counts as the rank.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.tensor_info import TensorInfo
from jambacli.gguf.values import shown

ADAPTER_TYPE = "adapter.type"
ALPHA = "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"
#: The suffixes of the tensors of a pair.
A, B = ".lora_a", ".lora_b"
#: The weights that adapters can be for: all linear layers. The token embedding is looked up, not multiplied.
_LINEAR = re.compile(
    r"blk\.\d{1,5}\.(attn_(q|k|v|output)|ssm_(in|x|dt|out)|ffn_gate_inp|ffn_(gate|up|down)(_exps)?)\.weight|output\.weight"
)


def is_linear(name: str) -> bool:
    """Whether this GGUF name is that of a weight that can have an adapter."""
    return _LINEAR.fullmatch(name) is not None


@dataclass(frozen=True)
class AdapterFile:
    """An opened adapter: ``pairs`` are the tensors a and b by the name of the weight, ``alpha`` 0 where there is none.

    A context manager; the file is mapped until it is closed.
    """

    path: Path
    file: GGUFFile
    name: str
    alpha: float
    pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]

    @classmethod
    def open(cls, path: str | Path) -> AdapterFile:
        """Open and check an adapter, without its values. Raises JambaError where it cannot be read, BadFileError for a file
        that is damaged or no adapter, UnsupportedError for another kind of adapter."""
        path = Path(path)
        file = GGUFFile.open(path)
        try:
            alpha = _check_metadata(path, file)
            name = file.metadata.get(keys.NAME)
            return cls(path, file, name if isinstance(name, str) and name else path.stem, alpha, _pairs(path, file))
        except BaseException:
            file.close()
            raise

    def rank(self, name: str) -> int:
        """The rank of one pair."""
        return self.pairs[name][0].shape[-2]

    def scale(self, name: str) -> float:
        """What the product of a pair is multiplied by."""
        return self.alpha / self.rank(name) if self.alpha else 1.0

    def check(self, tensors: Mapping[str, keys.HasShape], model: object) -> None:
        """Raise BadFileError where a pair does not fit ``tensors``, those of ``model``."""
        for name, (a, b) in self.pairs.items():
            check_pair(self.path, name, a.shape, b.shape, tensors, model)

    def digest(self) -> str:
        """40 hexadecimal digits of every value of the adapter, whatever else the file says."""
        hasher = hashlib.sha256(f"{self.alpha!r}\n".encode())
        for name in sorted(self.pairs):
            for info in self.pairs[name]:
                hasher.update(f"{info.name}|{info.shape}|{info.format.name}\n".encode())
                hasher.update(self.file.data(info.name).data)
        return hasher.hexdigest()[:40]

    def close(self) -> None:
        """Unmap the file, as soon as no view of it is in use."""
        self.file.close()

    def __enter__(self) -> AdapterFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def check_pair(
    path: object, name: str, a: tuple[int, ...], b: tuple[int, ...], tensors: Mapping[str, keys.HasShape], model: object
) -> None:
    """Raise BadFileError where a pair of these shapes, of the adapter at ``path``, does not fit ``tensors`` of ``model``."""
    weight = tensors.get(name)
    if weight is None and name == keys.OUTPUT:
        raise BadFileError(path, f"an adapter of the output, which is the token embedding in {model}, is not supported")
    if weight is None:
        raise BadFileError(path, f"{name} is not a tensor of {model}: the adapter is of another model")
    shape, found = tuple(weight.shape), (*b[:-1], a[-1])
    if found != shape:
        raise BadFileError(
            path, f"{name} is {list(found)}, but {list(shape)} in {model}: the adapter is of another model"
        )


def _check_metadata(path: Path, file: GGUFFile) -> float:
    """The alpha of an adapter."""
    kind = file.metadata.get(keys.TYPE)
    if kind != "adapter":
        raise BadFileError(path, "this is not a LoRA adapter" + (": it is a model" if kind in (None, "model") else ""))
    keys.check_architecture(file.metadata, path)
    form = file.metadata.get(ADAPTER_TYPE)
    if form != "lora":
        raise UnsupportedError(f"{path}: {ADAPTER_TYPE} is {shown(str(form))}; only lora is supported")
    if INVOCATION in file.metadata:
        raise UnsupportedError(f"{path}: an adapter with invocation tokens (aLoRA) is not supported")
    alpha = file.metadata.get(ALPHA, 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BadFileError(path, f"{ALPHA} is {shown(str(alpha))}; it must be a number")
    return float(alpha)


def _pairs(path: Path, file: GGUFFile) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    names: dict[str, None] = {}
    for name in file.tensors:
        if not name.endswith((A, B)):
            raise UnsupportedError(
                f"{path}: tensor {shown(name)} is no part of a LoRA pair ({A}, {B}), and not supported"
            )
        names[name[: -len(A)]] = None
    if not names:
        raise BadFileError(path, "the adapter holds no tensors")
    pairs = {}
    for name in names:
        a, b = file.tensors.get(name + A), file.tensors.get(name + B)
        if a is None or b is None:
            raise BadFileError(path, f"tensor {shown(name + (A if a is None else B))} is missing")
        if not is_linear(name):
            raise UnsupportedError(
                f"{path}: an adapter of {shown(name)} is not supported; only linear layers have adapters"
            )
        dims = 3 if "_exps." in name else 2
        if len(a.shape) != dims or len(b.shape) != dims or a.shape[-2] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
            raise BadFileError(
                path, f"the pair of {name} is {list(a.shape)} and {list(b.shape)}, which do not fit each other"
            )
        for info in (a, b):
            if not info.format.native or info.format.name == "i8":
                raise UnsupportedError(
                    f"{path}: tensor {info.name} is stored as {info.format.name}, which is not supported"
                )
        pairs[name] = (a, b)
    return pairs
