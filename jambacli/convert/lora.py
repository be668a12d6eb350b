"""Converts a LoRA adapter as PEFT saves it to GGUF, in the format that llama.cpp reads (see ``gguf.adapter``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.convert.peft import Pair, PeftAdapter
from jambacli.errors import BadFileError, UsageError
from jambacli.gguf import adapter as form
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.progress import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import torch

TYPES = ("auto", "f32", "f16", "bf16")
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}


@dataclass(frozen=True)
class ConvertedAdapter:
    """What ``convert`` wrote: the file, its size, the type of its tensors, the number of pairs and their ranks."""

    path: Path
    nbytes: int
    type: str
    pairs: int
    ranks: tuple[int, ...]


def convert(
    folder: Path,
    output: Path,
    *,
    type: str = "auto",
    base: Path | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> ConvertedAdapter:
    """Convert the adapter in ``folder`` to the file ``output``, or to NAME.gguf in that directory.

    ``type``: one of TYPES; "auto" is that of the adapter. ``base``: a GGUF file of the model; the adapter's names and sizes are
    checked against it. Nothing is left after an error. Raises JambaError; BadFileError and UnsupportedError name what is wrong.
    """
    if type not in TYPES:
        raise UsageError(f"is not one of {', '.join(TYPES)}", field="type", value=type)
    with PeftAdapter.open(folder) as adapter:
        kind = _stored_type(adapter) if type == "auto" else type
        called = name or folder.resolve().name
        path = output / f"{called}.gguf" if output.is_dir() else output
        _check_names(adapter)
        if base is not None:
            _check_base(adapter, base)
        alpha = Counter(pair.scale * pair.rank for pair in adapter.pairs).most_common(1)[0][0]
        with GGUFWriter(path, force=force) as writer:
            for key, value, value_type in (
                (keys.ARCHITECTURE, keys.ARCH, "str"),
                (keys.TYPE, "adapter", "str"),
                (form.ADAPTER_TYPE, "lora", "str"),
                (keys.NAME, called, "str"),
                (keys.FILE_TYPE, _FILE_TYPES[kind], "u32"),
                (form.ALPHA, alpha, "f32"),
            ):
                writer.add(key, value, value_type)
            for pair in adapter.pairs:
                writer.plan_tensor(pair.name + form.A, pair.a_shape, kind)
                writer.plan_tensor(pair.name + form.B, pair.b_shape, kind)
            writer.begin()
            with progress("Converting", len(adapter.pairs), "tensors") as advance:
                for pair in adapter.pairs:
                    a, b = pair.read()
                    # The file has one alpha: what a pair's own differs by goes into its matrix b.
                    factor = pair.scale / (_f32(alpha) / pair.rank)
                    writer.write_tensor(pair.name + form.A, _bytes(a, kind, adapter, pair))
                    writer.write_tensor(
                        pair.name + form.B, _bytes(b if abs(factor - 1) < 1e-7 else b * factor, kind, adapter, pair)
                    )
                    advance(1)
            writer.finish()
        ranks = tuple(sorted({pair.rank for pair in adapter.pairs}))
        return ConvertedAdapter(path, path.stat().st_size, kind, len(adapter.pairs), ranks)


def _stored_type(adapter: PeftAdapter) -> str:
    return {"F16": "f16", "BF16": "bf16"}.get(next(iter(adapter.dtypes)), "f32") if len(adapter.dtypes) == 1 else "f32"


def _check_names(adapter: PeftAdapter) -> None:
    twice = [name for name, count in Counter(pair.name for pair in adapter.pairs).items() if count > 1]
    if twice:
        raise BadFileError(adapter.folder, f"there are two pairs for {twice[0]}")


def _check_base(adapter: PeftAdapter, base: Path) -> None:
    with GGUFFile.open(base) as file:
        keys.jamba_config(file.metadata, file.tensors)
        for pair in adapter.pairs:
            form.check_pair(adapter.folder, pair.name, pair.a_shape, pair.b_shape, file.tensors, base)


def _f32(value: float) -> float:
    import struct

    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _bytes(values: torch.Tensor, kind: str, adapter: PeftAdapter, pair: Pair) -> np.ndarray:
    import torch

    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    stored = values.to(dtype).contiguous()
    if not stored.isfinite().all():
        raise BadFileError(
            adapter.folder, f"the pair of {pair.name} has values too large for {kind}", remedy="use {type} f32"
        )
    data: np.ndarray = stored.view(-1).view(torch.uint8).numpy()
    return data
