"""What ``ask`` and ``summarize`` share on the command line: options about documents and about how the answer is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.commands import documents_io as d
from jambacli.commands.load import model_path
from jambacli.commands.open_documents import read_entries
from jambacli.commands.options import with_arguments
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.documents.ask import PendingAnswer
    from jambacli.documents.pages import DocumentEntry
    from jambacli.documents.reader import Reader, Task


@dataclass(frozen=True, kw_only=True)
class DocumentArguments:
    """One option per field, in the order of the ``--help``."""

    language: d.Language = None
    citations: d.Citations = False
    as_json: d.Json = False
    json_stream: d.JsonStream = False
    schema: d.Schema = None
    include: d.Include = None
    exclude: d.Exclude = None
    ocr: d.Ocr = "auto"
    output: d.Output = None
    model: d.Model = None

    @property
    def file(self) -> Path | None:
        """The file to write the answer to; None for standard output."""
        return d.output_path(self.output)

    def check(self) -> None:
        """Raise UsageError for options that exclude each other."""
        d.check_json(self.as_json, self.json_stream)
        if self.json_stream and self.file is not None:
            raise UsageError("--json-stream goes to standard output: leave out -o")

    def entries(self, names: Sequence[str], *, store: bool) -> list[DocumentEntry]:
        """Open the documents. Raises JambaError, also for an unknown model, before long documents are opened."""
        if self.model is not None:
            model_path(self.model)
        return read_entries(names, self.file, self.include, self.exclude, ocr=self.ocr, store=store)

    def deliver(self, reader: Reader, answer: PendingAnswer, task: Task, *, key: str, stats: bool) -> None:
        """Write the answer; see ``documents_io.deliver``."""
        d.deliver(
            reader,
            answer,
            task,
            key=key,
            output=self.file,
            as_json=self.as_json,
            json_stream=self.json_stream,
            stats=stats,
        )


document_options = with_arguments(DocumentArguments, "documents")
