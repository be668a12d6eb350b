"""Answers the items of a batch, those that begin alike one after another, and keeps each answer as soon as it is there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.batch.items import Item
from jambacli.batch.part_file import PartFile
from jambacli.errors import JambaError
from jambacli.files import atomic_write

if TYPE_CHECKING:
    from jambacli.engine.batch import BatchEngine
    from jambacli.engine.batch_job import Job


@dataclass
class BatchResult:
    """What became of a batch: how many items were answered, by an earlier run ``reused``, and the items that ``failed``
    with their records; and the tokens of prompts, those of them read for another prompt, and of replies."""

    answered: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    generated_tokens: int = 0
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_batch(
    engine: BatchEngine,
    items: Sequence[Item],
    part: PartFile | None,
    *,
    answered: Callable[[Item, dict[str, Any]], None] = lambda item, record: None,
    failed: Callable[[Item, Exception], None] = lambda item, error: None,
) -> BatchResult:
    """Answer every item that ``part`` does not hold yet, and add it there. The callbacks are called as items end.

    Errors of single items are part of the result. Raises JambaError when ``part`` cannot be written.
    """
    result = BatchResult()
    missing = [item for item in items if part is None or item.key not in part]
    result.reused = len(items) - len(missing)

    def ended(item: Item, job: Job | None, error: Exception | None) -> None:
        if job is not None:
            result.prompt_tokens += len(job.ids)
            result.shared_tokens += job.counters.reused
            result.generated_tokens += len(job.result.ids)
        if error is None:
            try:
                record = item.record(job, None)
            except ValueError as wrong:  # such as a reply that is no JSON
                error = JambaError(f"the answer is not valid: {wrong}")
        if error is not None:
            result.failed[item.key] = item.record(job, error)
            failed(item, error)
            return
        if part is not None:
            part.add(item.key, record)
        result.answered += 1
        answered(item, record)

    ordered = sorted(missing, key=lambda item: item.order)
    engine.run_all(((item, item.request) for item in ordered), ended)
    return result


def write_output(
    path: Path, items: Sequence[Item], part: PartFile, result: BatchResult, columns: Sequence[str] | None
) -> None:
    """Write the records of all items in their order, as JSON lines or with ``columns`` as CSV: the whole file or none."""
    with atomic_write(path) as file:
        if columns is not None:
            file.write(csv_line(columns))
        for item in items:
            record = result.failed[item.key] if item.key in result.failed else part.get(item.key)
            file.write(json_line(record) if columns is None else csv_row(record, columns))


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def csv_columns(first: Sequence[str], schema: Mapping[str, Any] | None, *, citations: bool = False) -> list[str]:
    """The columns of a table: those that identify an item, the schema's properties (or the answer), sources, errors."""
    properties = schema.get("properties") if schema is not None else None
    answer = [name for name in properties if name not in first] if properties else ["answer"]
    return [*first, *answer, *(["citations"] if citations else []), "error"]


def csv_row(record: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    """A record as a row; values that are not plain are JSON."""
    answer = record.get("answer")
    values = {**(answer if isinstance(answer, dict) else {}), **record}
    return csv_line([_cell(values.get(name)) for name in columns])


def csv_line(cells: Sequence[str]) -> bytes:
    """Cells as a line of CSV (RFC 4180, with line feeds)."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
