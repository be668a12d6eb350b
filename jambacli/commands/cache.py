"""``jamba cache``: what is stored where, and clearing it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import ui
from jambacli.commands.confirm import confirm
from jambacli.commands.durations import age
from jambacli.commands.inputs import read_text
from jambacli.errors import JambaError, UsageError
from jambacli.units import counted, format_bytes

if TYPE_CHECKING:
    from jambacli.storage import StoredPlace

app = typer.Typer(help="What is stored on this machine, and where.", no_args_is_help=True)

#: The command that deletes what lies in a place.
_CLEAR = {
    "sessions": "jamba sessions rm",
    "models": "jamba rm MODEL",
    "unfinished": "jamba rm --unfinished",
    "converted": "jamba rm --converted",
    **dict.fromkeys(("prefixes", "replies", "ocr"), "jamba cache clear"),
}


@app.command()
def stats(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show all that is stored: where, how large, and what deletes it. JAMBA_CACHE_BUDGET sets the budget of the prefixes."""
    from jambacli.cache.prefix_store import PrefixStore
    from jambacli.storage import stored_places

    places = stored_places()
    s = PrefixStore().stats()
    total = sum(place.size for place in places)
    if as_json:
        rows = [
            {
                "name": p.name,
                "path": str(p.path),
                "bytes": p.size,
                "files": p.files,
                "yours": p.yours,
                "clear": _CLEAR.get(p.name, ""),
            }
            for p in places
        ]
        print(json.dumps({**s, "total_bytes": total, "places": rows}))
        return
    for title, yours in (("yours, never cleared", True), ("can be pulled or computed again", False)):
        print(f"{title}:")
        for p in places:
            if p.yours == yours:
                print(_row(p))
    print(f"{'total':<12}{format_bytes(total):>9}")
    print(
        f"{s['prefixes']:,} prefixes of {counted(s['models'], 'model')}, the longest {s['longest']:,} tokens; "
        f"{format_bytes(s['bytes'])} of {format_bytes(s['budget'])} used"
    )


def _row(place: StoredPlace) -> str:
    end = f"   ({_CLEAR[place.name]})" if place.name in _CLEAR and place.files else ""
    return f"  {place.name:<10}{format_bytes(place.size):>9}  {counted(place.files, 'file'):>12}  {place.path}{end}"


@app.command()
def clear(
    document: Annotated[
        Path | None, typer.Option("--document", help="Delete only what was stored of this file.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="TIME", help="Delete only what was last used before, e.g. 30d or 12h."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Delete stored prefixes, replies and recognized pages; asks first on a terminal. Sessions stay: their text is read again
    when they are used."""
    from jambacli.cache.prefix_store import PrefixStore, text_hash
    from jambacli.files import remove_unfinished

    if document is not None and older_than is not None:
        raise UsageError("give --document or --older-than, not both")
    seconds = 0.0 if older_than is None else age(older_than)
    store = PrefixStore()
    if not yes:
        what = f"what was stored of {document}" if document else "prefixes, replies and recognized pages"
        old = f" not used for {older_than}" if older_than else ""
        confirm(f"Delete {what}{old} ({format_bytes(store.stats()['bytes'])} are stored)?", "nothing was deleted")
    remove_unfinished()
    hashes = {text_hash(text) for text in _texts(document)} if document else None
    freed = store.clear(hashes, older_than=seconds)
    if as_json:
        print(json.dumps({"freed_bytes": freed}))
    else:
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
        texts.append(read_text(path))
    return texts
