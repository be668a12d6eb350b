"""``jamba`` whose engine stands still while a file says so: a reply can be looked at in its middle, however fast the machine.

The file that JAMBA_TEST_BRAKE names holds the number of steps that the engine may take from now on; without it the engine runs.
The one that JAMBA_TEST_DICTATED names holds what replies that must follow a schema are to say, as far as the schema allows it:
the demo model has learnt no JSON.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from jambacli.engine.batch import BatchEngine

BRAKE, DICTATED = "JAMBA_TEST_BRAKE", "JAMBA_TEST_DICTATED"


def brake(path: Path) -> None:
    """Make every engine of this process obey the file."""
    step = BatchEngine.step
    taken: dict[str, Any] = {"content": "", "steps": 0}

    def allowed() -> bool:
        try:
            content = path.read_text()
        except OSError:
            return True
        if content != taken["content"]:
            taken.update(content=content, steps=0)
        return bool(content) and int(taken["steps"]) < int(content.split()[0])

    def braked(self: BatchEngine) -> bool:
        while not allowed():
            time.sleep(0.005)
        taken["steps"] = int(taken["steps"]) + 1
        return step(self)

    BatchEngine.step = braked  # type: ignore[method-assign]


def dictate(path: Path) -> None:
    """Make the likeliest tokens of every reply with a schema those of the file's text."""
    submit = BatchEngine.submit

    def submitted(self: BatchEngine, request: Any, **callbacks: Any) -> Any:
        if not request.constrained or not path.exists():
            return submit(self, request, **callbacks)
        said = iter(self.model.tokenizer.encode(path.read_text(encoding="utf-8")))
        with self._arrived:  # the engine does not begin before its sampler is told
            job = submit(self, request, **callbacks)
            adjusted = job.sampler._adjusted

            def likely(logits: Any) -> Any:
                x = adjusted(logits)
                if (token := next(said, None)) is not None:
                    x[token] = x.max() + 1000
                return x

            job.sampler._adjusted = likely  # type: ignore[method-assign]
        return job

    BatchEngine.submit = submitted  # type: ignore[method-assign]


if __name__ == "__main__":
    from jambacli.__main__ import main

    brake(Path(os.environ[BRAKE]))
    dictate(Path(os.environ[DICTATED]))
    main()
