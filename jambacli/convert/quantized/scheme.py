"""How a checkpoint says that it is quantized: ``quantization_config`` in config.json, or a file of its own beside it.

What cannot be read is refused here, from the configuration alone, so that nothing is downloaded for it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli.convert.hf_checkpoint import read_json
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.values import shown

#: Files in which older quantizers, and NVIDIA's, keep what belongs into config.json.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

COMPRESSED, FP8, FBGEMM, MODELOPT = "compressed-tensors", "fp8", "fbgemm_fp8", "modelopt"
GPTQ, AWQ, BITSANDBYTES = "gptq", "awq", "bitsandbytes"
METHODS = (COMPRESSED, FP8, FBGEMM, MODELOPT, GPTQ, AWQ, BITSANDBYTES)
READABLE = "FP8, compressed-tensors, GPTQ, AWQ and bitsandbytes can"

_COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mxfp8-quantized",
                       "mixed-precision", "dense", "fakequant")  # fmt: skip
_PRESET_BITS = re.compile(r"W(\d)A\d+")


@dataclass(frozen=True)
class Scheme:
    """A quantization as the configuration describes it.

    ``method`` is one of METHODS; ``source`` names the file, for errors. ``bits`` and ``group_sizes`` are those that the
    configuration allows (GPTQ and AWQ: one of each, and -1 is one group per row; empty: any). ``block`` is the size of a
    block with a scale of its own, as (rows, columns). ``zero_offset`` is added to a stored zero point. ``mixed``: single
    layers may have other bits and groups than these. ``formats`` are the names that compressed-tensors gives its layouts.
    """

    method: str
    source: object
    bits: frozenset[int] = frozenset()
    group_sizes: frozenset[int] = frozenset()
    blocks: tuple[tuple[int, int], ...] = ()
    zero_offset: int = 0
    mixed: bool = False
    formats: frozenset[str] = frozenset()

    def require_library(self) -> None:
        """Raise JambaError where the library that dequantizes this is not installed."""
        if self.method == BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
            raise missing_bitsandbytes(self.source)


def missing_bitsandbytes(source: object) -> JambaError:
    """The error for a checkpoint quantized by bitsandbytes without that library."""
    return JambaError(f"{source}: the weights are quantized by bitsandbytes, which needs: pip install 'jambacli[bnb]'")


def read_scheme(config: Mapping[str, Any], source: object, folder: Path | None = None) -> Scheme | None:
    """The quantization that ``config`` (config.json, named ``source``) or a side file in ``folder`` describes, or None.

    Raises UnsupportedError, naming the method, for one that cannot be read, and BadFileError for a damaged description.
    """
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            return _scheme(config[key], source, key)
    for name in SIDE_FILES if folder is not None else ():
        assert folder is not None
        if (folder / name).is_file():
            return _scheme(read_json(folder / name), folder / name, "the file")
    return None


def _scheme(values: Any, source: object, where: str) -> Scheme:
    if not isinstance(values, dict):
        raise BadFileError(source, f"{where} is {shown(repr(values))}, not an object")
    for inner in ("quantization_config", "quantization"):  # of older compressed-tensors, and of NVIDIA's file
        if isinstance(values.get(inner), dict):
            values = values | values[inner]
    method = _method(values)
    if method not in METHODS:
        raise refused(source, method)
    return _READERS[method](values, source)


def _method(values: Mapping[str, Any]) -> str:
    named = values.get("quant_method")
    if isinstance(named, str) and named:
        name = named.lower()
        return COMPRESSED if name == "compressed_tensors" else name
    if "config_groups" in values:
        return COMPRESSED
    if values.get("load_in_8bit") or values.get("load_in_4bit"):
        return BITSANDBYTES
    if "quant_algo" in values:
        return MODELOPT
    if "w_bit" in values:
        return AWQ
    if "bits" in values and "group_size" in values:
        return GPTQ
    return "a quantizer that it does not name"


def refused(source: object, how: str) -> UnsupportedError:
    """The error for weights quantized by ``how``, which cannot be dequantized."""
    return UnsupportedError(
        f"{source}: the weights are quantized by {shown(how)}, which cannot be read ({READABLE}); "
        "convert the original checkpoint"
    )


def _compressed(values: Mapping[str, Any], source: object) -> Scheme:
    groups = values.get("config_groups")
    groups = list(groups.items()) if isinstance(groups, dict) else []
    formats = [values.get("format"), *(g.get("format") for _, g in groups if isinstance(g, dict))]
    sparsity = values.get("sparsity_config")
    if isinstance(sparsity, dict):
        formats.append(sparsity.get("format"))
    for name in formats:
        if name is not None and name not in _COMPRESSED_FORMATS:
            raise refused(source, f"compressed-tensors as {name}")
    if values.get("transform_config"):
        raise refused(source, "compressed-tensors with a transform_config")
    bits: set[int] = set()
    sizes: set[int] = set()
    blocks: list[tuple[int, int]] = []
    for name, group in groups:
        preset = _PRESET_BITS.match(str(name).upper())
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(group, list) and preset:
            bits.add(int(preset[1]))
        elif isinstance(weights, dict):
            bits.add(_whole(weights, "num_bits", source, 8, range(1, 17)))
            sizes.add(_whole(weights, "group_size", source, -1, range(-1, 1 << 31)))
            if weights.get("block_structure"):
                blocks.append(_block(weights["block_structure"], "block_structure", source))
    return Scheme(
        COMPRESSED, source, frozenset(bits), frozenset(sizes), tuple(blocks), formats=frozenset(f for f in formats if f)
    )


def _fp8(values: Mapping[str, Any], source: object) -> Scheme:
    size = values.get("weight_block_size")
    blocks = () if size is None else (_block(size, "weight_block_size", source),)
    return Scheme(FP8, source, blocks=blocks)


def _fbgemm(values: Mapping[str, Any], source: object) -> Scheme:
    return Scheme(FBGEMM, source)


def _modelopt(values: Mapping[str, Any], source: object) -> Scheme:
    algorithm = values.get("quant_algo")
    if algorithm != "FP8":
        raise refused(source, f"modelopt as {algorithm}")
    return Scheme(MODELOPT, source)


def _gptq(values: Mapping[str, Any], source: object) -> Scheme:
    form = values.get("checkpoint_format") or values.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2") or values.get("is_marlin_format"):
        raise refused(source, f"gptq as {'marlin' if values.get('is_marlin_format') else form}")
    packing = values.get("pack_dtype") or "int32"
    if packing not in ("int32", "torch.int32"):
        raise refused(source, f"gptq packed in {packing}")
    bits = _whole(values, "bits", source, None, range(1, 17))
    if bits not in (2, 3, 4, 8):
        raise refused(source, f"gptq with {bits} bits")
    size = _whole(values, "group_size", source, -1, range(-1, 1 << 31))
    offset = 0 if form == "gptq_v2" else 1
    return Scheme(GPTQ, source, frozenset((bits,)), frozenset((size,)), (), offset, bool(values.get("dynamic")))


def _awq(values: Mapping[str, Any], source: object) -> Scheme:
    form = str(values.get("version") or values.get("format") or "gemm").lower()
    if form != "gemm":
        raise refused(source, f"awq as {form}")
    values = {"bits": values.get("w_bit"), "group_size": values.get("q_group_size"), **values}
    bits = _whole(values, "bits", source, None, range(1, 17))
    if bits != 4:
        raise refused(source, f"awq with {bits} bits")
    size = _whole(values, "group_size", source, -1, range(-1, 1 << 31))
    return Scheme(AWQ, source, frozenset((bits,)), frozenset((size,)))


def _bitsandbytes(values: Mapping[str, Any], source: object) -> Scheme:
    return Scheme(BITSANDBYTES, source)


_READERS = {COMPRESSED: _compressed, FP8: _fp8, FBGEMM: _fbgemm, MODELOPT: _modelopt, GPTQ: _gptq, AWQ: _awq,
            BITSANDBYTES: _bitsandbytes}  # fmt: skip


def _whole(values: Mapping[str, Any], key: str, source: object, default: int | None, allowed: range) -> int:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value not in allowed or (value == 0 and key == "group_size"):
        raise BadFileError(source, f"{key} of the quantization is {shown(repr(value))}")
    return value


def _block(value: Any, key: str, source: object) -> tuple[int, int]:
    if isinstance(value, str):  # as older versions of compressed-tensors write it
        value = [int(n) if n.isdigit() and len(n) < 10 else 0 for n in value.split("x")]
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in value)):
        raise BadFileError(source, f"{key} of the quantization is {shown(repr(value))}, not two sizes")
    return value[0], value[1]
