"""Converts a scored SentencePiece vocabulary to BPE merge rules.

SentencePiece repeatedly joins the adjacent pair whose joined piece has the highest score. A rank-based BPE does the same with
a merge table in descending order of that score, in which every split of a piece into two known pieces is a rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jambacli.errors import JambaError
from jambacli.files import atomic_write


def scored_merges(pieces: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> np.ndarray:
    """The merge rules of a scored vocabulary as int32 [n, 2] (ids of the left and right half), highest score first.

    Only ``mergeable`` pieces (normal ones and single-character user-defined ones) are halves or results.
    """
    ids = {piece: i for i, (piece, ok) in enumerate(zip(pieces, mergeable, strict=True)) if ok}
    # A stable sort: pieces with equal scores (as runs of spaces have) keep the vocabulary's order.
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
    """``scored_merges``, cached in ``folder`` under the vocabulary's hash: computing them takes half a second."""
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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)  # also one that an earlier version made
        with atomic_write(path, durable=False, private=True) as file:
            file.write(rules.astype("<i4").tobytes())
    except (JambaError, OSError):
        pass  # without a writable cache (read-only home, full disk) the rules are computed every time
    return rules
