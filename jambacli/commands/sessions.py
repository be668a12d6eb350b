"""``jamba sessions``: list, show, remove, export and import chats; knows nothing of how they are made."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import UsageError
from jambacli.units import counted

app = typer.Typer(help="The chats kept on this machine.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A session's name.")]


@app.command("list")
@o.hushes
def list_(as_json: Json = False) -> None:
    """All sessions, the most recently used first."""
    from jambacli.session import session_file

    rows: list[dict[str, Any]] = []
    for name, s in session_file.readable():
        turns = sum(t.get("role") == "user" for t in s.turns)
        rows.append(
            {
                "name": name,
                "model": s.model,
                "turns": turns,
                "tokens": len(s.tokens),
                "kv_type": s.kv_type,
                "updated": s.updated,
            }
        )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        ui.note("no sessions yet; `jamba chat --session NAME` begins one")
        return
    width = max(len(r["name"]) for r in rows)
    for r in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(r["updated"]))
        print(
            f"{r['name']:<{width}}  {counted(r['turns'], 'turn'):>10}  {r['tokens']:>8,} tokens  {when}  "
            f"{ui.harmless(r['model'])}"
        )


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """The text of a session."""
    from jambacli.session import session_file

    s = session_file.read(name)
    if as_json:
        keep = ("role", "content", "thoughts")
        turns = [{k: t[k] for k in keep if k in t} for t in s.turns]
        print(
            json.dumps(
                {"name": name, "model": s.model, "kv_type": s.kv_type, "ctx": s.ctx, "turns": turns}, ensure_ascii=False
            )
        )
        return
    for turn in s.turns:
        text = f"[{turn['role']}]\n{turn.get('content', '')}\n"
        print(ui.harmless(text) if sys.stdout.isatty() else text)


@app.command()
@o.hushes
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sessions to remove.")] = None,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="All that were given no name.")] = False,
) -> None:
    """Remove sessions. What the store keeps of them goes when its room is needed, or with `jamba cache clear`."""
    from jambacli.session import session_file

    chosen = list(names or [])
    if unnamed:
        chosen += [n for n in session_file.names() if session_file.is_generated(n)]
    if not chosen and not unnamed:
        raise UsageError("name the sessions to remove, or say --unnamed")
    if not chosen:
        ui.note("there are no unnamed sessions")
    for name in chosen:
        session_file.remove(name)
        ui.note(f"removed {name}")


@app.command()
@o.hushes
def export(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The archive; default: NAME.jamba-session.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Without the state: small, re-read when used.")
    ] = False,
) -> None:
    """Write a session, its state included, to one file that `import` reads on another machine."""
    from jambacli.session import export

    path = output or Path(f"{name}.jamba-session")
    size = export.export(name, path, force=force, with_state=not text_only)
    ui.note(f"{path}: {size:,} bytes")


@app.command("import")
@o.hushes
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An archive made by export.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for it here.")] = None,
) -> None:
    """Take in a session made by `export`."""
    from jambacli.session import export

    ui.note(f"imported as {export.import_(path, name)}")
