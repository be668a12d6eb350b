"""``jamba ask``: answer a question about files, or with ``-i`` several."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli.commands import documents_io
from jambacli.commands import options as o
from jambacli.commands.chat import check_terminal, run_chat
from jambacli.commands.document_arguments import DocumentArguments, document_options
from jambacli.commands.inputs import has_input, read_text
from jambacli.errors import UsageError
from jambacli.startup import importing


@o.generation_options
@document_options
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
    *,
    documents: DocumentArguments,
    arguments: o.GenerationArguments,
) -> None:
    """Ask about documents. They are read once; a later question, in any process, computes only the question itself."""
    documents.check()
    with importing():
        from jambacli.documents.ask import ask_documents, question_text

    writes = documents.as_json or documents.json_stream or documents.schema is not None or documents.file is not None
    if interactive and (writes or passes):
        raise UsageError("-i answers in a chat; leave out --json, --json-stream, --schema, --passes and -o")
    if interactive:
        check_terminal()
    generation, options = arguments.generation(), arguments.session()
    names, question = _files_and_question(list(files or ()), interactive)
    if interactive and "-" in names:
        raise UsageError("-i reads questions from standard input; name the documents as files")
    chosen = None if interactive else arguments.schema(documents.schema)  # a chat's replies are texts
    task = documents_io.task_of(question_text(question or "", documents.language), documents.citations, chosen)
    entries = documents.entries(names, store=options.store)

    loaded = arguments.load_model(documents.model)
    with documents_io.reader(loaded, options, generation) as reader:
        if interactive:
            talk = documents_io.chat_about(reader, entries, task, documents.language)
            run_chat(talk, stats=arguments.stats, keep_history=not arguments.no_store, first=question)
            return
        documents_io.check_schema(reader, task)
        answer = ask_documents(reader, entries, task, passes=passes)
        documents.deliver(reader, answer, task, key="answer", stats=arguments.stats)


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
    if words and "-" not in words and has_input():
        question = read_text(None).strip()
        if question:
            return words, question
    raise UsageError('ask needs a question after the files: jamba ask FILE... "QUESTION"')
