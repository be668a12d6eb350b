"""Check a reply's citations: look up its words in the documents that it cites.

A citation is a claim by the model. If names and numbers of the answer occur in none of the cited documents, but together in one
other, that is evidence against it. Words count more the fewer documents contain them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jambacli.documents.pages import DocumentEntry

# A citation is accepted with this share of the best document's score. The best document is cited instead with _DECIDES of the
# total score, if the second best has at most _SECOND of its score, and _TOGETHER words count for it: one may occur anywhere.
_HOLDS, _DECIDES, _SECOND, _TOGETHER = 0.5, 0.6, 0.8, 2


@dataclass(frozen=True)
class CheckedCitations:
    """Checked citations.

    ``ids``: the documents to cite. ``replaced``: they are the documents in which the answer's words occur, not those that
    the model cited. ``unsupported``: the cited documents contain no distinctive word of the answer, and no other document
    clearly does.
    """

    ids: tuple[int, ...]
    replaced: bool = False
    unsupported: bool = False


def check_citations(answer: str, cited: Sequence[int], entries: Sequence[DocumentEntry]) -> CheckedCitations:
    """Check the documents ``cited`` for ``answer``; they stay unless its words occur clearly in one other document."""
    words = _words(answer)
    if not cited or not words or len(entries) < 2:
        return CheckedCitations(tuple(cited))
    having = [words & _words(e.text) for e in entries]
    counts = {w: sum(w in h for h in having) for w in words}
    weights = {w: math.log(len(entries) / n) for w, n in counts.items() if n}
    scores = [sum(weights[w] for w in h) for h in having]
    total, best = sum(weights.values()), max(scores)
    if not total or max(scores[i] for i in cited) >= _HOLDS * best:
        return CheckedCitations(tuple(cited))
    first = scores.index(best)
    second = max(s for i, s in enumerate(scores) if i != first)
    together = sum(weights[w] > 0 for w in having[first])
    if together >= _TOGETHER and best >= _DECIDES * total and second <= _SECOND * best:
        return CheckedCitations((first,), replaced=True)
    return CheckedCitations(tuple(cited), unsupported=not any(scores[i] for i in cited))


def _words(text: str) -> set[str]:
    """The words of three letters or more, and all numbers."""
    return {w for w in re.findall(r"\w+", text.casefold()) if len(w) > 2 or w.isdigit()}
