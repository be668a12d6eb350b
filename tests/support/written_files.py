"""Makes OpenDocument texts, RTF and e-books byte by byte, for tests of extraction."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

_ODF = "urn:oasis:names:tc:opendocument:xmlns:"
_SPACES = {
    **{prefix: f"{_ODF}{prefix}:1.0" for prefix in ("office", "text", "table", "style", "form", "chart", "meta")},
    "draw": f"{_ODF}drawing:1.0",
    "fo": f"{_ODF}xsl-fo-compatible:1.0",
    "svg": f"{_ODF}svg-compatible:1.0",
    "field": "urn:openoffice:names:experimental:ooo-ms-interop:xmlns:field:1.0",
    "loext": "urn:org:documentfoundation:names:experimental:office:xmlns:loext:1.0",
    "xlink": "http://www.w3.org/1999/xlink",
    "math": "http://www.w3.org/1998/Math/MathML",
    "dc": "http://purl.org/dc/elements/1.1/",
}
_DECLARED = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _SPACES.items())
ODT = "application/vnd.oasis.opendocument.text"


def odt_bytes(
    body: str,
    *,
    styles: str = "",
    automatic: str = "",
    masters: str = "",
    parts: Mapping[str, str | bytes] | None = None,
    flat: bool = False,
    mime: str = ODT,
    before: str = "",
) -> bytes:
    """An OpenDocument text whose office:text holds ``body``.

    ``styles``: common styles. ``automatic``: those of the content. ``masters``: page styles. ``parts``: further parts by name.
    ``flat``: as one XML file. ``before``: stands before the root element of the content.
    """
    head = f'<?xml version="1.0" encoding="UTF-8"?>{before}'
    common = f"<office:styles>{styles}</office:styles>"
    pages = f"<office:master-styles>{masters}</office:master-styles>"
    own = f"<office:automatic-styles>{automatic}</office:automatic-styles>"
    text = f"<office:body><office:text>{body}</office:text></office:body>"
    if flat:
        root = f'<office:document {_DECLARED} office:mimetype="{mime}">'
        return f"{head}{root}{common}{own}{pages}{text}</office:document>".encode()
    content = f"{head}<office:document-content {_DECLARED}>{own}{text}</office:document-content>"
    style_part = f"<office:document-styles {_DECLARED}>{common}{pages}</office:document-styles>"
    return zip_bytes({"mimetype": mime, "content.xml": content, "styles.xml": style_part, **(parts or {})})


def odf_part(xml: str) -> str:
    """The XML of a part with its namespaces declared; ``xml`` begins with ``<name>``."""
    name, rest = xml[1:].split(">", 1)
    return f"<{name} {_DECLARED}>{rest}"


def rtf_bytes(body: str | bytes, head: str = r"\ansi\ansicpg1252\deff0{\fonttbl{\f0\fnil\fcharset0 Arial;}}") -> bytes:
    """An RTF document. ``head``: what stands before ``body``."""
    text = body if isinstance(body, bytes) else body.encode("latin-1")
    return b"{\\rtf1" + head.encode("latin-1") + b" " + text + b"}"


def zip_bytes(members: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]) -> bytes:
    """A zip archive of members in order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            archive.writestr(name, data)
    return out.getvalue()


def epub_bytes(
    chapters: Mapping[str, str | bytes],
    *,
    titles: Mapping[str, str] | None = None,
    ncx: bool = False,
    aside: Sequence[str] = (),
    spine: Sequence[str] | None = None,
    parts: Mapping[str, str | bytes] | None = None,
    items: str = "",
    refs: str = "",
    kind: str = "application/xhtml+xml",
) -> bytes:
    """An e-book whose files lie in OEBPS/.

    ``chapters``: XHTML bodies (or whole files, as bytes) by file name, in order. ``titles``: of the table of contents, by link,
    in EPUB 3's form or as an ``ncx``. ``aside``: files that are no part of the order. ``spine``: another order. ``items``,
    ``refs``: more of the manifest and the spine. ``parts``: further files by their whole path.
    """
    files: dict[str, str | bytes] = {}
    manifest, order = items, ""
    for name, body in chapters.items():
        page = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>The Book</title></head><body>{body!s}</body></html>'
        files[f"OEBPS/{name}"] = body if isinstance(body, bytes) else page
        manifest += f'<item id="{name}" href="{name}" media-type="{kind}"/>'
    for name in spine if spine is not None else chapters:
        order += f'<itemref idref="{name}"{" linear=" + chr(34) + "no" + chr(34) if name in aside else ""}/>'
    toc = ""
    if titles and ncx:
        points = "".join(
            f'<navPoint id="n{i}"><navLabel><text>{title}</text></navLabel><content src="{link}"/></navPoint>'
            for i, (link, title) in enumerate(titles.items())
        )
        files["OEBPS/toc.ncx"] = (
            '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><docTitle><text>The Book</text></docTitle>'
            f"<navMap>{points}</navMap></ncx>"
        )
        manifest += '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
        toc = ' toc="ncx"'
    elif titles:
        links = "".join(f'<li><a href="{link}">{title}</a></li>' for link, title in titles.items())
        files["OEBPS/nav.xhtml"] = (
            '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>'
            f'<nav epub:type="toc"><ol>{links}</ol></nav></body></html>'
        )
        manifest += '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/>'
        f"<manifest>{manifest}</manifest><spine{toc}>{order}{refs}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        '<rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    start: dict[str, str | bytes] = {"mimetype": "application/epub+zip", "META-INF/container.xml": container}
    return zip_bytes({**start, "OEBPS/content.opf": package, **files, **(parts or {})})
