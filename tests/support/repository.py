"""Where the checkout is, and the folder of third-party data beside it."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
#: The real Jamba tokenizer and templates; not part of the repository and perhaps absent.
SHARED_DATA = REPO.parent / "shared" / "data"
