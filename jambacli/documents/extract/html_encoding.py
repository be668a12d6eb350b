"""The encoding of a web page, in the order of the HTML standard: byte order mark, the page's own declaration, a guess.

Labels mean what the Encoding Standard (WHATWG) says: iso-8859-1 is windows-1252, gb2312 is gbk, shift_jis is cp932.
"""

from __future__ import annotations

import codecs
import re

from jambacli.documents.extract.plain import decode
from jambacli.errors import BadFileError

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
#: Python's codec and the labels of the standard that mean it.
_CODECS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf-16 utf-16le utf-16be ucs-2 "
    "unicode csunicode iso-10646-ucs-2 unicodefeff unicodefffe",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859_2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859_3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859_4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859_5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859_6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
    "iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859_7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso8859_8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
    "iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859_10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859_13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859_14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859_15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859_16": "iso-8859-16",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
    "iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 x-user-defined",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp_2": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
    # The standard refuses these two, for the safety of browsers; as documents they are harmless.
    "hz": "hz-gb-2312",
    "iso2022_kr": "csiso2022kr iso-2022-kr",
}
_LABELS = {label: codec for codec, labels in _CODECS.items() for label in labels.split()}
#: Browsers look for a declaration here first, and take a later one when they come to it.
_FIRST, _LATER = 1024, 64 << 10
_MARKUP = re.compile(
    rb"<!--.*?(?:-->|\Z)|<(script|style)[\s/>].*?(?:</\1|\Z)|<meta[\s/]+(?P<meta>(?:[^>\"']|\"[^\"]*\"|'[^']*')*)"
    rb"|</?[a-z][^\s/>]*(?:[^>\"']|\"[^\"]*\"|'[^']*')*|<[!/?][^>]*",
    re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTE = re.compile(rb"([^\s/>=]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+)))?")
_CHARSET = re.compile(rb"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"']+))", re.IGNORECASE)
_XML = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([^\"'>]*)[\"']")


def page_text(data: bytes, name: str) -> tuple[str, str | None]:
    """The source of a page with ``\\n`` line ends, and a remark if its encoding had to be guessed, else None.

    Raises BadFileError naming ``name`` when the page is empty or binary.
    """
    found = _marked(data) or _declared(data)
    if found is None:
        return decode(data, name)
    text, remark = found
    if not text.strip():
        raise BadFileError(name, "contains no text")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""), remark


def _marked(data: bytes) -> tuple[str, str | None] | None:
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return _with(data[len(mark) :], codec)
    for start, codec in ((b"<\x00?\x00x\x00", "utf-16-le"), (b"\x00<\x00?\x00x", "utf-16-be")):
        if data.startswith(start):
            return _with(data, codec)
    return None


def _with(data: bytes, codec: str) -> tuple[str, str | None]:
    try:
        return data.decode(codec), None
    except UnicodeDecodeError:
        text = data.decode(codec, "replace")
        count = f"{text.count(chr(0xFFFD)):,}"
        return text, f"it is marked as {codec.upper()}, which {count} of its characters are not; they became U+FFFD"


def _declared(data: bytes) -> tuple[str, str | None] | None:
    """The text in the declared encoding; None if there is none, it is unknown, or the page is not the UTF-8 it claims to be."""
    label = _label(data[:_FIRST]) or _label(data[:_LATER])
    codec = _LABELS.get(label.decode("ascii", "replace").strip().lower()) if label else None
    if codec is None:
        return None
    if codec == "utf-8":
        try:
            return data.decode("utf-8"), None
        except UnicodeDecodeError:
            return None  # the guess reads pages of mixed encodings, and says so
    return _with(data, codec)


def _label(head: bytes) -> bytes | None:
    """The label that a meta element declares, else the one of an XML declaration."""
    for markup in _MARKUP.finditer(head):
        if markup["meta"] is not None and (label := _meta_label(markup["meta"])):
            return label
    xml = _XML.match(head)
    return xml[1] if xml else None


def _meta_label(attributes: bytes) -> bytes | None:
    values: dict[bytes, bytes] = {}
    for key, *value in _ATTRIBUTE.findall(attributes):
        values.setdefault(key.lower(), b"".join(value))
    if b"charset" in values:
        return values[b"charset"]
    if values.get(b"http-equiv", b"").strip().lower() == b"content-type":
        found = _CHARSET.search(values.get(b"content", b""))
        return b"".join(g or b"" for g in found.groups()) if found else None
    return None
