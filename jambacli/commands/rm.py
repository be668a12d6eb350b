"""``jamba rm``: forgets models by name and frees their disk space; knows nothing of how they are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError
from jambacli.units import format_bytes


@o.quiet_option
def rm(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Pulled names, as jamba list has them.")
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Remove what broken-off downloads left.")] = False,
    converted: Annotated[
        bool, typer.Option("--converted", help="Remove the files made of checkpoint directories that were run.")
    ] = False,
) -> None:
    """Remove pulled models; files that were only referred to (the hub's cache, a path) stay where they are."""
    from jambacli.hub.converted_cache import remove_converted
    from jambacli.hub.demo import is_in_the_box
    from jambacli.hub.resolve import find_entry
    from jambacli.hub.store import Store

    if not (names or unfinished or converted):
        raise UsageError("name the models to remove, as jamba list has them, or use --unfinished or --converted")
    store = Store()
    found = []
    for name in names or ():
        entry = find_entry(store, name)
        if entry is None and is_in_the_box(name):
            raise JambaError(f"{name} comes with the program and goes with it")
        if entry is None:
            raise JambaError(f"{name[:100]!a} is not a pulled model; see jamba list")
        found.append(entry)
    for entry in found:
        freed = store.remove(entry.name)
        shared = "" if freed or entry.set_id is None else "; another name still has its files"
        ui.note(f"removed {entry.name}, {format_bytes(freed)} freed{shared}")
    if unfinished:
        ui.note(f"removed unfinished downloads, {format_bytes(store.remove_unfinished())} freed")
    if converted:
        ui.note(f"removed converted checkpoints, {format_bytes(remove_converted())} freed")
