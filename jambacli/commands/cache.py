"""``jamba cache``: how full the store of prefixes is, and emptying it; knows nothing of what is in it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError
from jambacli.units import counted, format_bytes

app = typer.Typer(help="The store of prefixes that no process computes twice.", no_args_is_help=True)


@app.command()
def stats(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Where it is, how much it holds, its budget (JAMBA_CACHE_BUDGET changes it)."""
    from jambacli.cache.prefix_store import PrefixStore

    s = PrefixStore().stats()
    if as_json:
        print(json.dumps(s))
        return
    print(f"{s['path']}: {format_bytes(s['bytes'])} of {format_bytes(s['budget'])}")
    print(
        f"{s['prefixes']:,} prefixes of {counted(s['models'], 'model')}, the longest {s['longest']:,} tokens, "
        f"{s['blobs']:,} blobs"
    )


@app.command()
@o.hushes
def clear(
    document: Annotated[Path | None, typer.Option("--document", help="Only what was read of this file.")] = None,
) -> None:
    """Forget everything, or everything that holds one document. Sessions keep their text and are read again when used."""
    from jambacli.cache.prefix_store import PrefixStore
    from jambacli.engine.prefix_cache import text_hash

    freed = PrefixStore().clear({text_hash(text) for text in _texts(document)} if document else None)
    ui.note(f"freed {format_bytes(freed)}")


def _texts(path: Path) -> list[str]:
    """What a file may have been read as: whole, as chat's /file does, and in the parts that ask and summarize make of it."""
    from jambacli.documents.load import read_file

    document = read_file(path)
    with contextlib.suppress(JambaError):  # a PDF, say
        return [o.read_text(path), *(p.text for p in document.parts)]
    return [p.text for p in document.parts]
