"""What ``summarize`` and ``ask`` share: open the documents, show progress, write the answer."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands.inputs import has_input
from jambacli.commands.reply import figures_of_reply, show_stats, stream, write
from jambacli.errors import JambaError, UsageError
from jambacli.units import format_seconds

if TYPE_CHECKING:
    from jambacli.chat.commands import Chat
    from jambacli.documents.ask import PendingAnswer
    from jambacli.documents.citation_check import CheckedCitations
    from jambacli.documents.citations import Cited
    from jambacli.documents.pages import DocumentEntry
    from jambacli.documents.reader import Reader, Task
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.options import GenerationOptions
    from jambacli.session.options import SessionOptions
    from jambacli.session.session import Session

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name or a .gguf; default: the last used.", rich_help_panel="Runtime"),
]
Citations = Annotated[bool, typer.Option("--citations", help="Cite the files and pages the answer is based on.")]
Language = Annotated[str | None, typer.Option("--language", help="Answer in this language.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with the answer, its sources and statistics.")
]
JsonStream = Annotated[
    bool,
    typer.Option("--json-stream", help="Print a JSON object a line: pieces of the text as they come, then statistics."),
]
Schema = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="Answer with JSON that always follows this JSON schema."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Of directories and globs, read only files that match, of any kind. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Of directories and globs, leave out what matches. Repeatable."),
]
Ocr = Annotated[
    str,
    typer.Option(
        "--ocr",
        metavar="auto|off|LANG",
        help="Recognize scanned pages with tesseract; LANG is a language such as deu or deu+eng.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file; - is standard output."),
]

# Prompts shorter than this show no note.
_WORTH_A_NOTE = 256
# Seconds between progress notes without a terminal.
_EVERY = 5.0


def check_json(as_json: bool, json_stream: bool) -> None:
    """Raise UsageError for both forms at once."""
    if as_json and json_stream:
        raise UsageError("exclude each other", field=("json", "json_stream"))


def output_path(output: Path | None) -> Path | None:
    """The file to write the answer to; None for standard output, also with ``-o -``."""
    return None if output is not None and str(output) == "-" else output


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise JambaError or UsageError now, not after a long prefill, for an output that cannot be written."""
    folder = Path(os.path.realpath(output)).parent
    exists, plain = output.exists(), output.is_file()
    wrong = (
        "it is a directory"
        if output.is_dir()
        else "its folder does not exist"
        if not folder.is_dir()
        else "its folder may not be written to"
        if (plain or not exists) and not os.access(folder, os.W_OK)
        else "it may not be written to"
        if exists and not os.access(output, os.W_OK)
        else None
    )
    if wrong is not None:
        raise JambaError(f"cannot write {output}: {wrong}; choose another name with -o")
    if any(output.exists() and path.exists() and output.samefile(path) for path in inputs):
        raise UsageError(f"-o {output} is one of the inputs; choose another name")


@contextlib.contextmanager
def reading(title: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """A Progress for prompts."""
    assert total is not None
    long = total >= _WORTH_A_NOTE
    if long:
        ui.note(f"reading {total:,} {unit}")
    with noted(title, total, unit, verb="read", summary=long) as advance:
        yield advance


@contextlib.contextmanager
def noted(
    title: str, total: int, unit: str, *, verb: str, summary: bool, decimals: int = 0
) -> Iterator[Callable[[int], None]]:
    """Progress with a bar on a terminal, else a note now and then with the rate and the time left, and a ``summary``.

    ``verb``: what was done with the units, in the past tense; ``decimals`` of the rate.
    """
    began = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        bar(n)
        now = time.monotonic()
        if now - last >= _EVERY and done < total and not sys.stderr.isatty():
            last = now
            rate = done / (now - began)
            left = format_seconds((total - done) / rate)
            ui.note(f"{verb} {done:,} of {total:,} {unit}, {rate:,.{decimals}f} {unit}/s, {left} left")

    with ui.progress(title, total, unit) as bar:
        yield advance
    if summary:
        seconds = time.monotonic() - began
        ui.note(f"{verb} {total:,} {unit} in {format_seconds(seconds)} ({total / seconds:,.{decimals}f} {unit}/s)")


class Answer:
    """An answer that is written to stdout or a file, with its sources at the end."""

    def __init__(self, *, output: Path | None, as_json: bool, json_stream: bool, schema: bool, citations: bool) -> None:
        self.output, self.as_json, self.schema, self.citations = output, as_json, schema, citations
        self.json_stream = json_stream
        self.text = ""
        self.interrupted = False
        self._live = output is None and not schema and not as_json

    def take(self, pieces: Iterable[str], session: Session) -> None:
        """Collect the pieces of a reply of the session, and print them as they come if they go to stdout unchanged. Ctrl-C
        keeps the partial answer."""
        self.text, self.interrupted = stream(pieces, self._live, session, as_json=self.json_stream)

    def finish(self, key: str, entries: Sequence[DocumentEntry], cited: Cited, figures: dict[str, Any]) -> None:
        """Write what has not been written yet: the sources, the JSON, the file. ``key``: the key of the answer with --json.

        JSON of a schema is written alone, so its sources go to stderr, or into the object of --json. An answer that was
        interrupted is not written if it is empty or unfinished JSON.
        """
        if self.interrupted and (self.schema or not self.text.strip()):
            if self.output is not None or self.schema:
                ui.note("interrupted before there was an answer; nothing was written")
            return
        from jambacli.documents.citation_check import check_citations
        from jambacli.documents.citations import places_of

        named = cited.cited(entries)
        checked = check_citations(self.text, named, entries)
        sources = places_of(checked.ids, entries)
        if self.citations and not self.interrupted:
            _report_missing(cited, entries)
            _report_doubts(checked, named, entries)
        moved = " (where the answer's words occur)" if checked.replaced else ""
        listed = [f"- {s}{moved}" for s in sources]
        out = ""
        if self.as_json or self.json_stream:
            value: dict[str, Any] = {key: json.loads(self.text) if self.schema else self.text.strip()}
            if self.json_stream:
                value = {"done": True, **value}
            if self.citations:
                by = {"by": "words"} if checked.replaced else {}
                value["citations"] = [{**s.to_json(), **by} for s in sources]
            out = json.dumps({**value, **figures}, ensure_ascii=False) + "\n"
        elif self.schema:
            out = self.text + "\n"
            if sources:
                print("\n".join(["Sources:", *listed]), file=sys.stderr, flush=True)
        else:
            out = "\n".join(["\n\nSources:", *listed, ""]) if listed else ""
            if not self._live:
                out = self.text.rstrip() + (out or "\n")
            elif not out and self.text and not self.text.endswith("\n"):
                out = "\n"
        if self.output is None:
            write(out)
            return
        _write_file(self.output, out.encode("utf-8", "replace"))
        ui.note(f"written to {self.output}")


def _report_missing(cited: Cited, entries: Sequence[DocumentEntry]) -> None:
    """Report missing citations, and citations of documents that do not exist."""
    if unknown := cited.unknown(entries):
        numbers = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        ui.warn(f"the model cites documents that do not exist: numbers {numbers} (valid: 0 to {len(entries) - 1})")
    elif not cited.has_section:
        ui.note("the model cited no documents")
    elif not cited.cited(entries):
        ui.note("the model cites no document that supports this answer")


def _report_doubts(checked: CheckedCitations, named: Sequence[int], entries: Sequence[DocumentEntry]) -> None:
    """Report citations that the check replaced, or found unsupported."""
    from jambacli.documents.citations import places_of

    said = "; ".join(str(s) for s in places_of(named, entries)[:3])
    if checked.replaced:
        ui.warn(f"the model cites {said}, but the answer's words occur elsewhere; that place is listed instead")
    elif checked.unsupported:
        ui.warn(f"the cited place ({said}) contains no distinctive word of the answer")


def _write_file(path: Path, data: bytes) -> None:
    """Replace a file atomically, behind a link if it is one; write into a device or a named pipe."""
    from jambacli.files import atomic_write

    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            device.write(data)
        return
    with atomic_write(path) as file:
        file.write(data)


def figures_of(reader: Reader) -> dict[str, Any]:
    """The statistics of the last reply and its documents."""
    assert reader.session is not None
    stats = reader.session.stats
    return {
        **figures_of_reply(reader.model, reader.session),
        "document_tokens": stats.document_tokens,
        "document_tokens_read": stats.replayed_document_tokens,
    }


def show_figures(figures: dict[str, Any]) -> None:
    """Print the statistics to stderr."""
    show_stats(figures)
    print(
        f"document {figures['document_tokens']:,} tokens, {figures['document_tokens_read']:,} of them read now",
        file=sys.stderr,
    )


def task_of(text: str, citations: bool, schema: Mapping[str, Any] | None) -> Task:
    """The task of a reply, which is JSON of a schema if there is one."""
    from jambacli.documents.reader import Task

    return Task(text, citations, schema)


def check_schema(reader: Reader, task: Task) -> None:
    """Raise JambaError, before anything is read, for a schema that cannot be followed within the available tokens."""
    if task.schema is not None:
        from jambacli.engine.constraints.json_schema import SchemaConstraint

        constraint = SchemaConstraint(
            reader.model.tokenizer,
            task.schema,
            reader.model.config.vocab_size,
            (None, None),
            citable=int(task.citations),
        )
        constraint.begin(min(reader.generation.max_tokens or reader.ctx, reader.ctx))


@contextlib.contextmanager
def reader(model: LoadedModel, options: SessionOptions, generation: GenerationOptions) -> Iterator[Reader]:
    """A Reader that is closed at the end, after its state has been stored."""
    from jambacli.documents.reader import Reader

    chosen = Reader(model, options=options, generation=generation, progress=reading)
    try:
        yield chosen
    finally:
        chosen.close()


def deliver(
    reader: Reader,
    pending: PendingAnswer,
    task: Task,
    *,
    key: str,
    output: Path | None,
    as_json: bool,
    json_stream: bool,
    stats: bool,
) -> None:
    """Write the answer as it is generated, then its sources and figures. Raises KeyboardInterrupt if Ctrl-C ended it."""
    from jambacli.documents.citations import Cited

    cited = Cited(json=task.schema is not None)
    answer = Answer(
        output=output,
        as_json=as_json,
        json_stream=json_stream,
        schema=task.schema is not None,
        citations=task.citations,
    )
    assert reader.session is not None
    answer.take(cited.answer(pending.pieces), reader.session)
    figures = figures_of(reader)
    answer.finish(key, pending.entries, cited, {**figures, "passes": pending.passes})
    if stats:
        show_figures(figures)
    if answer.interrupted:
        raise KeyboardInterrupt


def chat_about(reader: Reader, entries: Sequence[DocumentEntry], task: Task, language: str | None) -> Chat:
    """A chat about documents, which go with its first message. ``task``: the first message, perhaps empty."""
    from jambacli.chat.attachments import Attachments
    from jambacli.chat.commands import Chat
    from jambacli.documents.ask import log_size, question_text
    from jambacli.documents.passes import does_not_fit, plan
    from jambacli.documents.reader import Task

    chosen = plan(reader, entries, task)
    if len(chosen.groups) > 1:
        raise does_not_fit(reader, entries, chosen.tokens, "ask without {interactive}, with {passes}")
    log_size(entries, chosen.tokens)
    bare = Task(question_text("", language), task.citations)
    knobs, suffix = reader.knobs(bare), reader.instruction(bare)
    reader.close()
    chat = Chat(reader.model, options=reader.options, generation=reader.generation, progress=reader.progress)
    chat.attachments = Attachments(lasting=list(entries), knobs=knobs, suffix=suffix, cite=task.citations)
    return chat


def stdin_as_file(otherwise: str) -> list[str]:
    """``["-"]`` if something is piped in. Raises UsageError with the text ``otherwise`` if not."""
    if not has_input():
        raise UsageError(otherwise)
    return ["-"]
