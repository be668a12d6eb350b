"""Measures how much each tensor's rounding costs: the divergence of the model in which one tensor alone is quantized.

The hidden states before every layer are kept, so that a quantized tensor costs the layers from its own on. Products are
computed with the values of the quantized blocks, without rounding activations: what is compared is the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.errors import JambaError, UnsupportedError
from jambacli.evaluation.perplexity import Window
from jambacli.progress import Progress, no_progress
from jambacli.quantize.allocate import candidates, may_choose
from jambacli.quantize.recipes import Choice, Tensor, layer_of, may_quantize, visiting_order
from jambacli.quantize.sensitivity import Sensitivity, imatrix_id, weights_id

if TYPE_CHECKING:
    import numpy as np
    import torch

    from jambacli.api import Jamba
    from jambacli.gguf.reader import GGUFFile
    from jambacli.model.jamba import JambaModel, Layer
    from jambacli.quantize.imatrix import Imatrix
    from quant.formats import QTensor

#: (tensor's name, values float32 [..., n], format, importance [n] or [experts, n] or None) -> the rounded values.
Quantizer = Callable[[str, "torch.Tensor", str, "np.ndarray | None"], "torch.Tensor"]

# GGUF's name of a weight -> where the model's layer has it.
_PARTS = {
    "attn_q": ("mixer", "q_proj"),
    "attn_k": ("mixer", "k_proj"),
    "attn_v": ("mixer", "v_proj"),
    "attn_output": ("mixer", "out_proj"),
    "ssm_in": ("mixer", "in_proj"),
    "ssm_x": ("mixer", "x_proj"),
    "ssm_dt": ("mixer", "dt_proj"),
    "ssm_out": ("mixer", "out_proj"),
    "ffn_gate": ("ffn", "gate"),
    "ffn_up": ("ffn", "up"),
    "ffn_down": ("ffn", "down"),
    "ffn_gate_exps": ("ffn", "gate"),
    "ffn_up_exps": ("ffn", "up"),
    "ffn_down_exps": ("ffn", "down"),
}
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Cost:
    """What a measurement takes: ``layer_tokens``, tokens times layers; ``tokens``: the tokens that reading takes as much work
    for; ``memory``: bytes of kept states and predictions."""

    layer_tokens: int
    tokens: int
    memory: int


def plain_quantizer(name: str, values: torch.Tensor, fmt: str, weights: np.ndarray | None) -> torch.Tensor:
    """Round as llama-quantize does."""
    import torch

    from quant import dequantize, quantize

    importance = None if weights is None else torch.from_numpy(weights)
    return dequantize(quantize(values, fmt, importance), fmt).reshape(values.shape)


def text_id(windows: Sequence[Window]) -> str:
    """sha256 of the windows' token ids and of where scoring starts."""
    return hashlib.sha256(repr([(w.first, w.ids) for w in windows]).encode()).hexdigest()[:32]


def scored_windows(ids: Sequence[int], bos: int | None, ctx: int) -> list[Window]:
    """Windows of ``ctx`` tokens, or of all there are, for a measurement: after its first eighth, all of one is scored.

    The rest of the text is a window if it is half as long. Raises JambaError for fewer than 8 tokens.
    """
    start = [] if bos is None else [bos]
    ctx = min(ctx, len(start) + len(ids))
    if ctx < 8:
        raise JambaError(f"the text has {len(ids)} tokens, too few to measure on")
    room = ctx - len(start)
    parts = [[*start, *ids[i : i + room]] for i in range(0, len(ids), room)]
    return [Window(part, ctx // 8) for part in parts if len(part) >= ctx // 2]


def cost(model: JambaModel, windows: Sequence[Window], wanted: Mapping[str, Sequence[str]]) -> Cost:
    """What it takes to measure the formats ``wanted`` of each tensor."""
    layers, tokens = len(model.layers), sum(len(w.ids) - 1 for w in windows)
    work = tokens * layers + sum(
        len(formats) * tokens * (layers - _first_layer(name, layers)) for name, formats in wanted.items()
    )
    states = tokens * (layers + 1) * model.embedding.shape[1] * 4
    predictions = sum(len(w.ids) - w.first for w in windows) * model.config.vocab_size * 4
    return Cost(work, work // layers, states + predictions)


def wanted_formats(file: GGUFFile, formats: Sequence[str], start: Sensitivity | None = None) -> dict[str, list[str]]:
    """The formats to measure of each tensor of a file, those that ``start`` has left out."""
    infos = file.tensors
    wanted: dict[str, list[str]] = {}
    for name in visiting_order(infos):
        info = infos[name]
        tensor = Tensor(name, info.shape, info.format.name)
        choice = Choice(tensor, tensor.format, kept=not may_quantize(tensor))
        if not may_choose(choice):
            continue
        known = {} if start is None else start.kl.get(name, {})
        wanted[name] = [fmt for fmt in candidates(tensor, formats) if fmt not in known]
    return {name: left for name, left in wanted.items() if left}


def new_sensitivity(
    file: GGUFFile, windows: Sequence[Window], formats: Sequence[str], imatrix: Imatrix | None, quantizer: str = "plain"
) -> Sensitivity:
    """A measurement that has not begun."""
    return Sensitivity(
        weights=weights_id(file),
        text=text_id(windows),
        tokens=sum(len(w.ids) - w.first for w in windows),
        imatrix=imatrix_id(imatrix),
        quantizer=quantizer,
        formats=tuple(formats),
    )


def _first_layer(name: str, layers: int) -> int:
    """The first layer that a tensor changes; the number of layers for the output."""
    return 0 if name == _EMBEDDING else layers if name == _OUTPUT else layer_of(name)


def measure(
    model: Jamba,
    windows: Sequence[Window],
    wanted: Mapping[str, Sequence[str]],
    start: Sensitivity,
    imatrix: Imatrix | None = None,
    quantizer: Quantizer = plain_quantizer,
    progress: Progress = no_progress,
    save: Callable[[Sensitivity], None] | None = None,
) -> Sensitivity:
    """``start`` with the figures of the formats ``wanted`` of each tensor that it lacks, measured on ``windows``.

    ``save`` is called after each tensor, so that an interrupted measurement can go on. Raises JambaError for logits that are
    not finite, UnsupportedError for a model on a GPU.
    """
    if model.model.ops.name == "triton" or model.model.device.type != "cpu":
        raise UnsupportedError("sensitivities are measured on the CPU", remedy="use {device} cpu")
    left = {name: [fmt for fmt in formats if fmt not in start.kl.get(name, {})] for name, formats in wanted.items()}
    left = {name: formats for name, formats in left.items() if formats}
    if not left:
        return start
    total = cost(model.model, windows, left).layer_tokens
    result = replace(start, kl={name: dict(figures) for name, figures in start.kl.items()})
    with progress("Measuring sensitivity", total, "tokens") as advance:
        bench = _Bench(model.model, windows, model.name, advance)
        for name, formats in left.items():
            weight = bench.weight(name)
            values = _values(weight)
            importance = None if imatrix is None else imatrix.weights_for(name, tuple(values.shape))
            for fmt in formats:
                changed = _as_weight(quantizer(name, values, fmt, importance))
                result.kl.setdefault(name, {})[fmt] = bench.divergence(name, changed)
            if save is not None:
                save(result)
    return result


def _values(weight: QTensor) -> torch.Tensor:
    from jambacli.kernels import reference

    return reference.dequantize(weight).float().contiguous()


def _as_weight(values: torch.Tensor) -> QTensor:
    """Values float32 as a weight of the model."""
    import torch

    from quant.formats import QTensor, get_format

    return QTensor(values.contiguous().view(torch.uint8).reshape(-1), get_format("f32"), tuple(values.shape))


class _Bench:
    """A model with its hidden states before every layer and its predictions on the windows."""

    def __init__(self, model: JambaModel, windows: Sequence[Window], name: str, advance: Callable[[int], None]) -> None:
        self.model, self.windows, self.name, self.advance = model, windows, name, advance
        self.ops = model.ops.precise or model.ops
        self._states: list[list[torch.Tensor]] = []  # of each window: before each layer, and after the last
        self._expected: list[torch.Tensor] = []
        for window in windows:
            states = self._run(window, 0, self._embedded(window, model.embedding), model.layers)
            self._states.append(states)
            self._expected.append(self._logits(window, states[-1], model.output))

    def weight(self, name: str) -> QTensor:
        """The model's weight of this name."""
        if name in (_EMBEDDING, _OUTPUT):
            return self.model.embedding if name == _EMBEDDING else self.model.output
        side, part = _PARTS[name.split(".")[2]]
        found: QTensor = getattr(getattr(self.model.layers[layer_of(name)], side), part)
        return found

    def divergence(self, name: str, weight: QTensor) -> float:
        """The mean KL divergence of the model with ``weight`` in place of its own one of this name."""
        import torch

        model, first = self.model, _first_layer(name, len(self.model.layers))
        layers, embedding, output = model.layers, model.embedding, model.output
        if name == _EMBEDDING:
            output = weight if output is embedding else output
            embedding = weight
        elif name == _OUTPUT:
            output = weight
        else:
            side, part = _PARTS[name.split(".")[2]]
            layer = layers[first]
            changed = replace(layer, **{side: replace(getattr(layer, side), **{part: weight})})
            layers = (*layers[:first], changed, *layers[first + 1 :])
        each = []
        for number, window in enumerate(self.windows):
            x = self._embedded(window, embedding) if name == _EMBEDDING else self._states[number][first]
            last = self._run(window, first, x, layers)[-1]
            each.append(self._kl(self._expected[number], self._logits(window, last, output)))
        found = float(torch.cat(each).mean())
        if not math.isfinite(found):
            raise JambaError(f"the logits of {self.name} are not finite; the file is probably damaged")
        return max(0.0, found)

    def _embedded(self, window: Window, embedding: QTensor) -> torch.Tensor:
        import torch

        return self.ops.embed(torch.tensor(window.ids[:-1]), embedding)

    def _run(self, window: Window, first: int, x: torch.Tensor, layers: Sequence[Layer]) -> list[torch.Tensor]:
        """The states from before layer ``first`` to after the last one."""
        import torch

        n_tokens = len(window.ids) - 1
        state = self.model.new_state(n_tokens, "f32", precise=True)
        state.begin(n_tokens)
        states = [x]
        with torch.no_grad():
            for layer, part in zip(layers[first:], state.layers[first:], strict=True):
                states.append(layer.forward(states[-1], part, 0, self.ops))
                self.advance(n_tokens)
        return states

    def _logits(self, window: Window, x: torch.Tensor, output: QTensor) -> torch.Tensor:
        normed = self.ops.rms_norm(x[window.first - 1 :], self.model.output_norm, self.model.config.rms_eps)
        return self.ops.linear(normed, output)

    def _kl(self, expected: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        import torch

        rows = max(1, _BLOCK // logits.shape[1])
        parts = []
        for a, b in zip(expected.split(rows), logits.split(rows), strict=True):
            p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
            parts.append((p.exp() * (p - q)).sum(-1))
        return torch.cat(parts)
