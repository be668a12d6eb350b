"""The folder beside an output in which refined tensors lie until the output is written, so that a run can go on after a stop.

.OUT.gguf.refine/lock     held by the process that works on it
.OUT.gguf.refine/about    what the tensors belong to: another run's are removed
.OUT.gguf.refine/NAME     the blocks of a tensor
.OUT.gguf.refine/hidden   the residual stream of the calibration tokens, float32, and before which layer
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from jambacli.errors import JambaError
from jambacli.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    import torch

_HIDDEN = "hidden"


class Parts:
    """The refined tensors of one output. Leaving the context keeps the folder; ``remove`` deletes it."""

    def __init__(self, output: Path, digest: str) -> None:
        self.folder = output.with_name(f".{output.name}.refine")
        self._digest = digest
        self._lock = -1

    def __enter__(self) -> Parts:
        """Raises JambaError where another process works on the same output, or where the folder cannot be made."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise JambaError(f"cannot write {self.folder}: {error.strerror or error}") from error
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise JambaError(f"another process refines the same output ({self.folder})") from None
        about = self.folder / "about"
        if not about.is_file() or about.read_text(encoding="utf-8") != self._digest:
            for path in self.folder.iterdir():
                if path.name != "lock" and path.is_file():
                    path.unlink()
            with atomic_write(about) as file:
                file.write(self._digest.encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def remove(self) -> None:
        """Delete the folder: the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a tensor's blocks lie."""
        return self.folder / f"{name}.blocks"

    def write(self, name: str, blocks: torch.Tensor) -> None:
        """Keep a tensor's ``blocks``, uint8. Raises JambaError where they cannot be written."""
        with atomic_write(self.path(name), durable=False) as file:
            file.write(blocks.reshape(-1).numpy().data)

    def read(self, name: str, nbytes: int) -> np.ndarray | None:
        """A tensor's blocks, mapped, uint8 [``nbytes``]; None where it has not been refined."""
        import numpy as np

        path = self.path(name)
        if not path.is_file() or path.stat().st_size != nbytes:
            return None
        return np.memmap(path, np.uint8, "r")

    def write_hidden(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep the residual stream before ``layer``, float32 [tokens, hidden]."""
        with atomic_write(self.folder / _HIDDEN, durable=False) as file:
            file.write(json.dumps([layer, *hidden.shape]).encode().ljust(256))
            file.write(hidden.reshape(-1).numpy().data)

    def read_hidden(self) -> tuple[int, torch.Tensor] | None:
        """The layer and the residual stream before it, or None."""
        import torch

        path = self.folder / _HIDDEN
        if not path.is_file():
            return None
        data = bytearray(path.read_bytes())
        layer, tokens, width = json.loads(bytes(data[:256]))
        values = torch.frombuffer(data, dtype=torch.float32, offset=256)
        return (layer, values.view(tokens, width)) if values.numel() == tokens * width else None
