"""Turns a scored SentencePiece vocabulary into BPE merge rules; knows nothing of files, models or how text is split.

SentencePiece repeatedly joins the adjacent pair whose joined piece scores highest. A merge table in descending order of
that score makes a rank-based BPE do the same: every way of cutting a piece in two known pieces becomes a rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jambacli.errors import JambaError
from jambacli.files import atomic_write


def scored_merges(pieces: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> np.ndarray:
    """Merge rules of a scored vocabulary as int32 [n, 2] (ids of the left and right half), best first.

    Only ``mergeable`` pieces (normal ones and single-character user-defined ones) are halves or results.
    """
    ids = {piece: i for i, (piece, ok) in enumerate(zip(pieces, mergeable, strict=True)) if ok}
    # Stable: equal scores (runs of spaces share one) keep the vocabulary's order, shortest halves first.
    order = sorted((i for p, i in ids.items() if len(p) > 1), key=lambda i: -scores[i])
    find = ids.get
    rules: list[tuple[int, int]] = []
    for i in order:
        piece = pieces[i]
        for cut in range(1, len(piece)):
            left = find(piece[:cut])
            if left is not None and (right := find(piece[cut:])) is not None:
                rules.append((left, right))
    return np.array(rules, dtype=np.int32).reshape(-1, 2)


def cached_merges(
    pieces: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool], folder: Path | None
) -> np.ndarray:
    """``scored_merges``, kept in ``folder`` by the vocabulary's hash: searching takes half a second."""
    if folder is None:
        return scored_merges(pieces, scores, mergeable)
    digest = hashlib.sha256("\0".join(pieces).encode("utf-8", "surrogatepass"))
    digest.update(np.asarray(scores, dtype=np.float32).tobytes())
    digest.update(np.asarray(mergeable, dtype=np.uint8).tobytes())
    path = folder / f"merges-{digest.hexdigest()[:32]}.i32"
    try:
        rules = np.fromfile(path, dtype="<i4")
        if rules.size and rules.size % 2 == 0 and rules.min() >= 0 and rules.max() < len(pieces):
            return rules.reshape(-1, 2)
    except OSError:
        pass
    rules = scored_merges(pieces, scores, mergeable)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            file.write(rules.astype("<i4").tobytes())
    except (JambaError, OSError):
        pass  # a cache that cannot be written (read-only home, full disk) only costs time
    return rules
