"""Chooses a format for every tensor so that the divergence is the least for a given size.

The model is additive: the divergence of the whole is the sum of those of its tensors, each rounded alone. What is solved is
a multiple-choice knapsack: by dynamic programming over the bytes above the least size, in units, then the bytes left over by
rounding to units are spent one step at a time.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.errors import JambaError, UsageError
from jambacli.quantize.recipes import Choice, Recipe, RecipeOptions, Tensor, fall_back, layer_of

if TYPE_CHECKING:
    import numpy as np

    from jambacli.quantize.sensitivity import Sensitivity

#: The formats to choose from, the smallest first; a row that does not fit one takes its stand-in.
CANDIDATES = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0", "f16")
#: Squared rounding error over squared weight, of trained weights with importance: what an unmeasured format is estimated by.
RELATIVE_ERROR = {
    "q2_k": 0.085,
    "q3_k": 0.023,
    "iq4_xs": 0.0056,
    "iq4_nl": 0.0054,
    "q4_0": 0.0083,
    "q4_1": 0.0066,
    "q4_k": 0.0053,
    "q5_0": 0.0020,
    "q5_1": 0.0016,
    "q5_k": 0.00135,
    "q6_k": 0.00034,
    "q8_0": 0.000022,
    "f16": 4e-8,
    "bf16": 2.5e-6,
    "f32": 0.0,
}
#: How much a tensor of a kind matters, per squared relative error: the default where nothing was measured. Measured on two
#: small trained models, with experts between these and what is published of large ones.
KIND_WEIGHT = {
    "token_embd": 0.5,
    "output": 8.0,
    "attn_q": 0.4,
    "attn_k": 0.5,
    "attn_v": 0.7,
    "attn_output": 0.7,
    "ssm_in": 1.0,
    "ssm_x": 0.4,
    "ssm_dt": 0.4,
    "ssm_out": 1.2,
    "ffn_gate": 0.6,
    "ffn_up": 0.6,
    "ffn_down": 0.9,
    "ffn_gate_exps": 0.15,
    "ffn_up_exps": 0.12,
    "ffn_down_exps": 0.25,
}
_FILE_TYPES = {"q2_k": 10, "q3_k": 12, "iq4_xs": 30, "q4_k": 15, "q5_k": 17, "q6_k": 18, "q8_0": 7, "f16": 1}
_UNITS = 1 << 15
_ALIGNMENT = 32


@dataclass(frozen=True)
class Option:
    """One format of a tensor: its bytes in the file and its divergence in nats, or in any unit that all share."""

    format: str
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """The chosen formats; ``predicted``: the sum of their costs; ``measured``: whether these are nats."""

    formats: Mapping[str, str]
    predicted: float
    measured: bool


def kind_of(name: str) -> str:
    """The kind of a tensor: ``blk.3.ssm_out.weight`` -> ``ssm_out``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def padded(nbytes: int) -> int:
    """The bytes that a tensor takes in a file, with what aligns the next one."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def candidates(tensor: Tensor, formats: Iterable[str] = CANDIDATES) -> list[str]:
    """The formats that a tensor can take, without repetition; its own one if that is f16 or bf16 and nothing smaller fits."""
    return list(dict.fromkeys(fall_back(tensor, fmt) for fmt in formats))


def options_of(choice: Choice, sensitivity: Sensitivity | None, tied: bool = False) -> list[Option]:
    """The formats of a tensor with their sizes and costs, from the sensitivity or, without one, by its kind.

    ``tied``: the embedding is the output matrix too.
    """
    kind = kind_of(choice.name)
    matters = KIND_WEIGHT["output" if tied and kind == "token_embd" else kind]
    measured = {} if sensitivity is None else sensitivity.kl.get(choice.name, {})
    return [
        Option(fmt, padded(replace(choice, format=fmt).nbytes), _cost(fmt, measured, matters))
        for fmt in candidates(choice.tensor)
    ]


def _cost(fmt: str, measured: Mapping[str, float], matters: float) -> float:
    if fmt in measured:
        return measured[fmt]
    error = RELATIVE_ERROR[fmt]
    known = {other: value for other, value in measured.items() if RELATIVE_ERROR.get(other, 0.0) > 0}
    if not known:
        return matters * error
    # The nearest measured format: the divergence goes with the squared error.
    nearest = min(known, key=lambda other: abs(math.log(RELATIVE_ERROR[other] / max(error, 1e-12))))
    return known[nearest] * error / RELATIVE_ERROR[nearest]


def allocated(
    choices: Sequence[Choice],
    size_of: Callable[[list[Choice]], int],
    total: int,
    sensitivity: Sensitivity | None,
    pinned: Container[str] = (),
) -> tuple[list[Choice], Allocation]:
    """The choices with the least divergence in a file of at most ``total`` bytes; ``size_of`` gives the bytes of a file.

    ``pinned``: names of tensors that keep their format. JambaError where even the smallest formats take more.
    """
    tied = not any(c.name == "output.weight" for c in choices)
    options = {c.name: options_of(c, sensitivity, tied) for c in choices if may_choose(c) and c.name not in pinned}
    if not options:
        raise JambaError("there is no tensor whose format could be chosen")

    def with_formats(formats: Mapping[str, str]) -> list[Choice]:
        return [replace(c, format=formats[c.name], fallback_from=None) if c.name in formats else c for c in choices]

    smallest = with_formats({name: min(some, key=lambda o: o.nbytes).format for name, some in options.items()})
    budget = total - size_of(smallest) + sum(min(o.nbytes for o in some) for some in options.values())
    while True:
        formats = allocate(options, budget)
        if formats is None:
            raise JambaError(f"the smallest formats take {size_of(smallest)} bytes, more than {total}")
        found = with_formats(formats)
        if (excess := size_of(found) - total) <= 0:
            break
        budget -= excess
    costs = {(name, o.format): o.cost for name, some in options.items() for o in some}
    predicted = sum(costs[name, fmt] for name, fmt in formats.items())
    return found, Allocation(formats, predicted, sensitivity is not None)


def recipe_for(choices: Iterable[Choice], name: str) -> Recipe:
    """A recipe for a file of chosen formats: general.file_type is that of the format with the most bytes."""
    held: dict[str, int] = defaultdict(int)
    for choice in choices:
        if not choice.kept:
            held[choice.format] += choice.nbytes
    base = max(held, key=lambda fmt: held[fmt], default="q4_k")
    base = base if base in _FILE_TYPES else "q4_k"
    return Recipe(name, _FILE_TYPES[base], base, allocated=True)


def check(recipe: Recipe, options: RecipeOptions, size: int | None, target: float | None) -> None:
    """UsageError for options that contradict each other, or a ``target`` that is no number of bits per weight."""
    if size is not None and target is not None:
        raise UsageError("contradict each other", field=("size", "target"), remedy="choose one")
    if recipe.allocated and (size is not None or target is not None):
        raise UsageError(f"{recipe.name} has a size of its own", remedy="leave out {size} and {target}, or {type}")
    if recipe.experts:
        raise UsageError(f"{recipe.name} has no types to choose from", remedy="leave out {type}")
    if options.pure:
        raise UsageError("contradicts a choice of types by their divergence", field="pure")
    if target is not None and not 1 <= target <= 16:
        raise UsageError("is outside 1 to 16 bits per weight", field="target", value=target)


def is_pinned(choice: Choice, options: RecipeOptions) -> bool:
    """Whether an option of the user's decides the tensor's format."""
    by_name = {"token_embd.weight": options.embedding, "output.weight": options.output}.get(choice.name)
    return by_name is not None or any(pattern.search(choice.name) for pattern, _ in options.tensor_types)


def may_choose(choice: Choice) -> bool:
    """Whether there is anything to choose for a tensor: it is quantized, and its kind is known."""
    return not choice.kept and kind_of(choice.name) in KIND_WEIGHT


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, str] | None:
    """The format of each tensor with the least sum of costs in at most ``budget`` bytes; None where nothing fits."""
    kept = {name: _pareto(some) for name, some in options.items()}
    slack = budget - sum(some[0].nbytes for some in kept.values())
    if slack < 0:
        return None
    unit = max(1, -(-slack // _UNITS))
    chosen = _knapsack(list(kept.values()), unit, slack // unit)
    _spend(list(kept.values()), chosen, budget)
    return {name: some[i].format for (name, some), i in zip(kept.items(), chosen, strict=True)}


def _pareto(options: Sequence[Option]) -> list[Option]:
    """The options by size, without those that another one of no more bytes equals or betters."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.cost)):
        if not found or option.cost < found[-1].cost:
            found.append(option)
    return found


def _knapsack(tensors: Sequence[Sequence[Option]], unit: int, capacity: int) -> list[int]:
    """The index of each tensor's option; sizes above the smallest are rounded up to ``unit`` bytes."""
    import numpy as np

    best = np.zeros(capacity + 1)
    taken: list[np.ndarray] = []
    for options in tensors:
        after = best + options[0].cost
        which = np.zeros(capacity + 1, np.uint8)
        for i, option in enumerate(options[1:], 1):
            size = -(-(option.nbytes - options[0].nbytes) // unit)
            if size > capacity:
                break
            other = best[: capacity + 1 - size] + option.cost
            better = other < after[size:]
            np.copyto(after[size:], other, where=better)
            np.copyto(which[size:], i, where=better)
        best = after
        taken.append(which)
    chosen, room = [], int(best.argmin())
    for options, which in zip(reversed(tensors), reversed(taken), strict=True):
        i = int(which[room])
        chosen.append(i)
        room -= -(-(options[i].nbytes - options[0].nbytes) // unit)
    return chosen[::-1]


def _spend(tensors: Sequence[Sequence[Option]], chosen: list[int], budget: int) -> None:
    """Spend what rounding to units left: the step that gains most per byte, as long as one fits."""
    left = budget - sum(options[i].nbytes for options, i in zip(tensors, chosen, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for t, options in enumerate(tensors):
            now = options[chosen[t]]
            for i in range(chosen[t] + 1, len(options)):
                more = options[i].nbytes - now.nbytes
                if more <= left:
                    gain = (now.cost - options[i].cost) / max(more, 1)
                    if best is None or gain > best[0]:
                        best = gain, t, i
        if best is None:
            return
        _, t, i = best
        left -= tensors[t][i].nbytes - tensors[t][chosen[t]].nbytes
        chosen[t] = i


def tensor_type_patterns(choices: Iterable[Choice]) -> list[str]:
    """``PATTERN=TYPE`` arguments that give every quantized tensor its format, here and in llama-quantize.

    A pattern is anchored at both ends and names layers one by one, so the order does not matter.
    """
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    alone: list[str] = []
    for choice in choices:
        if choice.kept:
            continue
        layer = layer_of(choice.name)
        if layer < 0:
            alone.append(f"^{re.escape(choice.name)}$={choice.format}")
        else:
            layers[choice.name.split(".", 2)[2], choice.format].append(layer)
    grouped = []
    for (rest, fmt), numbers in sorted(layers.items()):
        which = str(numbers[0]) if len(numbers) == 1 else f"({'|'.join(map(str, sorted(numbers)))})"
        grouped.append(rf"^blk\.{which}\.{re.escape(rest)}$={fmt}")
    return [*alone, *grouped]
