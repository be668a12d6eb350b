"""Hostile documents of every kind that is read: made to exhaust, to crash, to reach outside; and damaged at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.support.hostile_packages import Make, packages, well_formed
from tests.support.hostile_streams import streams, well_formed_streams

_KINDS = {"png": "image", "tif": "image", "eml": "mail", "ipynb": "notebook", "srt": "subtitles", "csv": "text"}


@dataclass(frozen=True)
class Hostile:
    """``kind``: of the document; ``suffix``: of its name. ``make``: its bytes, given a folder that it tries to reach."""

    kind: str
    suffix: str
    make: Make


def hostile_documents() -> dict[str, Hostile]:
    """All of them, by what is wrong with them."""
    found = {name: Hostile(kind := name.partition(":")[0], kind, make) for name, make in packages().items()}
    for name, (suffix, make) in streams().items():
        found[name] = Hostile(name.partition(":")[0], suffix, make)
    for suffix in (*well_formed(), *well_formed_streams()):
        kind = _KINDS.get(suffix, suffix)
        for number in range(3):
            for what, damage in (("cut", cut), ("flipped", flipped)):
                found[f"{kind}: {suffix} {what} {number}"] = Hostile(
                    kind,
                    suffix,
                    lambda at, suffix=suffix, damage=damage, number=number: damage(suffix, number),  # type: ignore[misc]
                )
    return found


def good(suffix: str) -> bytes:
    """A file that is as it should be."""
    made = {**well_formed(), **well_formed_streams()}
    return made[suffix]


def cut(suffix: str, number: int) -> bytes:
    """A file that ends at a random place."""
    data = good(suffix)
    return data[: random.Random(f"{suffix} {number}").randrange(8, len(data))]


def flipped(suffix: str, number: int) -> bytes:
    """A file with bits flipped: one, some or many."""
    data = bytearray(good(suffix))
    chosen = random.Random(f"{number} {suffix}")
    for _ in range((1, 8, 60)[number % 3]):
        data[chosen.randrange(4, len(data))] ^= 1 << chosen.randrange(8)
    return bytes(data)
