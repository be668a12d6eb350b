"""``jamba summarize``: files in, a summary out; knows nothing of how they are read or of what is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import documents_io as r
from jambacli.commands import options as o
from jambacli.startup import importing


@o.hushes
@o.generates
def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, directories, globs, or - for standard input."),
    ] = None,
    length: Annotated[str, typer.Option("--length", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option("--style", metavar="bullets|prose", help="A list or a text.")] = "prose",
    focus: Annotated[str | None, typer.Option("--focus", help="What to pay most attention to.")] = None,
    language: r.Language = None,
    citations: r.Citations = False,
    as_json: r.Json = False,
    schema: r.Schema = None,
    output: r.Output = None,
    model: r.Model = None,
    *,
    given: o.Given,
) -> None:
    """Summarize documents; what was read is kept, and what is longer than the context is read in passes."""
    output = r.output_path(output)
    with importing():
        from jambacli.documents.ask import Wish, summarize_documents

    wish = Wish(length=length, style=style, focus=focus, language=language)
    generation, options = given.generation(), given.session()
    names = list(files or ()) or r.stdin_as_file("there is nothing to summarize: name files, or pipe a text in")
    task = r.task_of(wish.instruction(), citations, schema)
    if model is not None:
        o.model_path(model)  # a name that means nothing is said before long documents are opened
    entries = r.read_entries(names, output)

    loaded = given.load_model(model)
    with r.reader(loaded, options, generation) as reader:
        r.check_schema(reader, task)
        work = summarize_documents(reader, entries, task, wish, tell=ui.note, size=r.say_size)
        r.deliver(reader, work, task, key="summary", output=output, as_json=as_json, stats=given.stats)
