"""``jamba run``: answer one prompt."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import documents_io
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.inputs import has_input, read_text
from jambacli.commands.load import one_model
from jambacli.commands.reply import figures_of_reply, show_stats, stream, write, write_json
from jambacli.errors import BadFileError, UsageError


@o.generation_options
def run(
    first: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: the last used.")
    ] = None,
    second: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; -: standard input.")] = None,
    model_name: t.Model = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read (more of) the prompt from a file.")] = None,
    system: t.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the text and statistics, not streamed.")
    ] = False,
    json_stream: documents_io.JsonStream = False,
    schema: documents_io.Schema = None,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Answer a prompt: from the command line, a file, standard input, or all of them together."""
    documents_io.check_json(as_json, json_stream)
    name, words = _model_and_prompt(first, second)
    name = one_model(name, model_name)
    prompt = _prompt(words, file)
    ui.starting(name)
    generation, options = arguments.generation(), arguments.session(system)
    generation = replace(generation, schema=arguments.schema(schema))
    if raw and (arguments.think or arguments.chat_template is not None):
        raise UsageError(
            "works without the chat template", field="raw", remedy="leave it out, or {think} and {chat_template}"
        )

    model = arguments.load_model(name)
    session = model.session(options)
    with _raw_offered():
        if not raw and model.template is None:
            ui.note(f"{model.name} has no chat template: continuing the prompt as plain text, as with --raw")
            raw = True
        if raw and options.system:
            raise UsageError(
                "a system message needs the chat template; leave out --raw, --system and --preset, or put it into the prompt"
            )
        say = session.complete if raw else session.send
        pieces = say(prompt, progress=ui.progress, options=generation)
    with session:
        text, interrupted = stream(pieces, not as_json, session, as_json=json_stream)
        if not as_json and not json_stream and text and not text.endswith("\n"):
            write("\n")
    figures = figures_of_reply(model, session)
    if json_stream:
        write_json({"done": True, "model": model.name, **figures})
    if as_json:
        print(json.dumps({"model": model.name, "text": text, **figures}, ensure_ascii=False))
    if arguments.stats:
        show_stats(figures)
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _raw_offered() -> Iterator[None]:
    """Name the way out that this command has besides another template when the model's own does not work."""
    try:
        yield
    except BadFileError as error:
        from jambacli.text.template import TemplateError

        if not isinstance(error, TemplateError):
            raise
        remedy = f"{error.remedy}, or continue plain text with {{raw}}"
        raise BadFileError(error.path, error.problem_in_file, remedy=remedy) from error


def _model_and_prompt(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """Separate the model from the prompt: a single word is a model only if it names one."""
    from jambacli.hub.resolve import is_model_name

    if second is not None or first is None:
        return first, second
    if first == "-":
        return None, first
    return (first, None) if is_model_name(first) else (None, first)


def _prompt(words: str | None, file: Path | None) -> str:
    """The prompt: the words, the file, and standard input, which ``-`` in place of words or file reads in any case."""
    given = words == "-" or str(file) == "-"
    parts = [] if words is None or words == "-" else [words]
    if file is not None and str(file) != "-":
        parts.append(read_text(file))
    if given or has_input():
        parts.append(read_text(None))
    prompt = "\n\n".join(p for p in parts if p)
    if not prompt:
        raise UsageError(
            "there is no prompt: give one as an argument, with -f FILE, or on standard input; for a conversation: jamba chat"
        )
    return prompt
