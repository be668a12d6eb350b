"""Choose the next token from logits.

The order of the steps is llama.cpp's (bias, penalties, top-k, typical, top-p, min-p, temperature), so that settings
carried over from there mean the same. Temperature 0 is greedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from jambacli.errors import JambaError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Probabilities are in [0, 1]; a field at its neutral value switches its step off.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``typical_p`` 1, ``repeat_penalty`` 1,
    ``presence_penalty`` 0 and ``frequency_penalty`` 0 are neutral. Penalties look at the last ``penalty_last_n`` tokens
    (-1: all). ``logit_bias`` is added to the logits of single tokens. ``seed`` None draws a fresh one.
    """

    temperature: float = 0.4
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError with the field that is out of its range."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise UsageError(f"is outside {low:g} to {high:g}", field=name, value=value)
        for token, bias in self.logit_bias.items():
            # Also refuses NaN. Minus infinity forbids a token; plus infinity would leave no probabilities.
            if not bias <= 1e9:
                raise UsageError("is not a number up to 1e9 or -inf", field="logit_bias", value=f"{token}={bias}")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise UsageError(f"is outside 0 to {(1 << 64) - 1}", field="seed", value=self.seed)

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raise UsageError for a bias on a token that a model of ``n_vocab`` tokens does not have."""
        for token in self.logit_bias:
            if not 0 <= token < n_vocab:
                problem = f"is not a token of the model, whose tokens are 0 to {n_vocab - 1}"
                raise UsageError(problem, field="logit_bias", value=token)

    @property
    def has_penalties(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return self.repeat_penalty != 1 or bool(self.presence_penalty) or bool(self.frequency_penalty)


#: The smallest and largest value of every numeric field but the seed.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (0, 1 << 31),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (1e-3, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "penalty_last_n": (-1, 1 << 31),
}

# The general.sampling.* keys of a GGUF file and the fields they set.
_GGUF_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typ_p": "typical_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_present": "presence_penalty",
    "penalty_freq": "frequency_penalty",
    "penalty_last_n": "penalty_last_n",
}


def model_defaults(metadata: Mapping[str, Any]) -> Sampling:
    """This program's defaults, replaced by those in the model's file (``general.sampling.*``).

    A value outside its range is ignored: it is a hint in a file, not a user's choice.
    """
    chosen = Sampling()
    types = {f.name: type(getattr(chosen, f.name)) for f in fields(chosen)}
    for key, name in _GGUF_KEYS.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float):
            try:
                chosen = replace(chosen, **{name: types[name](value)})
            except (UsageError, ValueError, OverflowError):
                continue
    return chosen


class LogitsOnDevice(Protocol):
    """Logits float32 [vocab] that are still on a GPU; see ``gpu_sampling.DeviceLogits``."""

    def token(self, options: Sampling, uniform: Callable[[], float]) -> int:
        """The token that ``options`` without penalties choose; ``uniform`` draws from [0, 1)."""

    def numpy(self) -> np.ndarray:
        """The logits as a CPU array."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The logits as a CPU array of this type."""


#: Logits float32 [vocab], as an array or still on a GPU.
Logits: TypeAlias = np.ndarray | LogitsOnDevice


class Constraint(Protocol):
    """Restricts which tokens may come next."""

    def allowed(self) -> np.ndarray | None:
        """Bool [vocab]: the tokens that may come next; None when every token may."""

    def accept(self, token: int) -> int:
        """Record the chosen token; returns it, or another one to use in its place."""

    def forced(self) -> Sequence[int]:
        """The tokens that come next whatever the logits are, as far as that is easily said; often none."""


class Sampler:
    """Draws tokens one after another; the same seed and the same logits give the same tokens."""

    def __init__(self, options: Sampling, seen: Iterable[int] = (), constraint: Constraint | None = None) -> None:
        """``seen``: the tokens in the context so far, for the penalties. ``constraint``: which tokens may come next."""
        self.options = options
        self.constraint = constraint
        self._random = np.random.default_rng(options.seed)
        self._seen = list(seen)

    @property
    def random_state(self) -> dict[str, Any]:
        """The random generator's state, in values JSON can hold. Setting it continues a generation of another process."""
        return dict(self._random.bit_generator.state)

    @random_state.setter
    def random_state(self, value: Mapping[str, Any]) -> None:
        try:
            self._random.bit_generator.state = dict(value)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise JambaError("the saved state of the random generator is damaged; regenerate the reply") from error

    def sample(self, logits: Logits) -> int:
        """The next token for ``logits``, float32 [vocab], which are not changed; records it for the penalties.

        On a GPU the logits stay there and the token is chosen there, unless a constraint or penalties decide too.
        """
        o = self.options
        allowed = self.constraint.allowed() if self.constraint is not None else None
        if allowed is None and not isinstance(logits, np.ndarray) and not o.has_penalties:
            token = logits.token(o, self._random.random)
        else:
            x = self._adjusted(logits if isinstance(logits, np.ndarray) else logits.numpy())
            if allowed is not None:
                x[~allowed[: len(x)]] = -np.inf
                if not np.isfinite(x.max()):  # biases of -inf forbid all of the allowed tokens
                    x = np.where(allowed[: len(x)], np.float32(0), np.float32(-np.inf))
            token = int(np.argmax(x)) if o.temperature == 0 else self._draw(x)
        if self.constraint is not None:
            token = self.constraint.accept(token)
        self._seen.append(token)
        return token

    def forced(self) -> Sequence[int]:
        """The tokens that the constraint forces next, as far as that is easily said; often none."""
        return self.constraint.forced() if self.constraint is not None else ()

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        o = self.options
        x = logits.astype(np.float32, copy=True)
        for token, bias in o.logit_bias.items():
            if 0 <= token < len(x):
                x[token] += bias
        if o.has_penalties:
            recent = self._seen if o.penalty_last_n < 0 else self._seen[len(self._seen) - o.penalty_last_n :]
            counts = Counter(t for t in (recent if o.penalty_last_n else []) if t < len(x))
            ids = np.fromiter(counts, dtype=np.int64, count=len(counts))
            if len(ids):
                times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
                values = x[ids]
                values = np.where(values > 0, values / o.repeat_penalty, values * o.repeat_penalty)
                x[ids] = values - o.presence_penalty - times * o.frequency_penalty
        return x

    def _draw(self, x: np.ndarray) -> int:
        o = self.options
        # In the order of ids: the same on any machine, and without sorting the whole vocabulary.
        ids = np.flatnonzero(x > -np.inf)
        if o.top_k:
            ids = _largest(x, ids, o.top_k)
        if o.typical_p < 1:
            p = _softmax(x[ids])
            surprise = -np.log(np.maximum(p, 1e-30))
            order = np.argsort(np.abs(surprise - np.sum(p * surprise)), kind="stable")
            ids = ids[np.sort(order[: _enough(p[order], o.typical_p)])]
        if o.top_p < 1:
            ids = _largest(x, ids, _enough(_softmax(-np.sort(-x[ids])), o.top_p))
        if o.min_p > 0:
            p = _softmax(x[ids])
            ids = ids[p >= o.min_p * p.max()]
        p = np.cumsum(_softmax(x[ids] / np.float32(o.temperature)))
        return int(ids[min(int(np.searchsorted(p, self._random.random() * p[-1], side="right")), len(ids) - 1)])


def _softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities in float64."""
    e = np.exp((x - x.max()).astype(np.float64))
    return e / e.sum()


def _largest(x: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` of ``ids`` with the largest ``x``, lower ids first among equals; ascending, as ``ids`` are."""
    if count >= len(ids):
        return ids
    values = x[ids]
    least = np.partition(values, len(ids) - count)[len(ids) - count]
    keep = values > least
    keep[np.flatnonzero(values == least)[: count - np.count_nonzero(keep)]] = True
    return ids[keep]


def _enough(p: np.ndarray, mass: float) -> int:
    """How many of ``p``, from the front, add up to ``mass``; at least one."""
    return min(int(np.searchsorted(np.cumsum(p), mass)) + 1, len(p))
