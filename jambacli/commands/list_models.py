"""``jamba list``: the pulled models, one per line."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.errors import JambaError
from jambacli.units import format_bytes, format_context, format_count

if TYPE_CHECKING:
    from jambacli.hub.store import StoreEntry


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the pulled models: name, size, type, context, and when each was last used."""
    from jambacli.files import remove_unfinished
    from jambacli.hub.converted_cache import converted_bytes
    from jambacli.hub.store import Store

    store = Store()
    home = store.root.parent
    if home.exists() and not home.is_dir():
        ui.warn(f"{home} is not a folder, so it holds no models; set JAMBA_HOME to a folder")
    remove_unfinished()
    entries, used, unfinished = store.entries(), store.use_times(), store.unfinished()
    complete = {entry.name: store.is_complete(entry) for entry in entries}
    # Names that share files count them once.
    total = sum({tuple(store.paths(entry)): entry.size for entry in entries}.values())
    partial = sum(nbytes for _, nbytes in unfinished)
    converted, demo = converted_bytes(), _demo_model()
    if as_json:
        models = [_as_json(store.paths(e)[0], e, used.get(e.name), complete[e.name]) for e in entries]
        listing = {
            "models": models,
            "bytes": total,
            "unfinished_bytes": partial,
            "converted_bytes": converted,
            "embedded": demo,
        }
        print(json.dumps(listing, indent=2))
        return
    if entries:
        rows = [("NAME", "SIZE", "TYPE", "PARAMS", "CONTEXT", "USED")]
        for e in entries:
            when = _ago(used.get(e.name)) if complete[e.name] else "files are missing: pull it again"
            rows.append(
                (e.name, format_bytes(e.size), e.quant, format_count(e.params), format_context(e.context), when)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        ui.note(f"{len(entries)} model{'s' if len(entries) > 1 else ''}, {format_bytes(total)}")
    else:
        ui.note("no models yet; get one with: jamba pull jamba:3b")
    if partial:
        ui.note(
            f"unfinished downloads: {format_bytes(partial)}; pull again to resume, or remove them with jamba rm --unfinished"
        )
    if converted:
        ui.note(f"converted checkpoints: {format_bytes(converted)}; remove them with jamba rm --converted")
    if demo:
        size = format_bytes(demo["bytes"])
        ui.note(f"demo model: {demo['name']} ({size}), comes with the program; run it with jamba run {demo['name']}")


def _demo_model() -> dict[str, Any] | None:
    """The demo model as JSON; None when its file is missing or the user's alias table gives its name to another model."""
    from jambacli.hub import demo

    try:
        path = demo.demo_model_path()
    except JambaError:
        return None
    if not demo.is_demo_model(demo.DEMO_NAME):
        return None
    return {"name": demo.DEMO_NAME, "bytes": path.stat().st_size, "path": str(path)}


def _as_json(path: object, entry: StoreEntry, used: float | None, complete: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.size,
        "type": entry.quant,
        "parameters": entry.params,
        "context": entry.context,
        "used": used,
        "pulled": entry.pulled,
        "path": str(path),
        "complete": complete,
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
