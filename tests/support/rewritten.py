"""Writes a GGUF file again with some tensors changed: other formats, names or shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jambacli.gguf.layout import copied_metadata
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from quant.formats import get_format

#: Name, format name, shape (torch order), bytes (uint8) of a tensor.
Stored = tuple[str, str, tuple[int, ...], np.ndarray]


def rewritten(source: Path, target: Path, change: Callable[[list[Stored]], Iterable[Stored]]) -> Path:
    """``target``, with the metadata of ``source`` and what ``change`` makes of all its tensors."""
    with GGUFFile.open(source) as file, GGUFWriter(target, force=True) as writer:
        tensors = [(n, i.format.name, i.shape, np.array(file.data(n))) for n, i in file.tensors.items()]
        for key, value in copied_metadata(file.metadata).items():
            writer.add_encoded(key, value)
        changed = list(change(tensors))
        for name, fmt, shape, _ in changed:
            writer.plan_tensor(name, shape, get_format(fmt))
        writer.begin()
        for name, _, _, data in changed:
            writer.write_tensor(name, data)
        writer.finish()
    return target


def fused_qkv(tensors: list[Stored]) -> Iterable[Stored]:
    """The tensors with each layer's q, k and v as one ``attn_qkv``, as llama.cpp's converter fuses them."""
    by_name = {t[0]: t for t in tensors}
    for name, fmt, shape, data in tensors:
        if name.endswith(".attn_q.weight"):
            parts = [by_name[name.replace("attn_q", f"attn_{x}")] for x in "qkv"]
            rows = sum(p[2][0] for p in parts)
            yield name.replace("attn_q", "attn_qkv"), fmt, (rows, shape[1]), np.concatenate([p[3] for p in parts])
        elif not name.endswith((".attn_k.weight", ".attn_v.weight")):
            yield name, fmt, shape, data
