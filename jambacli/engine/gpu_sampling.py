"""Choose tokens on the GPU, where the logits are.

The same steps as ``sampling.Sampler`` on the CPU: given the same random number they choose the same token. The 256 KB of
logits stay on the GPU, only the token is copied, and a decode step waits only for that copy. Runs on any torch device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from jambacli.engine.sampling import Sampling


class DeviceLogits:
    """Logits float32 [vocab] on a GPU; usable as a numpy array, which copies them to the CPU on first use."""

    def __init__(self, values: torch.Tensor, waited: Callable[[float], None] = lambda seconds: None) -> None:
        """``waited`` is called with the seconds of every wait for the GPU."""
        self.values = values
        self._waited = waited
        self._copy: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """The logits as a CPU array, float32 [vocab]."""
        if self._copy is None:
            start = time.perf_counter()
            self._copy = self.values.cpu().numpy()
            self._waited(time.perf_counter() - start)
        return self._copy

    def token(self, options: Sampling, uniform: Callable[[], float]) -> int:
        """The token that ``options`` without penalties choose; ``uniform`` draws from [0, 1), if a draw is needed."""
        start = time.perf_counter()
        token = int(choose(self.values, options, uniform))
        self._waited(time.perf_counter() - start)
        return token

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=True if copy is None else copy)


def choose(x: torch.Tensor, o: Sampling, uniform: Callable[[], float]) -> torch.Tensor:
    """The token for logits x float32 [vocab] (not changed) as an int64 scalar on their device, without a host synchronization.

    It is the token that ``Sampler`` draws, up to rounding in the last bits of float64. Penalties are left out: they need
    the tokens of the context, which are not on the GPU.
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
    # Divide by a tensor: for a Python number, a GPU multiplies by the reciprocal, which rounds differently.
    p = _softmax(values / torch.full((1,), o.temperature, device=x.device), keep)
    if order is not None:  # draw in the order of ids, as on the CPU
        p = torch.zeros_like(p).scatter_(0, order, p)
    mass = p.cumsum(0)
    drawn = torch.minimum(uniform() * mass[-1], mass[-1].nextafter(torch.zeros_like(mass[-1])))
    return (mass <= drawn).sum()


def _softmax(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Probabilities in float64 of the kept tokens; 0 for the others."""
    kept = values.where(keep, -torch.inf)
    e = (kept - kept.max()).double().exp()
    return e / e.sum()


def _typical(values: torch.Tensor, keep: torch.Tensor, mass: float) -> torch.Tensor:
    """The kept tokens whose surprise is nearest to its expected value, up to a probability of ``mass``."""
    p = _softmax(values, keep)
    surprise = -p.clamp(min=1e-30).log()
    distance = (surprise - (p * surprise).sum()).abs().where(keep, torch.inf)
    order = distance.argsort(stable=True)
    enough = torch.ones_like(keep)
    enough[1:] = p[order].cumsum(0)[:-1] < mass
    return keep & torch.zeros_like(keep).scatter_(0, order, enough)
