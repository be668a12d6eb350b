"""Chooses the next token from logits; knows nothing of models, text or where logits come from.

The order of the steps is llama.cpp's (bias, penalties, top-k, typical, top-p, min-p, temperature), so that settings
carried over from there mean the same. Greedy is temperature 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from jambacli.errors import JambaError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Probabilities in [0, 1]; a field at its neutral value switches its step off.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``typical_p`` 1, ``repeat_penalty`` 1,
    ``presence_penalty`` 0 and ``frequency_penalty`` 0 are neutral; penalties look at the last ``penalty_last_n`` tokens
    (-1: all). ``logit_bias`` adds to single tokens' logits. ``seed`` None draws a fresh one.
    ``schema``, a JSON schema, allows only text that is a JSON document of it (see ``engine.schema``); with ``cite`` N a
    list of those of N documents that it is based on follows it, as Jamba's citations.
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
    schema: Mapping[str, Any] | None = None
    cite: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError naming the option and its range."""
        checks = [
            ("--temp", self.temperature, 0, 100),
            ("--top-k", self.top_k, 0, 1 << 31),
            ("--top-p", self.top_p, 0, 1),
            ("--min-p", self.min_p, 0, 1),
            ("--typical-p", self.typical_p, 0, 1),
            ("--repeat-penalty", self.repeat_penalty, 1e-3, 100),
            ("--presence-penalty", self.presence_penalty, -100, 100),
            ("--frequency-penalty", self.frequency_penalty, -100, 100),
            ("--penalty-last-n", self.penalty_last_n, -1, 1 << 31),
        ]
        for name, value, low, high in checks:
            if not low <= value <= high:  # also refuses NaN
                raise UsageError(f"{name} {value} is outside {low:g} to {high:g}")
        for token, bias in self.logit_bias.items():
            if (
                not bias <= 1e9
            ):  # also refuses NaN; minus infinity forbids a token, plus infinity leaves no probabilities
                raise UsageError(f"--logit-bias {token}={bias} is not a number up to 1e9 or -inf")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise UsageError(f"--seed {self.seed} is outside 0 to {(1 << 64) - 1}")

    def with_given(self, **given: Any) -> Sampling:
        """A copy in which every argument that is not None replaces the field of its name."""
        return replace(self, **{k: v for k, v in given.items() if v is not None})

    def check_vocabulary(self, n_vocab: int) -> None:
        """UsageError for a bias on a token that a model of ``n_vocab`` tokens does not have."""
        for token in self.logit_bias:
            if not 0 <= token < n_vocab:
                raise UsageError(f"--logit-bias {token}: the model's tokens are 0 to {n_vocab - 1}")


# general.sampling.* keys of a GGUF, and the field each one sets.
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
    """The sampling a model's own file asks for (``general.sampling.*``), over this program's defaults.

    A value outside its range is ignored: it is a hint in a file, not something the user said.
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


class Constraint(Protocol):
    """Says which tokens may come next."""

    def allowed(self) -> np.ndarray | None:
        """Bool [vocab], or None where any token may come."""

    def accept(self, token: int) -> int:
        """Take note of the token that was chosen; returns it, or the one to take instead."""


class Sampler:
    """Draws tokens one after another; the same seed and logits give the same tokens."""

    def __init__(self, options: Sampling, seen: Iterable[int] = (), constraint: Constraint | None = None) -> None:
        """``seen``: the tokens already in the context, which penalties look back on. ``constraint``: which may come."""
        self.options = options
        self.constraint = constraint
        self._random = np.random.default_rng(options.seed)
        self._seen = list(seen)

    @property
    def random_state(self) -> dict[str, Any]:
        """The random generator's state, as JSON can hold it; set it to go on with a generation in another process."""
        return dict(self._random.bit_generator.state)

    @random_state.setter
    def random_state(self, value: Mapping[str, Any]) -> None:
        try:
            self._random.bit_generator.state = dict(value)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise JambaError("the saved state of the random generator is damaged; start the reply anew") from error

    def sample(self, logits: np.ndarray) -> int:
        """The next token for ``logits``, float32 [vocab], which are not changed; remembers it for the penalties.

        Logits that are on a card (``card_sampling.CardLogits``) stay there where nothing but the options decides.
        """
        o = self.options
        allowed = self.constraint.allowed() if self.constraint is not None else None
        if allowed is None and self._stays_there(logits):
            token = logits.token(o, self._random.random)  # type: ignore[attr-defined]
        else:
            x = self._adjusted(logits)
            if allowed is not None:
                x[~allowed[: len(x)]] = -np.inf
                if not np.isfinite(x.max()):  # a bias of -inf, say, against all that may come
                    x = np.where(allowed[: len(x)], np.float32(0), np.float32(-np.inf))
            token = int(np.argmax(x)) if o.temperature == 0 else self._draw(x)
        if self.constraint is not None:
            token = self.constraint.accept(token)
        self._seen.append(token)
        return token

    def _stays_there(self, logits: np.ndarray) -> bool:
        if isinstance(logits, np.ndarray):
            return False
        from jambacli.engine.gpu_sampling import chosen_there

        return chosen_there(self.options)

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        o = self.options
        x = logits.astype(np.float32, copy=True)
        for token, bias in o.logit_bias.items():
            if 0 <= token < len(x):
                x[token] += bias
        if o.repeat_penalty != 1 or o.presence_penalty or o.frequency_penalty:
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
        # Kept in the order of their ids: one order for the same logits on any machine, and no sort of a whole vocabulary.
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
    """The ``count`` of ``ids`` (ascending) with the largest ``x``, the lower id first among equals; ascending."""
    if count >= len(ids):
        return ids
    values = x[ids]
    least = np.partition(values, len(ids) - count)[len(ids) - count]
    keep = values > least
    keep[np.flatnonzero(values == least)[: count - np.count_nonzero(keep)]] = True
    return ids[keep]


def _enough(p: np.ndarray, mass: float) -> int:
    """How many of ``p``, from the front, it takes to reach ``mass``; at least one."""
    return min(int(np.searchsorted(np.cumsum(p), mass)) + 1, len(p))


def parse_logit_bias(texts: Sequence[str]) -> dict[int, float]:
    """``ID=BIAS`` options (``518=-inf`` forbids a token) as a mapping; UsageError on anything else."""
    bias: dict[int, float] = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias {text!r} is not TOKEN=BIAS, such as 518=-inf or 42=1.5") from None
        if bias[int(token)] != bias[int(token)]:
            raise UsageError(f"--logit-bias {text!r}: NaN is no bias")
    return bias
