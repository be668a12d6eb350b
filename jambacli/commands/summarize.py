"""``jamba summarize``: summarize files."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli.commands import documents_io as r
from jambacli.commands import options as o
from jambacli.startup import importing


@o.quiet_option
@o.generation_options
def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, directories, globs, or - for standard input."),
    ] = None,
    length: Annotated[str, typer.Option("--length", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option("--style", metavar="bullets|prose", help="Bullet points or prose.")] = "prose",
    focus: Annotated[str | None, typer.Option("--focus", help="What to pay most attention to.")] = None,
    language: r.Language = None,
    citations: r.Citations = False,
    as_json: r.Json = False,
    schema: r.Schema = None,
    output: r.Output = None,
    model: r.Model = None,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Summarize documents. They are read once; what is longer than the context is summarized in parts."""
    output = r.output_path(output)
    with importing():
        from jambacli.documents.ask import SummaryOptions, summarize_documents

    summary = SummaryOptions(length=length, style=style, focus=focus, language=language)
    generation, options = arguments.generation(), arguments.session()
    names = list(files or ()) or r.stdin_as_file("there is nothing to summarize: name files, or pipe in a text")
    task = r.task_of(summary.instruction(), citations, schema)
    if model is not None:
        o.model_path(model)  # an unknown name is reported before long documents are opened
    entries = r.read_entries(names, output)

    loaded = arguments.load_model(model)
    with r.reader(loaded, options, generation) as reader:
        r.check_schema(reader, task)
        answer = summarize_documents(reader, entries, task, summary)
        r.deliver(reader, answer, task, key="summary", output=output, as_json=as_json, stats=arguments.stats)
