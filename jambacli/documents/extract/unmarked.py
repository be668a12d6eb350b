"""Text in UTF-16, UTF-32 or ISO 2022 without a mark that says so, and text with NUL bytes in it."""

from __future__ import annotations

import re
import unicodedata

_SAMPLE = 256 << 10
# Control characters that no text has, without NUL, which a crash leaves in logs, and ESC, which colours them.
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_ISO_2022 = re.compile(rb"\x1b\$[@AB]|\x1b\([IJ]|\x1b\$\([CDOPQ]|\x1b\$\)C")
# Blocks of the scripts that people write documents in; those with the same number stand beside each other in words. 0 is
# punctuation, signs and ASCII, which stand beside any.
_BLOCKS = (
    (0x20, 0x7E, 0), (0xA0, 0x17F, 1), (0x218, 0x21B, 1), (0x370, 0x3FF, 2), (0x400, 0x52F, 3), (0x530, 0x58F, 4),
    (0x590, 0x5FF, 5), (0x600, 0x6FF, 6), (0x900, 0xDFF, 7), (0xE00, 0xEFF, 8), (0x10A0, 0x10FF, 9), (0x1E00, 0x1EFF, 1),
    (0x1F00, 0x1FFF, 2), (0x2010, 0x2027, 0), (0x2030, 0x205E, 0), (0x20A0, 0x20BF, 0), (0x2100, 0x22FF, 0),
    (0x2460, 0x25FF, 0), (0x3000, 0x303F, 0), (0x3040, 0x30FF, 10), (0x3200, 0x33FF, 0), (0x4E00, 0x9FFF, 10),
    (0xAC00, 0xD7A3, 10), (0xFF00, 0xFFEF, 0), (0x1F300, 0x1FAFF, 0),
)  # fmt: skip


def iso_2022(data: bytes) -> tuple[str, str] | None:
    """Text that switches character sets by escape sequences, as Japanese and Korean mail does, and its encoding."""
    if not _ISO_2022.search(data[:_SAMPLE]) or not data.isascii():
        return None
    for encoding in ("iso2022_kr",) if b"\x1b$)C" in data[:_SAMPLE] else ("iso2022_jp_2", "iso2022_jp_ext"):
        try:
            return data.decode(encoding), encoding.replace("_", "-").replace("iso", "iso-")
        except UnicodeDecodeError:
            continue
    return None


def wide(data: bytes) -> tuple[str, str] | None:
    """Text in UTF-32 or UTF-16 without a byte order mark, and its encoding; None if it is neither."""
    sample = data[:_SAMPLE]
    for encoding, size in (("utf-32-le", 4), ("utf-32-be", 4)):
        if len(sample) >= size and _plausible(sample, encoding, size) >= 0.97:
            return _decoded(data, encoding, size), encoding
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    zeros, others = max(even, odd), min(even, odd)
    if not (zeros > 4 * others and 6 * zeros > len(sample)) and with_nuls(data) is not None:
        return None  # in a text of single bytes every two letters make a Chinese character
    likely = {encoding: _plausible(sample, encoding, 2) for encoding in ("utf-16-le", "utf-16-be")}
    encoding = max(likely, key=lambda each: likely[each])
    if likely[encoding] >= 0.97 and len(sample) >= 4:
        return _decoded(data, encoding, 2), encoding
    return None


def with_nuls(data: bytes) -> tuple[bytes, int] | None:
    """The data without its NULs and how many there were, if the rest is text; else None."""
    rest = data.replace(b"\x00", b"")
    if not rest.strip() or 1000 * len(_CONTROL.findall(rest)) > 2 * len(rest) or data[257:262] == b"ustar":
        return None
    text = rest.decode("utf-8", "replace")
    return (rest, len(data) - len(rest)) if 50 * text.count("\ufffd") <= len(text) else None


def _decoded(data: bytes, encoding: str, size: int) -> str:
    return data[: len(data) - len(data) % size].decode(encoding, "replace")


def _plausible(sample: bytes, encoding: str, size: int) -> float:
    """The part of the characters that are common ones and stand beside others of their script, were the sample in that
    encoding; a little more for ASCII, of which a text in the other byte order has none."""
    text = sample[: min(len(sample), 16384) // size * size].decode(encoding, "replace")
    text = text.replace("\x00", "")  # a crash can leave holes in these logs too
    if not text or len(set(text)) < min(8, len(text) / 4):  # a pattern of bytes, not a text
        return 0.0
    scripts = [_script(c) for c in text]
    before = [0, *scripts[:-1]]
    good = sum(s is not None and (not s or not b or s == b) for s, b in zip(scripts, before, strict=True))
    return (good + 0.01 * sum(c.isascii() for c in text)) / len(text)


def _script(char: str) -> int | None:
    code = ord(char)
    if code < 0x20:
        return 0 if char in "\t\n\r\f\x1b" else None
    if code > 0x17F and unicodedata.category(char) in ("Cn", "Co", "Cs"):
        return None
    return next((script for first, last, script in _BLOCKS if first <= code <= last), None)
