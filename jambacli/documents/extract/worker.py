"""The process that opens documents with limited memory, so that a file can crash only this process.

It is started by ``sandbox``. A request is one line of JSON on standard input, ``{"kind", "path", "name", "ocr"}``. Answers
are lines of JSON on standard output: the unit, the number of pages where it is known, the progress of OCR, the pieces, then
"done" with remarks, or "error".
With ``"picture": {"page", "scale", "out"}`` or ``"find": {"page", "quote"}`` besides, a page of a PDF is drawn or
looked through: the answer is "done" with its size or the boxes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from jambacli.documents.extract.formats import Extraction, Opening, read
from jambacli.documents.extract.kinds import HEAD, kind_of
from jambacli.documents.extract.ocr import Ocr
from jambacli.documents.extract.pieces import MAX_TEXT, DocumentPart, parts_of_lines
from jambacli.documents.extract.plain import decode
from jambacli.errors import BadFileError, JambaError

MEMORY = 2 << 30
CPU_SECONDS = 1800
# Files within files, such as mailboxes attached to the messages of mailboxes: each is unpacked once more.
_DEPTH = 8


def _bound() -> None:
    """Limit memory and processor time, where the platform supports it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _inner(ocr: Ocr, depth: int, data: bytes, file_name: str) -> Extraction:
    """The pieces of a file within a file, by its content and its name. ``depth``: how many files it lies in."""
    if depth > _DEPTH:
        raise BadFileError(
            file_name, f"lies in more than {_DEPTH} files within one another; save it and read it by itself"
        )
    kind = kind_of(data[:HEAD], file_name, data=data)
    if kind == "text":
        text, remark = decode(data, file_name)
        return "line", parts_of_lines(enumerate(text.split("\n"), 1)), [remark] if remark else []
    folder = tempfile.TemporaryDirectory(prefix="jamba-")
    path = Path(folder.name) / f"attachment.{kind}"
    path.write_bytes(data)
    try:
        unit, pieces, remarks = read(
            kind, Opening(str(path), file_name, lambda: None, partial(_inner, ocr, depth + 1), ocr)
        )
    except BaseException:
        folder.cleanup()
        raise
    return unit, _then(pieces, folder.cleanup), remarks


def _then(pieces: Iterator[DocumentPart], end: Callable[[], None]) -> Iterator[DocumentPart]:
    try:
        yield from pieces
    finally:
        end()


def _ocr(wanted: dict[str, Any], say: Callable[..., None]) -> Ocr:
    store = wanted["store"]
    return Ocr(
        wanted["choice"], Path(store) if store else None, wanted["stored"], wanted["forget"], wanted["seconds"], say
    )


def _looked(request: dict[str, Any]) -> Any:
    """The size of a page's picture, or the boxes of a quote on it."""
    from jambacli.documents.extract.pdf_picture import page_boxes, page_picture

    path, name = request["path"], request["name"]
    if "picture" in request:
        wanted = request["picture"]
        return page_picture(path, name, wanted["page"], wanted["scale"], wanted["out"])
    return page_boxes(path, name, request["find"]["page"], request["find"]["quote"])


def _serve(request: dict[str, Any], out: IO[str]) -> None:
    def say(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    name, unit = request["name"], "page"
    try:
        if "picture" in request or "find" in request:
            say(done=True, found=_looked(request))
            return
        ocr = _ocr(request["ocr"], say)
        opening = Opening(
            request["path"],
            name,
            lambda: say(unit=unit),
            partial(_inner, ocr, 1),
            ocr,
            lambda count: say(count=count),
        )
        unit, pieces, remarks = read(request["kind"], opening)
        say(unit=unit)
        total = 0
        for piece in pieces:
            total += len(piece.text)
            if total > MAX_TEXT:
                raise BadFileError(name, f"contains more than {MAX_TEXT >> 20} MB of text; split it")
            say(text=piece.text, first=piece.first, last=piece.last, label=piece.label)
        say(done=True, remarks=remarks)
    except JambaError as error:
        say(error=str(error))
    except (MemoryError, RecursionError):
        say(
            error=f"{name}: takes more than {MEMORY >> 30} GB of memory to open; it is damaged or a zip bomb, and was not read"
        )
    except Exception as error:  # any failure of a library on a damaged file is an error in the file
        say(error=f"{name}: cannot be read ({type(error).__name__}: {error}); it is damaged: save or export it again")


def main() -> None:
    """Serve requests until standard input ends."""
    _bound()
    out, sys.stdout = sys.stdout, sys.stderr  # output that a library prints must not mix with the answers
    for line in sys.stdin:
        _serve(json.loads(line), out)


if __name__ == "__main__":
    main()
