"""LoRA adapters of a model: what each adds to which weights, and the set of them that a state was computed with.

Adapters are read and applied by ``runtime.lora``. States of different sets differ, as those of different weights do.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.kernels.low_rank import LowRank

#: The largest absolute scale of an adapter.
MAX_SCALE = 1000.0


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: ``weights`` are its low-rank parts by the GGUF name of the weight they are added to.

    ``digest``: hexadecimal, of every value of the adapter.
    """

    name: str
    path: Path
    digest: str
    weights: Mapping[str, LowRank] = field(repr=False)


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """The adapters that were loaded, each with its scale; those with a scale of 0 are not applied."""

    parts: tuple[tuple[Adapter, float], ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """What states belong to: equal for sets that compute the same, empty where nothing is applied."""
        text = "|".join(f"{adapter.digest}*{scale!r}" for adapter, scale in self.parts if scale)
        return hashlib.sha256(text.encode()).hexdigest()[:32] if text else ""

    def low(self, name: str) -> tuple[LowRank, ...]:
        """What is added to the weight of this GGUF name."""
        from dataclasses import replace

        found = ((adapter.weights.get(name), scale) for adapter, scale in self.parts if scale)
        return tuple(replace(low, scale=low.scale * scale) for low, scale in found if low is not None)

    def scaled(self, scales: Sequence[float]) -> AdapterSet:
        """The same adapters with other scales, one for each. Raises UsageError for one that is out of range."""
        return AdapterSet(
            tuple((adapter, check_scale(scale)) for (adapter, _), scale in zip(self.parts, scales, strict=True))
        )


def check_scale(scale: float) -> float:
    """``scale``; UsageError when it is not finite or larger than MAX_SCALE."""
    if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
        raise UsageError(f"has a scale outside -{MAX_SCALE:g} to {MAX_SCALE:g}", field="lora", value=scale)
    return float(scale)


NO_ADAPTERS = AdapterSet()
