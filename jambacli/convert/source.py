"""A Hugging Face checkpoint as the source of a GGUF: checked, dequantized where it is quantized, and planned."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli.convert.hf_checkpoint import Checkpoint
from jambacli.convert.quantized.find import dequantized_tensors
from jambacli.convert.quantized.matrices import DequantizedTensor
from jambacli.convert.quantized.scheme import Scheme, read_scheme
from jambacli.convert.tensor_names import Planned, plan, used_tensors, with_own_head
from jambacli.errors import UnsupportedError
from jambacli.model.config import JambaConfig

logger = logging.getLogger(__name__)

_FORMAT_OF_DTYPE = {"F32": "f32", "F64": "f32", "F16": "f16", "BF16": "bf16"}
_OF_QUANTIZERS = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax")
_NAMED_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint, its config, the GGUF tensors that it becomes, its files, and how it is quantized, if it is."""

    checkpoint: Checkpoint
    config: JambaConfig
    planned: list[Planned]
    files: list[Path]
    scheme: Scheme | None

    @property
    def type(self) -> str:
        """The type in which most bytes of the matrices are stored; for quantized ones the type in config.json, or bf16."""
        sizes: dict[str, int] = {}
        for tensor in self.planned:
            for piece in () if tensor.keep_f32 else tensor.pieces:
                kind = _FORMAT_OF_DTYPE[piece.tensor.dtype]
                if isinstance(piece.tensor, DequantizedTensor):
                    kind = self._named_type() or ("bf16" if kind == "f32" else kind)
                sizes[kind] = sizes.get(kind, 0) + piece.nbytes
        return max(sizes, key=lambda kind: sizes[kind])

    def _named_type(self) -> str | None:
        named = self.checkpoint.config.get("dtype") or self.checkpoint.config.get("torch_dtype")
        return _NAMED_DTYPES.get(named.removeprefix("torch.")) if isinstance(named, str) else None


def check_config(values: Mapping[str, Any], source: object) -> JambaConfig:
    """The JambaConfig of a config.json; UnsupportedError, naming ``source``, for a model that is not a plain Jamba.

    Also for one whose weights are quantized in a way that cannot be read; JambaError where the library for it is missing.
    """
    config = _check_model(values, source)
    if scheme := read_scheme(values, source):
        scheme.require_library()
    return config


def _check_model(values: Mapping[str, Any], source: object) -> JambaConfig:
    architectures = values.get("architectures") or ["JambaForCausalLM"]
    if not isinstance(architectures, list) or "JambaForCausalLM" not in architectures:
        named = architectures[0] if isinstance(architectures, list) else architectures
        raise UnsupportedError(f"{source}: the architecture is {named}; only JambaForCausalLM can be converted")
    if "model_type" not in values and "architectures" not in values:
        raise UnsupportedError(
            f"{source}: has neither model_type nor architectures, so it cannot be identified as a Jamba model"
        )
    if values.get("mamba_inner_layernorms") is False:
        raise UnsupportedError(
            f"{source}: mamba_inner_layernorms is false; Mamba layers without them are not supported"
        )
    return JambaConfig.from_hf(values, source)


@contextlib.contextmanager
def open_source(folder: Path, *, to_convert: bool = True) -> Iterator[Source]:
    """Open the checkpoint in ``folder``; without ``to_convert`` a library that dequantizes may be missing.

    Raises JambaError; BadFileError and UnsupportedError name the file and what is wrong with it.
    """
    name = folder / "config.json"
    check = check_config if to_convert else _check_model
    with Checkpoint.open(folder, lambda values: check(values, name)) as checkpoint:
        files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
        scheme = read_scheme(checkpoint.config, name, folder)
        if scheme is None:
            _refuse_unexplained(checkpoint, name)
        else:
            if to_convert:
                scheme.require_library()
            checkpoint.tensors = dequantized_tensors(checkpoint, scheme)
            if not any(isinstance(tensor, DequantizedTensor) for tensor in checkpoint.tensors.values()):
                logger.warning(
                    "%s describes a quantization by %s, but no weight is quantized", scheme.source, scheme.method
                )
                scheme = None
        config = with_own_head(JambaConfig.from_hf(checkpoint.config, name), checkpoint, folder)
        yield Source(checkpoint, config, plan(config, used_tensors(checkpoint), folder), files, scheme)


def _refuse_unexplained(checkpoint: Checkpoint, config: Path) -> None:
    """Raise UnsupportedError for quantized tensors without a configuration that says how."""
    found = next((tensor for tensor in checkpoint.tensors.values() if tensor.name.endswith(_OF_QUANTIZERS)), None)
    if found is not None:
        raise UnsupportedError(
            f"{found.path}: tensor {found.name} belongs to quantized weights, but {config.name} has no quantization_config; "
            "download all of the model's JSON files"
        )
