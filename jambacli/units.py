"""Parses and formats sizes, counts and durations."""

from __future__ import annotations

import re

from jambacli.errors import UsageError

_SUFFIX = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, what: str = "size") -> int:
    """Parse a size as people write it: ``4096``, ``256k``, ``20G``, ``1.5GB``, ``8GiB``; suffixes are powers of 1024.

    Raises UsageError for anything else; ``what`` is what the error calls the size.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:[_,]\d{3})*(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not match:
        raise UsageError(f"{what} {text!r} is not a size; write it like 4096, 256k or 20G")
    return int(float(match[1].replace("_", "").replace(",", "")) * _SUFFIX[match[2]])


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str, what: str = "duration") -> float | None:
    """Parse a duration in seconds: ``300``, ``5m``, ``1h30m``; None for ``forever`` and negative ones.

    Raises UsageError for anything else; ``what`` is what the error calls the duration.
    """
    plain = text.strip().lower()
    if plain == "forever" or re.fullmatch(r"-\d{1,9}(?:\.\d{1,6})?(?:ms|[smhd])?", plain):
        return None
    part = r"(\d{1,9}(?:\.\d{1,6})?)(ms|[smhd]?)"
    if not re.fullmatch(rf"(?:{part}){{1,4}}", plain):
        raise UsageError(f"{what} {text[:40]!r} is not a duration; write it like 300, 5m, 1h30m or forever")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(part, plain))


def format_bytes(n: float) -> str:
    """Bytes in decimal units, three significant digits: ``31.2 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError


def counted(n: int, what: str) -> str:
    """A number with its noun, given in the singular: ``1 turn``, ``2,000 turns``."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def format_count(n: float) -> str:
    """A parameter count: ``51.6B``, ``930M``, ``65.5K``."""
    for unit in ("", "K", "M", "B", "T"):
        if abs(n) < 999.5 or unit == "T":
            return f"{n:.3g}{unit}"
        n /= 1000
    raise AssertionError


def format_seconds(s: float) -> str:
    """A duration: ``0.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if s < 10:
        return f"{s:.1f} s"
    if s < 90:
        return f"{s:.0f} s"
    if s < 5400:
        return f"{int(s) // 60} min {int(s) % 60:02d} s"
    return f"{int(s) // 3600} h {int(s) % 3600 // 60:02d} min"


def format_context(n: int) -> str:
    """A context length as commands accept it: ``256k`` for 262144, plain digits if it is not a multiple of 1024."""
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)
