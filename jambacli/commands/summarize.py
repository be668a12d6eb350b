"""``jamba summarize``: summarize files."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli.commands import documents_io
from jambacli.commands import options as o
from jambacli.commands.open_documents import read_entries
from jambacli.errors import UsageError
from jambacli.startup import importing


@o.generation_options
def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, directories, globs, or - for standard input."),
    ] = None,
    length: Annotated[str, typer.Option("--length", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option("--style", metavar="bullets|prose", help="Bullet points or prose.")] = "prose",
    focus: Annotated[str | None, typer.Option("--focus", help="What to pay most attention to.")] = None,
    language: documents_io.Language = None,
    citations: documents_io.Citations = False,
    as_json: documents_io.Json = False,
    json_stream: documents_io.JsonStream = False,
    schema: documents_io.Schema = None,
    include: documents_io.Include = None,
    exclude: documents_io.Exclude = None,
    ocr: documents_io.Ocr = "auto",
    output: documents_io.Output = None,
    model: documents_io.Model = None,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Summarize documents. They are read once; text longer than the context is summarized in parts."""
    documents_io.check_json(as_json, json_stream)
    output = documents_io.output_path(output)
    if json_stream and output is not None:
        raise UsageError("--json-stream goes to standard output: leave out -o")
    with importing():
        from jambacli.documents.ask import SummaryOptions, summarize_documents

    summary = SummaryOptions(length=length, style=style, focus=focus, language=language)
    generation, options = arguments.generation(), arguments.session()
    names = list(files or ()) or documents_io.stdin_as_file(
        "there is nothing to summarize: name files, or pipe in a text"
    )
    task = documents_io.task_of(summary.instruction(), citations, arguments.schema(schema))
    if model is not None:
        o.model_path(model)  # an unknown name is reported before long documents are opened
    entries = read_entries(names, output, include, exclude, ocr=ocr, store=options.store)

    loaded = arguments.load_model(model)
    with documents_io.reader(loaded, options, generation) as reader:
        documents_io.check_schema(reader, task)
        answer = summarize_documents(reader, entries, task, summary)
        documents_io.deliver(
            reader,
            answer,
            task,
            key="summary",
            output=output,
            as_json=as_json,
            json_stream=json_stream,
            stats=arguments.stats,
        )
