"""Random weights for any Jamba shape in any quantization, made in seconds.

They show a machine's speed before a download of 31 GB, and serve the tests. The blocks are valid and their values plausible
(normal, with deviation 1 / sqrt(row length)), so the kernels do their usual work and activations stay in range. Only a few
hundred rows are random, the others repeat these in random order: quantizing billions of weights would take minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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

# Each shape's differences from the defaults of a Hugging Face Jamba config, which are Mini's.
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
    """The sizes of a named shape (``SHAPES``), or of a Hugging Face config.json or a directory with one.

    Raises UsageError for anything else, JambaError for an unreadable file, UnsupportedError for another architecture.
    """
    if shape.lower() in SHAPES:
        return JambaConfig.from_hf(SHAPES[shape.lower()], shape)
    path = Path(shape)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise UsageError(f"is not one of {', '.join(SHAPES)} or the path of a config.json", field="shape", value=shape)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JambaError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise JambaError(f"{path}: not a model's config.json")
    return JambaConfig.from_hf(values, path)


def choices(config: JambaConfig, quant: str) -> dict[str, Choice]:
    """The format of each tensor of such a model in file type ``quant`` (or "f32"), by name in file order.

    Raises UsageError for an unknown type or one whose blocks do not fit the rows of this shape.
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


def synthetic_model(
    config: JambaConfig,
    quant: str,
    *,
    seed: int = 0,
    ops: Ops | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> JambaModel:
    """A model of ``config`` in file type ``quant`` with random weights in memory; ``ops`` as in ``loader.build``. ``advance``
    is called with the bytes of each tensor that is made.

    Raises UsageError as ``choices`` does, JambaError if the free memory is too small.
    """
    import psutil

    from jambacli.runtime.loader import build

    needed, free = synthetic_bytes(config, quant), psutil.virtual_memory().available
    if needed > free:
        raise JambaError(
            f"weights of this shape in {quant} take {format_bytes(needed)}, but only {format_bytes(free)} of memory is free",
            remedy="choose a smaller {shape} or {quant}",
        )
    tensors = {}
    for name, weight in synthetic_tensors(config, quant, seed=seed):
        tensors[name] = weight
        advance(weight.nbytes)
    return build(config, tensors.__getitem__, ops=ops)


def synthetic_tensors(config: JambaConfig, quant: str, *, seed: int = 0) -> Iterator[tuple[str, QTensor]]:
    """Yield each tensor of a random model with its GGUF name, in file order."""
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
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Write the same random model as a GGUF file. ``advance`` is called with the bytes of each tensor that is written.

    ``vocabulary``: the tokenizer's (key, value, kind) for ``GGUFWriter.add``; by default there is none. Raises as
    ``synthetic_model`` and ``GGUFWriter`` do.
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
            advance(w.nbytes)


class _Maker:
    """Makes tensors; keeps the random rows of each (format, row length) to repeat them."""

    def __init__(self, seed: int) -> None:
        import torch

        self._random = torch.Generator().manual_seed(seed)
        self._rows: dict[tuple[str, int], torch.Tensor] = {}

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
        """Norms, biases, convolutions, A and D with values like a trained model's, float32."""
        import torch

        kind = name.split(".", 2)[-1]
        if kind == "ssm_a":
            return -(torch.arange(1, shape[1] + 1.0).expand(shape) * (1 + 0.1 * self._normal(*shape)).clamp(0.5))
        if kind == "ssm_dt.bias":
            # As Mamba initializes it: its softplus is log-uniform in 0.001 .. 0.1.
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
        random_rows = self._rows.get((fmt.name, row))
        if random_rows is None:
            random_rows = self._rows[fmt.name, row] = self._quantized_rows(fmt.name, row)
        order = torch.randint(_RANDOM_ROWS, (rows,), generator=self._random)
        data = random_rows.index_select(0, order).view(-1)
        scale = None
        if fmt.name == "i8":
            scale = torch.full(leading, 4 / 127 / math.sqrt(row))
        return QTensor(data, fmt, choice.tensor.shape, scale)

    def _quantized_rows(self, fmt: str, row: int) -> torch.Tensor:
        """Random rows in a format, uint8 [_RANDOM_ROWS, bytes per row]."""
        import torch

        values = self._normal(_RANDOM_ROWS, row)
        if fmt == "i8":  # four standard deviations are 127, see the scale in ``_matrix``
            return (values * 127 / 4).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
        values /= math.sqrt(row)
        if fmt in ("f32", "f16", "bf16"):
            dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[fmt]
            return values.to(dtype).view(torch.uint8)
        from quant.quantize_blocks import quantize

        return quantize(values, fmt)


@dataclass(frozen=True)
class _Factors:
    """A block's factors: their byte ``offsets``, about the largest level that they multiply, and how they are stored."""

    offsets: tuple[int, ...]
    largest: float
    kind: str = "f16"  # or one byte: "e8m0", a power of two; "e4m3", a float of eight bits


# As the GGUF specification lays the blocks out.
_FACTORS = {
    "q4_0": _Factors((0,), 8),
    "q4_1": _Factors((0, 2), 15),
    "q5_0": _Factors((0,), 16),
    "q5_1": _Factors((0, 2), 31),
    "q8_0": _Factors((0,), 127),
    "q2_k": _Factors((80, 82), 45),
    "q3_k": _Factors((108,), 128),
    "q4_k": _Factors((0, 2), 945),
    "q5_k": _Factors((0, 2), 1953),
    "q6_k": _Factors((208,), 4064),
    "iq4_nl": _Factors((0,), 127),
    "iq4_xs": _Factors((0,), 4064),
    "mxfp4": _Factors((0,), 6, "e8m0"),
    "nvfp4": _Factors((0, 1, 2, 3), 6, "e4m3"),
    "q1_0": _Factors((0,), 1),
    "q2_0": _Factors((0,), 2),
    "tq1_0": _Factors((52,), 1),
    "tq2_0": _Factors((64,), 2),
}


def random_weight(fmt: str, shape: tuple[int, ...], *, seed: int = 0, size: float = 0.1) -> QTensor:
    """A weight of random bytes with factors that keep its values below about ``size``, on the CPU.

    Unlike ``synthetic_tensors`` it uses every bit pattern of a block and needs no quantization. A format whose factors are
    not listed above is quantized from random values if it is writable; otherwise ValueError is raised.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    form, n = FORMATS[fmt], math.prod(shape)
    if fmt in ("f32", "f16", "bf16"):
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[fmt]
        values = torch.randn(n, generator=generator) * size / 3
        return QTensor(values.to(dtype).view(torch.uint8), form, shape)
    blocks = torch.randint(0, 256, (n // form.block, form.block_bytes), generator=generator, dtype=torch.uint8)
    if fmt == "i8":
        scale = (torch.rand(shape[:-1], generator=generator) + 0.5) * size / 127
        return QTensor(blocks.flatten(), form, shape, scale)
    factors = _FACTORS.get(fmt)
    if factors is None:
        if not form.writable:
            raise ValueError(
                f"random blocks of {fmt} cannot be made: its factors are not listed and it is not writable"
            )
        from quant.quantize_blocks import quantize

        values = torch.randn(n, generator=generator).view(shape) * size / 3
        return QTensor(quantize(values, fmt).flatten(), form, shape)
    for offset in factors.offsets:
        factor = (torch.rand(len(blocks), generator=generator) + 0.5) * size / factors.largest
        if factors.kind == "e8m0":
            blocks[:, offset] = factor.log2().floor().add(127).clamp(0, 254).to(torch.uint8)
        elif factors.kind == "e4m3":
            blocks[:, offset] = factor.to(torch.float8_e4m3fn).view(torch.uint8)
        else:
            blocks[:, offset : offset + 2] = factor.half().view(torch.uint8).view(-1, 2)
    return QTensor(blocks.flatten(), form, shape)
