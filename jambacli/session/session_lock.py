"""Where one session is kept: its name held, what was saved under it taken up and replaced; knows nothing of text or replies.

A record joins the two places on disk, the session's own file (``saved``) and the store of prefixes (``persist``), for one
model: a session saved with another one is refused here.
"""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Any

from jambacli import ui
from jambacli.cache.prefix_store import Prefix, PrefixStore
from jambacli.engine.prefix_cache import Persistence
from jambacli.errors import JambaError, UsageError
from jambacli.session import session_file as files

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.sequence import TokenSequence


class Record:
    """The name a session is kept under, locked for this process until ``close``.

    Attributes: ``name`` (None: it has none yet), ``read_only`` (nothing is written), ``found`` (what was saved under the
    name that was resumed, None where a session begins).
    """

    def __init__(self, model: Jamba, *, name: str | None, resume: str | None, read_only: bool) -> None:
        """``resume``: the name of a session that must be there; ``name``: one that must not be.

        Raises JambaError for one that is not there, is open in another process, or was made with another model;
        UsageError for a name that is taken.
        """
        self.name = resume or name
        self.read_only = read_only
        self.found: files.SavedSession | None = None
        self._model = model
        self._created = time.time()
        self._parent: str | None = None
        self._lock: IO[bytes] | None = None
        if self.name and not read_only:
            self._lock = files.acquire(self.name)
        try:
            if resume:
                self.found = files.read(resume)
                self._check_model(self.found)
                self._created, self._parent = self.found.created, self.found.parent
            elif name and files.exists(name):
                raise UsageError(f"there is a session {name!r} already; resume it, or choose another name")
        except BaseException:
            self.close()
            raise

    def kv_type(self, wanted: str | None) -> str:
        """The type of keys and values: what was found, else ``wanted``. JambaError where they are not the same."""
        if self.found is None:
            return wanted or "f16"
        if wanted is not None and wanted != self.found.kv_type:
            raise JambaError(
                f"session {self.found.name!r} keeps its keys and values as {self.found.kv_type}, not {wanted}: "
                f"leave out --kv-type, or start another session"
            )
        return self.found.kv_type

    def persistence(self, kv_type: str) -> Persistence | None:
        """The way to the store. Where there can be no store, a session without a name does without, and says so."""
        try:
            return Persistence(PrefixStore(), f"{self._model.fingerprint}-{kv_type}")
        except JambaError as error:
            if self.name:
                raise
            ui.warn(f"{error}; nothing of this will be kept")
            return None

    def restore(self, sequence: TokenSequence) -> None:
        """Bring an empty sequence to the longest prefix of what was found that is still stored."""
        assert self.found is not None and sequence.persistence is not None
        sequence.persistence.documents = list(self.found.documents)
        sequence.persistence.take_up(sequence, self.found.prefixes, self.found.tokens)

    def commit(self, sequence: TokenSequence, **standing: Any) -> None:
        """Store the sequence, then, under the name, the session that leads to it; returns before it is written.

        ``standing``: the fields of SavedSession that say where the session stands.
        """
        assert self.name is not None and sequence.persistence is not None
        saved = files.SavedSession(
            name=self.name,
            model=self._model.name,
            model_path=str(self._model.path),
            fingerprint=self._model.fingerprint,
            kv_type=sequence.state.kv_type,
            ctx=sequence.ctx,
            created=self._created,
            updated=time.time(),
            parent=self._parent,
            documents=list(sequence.persistence.documents),
            **standing,
        )

        def done(prefixes: list[Prefix]) -> None:
            saved.prefixes = prefixes
            files.write(saved)

        sequence.persistence.commit(sequence, done)

    def rename(self, name: str | None) -> None:
        """Go on under ``name``, a branch of the name so far, whose file stays; None: under one that is made up, if need
        be. JambaError when the name is in use by another process."""
        if name is None and self.name is None:
            name = files.generated_name()
        if name is None or name == self.name:
            return
        lock = files.acquire(name)
        self.close()
        self._parent, self.name, self._lock, self.read_only = self.name, name, lock, False

    def close(self) -> None:
        """Give the name free."""
        if self._lock is not None and self.name is not None:
            files.release(self.name, self._lock)
            self._lock = None

    def _check_model(self, found: files.SavedSession) -> None:
        model = self._model
        if found.fingerprint != model.fingerprint:
            if found.model_path == str(model.path):
                raise JambaError(
                    f"{model.path} has changed since session {found.name!r} was saved: put the file back that it was made "
                    "with, or start another session"
                )
            raise JambaError(
                f"session {found.name!r} was made with {found.model} ({found.model_path}), not with {model.name} "
                f"({model.path}): open it with that file, or start another session"
            )
