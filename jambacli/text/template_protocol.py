"""What the process that renders chat templates and its parent agree on: requests, answers and limits.

A request is its length, 8 bytes, the number of its bytes that are a user's, 8 bytes, and a marshalled tuple:

- ("compile", key, source, kept): keep the template ``source`` under ``key``; ``tojson`` never escapes the characters ``kept``,
- ("render", key, values): render it to at most ``characters_for`` characters.

An answer is the letter of its kind, the length of its text, 8 bytes, and the text in UTF-8. Values come from the parent alone,
so marshal is safe; what a template produces goes back as text.
"""

from __future__ import annotations

import enum

#: Bytes of a length.
LENGTH = 8
#: Address space of the process, and how much of it a user's byte adds: a conversation of megabytes is honest.
MEMORY, MEMORY_PER_BYTE = 256 << 20, 16
#: Seconds for a request, and the user's bytes that add one more.
SECONDS, BYTES_PER_SECOND = 2, 1 << 18
#: Characters of a rendering, and how many a user's byte adds.
CHARACTERS, CHARACTERS_PER_BYTE = 1 << 18, 8
#: The exit code of a process that ran out of memory outside of a template.
MEMORY_CODE = 3


class Kind(enum.Enum):
    """What an answer is.

    TEXT: a rendering, or nothing for a compiled template; REFUSED: what the template's ``raise_exception`` says; FAILED and
    LIMIT: why there is no rendering; MEMORY: it takes too much; UNKNOWN: there is no template of that key. READY comes first.
    """

    READY = b"R"
    TEXT = b"T"
    REFUSED = b"U"
    FAILED = b"F"
    LIMIT = b"L"
    MEMORY = b"M"
    UNKNOWN = b"?"


Answer = tuple[Kind, str]


def seconds_for(size: int) -> int:
    """Seconds that a request with ``size`` bytes of a user may take: of processor time in the process, of any time
    for its parent."""
    return SECONDS + size // BYTES_PER_SECOND


def memory_for(size: int) -> int:
    """Bytes of address space that the process may have for a request with ``size`` bytes of a user."""
    return MEMORY + MEMORY_PER_BYTE * size


def characters_for(size: int) -> int:
    """Characters that the answer to a request with ``size`` bytes of a user may have."""
    return CHARACTERS + CHARACTERS_PER_BYTE * size
