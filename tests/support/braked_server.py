"""``jamba`` whose engine stands still while a file says so: a reply can be looked at in its middle, however fast the machine.

The file that JAMBA_TEST_BRAKE names holds the number of steps that the engine may take from now on; without it the engine runs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from jambacli.engine.batch import BatchEngine

BRAKE = "JAMBA_TEST_BRAKE"


def brake(path: Path) -> None:
    """Make every engine of this process obey the file."""
    step, taken = BatchEngine.step, {"content": "", "steps": 0}

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


if __name__ == "__main__":
    from jambacli.__main__ import main

    brake(Path(os.environ[BRAKE]))
    main()
