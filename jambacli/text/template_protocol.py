"""What the process that renders chat templates and its parent agree on: requests, answers and limits.

A request is its length, 8 bytes, and a marshalled tuple:

- ("compile", key, source, kept): keep the template ``source`` under ``key``; ``tojson`` never escapes the characters ``kept``,
- ("render", key, values): render it to at most ``characters_for`` characters.

An answer is the letter of its kind, the length of its text, 8 bytes, and the text in UTF-8. Values come from the parent alone,
so marshal is safe; what a template produces goes back as text.
"""

from __future__ import annotations

import enum

#: Bytes of a length.
LENGTH = 8
#: Address space of the process, and how much of it a byte of a request may add: a conversation of megabytes is honest.
MEMORY, MEMORY_PER_BYTE = 256 << 20, 16
#: Seconds for a request, and the bytes of a request that add one more.
SECONDS, BYTES_PER_SECOND = 3, 2 << 20
#: Characters of a rendering, and how many a byte of the request may add.
CHARACTERS, CHARACTERS_PER_BYTE = 4 << 20, 8
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
    """Seconds that a request of ``size`` bytes may take: of processor time in the process, and of any time for its parent."""
    return SECONDS + size // BYTES_PER_SECOND


def memory_for(size: int) -> int:
    """Bytes of address space that the process may have for a request of ``size`` bytes."""
    return MEMORY + MEMORY_PER_BYTE * size


def characters_for(size: int) -> int:
    """Characters that the rendering of a request of ``size`` bytes may have."""
    return CHARACTERS + CHARACTERS_PER_BYTE * size
