"""``jamba list``: the pulled models, one a line; knows nothing of how they came here."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError
from jambacli.units import format_bytes, format_context, format_count

if TYPE_CHECKING:
    from jambacli.hub.store import Entry


@o.quiet_option
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """List the pulled models: name, size, type, context, and when each was last used."""
    from jambacli.hub.converted_cache import converted_bytes
    from jambacli.hub.store import Store

    store = Store()
    entries, used, unfinished = store.entries(), store.used(), store.unfinished()
    whole = {entry.name: store.complete(entry) for entry in entries}
    # Names that share their files take their disk space once.
    total = sum({tuple(store.paths(entry)): entry.size for entry in entries}.values())
    left = sum(nbytes for _, nbytes in unfinished)
    made, tiny = converted_bytes(), _in_the_box()
    if as_json:
        models = [_as_json(store.paths(e)[0], e, used.get(e.name), whole[e.name]) for e in entries]
        told = {"models": models, "bytes": total, "unfinished_bytes": left, "converted_bytes": made, "embedded": tiny}
        print(json.dumps(told, indent=2))
        return
    if entries:
        rows = [("NAME", "SIZE", "TYPE", "PARAMS", "CONTEXT", "USED")]
        for e in entries:
            when = _ago(used.get(e.name)) if whole[e.name] else "its file is gone: pull it again"
            rows.append(
                (e.name, format_bytes(e.size), e.quant, format_count(e.params), format_context(e.context), when)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        ui.note(f"{len(entries)} model{'s' if len(entries) > 1 else ''}, {format_bytes(total)}")
    else:
        ui.note("no models yet; get one with: jamba pull jamba:3b")
    if left:
        ui.note(
            f"and {format_bytes(left)} of unfinished downloads: pull again to go on, or free it with jamba rm --unfinished"
        )
    if made:
        ui.note(f"and {format_bytes(made)} of checkpoints converted to be run: free it with jamba rm --converted")
    if tiny:
        size = format_bytes(tiny["bytes"])
        ui.note(
            f"and {tiny['name']} ({size}), a demonstration model that comes with the program: jamba run {tiny['name']}"
        )


def _in_the_box() -> dict[str, Any] | None:
    """The model that comes with the program; None where it was lost, or the user gave its name to another."""
    from jambacli.hub import demo

    try:
        path = demo.path_in_the_box()
    except JambaError:
        return None
    return (
        {"name": demo.NAME, "bytes": path.stat().st_size, "path": str(path)} if demo.is_in_the_box(demo.NAME) else None
    )


def _as_json(path: object, entry: Entry, used: float | None, whole: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.size,
        "type": entry.quant,
        "parameters": entry.params,
        "context": entry.context,
        "used": used,
        "pulled": entry.pulled,
        "path": str(path),
        "complete": whole,
        "source": entry.source,
    }


def _ago(then: float | None) -> str:
    if then is None:
        return "never"
    seconds = max(0.0, time.time() - then)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            n = int(seconds // length)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"
