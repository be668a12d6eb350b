"""Random LoRA adapters, as GGUF files written with the gguf package and as PEFT saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ssm_in", "ssm_x", "ssm_dt", "ssm_out", "ffn_gate_inp")
FFN = ("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def is_linear(name: str) -> bool:
    """Whether a weight is that of a linear layer inside the model."""
    return name.split(".")[-2] in (*LINEAR, *FFN) and name.endswith(".weight")


def random_pairs(
    shapes: Mapping[str, tuple[int, ...]], rank: int = 4, seed: int = 1, size: float = 0.1
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A random pair (a, b), float32, for each of these weights."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.standard_normal((*shape[:-2], rank, shape[-1]), np.float32) * size,
            rng.standard_normal((*shape[:-1], rank), np.float32) * size,
        )
        for name, shape in shapes.items()
    }


def write_adapter(
    path: Path, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], *, alpha: float = 8.0, **metadata: str
) -> Path:
    """An adapter in llama.cpp's format."""
    writer = gguf.GGUFWriter(path, metadata.get("arch", "jamba"))
    writer.add_type(metadata.get("type", "adapter"))
    writer.add_string("adapter.type", metadata.get("adapter_type", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter_for(
    path: Path,
    model: Path,
    *,
    rank: int = 4,
    seed: int = 1,
    which: Callable[[str], bool] = is_linear,
    size: float = 0.1,
) -> Path:
    """An adapter of every linear layer of a model, or of those that ``which`` chooses."""
    from jambacli.gguf.reader import GGUFFile

    with GGUFFile.open(model) as file:
        shapes = {name: tuple(info.shape) for name, info in file.tensors.items() if which(name)}
    return write_adapter(path, random_pairs(shapes, rank, seed, size))


def write_peft(folder: Path, modules: Mapping[str, tuple[np.ndarray, np.ndarray]], **config: Any) -> Path:
    """An adapter as PEFT saves it: pairs (a, b) by the module's name in transformers."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for module, (a, b) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, folder / "adapter_model.safetensors")
    write_config(folder, **config)
    return folder


def write_config(folder: Path, **config: Any) -> None:
    """adapter_config.json of a plain LoRA adapter, with changes."""
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}), encoding="utf-8")


def expert_names(layer: int, experts: Iterable[int], kind: str) -> list[str]:
    """The modules of single experts in older transformers."""
    return [f"model.layers.{layer}.feed_forward.experts.{e}.{kind}_proj" for e in experts]
