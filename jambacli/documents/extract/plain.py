"""Decodes text in any common encoding, and recognizes files that are not text."""

from __future__ import annotations

import codecs
import re

from jambacli.documents.extract.unmarked import iso_2022, wide, with_nuls
from jambacli.errors import BadFileError, JambaError

# The first bytes of other kinds of files, and what to say about them.
_MAGIC: list[tuple[bytes, str]] = [
    (b"\x89PNG", "a PNG image; read its text with an OCR program first"),
    (b"\xff\xd8\xff", "a JPEG image; read its text with an OCR program first"),
    (b"GIF8", "a GIF image; read its text with an OCR program first"),
    (b"II*\x00", "a TIFF image; read its text with an OCR program first"),
    (b"MM\x00*", "a TIFF image; read its text with an OCR program first"),
    (b"GGUF", "a model, not a document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"SQLite format 3\x00", "a database; export it as .csv"),
    (b"%!PS", "a PostScript file; convert it with ps2pdf"),
]
_BOMS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_SAMPLE = 256 << 10
_WESTERN = frozenset(
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝŸŒ“”‘’‚„–—…€£¥¢«»‹›°§·•©®™¿¡ºª½¼¾±×÷²³¹µ¶†‡‰\xa0\xad"
)
# Encodings that documents without Unicode are found in; a longer list makes short texts ambiguous.
_LIKELY = [
    *(
        "cp1250",
        "cp1251",
        "cp1252",
        "cp1253",
        "cp1254",
        "cp1255",
        "cp1256",
        "cp1257",
        "cp1258",
        "cp874",
        "cp850",
        "cp866",
    ),
    *("koi8_r", "koi8_u", "iso8859_2", "iso8859_5", "iso8859_7", "mac_roman", "mac_cyrillic"),
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),
]
# What Windows-1252 makes of Polish, Czech and Hungarian text: signs within words, and an õ beside accents of other languages.
_NOT_WESTERN = re.compile("[a-zß-ÿ][¹²³¼½¾¿¡£¥¢¶§±¦¨¸¬¯×÷][a-zß-ÿ]")
_CONTROL_BYTES = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


class EmptyFileError(BadFileError):
    """A file without any text, such as an empty ``__init__.py``."""

    def __init__(self, name: object) -> None:
        super().__init__(name, "is empty")


def foreign(data: bytes) -> str | None:
    """The kind of a file that begins with ``data``, if it is a known format other than text; else None."""
    return next((what for magic, what in _MAGIC if data.startswith(magic)), None)


def decode(data: bytes, name: str) -> tuple[str, str | None]:
    """The text of ``data`` with ``\\n`` line ends, and a remark if its encoding had to be guessed, else None.

    Raises EmptyFileError, or BadFileError naming ``name`` when it is binary or its encoding cannot be determined.
    """
    if not data.strip():
        raise EmptyFileError(name)
    if (what := foreign(data)) is not None:
        raise BadFileError(name, f"is {what}")
    text, remark = _decoded(data, name)
    sample = text[:_SAMPLE]
    if len(_CONTROL.findall(sample)) > len(sample) // 20:
        raise BadFileError(name, "is binary, not text; convert it to text, .pdf or .docx first")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    if not text.strip():
        raise EmptyFileError(name)
    return text, remark


def _decoded(data: bytes, name: str) -> tuple[str, str | None]:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return data[len(bom) :].decode(encoding), None
            except UnicodeDecodeError:
                text = data[len(bom) :].decode(encoding, "replace")
                return text, f"it is marked as {encoding.upper()} but is damaged; invalid characters became U+FFFD"
    if (escaped := iso_2022(data)) is not None:
        return escaped[0], f"it is not UTF-8; read as {escaped[1]}"
    sample = data[:_SAMPLE]
    controls = len(_CONTROL_BYTES.findall(sample))
    if (b"\x00" in sample or 500 * controls > len(sample)) and (found := wide(data)) is not None:
        return found[0], f"it has no byte order mark; it was read as {found[1][:6].upper()}"
    if b"\x00" in data:
        if (without := with_nuls(data)) is None:
            raise BadFileError(name, "is binary, not text; convert it to text, .pdf or .docx first")
        text, remark = _single_bytes(without[0], name)
        dropped = f"{without[1]:,} NUL bytes (a truncated file?) left out"
        return text, f"{dropped}; {remark}" if remark else dropped
    return _single_bytes(data, name)


def _single_bytes(data: bytes, name: str) -> tuple[str, str | None]:
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        pass
    mixed = _mixed(data)
    return mixed if mixed is not None else _guessed(data, name)


def _mixed(data: bytes) -> tuple[str, str] | None:
    """Decode UTF-8 with some lines in another encoding (logs, mails, concatenated files); None if UTF-8 is the exception."""
    lines = data.split(b"\n")
    utf8, other = 0, 0
    out: list[str] = []
    for line in lines:
        try:
            text = line.decode("utf-8")
            utf8 += not text.isascii()
        except UnicodeDecodeError:
            text = line.decode("cp1252", "replace")
            other += 1
        out.append(text)
    if utf8 == 0 or other > utf8:
        return None
    noun = "line is" if other == 1 else "lines are"
    return "\n".join(out), f"{other:,} {noun} not UTF-8, unlike the rest; read as Windows-1252"


def _western(data: bytes) -> str | None:
    """The text as Windows-1252 if that makes it look like a Western European language: ASCII with some of the letters and
    signs of those languages; else None."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    high = re.findall(r"[^\x00-\x7f]", text)
    few = sum(c.isalpha() for c in high) <= len(re.findall(r"[a-zA-Z]", text))
    # In text of other scripts whole words would consist of such letters.
    return (
        text
        if few and not _eastern(text) and _WESTERN.issuperset(high) and not re.search(r"[^\W\d_\x00-\x7f]{4}", text)
        else None
    )


def _eastern(text: str) -> bool:
    """Whether a text read as Windows-1252 is more likely one of Eastern Europe, or Turkish."""
    hungarian = re.search("õ(?!e)", text) and re.search("[áéíóú]", text)
    return bool(_NOT_WESTERN.search(text) or hungarian or _turkish(text))


def _turkish(text: str) -> bool:
    """Whether a text read as Windows-1252 has letters of Icelandic without its accents: Turkish is written with those bytes."""
    return bool(re.search("[þðý]", text) and re.search("[çöü]", text) and not re.search("[áéíóúæ]", text))


def _guessed(data: bytes, name: str) -> tuple[str, str]:
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        if (text := _western(data)) is not None:
            return text, "it is not UTF-8; read as cp1252 (if that is wrong, convert it with iconv)"
        raise JambaError(
            f"{name} is not UTF-8; convert it (iconv -f ENCODING -t UTF-8), or install an encoding detector: "
            "pip install 'jambacli[docs]'"
        ) from error
    likely = list(from_bytes(data[:_SAMPLE], cp_isolation=_LIKELY))
    if re.search("[A-Za-z][¹²³][a-z]", data[:_SAMPLE].decode("cp850")):  # as "F³rst" of Fürst in Windows-1252
        likely = [m for m in likely if m.encoding != "cp850"]
    western_text = data[:_SAMPLE].decode("cp1252", "replace")
    if _turkish(western_text):
        likely = [m for m in likely if m.encoding == "cp1254"] or likely
    elif _eastern(western_text):
        likely = [m for m in likely if m.encoding not in ("cp1252", "cp850", "mac_roman")]
    best = likely[0] if likely else None
    # Of encodings that fit equally well, prefer the most common one of files without Unicode.
    western = next((m for m in likely if m.encoding == "cp1252"), None)
    if best is not None and western is not None and western.coherence >= best.coherence:
        best = western
    unsure = best is None or western is not None or not best.coherence
    if unsure and (text := _western(data)) is not None:
        return text, "it is not UTF-8; read as cp1252 (if that is wrong, convert it with iconv)"
    if best is None:
        raise BadFileError(name, "has an unknown encoding or is not text; convert it: iconv -f ENCODING -t UTF-8")
    text = data.decode(best.encoding, "replace")
    return text, f"it is not UTF-8; read as {best.encoding} (if that is wrong, convert it with iconv)"
