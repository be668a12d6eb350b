"""``jamba cache``: the size of the prefix store, and clearing it."""

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

app = typer.Typer(help="The prefixes stored on this machine, so that none is computed twice.", no_args_is_help=True)


@app.command()
def stats(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the location, size and budget of the store (JAMBA_CACHE_BUDGET sets the budget)."""
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
def clear(
    document: Annotated[
        Path | None, typer.Option("--document", help="Delete only what was stored of this file.")
    ] = None,
) -> None:
    """Delete everything, or everything that contains one document. Sessions keep their text, which is read again when used."""
    from jambacli.cache.prefix_store import PrefixStore, text_hash
    from jambacli.files import remove_unfinished

    remove_unfinished()
    freed = PrefixStore().clear({text_hash(text) for text in _texts(document)} if document else None)
    ui.note(f"freed {format_bytes(freed)}")


def _texts(path: Path) -> list[str]:
    """The texts a file may have been stored as: the whole file, or the parts that become documents, also as they were
    recognized. What was recognized is deleted."""
    from jambacli.documents.extract.sandbox import Sandbox
    from jambacli.documents.load import read_file
    from jambacli.documents.ocr import stored_requests

    texts = []
    for request in stored_requests(forget=True):
        with contextlib.suppress(JambaError), Sandbox(ocr=request) as sandbox:
            texts += [part.text for part in read_file(path, sandbox).parts]
    try:
        texts += [part.text for part in read_file(path).parts]
    except JambaError:
        if not texts:
            raise
    with contextlib.suppress(JambaError):  # a PDF, say
        texts.append(o.read_text(path))
    return texts
