"""What ``summarize`` and ``ask`` share: documents read, progress shown, an answer written; knows nothing of models' insides."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands.options import has_input
from jambacli.commands.reply import figures_of_reply, show_stats, stream, write
from jambacli.errors import JambaError, UsageError
from jambacli.units import counted, format_seconds

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.chat.commands import Chat
    from jambacli.documents.ask import Work
    from jambacli.documents.citation_check import Grounded
    from jambacli.documents.citations import Cited
    from jambacli.documents.reader import Entry, Reader, Task

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name or a .gguf; left out: the last used.", rich_help_panel="Runtime"),
]
Citations = Annotated[bool, typer.Option("--citations", help="Name the files and pages the answer is based on.")]
Language = Annotated[str | None, typer.Option("--language", help="Answer in this language.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object with the answer, its sources and figures.")]
Schema = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="Answer with JSON that follows this JSON schema, always."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file; - is standard output."),
]

# Reading shorter than this is not worth a line.
_WORTH_SAYING = 256
_EVERY = 5.0
# So many files that cannot be read are named; of more, how many.
_FAULTS = 20


def read_entries(files: Sequence[str], output: Path | None) -> list[Entry]:
    """The documents the arguments stand for, as the model gets them; what is wrong with a file is said."""
    from jambacli.documents.load import read_documents
    from jambacli.documents.paths import expand
    from jambacli.documents.reader import entries_of

    sources = expand(files)
    if output is not None:
        _check_output(output, [p for p in sources.paths if p is not None])
    count = len(sources.paths)
    faults = 0

    def problem(line: str) -> None:
        nonlocal faults
        faults += 1
        if faults <= _FAULTS:
            ui.warn(line)

    with ui.progress("Opening", count, "files") as done:
        documents = read_documents(sources, done=done, problem=problem)
    if faults > _FAULTS:
        ui.warn(f"{counted(faults - _FAULTS, 'more file')} could not be read; left out")
    for document in documents:
        for remark in document.remarks:
            ui.warn(remark)
    if sources.passed_over:
        ui.note(f"passed over {counted(sources.passed_over, 'file')} (of other kinds, or named in .gitignore)")
    return entries_of(documents)


def output_path(output: Path | None) -> Path | None:
    """Where the answer goes; None is standard output, which ``-o -`` means too."""
    return None if output is not None and str(output) == "-" else output


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse now what would fail after a long reading."""
    folder = output.resolve().parent
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
        raise UsageError(f"-o {output} is one of the documents; choose another name")


@contextlib.contextmanager
def reading(total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far a reading is: a bar on a terminal, else a line now and then; the rate and the time left."""
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
            ui.note(f"read {done:,} of {total:,} tokens, {rate:,.0f} tokens/s, {left} left")

    if total >= _WORTH_SAYING:
        ui.note(f"reading {total:,} tokens")
    with ui.progress("Reading", total, "tokens") as bar:
        yield advance
    if total >= _WORTH_SAYING:
        seconds = time.monotonic() - began
        ui.note(f"read {total:,} tokens in {format_seconds(seconds)} ({total / seconds:,.0f} tokens/s)")


def say_size(entries: Sequence[Entry], tokens: int) -> None:
    """One line on what is about to be read."""
    files = len({s.file for e in entries for s in e.sources})
    ui.note(f"{counted(files, 'file')}, {counted(tokens, 'token')}")


class Answer:
    """An answer on its way to stdout or a file, and what is known of it at the end."""

    def __init__(self, *, output: Path | None, as_json: bool, schema: bool, citations: bool) -> None:
        self.output, self.as_json, self.schema, self.citations = output, as_json, schema, citations
        self.text = ""
        self.interrupted = False
        self._live = output is None and not schema and not as_json

    def take(self, pieces: Iterable[str]) -> None:
        """Show the pieces as they come, where they go to stdout as they are; Ctrl-C ends them and keeps what was said."""
        self.text, self.interrupted = stream(pieces, show=self._live)

    def finish(self, key: str, entries: Sequence[Entry], cited: Cited, figures: dict[str, Any]) -> None:
        """Write what is not written yet: the sources, the JSON, the file. ``key`` names the text in the JSON.

        A JSON document of a schema stands alone where it goes, so its sources go to stderr, or into the object of --json.
        What was interrupted before there is anything to keep writes nothing, nor does an unfinished JSON document.
        """
        if self.interrupted and (self.schema or not self.text.strip()):
            if self.output is not None or self.schema:
                ui.note("interrupted before there was an answer; nothing was written")
            return
        from jambacli.documents.citation_check import ground
        from jambacli.documents.citations import places_of

        named = cited.cited(entries)
        checked = ground(self.text, named, entries)
        sources = places_of(checked.ids, entries)
        if self.citations and not self.interrupted:
            _say_missing(cited, entries)
            _say_doubts(checked, named, entries)
        listed = [f"- {s}{' (where its words stand)' if checked.moved else ''}" for s in sources]
        out = ""
        if self.as_json:
            value: dict[str, Any] = {key: json.loads(self.text) if self.schema else self.text.strip()}
            if self.citations:
                by = {"by": "words"} if checked.moved else {}
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


def _say_missing(cited: Cited, entries: Sequence[Entry]) -> None:
    """What the model's citations do not say, or say of documents that are not there."""
    if unknown := cited.unknown(entries):
        numbers = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        ui.warn(f"the model cites documents that are not there, numbers {numbers} of 0 to {len(entries) - 1}")
    elif not cited.given:
        ui.note("the model named no documents")
    elif not cited.cited(entries):
        ui.note("the model names no document that supports this answer")


def _say_doubts(checked: Grounded, named: Sequence[int], entries: Sequence[Entry]) -> None:
    """Where the documents named do not say what the answer says."""
    from jambacli.documents.citations import places_of

    said = "; ".join(str(s) for s in places_of(named, entries)[:3])
    if checked.moved:
        ui.warn(f"the model names {said}, but the answer's words stand elsewhere; named is where")
    elif checked.bare:
        ui.warn(f"no telling word of the answer stands in what the model names ({said})")


def _write_file(path: Path, data: bytes) -> None:
    """Replace a file at once, where a link leads; write into what is none (a device, a named pipe)."""
    from jambacli.files import atomic_write

    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            device.write(data)
        return
    with atomic_write(path.resolve()) as file:
        file.write(data)


def figures_of(reader: Reader) -> dict[str, Any]:
    """The figures of the last reply, those of any reply and the documents'."""
    assert reader.session is not None
    stats = reader.session.stats
    return {
        **figures_of_reply(reader.model, reader.session),
        "document_tokens": stats.document_tokens,
        "document_tokens_read": stats.replayed_document_tokens,
    }


def show_figures(figures: dict[str, Any]) -> None:
    """The same for people, on stderr."""
    show_stats(figures)
    print(
        f"document {figures['document_tokens']:,} tokens, {figures['document_tokens_read']:,} of them read now",
        file=sys.stderr,
    )


def task_of(text: str, citations: bool, schema: Path | None) -> Task:
    """The task, its schema read. Raises JambaError where that is none."""
    from jambacli.documents.reader import Task
    from jambacli.engine.constraints.json_schema import read_schema

    return Task(text, citations, read_schema(schema) if schema is not None else None)


def check_schema(reader: Reader, task: Task) -> None:
    """Refuse a schema that cannot be followed, or not within the tokens there are, before anything is read."""
    if task.schema is not None:
        from jambacli.engine.constraints.json_schema import SchemaConstraint

        constraint = SchemaConstraint(
            reader.model.tokenizer,
            task.schema,
            reader.model.config.vocab_size,
            (None, None),
            citable=int(task.citations),
        )
        constraint.begin(min(reader.generation.get("max_tokens") or reader.ctx, reader.ctx))


@contextlib.contextmanager
def reader(model: Jamba, options: dict[str, Any], generation: dict[str, Any]) -> Iterator[Reader]:
    """Reads for the model; what was read is stored when it ends, however it ends."""
    from jambacli.documents.reader import Reader

    chosen = Reader(model, options=options, generation=generation, reading=reading)
    try:
        yield chosen
    finally:
        chosen.close()


def deliver(
    reader: Reader, work: Work, task: Task, *, key: str, output: Path | None, as_json: bool, stats: bool
) -> None:
    """Stream the answer to where it goes, then its sources and figures. KeyboardInterrupt where Ctrl-C ended it."""
    from jambacli.documents.citations import Cited

    cited = Cited(json=task.schema is not None)
    answer = Answer(output=output, as_json=as_json, schema=task.schema is not None, citations=task.citations)
    answer.take(cited.answer(work.pieces))
    numbers = figures_of(reader)
    answer.finish(key, work.entries, cited, {**numbers, "passes": work.passes})
    if stats:
        show_figures(numbers)
    if answer.interrupted:
        raise KeyboardInterrupt


def chat_about(reader: Reader, entries: Sequence[Entry], task: Task, language: str | None) -> Chat:
    """A chat about the documents, which go with its first message; ``task``: that message, if there is one already."""
    from jambacli.chat.attachments import Papers
    from jambacli.chat.commands import Chat
    from jambacli.documents.ask import question_text
    from jambacli.documents.passes import does_not_fit, plan
    from jambacli.documents.reader import Task

    chosen = plan(reader, entries, task)
    if len(chosen.groups) > 1:
        raise does_not_fit(reader, entries, chosen.tokens, "ask without -i, with --passes")
    say_size(entries, chosen.tokens)
    nothing = Task(question_text("", language), task.citations)
    knobs, suffix = reader.knobs(nothing), reader.instruction(nothing)
    reader.close()
    options = {k: v for k, v in reader.options.items() if v is not None}
    chat = Chat(reader.model, options=options, generation=reader.generation, reading=reader.reading)
    chat.papers = Papers(lasting=list(entries), knobs=knobs, suffix=suffix, cite=task.citations)
    return chat


def converse(chat: Chat, *, first: str | None, stats: bool, keep_history: bool) -> None:
    """The chat interface: the terminal's, or a line a turn from a pipe. ``first``: a message that is said at once."""
    from jambacli.commands.chat import run_chat

    run_chat(chat, stats=stats, keep_history=keep_history, first=first)


def stdin_as_file(otherwise: str) -> list[str]:
    """``-`` where something is piped in; UsageError saying ``otherwise`` where not."""
    if not has_input():
        raise UsageError(otherwise)
    return ["-"]


def names_files(word: str) -> bool:
    """Whether a word names files rather than asking something."""
    from jambacli.documents.paths import names_files

    return names_files(word)
