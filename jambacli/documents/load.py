"""Loads documents from files and standard input, in parts with their page or line numbers.

An error is one line that names the file and says what to do. PDFs, Office files and web pages are opened in a separate
process (``extract.sandbox``); plain text, code, CSV and JSON are decoded in this one.
"""

from __future__ import annotations

import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jambacli.documents.extract.formats import FORMATS
from jambacli.documents.extract.kinds import HEAD, kind_of
from jambacli.documents.extract.pieces import MAX_TEXT, DocumentPart, parts_of_lines, ranges
from jambacli.documents.extract.plain import EmptyFileError, decode
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.extract.table_header import with_header
from jambacli.documents.ocr import ocr_request
from jambacli.documents.paths import STDIN, Sources, expand, shown
from jambacli.errors import BadFileError, JambaError
from jambacli.progress import Progress, no_progress
from jambacli.units import counted

#: The largest files that are opened: of text and HTML, and of compressed formats.
MAX_TEXT_FILE, MAX_PACKED_FILE = MAX_TEXT, 1 << 30


@dataclass(frozen=True)
class Document:
    """The text of one file.

    ``name``: the path as the user wrote it. ``unit``: what its parts are numbered by ("page", "line", "sheet" ...).
    ``parts``: none of them is empty. ``remarks``: what the user should know (a guessed encoding, pages without text).
    ``whole``: the file is one part, so that its name alone identifies the part.
    """

    name: str
    unit: str
    parts: tuple[DocumentPart, ...]
    remarks: tuple[str, ...] = ()
    whole: bool = field(default=False)

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "\n".join(p.text for p in self.parts)

    def where(self, part: DocumentPart) -> str:
        """The part's place in the file: ``page 3``, ``lines 1-80``; "" for a part that is the whole file."""
        if self.whole and self.unit != "page" and not part.label:
            return ""
        span = f"{self.unit} {part.first}" if part.first == part.last else f"{self.unit}s {part.first}-{part.last}"
        return f"{span} ({part.label})" if part.label else span

    def title(self, part: DocumentPart) -> str:
        """The part's title in a prompt: ``contract.pdf, page 3``."""
        where = self.where(part)
        return f"{self.name}, {where}" if where else self.name


def read_documents(
    sources: Sources | Sequence[str],
    *,
    done: Callable[[int], None] = lambda n: None,
    problem: Callable[[str], None] = lambda line: None,
    failed: Callable[[Path | None, JambaError], None] | None = None,
    ocr: str = "auto",
    store: bool = True,
    progress: Progress = no_progress,
) -> list[Document]:
    """The documents of ``sources`` (or of the arguments of ``expand``), in order.

    ``done(1)`` is called after each file. A file from a directory or a glob that cannot be read is skipped, and ``problem``
    is called at the end with one line about it (one line for several empty files). Raises JambaError when a file that was
    named individually cannot be read, after all the others have been tried, and when no document is left. With ``failed``
    none of that: it is called for every file that cannot be read (None: standard input). ``problem`` is also called for every
    folder that cannot be read.

    ``ocr``: "auto" recognizes pages that are pictures where tesseract is installed, "off" none, "deu+eng" in these languages;
    ``progress`` shows it. ``store``: keep what was recognized on disk, so that no page is recognized twice. Raises UsageError
    for languages that are not installed.
    """
    request = ocr_request(ocr, store=store)
    chosen = sources if isinstance(sources, Sources) else expand(sources)
    documents: list[Document] = []
    errors: list[JambaError] = []
    skipped: list[JambaError] = []
    for line in chosen.problems:
        problem(line)
    with Sandbox(ocr=request, progress=progress) as sandbox:
        for path in chosen.paths:
            try:
                documents.append(read_stdin(sandbox) if path is None else read_file(path, sandbox))
            except JambaError as error:
                if failed is not None:
                    failed(path, error)
                elif path is None or path in chosen.named:
                    errors.append(error)
                else:
                    skipped.append(error)
            done(1)
    empty = [e for e in skipped if isinstance(e, EmptyFileError)]
    if len(empty) > 1:
        problem(f"{counted(len(empty), 'empty file')} skipped")
    for fault in skipped:
        if len(empty) < 2 or fault not in empty:
            problem(f"{fault}; skipped")
    for fault in errors[:-1]:
        problem(str(fault))
    if errors:
        raise errors[-1]
    if not documents and failed is None:
        raise JambaError(f"nothing could be read from {counted(len(skipped), 'file')}; the lines above say why")
    return documents


def read_file(path: Path, sandbox: Sandbox | None = None, *, name: str | None = None) -> Document:
    """The document of one file. ``name``: what the file is called, by default its path; its ending helps to tell what it is.

    Raises JambaError with one line that names the file and says what to do.
    """
    name = shown(path) if name is None else name
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise BadFileError(name, "is a directory")
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISFIFO(info.st_mode)):
            raise BadFileError(name, "is a device, not a file")
        if stat.S_ISFIFO(info.st_mode):
            with path.open("rb") as pipe:
                return _from_bytes(_drained(pipe, name), name, sandbox)
        if info.st_size > MAX_PACKED_FILE:
            raise _too_large(name, info.st_size, MAX_PACKED_FILE)
        with path.open("rb") as file:
            head = file.read(HEAD)
            kind = kind_of(head, name, path=path)
            opened = FORMATS.get(kind)
            if opened is not None and opened.streamed:
                return _extracted(kind, str(path), name, sandbox)
            if info.st_size > MAX_TEXT_FILE:
                raise _too_large(name, info.st_size, MAX_TEXT_FILE)
            if opened is not None:
                return _extracted(kind, str(path), name, sandbox)
            data = head + file.read(MAX_TEXT_FILE + 1 - len(head))
    except OSError as error:
        raise JambaError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file system allows
        raise JambaError(f"cannot read {name}: {error}") from error
    if len(data) > MAX_TEXT_FILE:
        raise _too_large(name, len(data), MAX_TEXT_FILE)
    return _plain(data, name)


def is_plain(path: Path) -> bool:
    """Whether ``path`` is a file of plain text, by its first bytes and its name; False where it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return kind_of(file.read(HEAD), shown(path), path=path) == "text"
    except (OSError, ValueError, JambaError):
        return False


def read_stdin(sandbox: Sandbox | None = None) -> Document:
    """The document on standard input: text, or the bytes of a PDF, a Word document or a web page."""
    return _from_bytes(_drained(sys.stdin.buffer, STDIN), STDIN, sandbox)


def _drained(stream: object, name: str) -> bytes:
    data: bytes = stream.read(MAX_TEXT_FILE + 1)  # type: ignore[attr-defined]
    if len(data) > MAX_TEXT_FILE:
        raise JambaError(f"{name} has more than {MAX_TEXT_FILE >> 20} MB; pass part of it (head -c 60M)")
    return data


def _from_bytes(data: bytes, name: str, sandbox: Sandbox | None) -> Document:
    kind = kind_of(data[:HEAD], name, data=data)
    if kind == "text":
        return _plain(data, name)
    with tempfile.TemporaryDirectory(prefix="jamba-") as folder:
        path = Path(folder) / f"input.{kind}"
        path.write_bytes(data)
        return _extracted(kind, str(path), name, sandbox)


def _extracted(kind: str, path: str, name: str, sandbox: Sandbox | None) -> Document:
    if sandbox is None:
        with Sandbox() as own:
            return _extracted(kind, path, name, own)
    found = sandbox.extract(kind, path, name)
    parts = tuple(p for p in found.pieces if p.text.strip())
    if not parts:
        raise BadFileError(name, "contains no text")
    remarks = list(found.remarks)
    if len(parts) < len(found.pieces):
        blank = [p.first for p in found.pieces if not p.text.strip()]
        what = "page has no text (a scan?) and was" if len(blank) == 1 else "pages have no text (scans?) and were"
        remarks.append(f"{len(blank):,} {what} skipped: {ranges(blank)}")
    return Document(name, found.unit, parts, tuple(f"{name}: {r}" for r in remarks), whole=len(parts) == 1)


def _plain(data: bytes, name: str) -> Document:
    text, remark = decode(data, name)
    del data
    parts = list(parts_of_lines(enumerate(text.split("\n"), 1)))
    is_table = name.lower().endswith((".csv", ".tsv", ".tab"))
    if is_table or "." not in name:  # a file without a suffix and standard input may be a table too
        parts = with_header(parts, text, is_table)
    remarks = (f"{name}: {remark}",) if remark else ()
    return Document(name, "line", tuple(parts), remarks, whole=len(parts) == 1)


def _too_large(name: str, size: int, limit: int) -> JambaError:
    return BadFileError(
        name, f"is {size / 1e6:,.0f} MB; the limit is {limit >> 20} MB of text: split it, or pass part of it"
    )
