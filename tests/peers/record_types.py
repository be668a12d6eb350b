"""Records which types llama.cpp's quantizer gives the tensors of several Jambas: ``python -m tests.peers.record_types``.

Writes tests/quantize/llama_cpp_types.json, so that the recipes are held to it where llama-cpp-python is not installed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.support import jamba_gguf, llama_quantize
from tests.support.jamba_gguf import Shape
from tests.support.repository import REPO

TARGET = REPO / "tests" / "quantize" / "llama_cpp_types.json"

SHAPES = {
    "moe": jamba_gguf.MOE,
    "small_3b": jamba_gguf.SMALL_3B,
    "eight_experts": Shape(experts=8),
    "two_experts_16_layers": Shape(experts=2, layers=16, attention=(4, 12)),
    "mini_thin": Shape(layers=32, attention=(4, 12, 20, 28), kv_heads=1, ffn=256),
    "attention_first_grouped": Shape(layers=17, attention=(0, 3, 6, 9, 12, 15), experts=1, kv_heads=1),
    "dense_40": Shape(layers=40, attention=range(4, 40, 8), experts=1),
    "rows_of_160": Shape(layers=4, hidden=160, ffn=480, attention=(1,), kv_heads=4, dt_rank=10, experts=1, tied=True),
    "rows_of_80": Shape(layers=4, hidden=80, ffn=208, attention=(1,), kv_heads=4, dt_rank=5, experts=4),
}
# The arguments of llama_quantize.quantize by the name under which they are recorded.
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "pure": {"pure": True},
    "imatrix": {"imatrix": {}},
    "output q4_k": {"output_tensor_type": 12},
    "embedding q8_0": {"token_embedding_type": 8},
    "patterns": {"tensor_types": [("ffn_down", 14), ("attn_v|ssm_in", 12)]},
}


def read_types(path: Path) -> dict[str, str]:
    """Tensor names and types of a GGUF, in file order, read by the gguf package."""
    import gguf

    return {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(path).tensors}


def compact(types: dict[str, str]) -> dict[str, str]:
    """Types but F32, grouped: ``{"q6_k": "output.weight blk.ffn_down.weight:0,1,4"}``; the commonest as ``*``."""
    common = Counter(kind for kind in types.values() if kind != "f32").most_common(1)[0][0]
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, kind in types.items():
        if kind in ("f32", common):
            continue
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        groups[kind][f"blk.{match[2]}" if match else name] += [match[1]] if match else []
    out = {common: "*"}
    for kind, names in groups.items():
        out[kind] = " ".join(f"{name}:{','.join(layers)}" if layers else name for name, layers in names.items())
    return out


def expand(recorded: dict[str, str], names: list[str]) -> dict[str, str]:
    """``compact`` undone for the tensors that are not F32."""
    common = next(iter(recorded))
    types = dict.fromkeys(names, common)
    for kind, text in recorded.items():
        for item in text.split() if text != "*" else ():
            name, _, layers = item.partition(":")
            for full in [f"blk.{n}.{name.removeprefix('blk.')}" for n in layers.split(",")] if layers else [name]:
                types[full] = kind
    return types


def main() -> None:
    """Run llama.cpp over every shape, file type and option; weights are zero, because only the types matter."""
    recorded: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.gguf", Path(folder) / "out.gguf"
        for shape_name, shape in SHAPES.items():
            jamba_gguf.write(source, shape, seed=None, kind="bf16", shuffled=True)
            for option, arguments in OPTIONS.items():
                if option == "imatrix":
                    import numpy as np

                    name, dims = next(t for t in jamba_gguf.tensors(shape) if "ssm_in" in t[0])
                    arguments = {"imatrix": {name: np.ones(dims[-1], np.float32)}}  # noqa: PLW2901
                if shape.hidden % 256 and option.startswith(("output", "embedding")):
                    continue  # llama.cpp aborts the process on a demanded type that does not fit
                for kind in llama_quantize.FILE_TYPES:
                    assert llama_quantize.quantize(source, target, kind, **arguments)
                    recorded.setdefault(shape_name, {}).setdefault(option, {})[kind] = compact(read_types(target))
    # One line a file type: json's own indentation would make thousands.
    text = re.sub(r"\n {4,}", "", re.sub(r'(?<="),\n {4,}', ", ", json.dumps(recorded, indent=1)))
    TARGET.write_text(text.replace('"\n   }', '"}') + "\n")


if __name__ == "__main__":
    main()
