"""``jamba ask``: files and a question in, an answer out, and more questions with ``-i``; knows nothing of how."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import documents_io as r
from jambacli.commands import options as o
from jambacli.errors import UsageError
from jambacli.startup import importing


@o.hushes
@o.generates
def ask(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... QUESTION", help="Files, directories, globs, or - for standard input; the question last."
        ),
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Go on asking, as in a chat.")] = False,
    passes: Annotated[
        bool, typer.Option("--passes", help="What is longer than the context is asked part by part.")
    ] = False,
    language: r.Language = None,
    citations: r.Citations = False,
    as_json: r.Json = False,
    schema: r.Schema = None,
    output: r.Output = None,
    model: r.Model = None,
    *,
    given: o.Given,
) -> None:
    """Ask about documents. They are read once; every later question, in any process, costs only itself."""
    output = r.output_path(output)
    with importing():
        from jambacli.documents.ask import ask_documents, question_text

    if interactive and (as_json or schema is not None or output is not None or passes):
        raise UsageError("-i goes on in a chat; leave out --json, --schema, --passes and -o")
    generation, options = given.generation(), given.session()
    names, question = _files_and_question(list(files or ()), interactive)
    if interactive and "-" in names:
        raise UsageError("-i takes its questions from standard input; name the documents as files")
    task = r.task_of(question_text(question or "", language), citations, schema)
    if model is not None:
        o.model_path(model)  # a name that means nothing is said before long documents are opened
    entries = r.read_entries(names, output)

    loaded = given.load_model(model)
    with r.reader(loaded, options, generation) as reader:
        if interactive:
            talk = r.chat_about(reader, entries, task, language)
            r.converse(talk, first=question, stats=given.stats, keep_history=not given.no_store)
            return
        r.check_schema(reader, task)
        work = ask_documents(reader, entries, task, passes=passes, tell=ui.note, size=r.say_size)
        r.deliver(reader, work, task, key="answer", output=output, as_json=as_json, stats=given.stats)


def _files_and_question(words: list[str], interactive: bool) -> tuple[list[str], str | None]:
    """The last word is the question, unless it is a file: then the question is piped in, or comes in the chat."""
    last_is_file = bool(words) and (words[-1] == "-" or r.names_files(words[-1]))
    if words and not last_is_file:
        *names, question = words
        if not question.strip():
            raise UsageError("the question is empty")
        return names or r.stdin_as_file("ask needs files before the question, or a text piped in"), question
    if interactive and words:
        return words, None
    if words and "-" not in words and o.has_input():
        question = o.read_text(None).strip()
        if question:
            return words, question
    raise UsageError('ask needs a question after the files: jamba ask FILE... "QUESTION"')
