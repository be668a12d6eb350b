"""Whether what a reply cites says what the reply says: its words, looked up in the documents. Knows no prompts or models.

A citation is the model's claim. Names and numbers of an answer that stand in none of the documents it names, but together in
one other, are evidence against it. Words weigh by how few documents have them: what all have says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jambacli.documents.reader import Entry

# Of the best document's evidence, what a cited one needs to stand; of all the evidence, what the best one needs to be named;
# how near the next may come; how many words must stand together, since one may stand anywhere.
_STANDS, _DECIDES, _SECOND, _TOGETHER = 0.5, 0.6, 0.8, 2


@dataclass(frozen=True)
class Grounded:
    """``ids``: the documents to name. ``moved``: the answer's words led there, away from those the model named.

    ``bare``: what the model named has no telling word of the answer in it, and no other document is sure to be meant.
    """

    ids: tuple[int, ...]
    moved: bool = False
    bare: bool = False


def ground(answer: str, cited: Sequence[int], entries: Sequence[Entry]) -> Grounded:
    """Check the documents ``cited`` for ``answer``; they stay unless one other document, alone, has what it says."""
    asked = _words(answer)
    if not cited or not asked or len(entries) < 2:
        return Grounded(tuple(cited))
    having = [asked & _words(e.text) for e in entries]
    counts = {w: sum(w in h for h in having) for w in asked}
    weights = {w: math.log(len(entries) / n) for w, n in counts.items() if n}
    scores = [sum(weights[w] for w in h) for h in having]
    total, best = sum(weights.values()), max(scores)
    if not total or max(scores[i] for i in cited) >= _STANDS * best:
        return Grounded(tuple(cited))
    first = scores.index(best)
    second = max(s for i, s in enumerate(scores) if i != first)
    together = sum(weights[w] > 0 for w in having[first])
    if together >= _TOGETHER and best >= _DECIDES * total and second <= _SECOND * best:
        return Grounded((first,), moved=True)
    return Grounded(tuple(cited), bare=not any(scores[i] for i in cited))


def _words(text: str) -> set[str]:
    """Words of three letters or more, and every number."""
    return {w for w in re.findall(r"\w+", text.casefold()) if len(w) > 2 or w.isdigit()}
