"""What the user chose for the recognition of scanned pages, as a request to the worker process; and what is stored of it."""

from __future__ import annotations

from pathlib import Path

from jambacli.cache.ocr_cache import OcrCache
from jambacli.documents.extract.sandbox import OcrRequest
from jambacli.documents.extract.tesseract import HOW_TO_INSTALL, tesseract
from jambacli.errors import JambaError, UsageError
from jambacli.files import jamba_home


def ocr_request(choice: str, *, store: bool = True) -> OcrRequest:
    """The request for "auto", "off" or languages such as "deu+eng".

    ``store``: keep the recognized pages under ``JAMBA_HOME/prefixes``. Raises UsageError for
    languages that are not installed, also where tesseract is not.
    """
    choice = choice.strip().lower() if choice.strip().lower() in ("auto", "off") else choice.strip()
    if choice == "off":
        return OcrRequest()
    if choice != "auto":
        found = tesseract()
        if found is None:
            raise UsageError(f"needs tesseract, which is not installed; {HOW_TO_INSTALL}", field="ocr", value=choice)
        found.variant(choice)
    root = _store() if store else None
    return OcrRequest(choice, str(root) if root is not None else None)


def stored_requests(*, forget: bool = False) -> list[OcrRequest]:
    """Requests that recognize nothing, but take what is stored, one for each way in which pages were recognized. ``forget``:
    what is taken is deleted."""
    root = _store()
    variants = OcrCache(root).variants() if root is not None else []
    return [OcrRequest("auto", str(root), variant, forget) for variant in variants]


def _store() -> Path | None:
    try:
        return jamba_home() / "prefixes"
    except JambaError:
        return None
