"""The header record of delimited text, which every part of a table begins with."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator

from jambacli.documents.extract.pieces import DocumentPart

# A longer header is not repeated, and records after these are not looked at.
_MAX_HEADER, _RECORDS, _MAX_CHARS = 1000, 50, 64 << 10
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"sep=(.)\s*\n", re.IGNORECASE)


def with_header(parts: list[DocumentPart], text: str, is_table: bool) -> list[DocumentPart]:
    """The parts of a text, each with the table's header before it. ``is_table``: the text is known to be a table; any other
    must look like one."""
    if len(parts) < 2:
        return parts
    found = _header(text[:_MAX_CHARS], is_table)
    if found is None:
        return parts
    header, last = found
    return [p if p.first <= last else DocumentPart(f"{header}\n{p.text}", p.first, p.last, p.label) for p in parts]


def _header(text: str, is_table: bool) -> tuple[str, int] | None:
    """The header and the number of its last line. It is the first record with as many fields as most records have, which
    leaves out lines before the table and the line ``sep=;`` that some spreadsheet programs write."""
    stated = _SEPARATOR.match(text)
    lines = text.split("\n")
    skipped = 1 if stated else 0
    delimiters = stated[1] if stated else _DELIMITERS
    best: tuple[int, int, list[tuple[list[str], int, int]]] | None = None
    for delimiter in delimiters:
        records = list(_records(lines[skipped:], delimiter))
        if not records:
            continue
        fields, times = Counter(len(values) for values, _, _ in records).most_common(1)[0]
        score = times if fields > 1 else 0
        if best is None or score > best[0]:
            best = score, fields, records
    if best is None:
        return None
    score, fields, records = best
    values, first, last = next(record for record in records if len(record[0]) == fields)
    if not (is_table or stated):
        names = [value.strip() for value in values]
        plain = len(set(names)) == len(names) and all(0 < len(n) <= 60 and not n[0].isdigit() for n in names)
        sentences = sum(any(value.startswith(" ") for value in record[1:]) for record, _, _ in records)
        if 2 * sentences > len(records):  # a comma and a space: prose, or a log
            return None
        if fields < 3 or len(records) < 5 or score < 0.95 * len(records) or not plain:
            return None
    header = "\n".join(lines[skipped + first : skipped + last])
    return (header, skipped + last) if 0 < len(header) < _MAX_HEADER else None


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[list[str], int, int]]:
    """The first records that are not blank: their values, and their lines as a range from 0."""
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    before = found = 0
    while found < _RECORDS:
        try:
            values = next(reader)
        except (StopIteration, csv.Error):
            return
        if values and any(value.strip() for value in values):
            found += 1
            yield values, before, reader.line_num
        before = reader.line_num
