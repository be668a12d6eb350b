"""The turns of a conversation for another model: their text stays, their tokens do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from jambacli.session.conversation import Turn

_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?documents>")


def turns_for_another_model(turns: Iterable[Turn], same_template: bool) -> list[Turn]:
    """Turns without token ids. ``same_template``: whether documents stay where the template put them; else they come as
    plain text before their message, without the other template's markers."""
    return [_moved(turn, same_template) for turn in turns]


def _moved(turn: Turn, same_template: bool) -> Turn:
    turn = replace(turn, ids=None, thought_ids=None, extra=dict(turn.extra))
    if same_template or turn.pinned is None:
        return turn
    documents = _MARKER.sub("", turn.pinned[1]).strip()
    return replace(turn, pinned=None, plain=f"{turn.plain or ''}{documents}\n\n" if documents else turn.plain)
