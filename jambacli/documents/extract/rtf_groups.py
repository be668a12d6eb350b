"""Groups of an RTF document: what becomes of their text, and what happens at their end."""

from __future__ import annotations

from collections.abc import Callable

from jambacli.documents.extract.rtf_state import KEPT, SHOWN, RtfFrame, State
from jambacli.documents.extract.rtf_text import RtfText
from jambacli.errors import BadFileError

# More groups within one another than any document has; each takes a few bytes of memory.
_MOST_DEPTH = 1_000_000
Action = Callable[[State], None]


class RtfGroups(RtfText):
    """The stack of groups. An action is called with the state that the group had at its end."""

    def __init__(self, name: str, alive: Callable[[], None]) -> None:
        super().__init__(name, alive)
        self._stack: list[tuple[State, Action | None]] = []

    def _open(self) -> None:
        if len(self._stack) >= _MOST_DEPTH:
            raise BadFileError(self._name, f"has more than {_MOST_DEPTH:,} groups within one another; it was not read")
        self._stack.append((self._state, None))

    def _close(self) -> None:
        outer, action = self._stack.pop()
        inner, self._state = self._state, outer
        if action is not None:
            action(inner)

    def _at_end(self, action: Action) -> None:
        """Call ``action`` when the group ends."""
        if not self._stack:
            return
        outer, before = self._stack[-1]

        def both(inner: State) -> None:
            action(inner)
            if before is not None:
                before(inner)

        self._stack[-1] = (outer, action if before is None else both)

    def _mode(self, mode: int) -> None:
        self._state = self._state._replace(mode=mode)

    def _keep(self, action: Callable[[str], None]) -> None:
        """Call ``action`` with the text of the group when it ends."""
        outer, self._kept = self._kept, []

        def end(inner: State) -> None:
            text, self._kept = "".join(self._kept), outer
            action(text)

        self._at_end(end)
        self._mode(KEPT)

    def _enter_frame(self, leave: Callable[[RtfFrame], None]) -> None:
        """Read the group as a stream of its own, and call ``leave`` with it when it ends."""
        self._frames.append(self._frame)
        self._frame = RtfFrame()
        hidden = self._state.hidden
        self._state = State(skip=self._state.skip, font=self._default_font, hidden=hidden)

        def end(inner: State) -> None:
            outer = self._state
            self._finish(inner)
            done, self._frame = self._frame, self._frames.pop()
            self._state = outer
            leave(done)

        self._at_end(end)

    def _finish(self, inner: State) -> None:
        """End what is open in the frame."""
        self._state = inner._replace(mode=SHOWN, deleted=False)
        if self._frame.words or self._frame.boxes:
            self.end_paragraph(always=False)
        self._close_rows(0)
