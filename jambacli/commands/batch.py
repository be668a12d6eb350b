"""``jamba batch``: answer a file of requests or prompts, or one question about many files, several at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import documents_io
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.batch_items import Given, NodeTask, keys_of, make_items, worded
from jambacli.commands.inputs import read_text
from jambacli.commands.load import model_path
from jambacli.commands.open_documents import open_documents
from jambacli.commands.reply import write
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing
from jambacli.units import counted, format_bytes

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.batch.items import Item
    from jambacli.batch.part_file import PartFile
    from jambacli.batch.run import BatchResult, Column
    from jambacli.documents.load import Document

# The number of failures that are named one by one.
_FAULTS = 20
_JSON_LINES = (".jsonl", ".ndjson")


@o.generation_options
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN.jsonl|PROMPTS.txt|FILE...",
            help="Requests in OpenAI's batch format; or prompts, one a line; or with --question files, directories, globs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write all answers to this .jsonl or .csv; default: stdout."
        ),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", help="Ask this about each of the files.")] = None,
    include: documents_io.Include = None,
    exclude: documents_io.Exclude = None,
    ocr: documents_io.Ocr = "auto",
    citations: documents_io.Citations = False,
    schema: documents_io.Schema = None,
    system: t.System = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, help="Requests to run at once; default: up to 16, as memory allows."),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Leave out files that cannot be read; default: they count as failed."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Answer on every node of this Ray cluster; auto: the one this machine is in.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: discard earlier answers and replace the output.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the figures; the answers go to -o.")
    ] = False,
    model: documents_io.Model = None,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Answer many requests together. Run the same command again after a crash: it continues where it stopped."""
    output = documents_io.output_path(output)
    if as_json and output is None:
        raise UsageError("prints the figures", field="json", remedy="name a file for the answers with {output}")
    table = _check_output(output, [] if question is not None else inputs, fresh)
    with importing():
        from jambacli.batch import items as made
        from jambacli.batch.part_file import PartFile
        from jambacli.batch.run import run_batch
        from jambacli.engine.parallel import MOST_IN_BULK, default_parallel

    generation, options = arguments.generation(), arguments.session(system)
    lines: list[str] = []
    documents: list[Document] = []
    unread: list[tuple[int, str, JambaError]] = []  # with the number of documents before
    requests = False
    if question is not None:
        if system is not None:
            raise UsageError("--system goes with prompts; write it into --question")
        documents = open_documents(
            inputs, output, lambda *fault: unread.append(fault), include, exclude, ocr=ocr, store=options.store
        )
        if skip_unreadable:
            _report_skipped(unread)
            unread.clear()
        if not documents and not unread:
            raise JambaError("there is no file that can be read")
    else:
        if include or exclude:
            raise UsageError("--include and --exclude need --question")
        if ocr != "auto":
            raise UsageError("--ocr needs --question")
        requests, lines = _lines(inputs)
        if citations or (requests and (schema is not None or system is not None or table)):
            raise UsageError(
                "--citations needs --question"
                if citations
                else "requests have their own schema and system message, and their answers are JSON lines: "
                "leave out --schema and --system, and write to a .jsonl"
            )
    if model is not None:
        model_path(model)  # an unknown name is reported before anything else is done
    task = documents_io.task_of(question or "", citations, arguments.schema(schema))

    loaded = arguments.load_model(model)
    with documents_io.reader(loaded, options, generation) as reader:
        documents_io.check_schema(reader, task)
        ctx = reader.ctx
        given = Given(requests, lines, documents, task, generation, options)
        items, columns = make_items(loaded, reader, given)
        keys = keys_of(loaded, reader, given)
        for before, name, error in reversed(unread):
            items.insert(before, made.unread_item(name, error, keys, worded))
        if not items:
            raise UsageError("there is nothing to answer")
        # About three characters make a token; what does not fit is refused with its numbers.
        longest = min(ctx, max(item.size for item in items) // 3 + (generation.max_tokens or 1024))
        parallel = parallel or default_parallel(loaded.model, longest, options.kv_type, most=MOST_IN_BULK)
        part = PartFile(output) if output is not None else None
        try:
            if part is not None and not fresh:
                _check_earlier(part, items, output)
            table_columns = columns if table else None
            if ray is not None:
                task_of_node = NodeTask(_model_of_nodes(loaded, model), given, arguments, parallel)
                result = _run(_on_cluster(ray, task_of_node), items, part, output, table_columns, fresh)
            else:
                with reader.engine(parallel=min(parallel, len(items)), commit_ends=False) as engine:
                    result = _run(partial(run_batch, engine), items, part, output, table_columns, fresh)
        finally:
            if part is not None:
                part.close()
    if as_json:
        print(json.dumps(_figures(result, len(items), output), ensure_ascii=False))
    if arguments.stats:
        _show_stats(result)
    if result.failed:
        sys.exit(1)


def _check_output(output: Path | None, inputs: Sequence[str], fresh: bool) -> bool:
    """Whether the output is a table. Raises UsageError or JambaError for an output that cannot be written, or one whose
    file, or file of answers so far, is an input."""
    if output is None:
        return False
    if output.suffix not in (*_JSON_LINES, ".csv"):
        raise UsageError(f"-o {output} is neither .jsonl nor .csv")
    from jambacli.batch.part_file import PartFile

    paths = [Path(name) for name in inputs if name != "-"]
    documents_io.check_output(output, paths)
    documents_io.check_output(PartFile.path_of(output), paths)
    if output.exists() and not fresh and not output.with_name(f"{output.name}.part").exists():
        raise JambaError(f"{output} already exists", remedy="choose another name, or use {fresh} to replace it")
    return output.suffix == ".csv"


def _check_earlier(part: PartFile, items: Sequence[Item], output: Path | None) -> None:
    """Raise JambaError for an output of other requests or options, which would be replaced; note answers that do not count."""
    if not len(part) or any(item.key in part for item in items):
        return
    others = (
        f"{counted(len(part), 'earlier answer')} in {part.path} are of other requests, another model or other options"
    )
    if output is not None and output.exists():
        raise JambaError(
            f"{output} already exists, and the {others}", remedy="choose another name, or use {fresh} to replace it"
        )
    ui.note(f"the {others}; starting over")


def _report_skipped(unread: Sequence[tuple[int, str, JambaError]]) -> None:
    """Warn of the files that are left out."""
    for _, _, error in unread[:_FAULTS]:
        ui.warn(f"{worded(error)}; skipped")
    if len(unread) > _FAULTS:
        ui.warn(f"{counted(len(unread) - _FAULTS, 'more file')} could not be read; skipped")


def _lines(inputs: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether the file holds requests, and its lines."""
    if len(inputs) > 1:
        raise UsageError("there are several files: give one of requests or prompts, or --question to ask about each")
    path = Path(inputs[0])
    text = read_text(path)
    requests = path.suffix in _JSON_LINES or (str(path) == "-" and text.lstrip().startswith("{"))
    return requests, text.split("\n")


def _model_of_nodes(loaded: Jamba, name: str | None) -> str:
    """What the nodes are told to load: the name that was given, or the path of the file where none was."""
    return name if name is not None else str(loaded.path)


def _on_cluster(address: str, task: NodeTask) -> Callable[..., BatchResult]:
    """What answers items on a cluster, with notes on its nodes."""
    from jambacli.batch.cluster import run_on_cluster

    def run(items: Sequence[Item], part: PartFile | None, **callbacks: Any) -> BatchResult:
        return run_on_cluster(
            address,
            task,
            items,
            part,
            group=task.parallel,
            joined=lambda node: ui.note(f"node {node} works"),
            lost=lambda node, why: ui.warn(f"node {node} is lost: {why}"),
            **callbacks,
        )

    return run


def _run(
    answer: Callable[..., BatchResult],
    items: list[Item],
    part: PartFile | None,
    output: Path | None,
    columns: list[Column] | None,
    fresh: bool,
) -> BatchResult:
    """Answer the items with ``answer`` and write the output."""
    from jambacli.batch.run import csv_head, csv_row, json_line, write_output

    if part is not None and fresh:
        part.clear()
    known = sum(item.key in part for item in items) if part is not None else 0
    if known:
        ui.note(f"{known:,} of {counted(len(items), 'request')} were answered before")
    faults = 0

    def failed(item: Item, error: Exception) -> None:
        nonlocal faults
        faults += 1
        if faults <= _FAULTS:
            said = worded(error)
            ui.warn(said if said.startswith(item.name) else f"{item.name}: {said}")
        advance(1)

    def answered(item: Item, record: dict[str, Any]) -> None:
        if part is None:
            write((json_line(record) if columns is None else csv_row(record, columns)).decode())
        advance(1)

    if part is None and columns is not None:
        write(csv_head(columns).decode())
    try:
        left = len(items) - known
        with documents_io.noted(
            "Answering", left, "requests", verb="answered", summary=left > 1, decimals=2
        ) as advance:
            result = answer(items, part, answered=answered, failed=failed)
    except KeyboardInterrupt:
        if part is not None:
            ui.note(f"{len(part):,} of {counted(len(items), 'request')} answered; the same command continues")
        raise
    if part is None:
        for record in result.failed.values():
            write((json_line(record) if columns is None else csv_row(record, columns)).decode())
    else:
        assert output is not None
        write_output(output, items, part, result, columns)
        ui.note(f"written to {output}")
        if not result.failed:
            part.remove()
    if result.failed:
        again = "; the same command tries them again" if part is not None else ""
        ui.warn(f"{len(result.failed):,} of {counted(len(items), 'request')} failed{again}")
    return result


def _figures(result: BatchResult, requests: int, output: Path | None) -> dict[str, Any]:
    """What was done, by name."""
    from jambacli.hardware.peaks import peak_memory

    return {
        "file": str(output),
        "requests": requests,
        "failed": len(result.failed),
        "prompt_tokens": result.prompt_tokens,
        "shared_tokens": result.shared_tokens,
        "generated_tokens": result.generated_tokens,
        "peak_memory_bytes": peak_memory(),
    }


def _show_stats(result: BatchResult) -> None:
    """Print the statistics to stderr."""
    from jambacli.hardware.peaks import peak_memory

    lines = [
        f"prompts  {result.prompt_tokens:,} tokens, {result.shared_tokens:,} of them read with another prompt or before",
        f"replies  {result.generated_tokens:,} tokens",
        f"memory   {format_bytes(peak_memory())} at its peak",
    ]
    print("\n".join(lines), file=sys.stderr)
