"""Random weights of any Jamba's shape in any quantization, made in seconds; knows nothing of timing or of real models.

For learning a machine's speed before downloading 31 GB, and for tests. The bytes are real blocks of plausible values
(normal, 1 / sqrt(row) wide), so every kernel does its usual work and the activations stay sane; but only a few hundred
rows are truly random: the rest repeat them in random order, for encoding billions of weights would take minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError, UsageError
from jambacli.gguf import jamba_metadata as keys
from jambacli.model.config import JambaConfig
from jambacli.quantize.recipes import Choice, Facts, Tensor, get_recipe, may_quantize, plan, visiting_order
from jambacli.units import format_bytes
from quant.formats import FORMATS, QTensor

if TYPE_CHECKING:
    import torch

    from jambacli.kernels import Ops
    from jambacli.model.jamba import JambaModel

# What of each shape differs from a Hugging Face Jamba config's defaults, which are Mini's.
SHAPES: dict[str, dict[str, Any]] = {
    "jamba-mini": {},
    "jamba-3b": {
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "attn_layer_period": 14,
        "attn_layer_offset": 7,
        "num_attention_heads": 20,
        "num_key_value_heads": 1,
        "num_experts": 1,
        "tie_word_embeddings": True,
    },
    "jamba-large": {
        "hidden_size": 8192,
        "intermediate_size": 24576,
        "num_hidden_layers": 72,
        "num_attention_heads": 64,
    },
    # One Mini block at a quarter of its width: 0.93 B parameters.
    "moe": {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}

_RANDOM_ROWS = 256


def shape_config(shape: str) -> JambaConfig:
    """The sizes of a named shape (``SHAPES``) or of a Hugging Face config.json (or a folder with one).

    Raises UsageError for a name that is neither, UnsupportedError for a config of another architecture.
    """
    if shape.lower() in SHAPES:
        return JambaConfig.from_hf(SHAPES[shape.lower()], shape)
    path = Path(shape)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise UsageError(f"shape {shape!r} is none of {', '.join(SHAPES)}, nor the path of a config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JambaError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise JambaError(f"{path}: not a model's config.json")
    return JambaConfig.from_hf(values, path)


def choices(config: JambaConfig, quant: str) -> dict[str, Choice]:
    """The format that each tensor of such a model gets under the file type ``quant`` (or "f32"), by name in file order.

    Raises UsageError for an unknown type or one that a row of this shape does not fit.
    """
    shapes = keys.expected_tensors(config)
    tensors = [Tensor(name, shapes[name], "f32") for name in visiting_order(shapes)]
    if quant.lower() == "f32":
        return {t.name: Choice(t, "f32", kept=not may_quantize(t)) for t in tensors}
    gqa = config.n_heads // config.n_kv_heads if config.layer_is_attention[0] else 0
    try:
        chosen = plan(tensors, Facts(config.n_layers, config.n_experts, gqa), get_recipe(quant))
    except ValueError as error:
        raise UsageError(f"a synthetic model in {quant}: {error}") from error
    return {choice.name: choice for choice in chosen}


def synthetic_bytes(config: JambaConfig, quant: str) -> int:
    """Bytes of the weights that ``synthetic_model`` would make."""
    return sum(choice.nbytes for choice in choices(config, quant).values())


def synthetic_model(config: JambaConfig, quant: str, *, seed: int = 0, ops: Ops | None = None) -> JambaModel:
    """A model of ``config`` with random weights in memory, each tensor in the format ``quant`` (a file type) gives it.

    Raises UsageError as ``choices`` does, JambaError when this machine's free memory does not hold it.
    """
    import psutil

    from jambacli.runtime.loader import build

    needed, free = synthetic_bytes(config, quant), psutil.virtual_memory().available
    if needed > free:
        raise JambaError(
            f"weights of this shape in {quant} take {format_bytes(needed)}; {format_bytes(free)} of memory is free: "
            "choose a smaller shape or type"
        )
    tensors = dict(synthetic_tensors(config, quant, seed=seed))
    return build(config, tensors.__getitem__, ops=ops)


def synthetic_tensors(config: JambaConfig, quant: str, *, seed: int = 0) -> Iterator[tuple[str, QTensor]]:
    """Each tensor of a random model by its GGUF name, in file order, one at a time."""
    maker = _Maker(seed)
    for name, choice in choices(config, quant).items():
        yield name, maker.tensor(choice)


def write_gguf(
    path: str | Path,
    config: JambaConfig,
    quant: str,
    *,
    seed: int = 0,
    force: bool = False,
    vocabulary: Iterable[tuple[str, Any, str]] = ((keys.TOKENIZER_MODEL, "none", "str"),),
) -> None:
    """Write the same random model as a GGUF, for programs that want a file; without a vocabulary unless one is given.

    ``vocabulary``: the tokenizer's (key, value, kind), as ``GGUFWriter.add`` takes them. Raises as ``synthetic_model`` and
    ``GGUFWriter`` do.
    """
    from jambacli.gguf.writer import GGUFWriter

    chosen = choices(config, quant)
    with GGUFWriter(path, force=force) as writer:
        for key, value, kind in keys.config_metadata(config):
            writer.add(key, value, kind)
        writer.add(keys.NAME, "synthetic", "str")
        writer.add(keys.FILE_TYPE, 0 if quant.lower() == "f32" else get_recipe(quant).file_type, "u32")
        writer.add("jamba.vocab_size", config.vocab_size, "u32")
        for key, value, kind in vocabulary:
            writer.add(key, value, kind)
        for choice in chosen.values():
            writer.plan_tensor(choice.name, choice.tensor.shape, choice.format)
        writer.begin()
        for name, w in synthetic_tensors(config, quant, seed=seed):
            writer.write_tensor(name, w.data.numpy())


class _Maker:
    """Makes tensors; keeps the random rows of each (format, length) to repeat them."""

    def __init__(self, seed: int) -> None:
        import torch

        self._random = torch.Generator().manual_seed(seed)
        self._tiles: dict[tuple[str, int], torch.Tensor] = {}

    def tensor(self, choice: Choice) -> QTensor:
        shape, fmt = choice.tensor.shape, FORMATS[choice.format]
        if choice.kept:
            import torch

            data = self._kept(choice.name, shape).contiguous()
            return QTensor(data.view(-1).view(torch.uint8), fmt, shape)
        return self._matrix(choice)

    def _normal(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.randn(*shape, generator=self._random)

    def _kept(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Norms, biases and the recurrence's own tensors as a trained model has them, float32."""
        import torch

        kind = name.split(".", 2)[-1]
        if kind == "ssm_a":
            return -(torch.arange(1, shape[1] + 1.0).expand(shape) * (1 + 0.1 * self._normal(*shape)).clamp(0.5))
        if kind == "ssm_dt.bias":
            # Mamba's own initialisation: softplus of it spreads over 0.001 .. 0.1, evenly in the logarithm.
            dt = torch.exp(torch.rand(shape, generator=self._random) * math.log(100) + math.log(1e-3))
            return dt + torch.log(-torch.expm1(-dt))
        if kind == "ssm_d" or "norm" in name:
            return 1 + 0.1 * self._normal(*shape)
        if kind == "ssm_conv1d.bias":
            return 0.1 * self._normal(*shape)
        return self._normal(*shape) / math.sqrt(shape[-1])

    def _matrix(self, choice: Choice) -> QTensor:
        import torch

        *leading, row = choice.tensor.shape
        fmt = FORMATS[choice.format]
        rows = math.prod(leading)
        tile = self._tiles.get((fmt.name, row))
        if tile is None:
            tile = self._tiles[fmt.name, row] = self._encode(fmt.name, row)
        order = torch.randint(_RANDOM_ROWS, (rows,), generator=self._random)
        data = tile.index_select(0, order).view(-1)
        scale = None
        if fmt.name == "i8":
            scale = torch.full(leading, 4 / 127 / math.sqrt(row))
        return QTensor(data, fmt, choice.tensor.shape, scale)

    def _encode(self, fmt: str, row: int) -> torch.Tensor:
        """Random rows in a format, uint8 [_RANDOM_ROWS, bytes per row]."""
        import torch

        values = self._normal(_RANDOM_ROWS, row)
        if fmt == "i8":  # four standard deviations reach 127; see the scale above
            return (values * 127 / 4).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
        values /= math.sqrt(row)
        if fmt in ("f32", "f16", "bf16"):
            dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[fmt]
            return values.to(dtype).view(torch.uint8)
        from quant.quantize_blocks import quantize

        return quantize(values, fmt)
