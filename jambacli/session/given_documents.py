"""Documents as a caller of the Python API gives them -> as chat templates take them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from jambacli.errors import UsageError

_KEYS = ("text", "content", "title", "metadata")


def given_documents(documents: Sequence[Mapping[str, Any]] | None) -> list[dict[str, str]] | None:
    """Mappings with the "text", or as AI21's API calls it the "content", and optionally a "title" and "metadata", a mapping of
    more that the model is to read -> mappings with "title", the metadata and "text". None: no documents.

    Raises UsageError, with the number of the document, for one without a text, with an unknown key, or with a value that is
    no text.
    """
    return None if documents is None else [_given(document, f"documents[{i}]") for i, document in enumerate(documents)]


def _given(document: Mapping[str, Any], name: str) -> dict[str, str]:
    if not isinstance(document, Mapping):
        raise UsageError(f"{name} is {type(document).__name__}, not a mapping with a 'text'")
    for key in document:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "what the model is to read of it goes into 'metadata'"
            raise UsageError(f"{name} has the unknown key {key!r}; {hint}")
    texts = [document[key] for key in ("text", "content") if key in document]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise UsageError(f"{name} needs one text, as 'text' or 'content'")
    title, metadata = document.get("title"), document.get("metadata") or {}
    if title is not None and not isinstance(title, str):
        raise UsageError(f"the title of {name} is not a text")
    if not isinstance(metadata, Mapping) or any(
        not isinstance(key, str) or key in _KEYS or not isinstance(value, str | int | float)
        for key, value in metadata.items()
    ):
        raise UsageError(
            f"the metadata of {name} is not a mapping of names, other than its own keys, to texts or numbers"
        )
    head = {} if title is None else {"title": title}
    return {**head, **{key: str(value) for key, value in metadata.items()}, "text": texts[0]}
