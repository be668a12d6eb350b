"""``jamba rm``: removes pulled models, unfinished downloads and converted checkpoints."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jambacli import ui
from jambacli.errors import JambaError, UsageError
from jambacli.units import format_bytes


def rm(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Names of pulled models, as in jamba list.")
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Remove unfinished downloads.")] = False,
    converted: Annotated[
        bool, typer.Option("--converted", help="Remove the GGUFs converted from checkpoint directories.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with what was removed.")] = False,
) -> None:
    """Remove pulled models. Files outside the store (in the hub's cache, or pulled by path) are kept."""
    from jambacli.hub.converted_cache import remove_converted
    from jambacli.hub.demo import is_demo_model
    from jambacli.hub.resolve import find_entry
    from jambacli.hub.store import Store

    if not (names or unfinished or converted):
        raise UsageError("name the models to remove, as in jamba list, or use --unfinished or --converted")
    store = Store()
    found = []
    for name in names or ():
        entry = find_entry(store, name)
        if entry is None and is_demo_model(name):
            raise JambaError(f"{name} comes with the program and cannot be removed")
        if entry is None:
            raise JambaError(f"{name[:100]!a} is not a pulled model; see jamba list")
        found.append(entry)
    removed: list[str] = []
    total = 0
    for entry in found:
        freed = store.remove(entry.name)
        removed.append(entry.name)
        total += freed
        shared = "" if freed or entry.set_id is None else "; another name still uses its files"
        ui.note(f"removed {entry.name}, {format_bytes(freed)} freed{shared}")
    if unfinished:
        total += (freed := store.remove_unfinished())
        ui.note(f"removed unfinished downloads, {format_bytes(freed)} freed")
    if converted:
        total += (freed := remove_converted())
        ui.note(f"removed converted checkpoints, {format_bytes(freed)} freed")
    if as_json:
        print(json.dumps({"removed": removed, "bytes": total}))
