"""``jamba ask``: answer a question about files, or with ``-i`` several."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli.commands import documents_io
from jambacli.commands import options as o
from jambacli.commands.chat import run_chat
from jambacli.commands.open_documents import read_entries
from jambacli.errors import UsageError
from jambacli.startup import importing


@o.generation_options
def ask(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... QUESTION", help="Files, directories, globs, or - for standard input; the question last."
        ),
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Keep asking, in a chat.")] = False,
    passes: Annotated[
        bool, typer.Option("--passes", help="Ask part by part if the documents are longer than the context.")
    ] = False,
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
    """Ask about documents. They are read once; a later question, in any process, computes only the question itself."""
    documents_io.check_json(as_json, json_stream)
    output = documents_io.output_path(output)
    if json_stream and output is not None:
        raise UsageError("--json-stream goes to standard output: leave out -o")
    with importing():
        from jambacli.documents.ask import ask_documents, question_text

    if interactive and (as_json or json_stream or schema is not None or output is not None or passes):
        raise UsageError("-i answers in a chat; leave out --json, --json-stream, --schema, --passes and -o")
    generation, options = arguments.generation(), arguments.session()
    names, question = _files_and_question(list(files or ()), interactive)
    if interactive and "-" in names:
        raise UsageError("-i reads questions from standard input; name the documents as files")
    chosen = None if interactive else arguments.schema(schema)  # a chat's replies are texts
    task = documents_io.task_of(question_text(question or "", language), citations, chosen)
    if model is not None:
        o.model_path(model)  # an unknown name is reported before long documents are opened
    entries = read_entries(names, output, include, exclude, ocr=ocr, store=options.store)

    loaded = arguments.load_model(model)
    with documents_io.reader(loaded, options, generation) as reader:
        if interactive:
            talk = documents_io.chat_about(reader, entries, task, language)
            run_chat(talk, stats=arguments.stats, keep_history=not arguments.no_store, first=question)
            return
        documents_io.check_schema(reader, task)
        answer = ask_documents(reader, entries, task, passes=passes)
        documents_io.deliver(
            reader,
            answer,
            task,
            key="answer",
            output=output,
            as_json=as_json,
            json_stream=json_stream,
            stats=arguments.stats,
        )


def _files_and_question(words: list[str], interactive: bool) -> tuple[list[str], str | None]:
    """The last word is the question. If it is a file, the question is piped in, or asked in the chat."""
    from jambacli.documents.paths import names_files

    last_is_file = bool(words) and (words[-1] == "-" or names_files(words[-1]))
    if words and not last_is_file:
        *names, question = words
        if not question.strip():
            raise UsageError("the question is empty")
        return names or documents_io.stdin_as_file("ask needs files before the question, or a text piped in"), question
    if interactive and words:
        return words, None
    if words and "-" not in words and o.has_input():
        question = o.read_text(None).strip()
        if question:
            return words, question
    raise UsageError('ask needs a question after the files: jamba ask FILE... "QUESTION"')
