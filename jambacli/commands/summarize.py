"""``jamba summarize``: summarize files."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli.commands import documents_io
from jambacli.commands import options as o
from jambacli.commands.document_arguments import DocumentArguments, document_options
from jambacli.startup import importing


@o.generation_options
@document_options
def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, directories, globs, or - for standard input."),
    ] = None,
    length: Annotated[str, typer.Option("--length", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option("--style", metavar="bullets|prose", help="Bullet points or prose.")] = "prose",
    focus: Annotated[str | None, typer.Option("--focus", help="What to pay most attention to.")] = None,
    *,
    documents: DocumentArguments,
    arguments: o.GenerationArguments,
) -> None:
    """Summarize documents. They are read once; text longer than the context is summarized in parts."""
    documents.check()
    with importing():
        from jambacli.documents.ask import SummaryOptions, summarize_documents

    summary = SummaryOptions(length=length, style=style, focus=focus, language=documents.language)
    generation, options = arguments.generation(), arguments.session()
    names = list(files or ()) or documents_io.stdin_as_file(
        "there is nothing to summarize: name files, or pipe in a text"
    )
    task = documents_io.task_of(summary.instruction(), documents.citations, arguments.schema(documents.schema))
    entries = documents.entries(names, store=options.store)

    loaded = arguments.load_model(documents.model)
    with documents_io.reader(loaded, options, generation) as reader:
        documents_io.check_schema(reader, task)
        answer = summarize_documents(reader, entries, task, summary)
        documents.deliver(reader, answer, task, key="summary", stats=arguments.stats)
