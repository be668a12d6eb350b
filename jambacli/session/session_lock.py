"""The name a session is saved under: locked for this process, checked against the model, changed by a branch."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING

from jambacli.errors import JambaError, UsageError
from jambacli.session import session_file as files

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel


class SessionLock:
    """A session's name, locked for this process until ``close``.

    Attributes: ``name`` (None: not named yet); ``read_only`` (nothing is written); ``found`` (the saved session that is
    resumed, None for a new one); ``reread`` (it was made with another model, so only its text is used); ``created`` (seconds
    since 1970); ``parent`` (the name it was branched from).
    """

    def __init__(
        self, model: LoadedModel, *, name: str | None, resume: str | None, read_only: bool, reread: bool = False
    ) -> None:
        """``resume``: the name of an existing session; ``name``: that of a new one.

        Raises JambaError for a session that does not exist, is open in another process or was made with another model
        (unless ``reread``), UsageError for a new name that is taken.
        """
        self.name = resume or name
        self.read_only = read_only
        self.found: files.SavedSession | None = None
        self.created = time.time()
        self.parent: str | None = None
        self.reread = False
        self._lock: IO[bytes] | None = None
        if self.name and not read_only:
            self._lock = files.acquire(self.name)
        try:
            if resume:
                self.found = files.read(resume)
                self.reread = reread and not made_with(self.found, model)
                if not self.reread:
                    check_model(self.found, model)
                self.created, self.parent = self.found.created, self.found.parent
            elif name and files.exists(name):
                raise UsageError(f"a session named {name!r} already exists; resume it, or choose another name")
        except BaseException:
            self.close()
            raise

    def kv_type(self, chosen: str | None) -> str:
        """The KV type of the saved session, else ``chosen``, else f16. Raises JambaError when the first two differ."""
        if self.found is None:
            return chosen or "f16"
        if self.reread:
            return chosen or self.found.kv_type
        if chosen is not None and chosen != self.found.kv_type:
            raise JambaError(
                f"session {self.found.name!r} stores its keys and values as {self.found.kv_type}, not {chosen}",
                remedy="leave out {kv_type}, or start another session",
            )
        return self.found.kv_type

    def precise(self, chosen: bool, *, asked: bool = True) -> bool:
        """The mode of the saved session, else ``chosen``. Raises JambaError for a session that is not precise if
        ``chosen`` and ``asked`` for."""
        if self.found is None or self.reread:
            return chosen
        if chosen and asked and not self.found.precise:
            raise JambaError(
                f"session {self.found.name!r} was made with int8 activations, not with precise ones",
                remedy="leave out {precise}, or start another session",
            )
        return self.found.precise

    def rename(self, name: str | None) -> None:
        """Continue under ``name``, as a branch of the session so far, whose file stays; None: under the current name, or a
        generated one. Raises JambaError when another process has the name open."""
        if name is None and self.name is None:
            name = files.generated_name()
        if name is None or name == self.name:
            return
        lock = files.acquire(name)
        self.close()
        self.parent, self.name, self._lock, self.read_only = self.name, name, lock, False

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None and self.name is not None:
            files.release(self.name, self._lock)
            self._lock = None


def made_with(found: files.SavedSession, model: LoadedModel) -> bool:
    """Whether the session was made with this model."""
    weights = model.weights
    return weights.are(found.fingerprint) or weights.were(found.fingerprint, found.model_path, found.updated)


def check_model(found: files.SavedSession, model: LoadedModel) -> None:
    """Raise JambaError when the session was made with another model, or another version of the file."""
    if made_with(found, model):
        return
    if found.model_path == str(model.path):
        raise JambaError(
            f"{model.path} has changed since session {found.name!r} was saved: restore the file it was made with, or "
            "start another session"
        )
    raise JambaError(
        f"session {found.name!r} was made with {found.model} ({found.model_path}), not with {model.name} "
        f"({model.path}): open it with that file, or start another session"
    )
