"""``jamba cache``: how full the store of prefixes is, and emptying it; knows nothing of what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.units import format_bytes

app = typer.Typer(help="The store of prefixes that no process computes twice.", no_args_is_help=True)


@app.command()
def stats(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Where it is, how much it holds, its budget (JAMBA_CACHE_BUDGET changes it)."""
    from jambacli.engine.store import PrefixStore

    s = PrefixStore().stats()
    if as_json:
        print(json.dumps(s))
        return
    print(f"{s['path']}: {format_bytes(s['bytes'])} of {format_bytes(s['budget'])}")
    print(
        f"{s['prefixes']:,} prefixes of {s['models']} models, the longest {s['longest']:,} tokens, {s['blobs']:,} blobs"
    )


@app.command()
def clear(
    document: Annotated[Path | None, typer.Option("--document", help="Only what was read of this text file.")] = None,
) -> None:
    """Forget everything, or everything that holds one document. Sessions keep their text and are read again when used."""
    from jambacli.engine.persist import text_hash
    from jambacli.engine.store import PrefixStore

    freed = PrefixStore().clear(text_hash(o.read_text(document)) if document else None)
    ui.note(f"freed {format_bytes(freed)}")
