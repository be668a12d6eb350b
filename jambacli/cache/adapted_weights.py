"""The identity of a model's weights with LoRA adapters: states of one set of adapters are never used with another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jambacli.cache.fingerprint import Weights


class AdaptedWeights:
    """``Weights`` with adapters that are applied beside them."""

    def __init__(self, base: Weights, key: str) -> None:
        """``key``: that of the adapters (``AdapterSet.key``), not empty."""
        self._base, self._key = base, key

    @property
    def name(self) -> str:
        """See ``Weights.name``."""
        return self._adapted(self._base.name)

    def in_use(self) -> bool:
        """See ``Weights.in_use``; adapters are in memory."""
        return self._base.in_use()

    def are(self, name: str) -> bool:
        """See ``Weights.are``. Only names that these weights are known under are found."""
        return any(self._adapted(known) == name for known in self._base.known_names())

    def were(self, name: str, path: str, when: float) -> bool:
        """See ``Weights.were``: earlier versions knew no adapters."""
        return False

    def known_names(self) -> list[str]:
        """See ``Weights.known_names``."""
        return [self._adapted(known) for known in self._base.known_names()]

    def full_hash(self) -> str | None:
        """See ``Weights.full_hash``."""
        found = self._base.full_hash()
        return None if found is None else self._adapted(found)

    def _adapted(self, name: str) -> str:
        return hashlib.sha256(f"{name}|{self._key}".encode()).hexdigest()[:40]
