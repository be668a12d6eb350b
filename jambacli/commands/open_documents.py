"""Opens the documents that ``ask``, ``summarize`` and ``batch`` name, with a warning for each problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli import ui
from jambacli.commands.documents_io import check_output, noted
from jambacli.errors import JambaError
from jambacli.units import counted

if TYPE_CHECKING:
    from jambacli.documents.load import Document
    from jambacli.documents.pages import DocumentEntry

# Maximum number of unreadable files to warn about one by one.
_FAULTS = 20


def read_entries(
    files: Sequence[str],
    output: Path | None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    ocr: str = "auto",
    store: bool = True,
) -> list[DocumentEntry]:
    """Open the documents that the arguments name, with a warning for each problem. ``include``, ``exclude``: see ``expand``."""
    from jambacli.documents.pages import entries_of

    return entries_of(open_documents(files, output, include=include, exclude=exclude, ocr=ocr, store=store))


def open_documents(
    files: Sequence[str],
    output: Path | None,
    failed: Callable[[int, str, JambaError], None] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    ocr: str = "auto",
    store: bool = True,
) -> list[Document]:
    """The documents that the arguments name, with a warning for each problem, and a note on what of directories was read.

    ``failed``: called instead for each file that cannot be read, with the number of documents before it and its name.
    ``ocr``, ``store``: see ``read_documents``.
    """
    from jambacli.documents.load import read_documents
    from jambacli.documents.paths import STDIN, expand, shown

    sources = expand(files, include=include or (), exclude=exclude or ())
    if output is not None:
        check_output(output, [p for p in sources.paths if p is not None])
    count = len(sources.paths)
    faults = 0

    def problem(line: str) -> None:
        nonlocal faults
        faults += 1
        if faults <= _FAULTS:
            ui.warn(line)

    faulty = 0

    def unread(path: Path | None, error: JambaError) -> None:
        nonlocal faulty
        assert failed is not None
        failed(bar.done - faulty, STDIN if path is None else shown(path), error)
        faulty += 1

    with _Opening(count) as bar:
        documents = read_documents(
            sources,
            done=bar.advance,
            problem=problem,
            failed=unread if failed is not None else None,
            ocr=ocr,
            store=store,
            progress=bar.recognizing,
        )
    if faults > _FAULTS:
        ui.warn(f"{counted(faults - _FAULTS, 'more file')} could not be read; skipped")
    for document in documents:
        for remark in document.remarks:
            ui.warn(remark)
    if sources.walked:
        of = f"{len(documents):,} of " if len(documents) < count else ""
        opened_text = f"opened {of}{counted(count, 'file')}"
        left_out = sources.left_out_text()
        ui.note(f"{opened_text}; left out: {left_out}" if left_out else opened_text)
    return documents


class _Opening:
    """The bar of the files that are opened, which gives way to one of pages while a document is recognized."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self._stack = contextlib.ExitStack()
        self._bar: Callable[[int], None] = lambda n: None

    def __enter__(self) -> _Opening:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def advance(self, n: int) -> None:
        """So many files more were opened."""
        self.done += n
        self._bar(n)

    @contextlib.contextmanager
    def recognizing(self, title: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        """A Progress for pages that are recognized."""
        assert total is not None
        self._stack.close()
        try:
            with noted(title, total, unit, verb="recognized", summary=total > 1, decimals=1) as advance:
                yield advance
        finally:
            self._show()

    def _show(self) -> None:
        self._bar = self._stack.enter_context(ui.progress("Opening", self.count, "files"))
        self._bar(self.done)
