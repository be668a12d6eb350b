"""Chooses tokens where the logits are, on a card; knows nothing of models, text or of how logits were made.

What ``sampling.Sampler`` draws on the processor, step for step and given the same random number, without the logits' 256 KB
coming over: only the token does, and waiting for it is the one wait of a decode step. Everything here runs on any device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from jambacli.engine.sampling import Sampling


class CardLogits:
    """Logits float32 [vocab] that are still on a card; an array to whoever asks for one, and copied over only then."""

    def __init__(self, values: torch.Tensor, waited: Callable[[float], None] = lambda seconds: None) -> None:
        """``waited`` is told the seconds that anyone has waited for the card to have computed them."""
        self.values = values
        self._waited = waited
        self._here: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """Them here, float32 [vocab]."""
        if self._here is None:
            start = time.perf_counter()
            self._here = self.values.cpu().numpy()
            self._waited(time.perf_counter() - start)
        return self._here

    def token(self, options: Sampling, uniform: Callable[[], float]) -> int:
        """The token that ``options`` choose; ``uniform`` is asked for a random number in [0, 1) where one is needed."""
        start = time.perf_counter()
        token = int(choose(self.values, options, uniform))
        self._waited(time.perf_counter() - start)
        return token

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=True if copy is None else copy)

    def astype(self, dtype: Any, copy: bool = True) -> np.ndarray:
        """As an array's method."""
        return self.numpy().astype(dtype, copy=copy)


def chosen_there(options: Sampling) -> bool:
    """Whether ``choose`` does all that ``options`` ask: penalties need what has been said, which the card does not know."""
    return options.repeat_penalty == 1 and not options.presence_penalty and not options.frequency_penalty


def choose(x: torch.Tensor, o: Sampling, uniform: Callable[[], float]) -> torch.Tensor:
    """The token for logits x float32 [vocab] (left as they are), an int64 scalar on their device.

    The host waits for nothing. Up to rounding in the last bits of float64 it is the token that ``Sampler`` draws.
    """
    bias = {t: b for t, b in o.logit_bias.items() if 0 <= t < len(x)}
    if bias:
        ids = torch.tensor(list(bias), device=x.device)
        x = x.index_add(0, ids, torch.tensor(list(bias.values()), dtype=torch.float32, device=x.device))
    if o.temperature == 0:
        return x.argmax()
    if o.top_k or o.typical_p < 1 or o.top_p < 1:
        values, order = x.sort(descending=True, stable=True)  # the lower id first among equals
    else:
        values, order = x, None
    keep = values > -torch.inf
    if o.top_k:
        keep[o.top_k :] = False
    if o.typical_p < 1:
        keep = _typical(values, keep, o.typical_p)
    if o.top_p < 1:
        keep[1:] &= _softmax(values, keep).cumsum(0)[:-1] < o.top_p
    if o.min_p > 0:
        p = _softmax(values, keep)
        keep &= p >= o.min_p * p.max()
    # A tensor, not a number: a card multiplies by a number's reciprocal, which rounds differently.
    p = _softmax(values / torch.full((1,), o.temperature, device=x.device), keep)
    if order is not None:  # drawn in the order of their ids, as on the processor
        p = torch.zeros_like(p).scatter_(0, order, p)
    mass = p.cumsum(0)
    wanted = torch.minimum(uniform() * mass[-1], mass[-1].nextafter(torch.zeros_like(mass[-1])))
    return (mass <= wanted).sum()


def _softmax(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Probabilities in float64 of those kept, 0 of the others."""
    kept = values.where(keep, -torch.inf)
    e = (kept - kept.max()).double().exp()
    return e / e.sum()


def _typical(values: torch.Tensor, keep: torch.Tensor, mass: float) -> torch.Tensor:
    """Those of the kept whose surprise is nearest to the expected one, as many as it takes to reach ``mass``."""
    p = _softmax(values, keep)
    surprise = -p.clamp(min=1e-30).log()
    distance = (surprise - (p * surprise).sum()).abs().where(keep, torch.inf)
    order = distance.argsort(stable=True)
    enough = torch.ones_like(keep)
    enough[1:] = p[order].cumsum(0)[:-1] < mass
    return keep & torch.zeros_like(keep).scatter_(0, order, enough)
