"""``jamba sessions``: list, show, remove, export and import chats."""

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

app = typer.Typer(help="The chats saved on this machine.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A session's name.")]


@app.command("list")
@o.quiet_option
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
        ui.note("no sessions yet; `jamba chat --session NAME` starts one")
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
@o.quiet_option
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sessions to remove.")] = None,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="Remove all chats without a name of their own.")] = False,
) -> None:
    """Remove sessions. Their stored state is deleted when the store is full, or by `jamba cache clear`."""
    from jambacli.session import session_file

    chosen = list(names or [])
    if unnamed:
        chosen += [n for n in session_file.names() if session_file.is_generated(n)]
    if not chosen and not unnamed:
        raise UsageError("name the sessions to remove, or use --unnamed")
    if not chosen:
        ui.note("there are no unnamed sessions")
    for name in chosen:
        session_file.remove(name)
        ui.note(f"removed {name}")


@app.command()
@o.quiet_option
def export(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; default: NAME.jamba-session.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only", help="Leave out the state: a small file, but the text is computed again when used."
        ),
    ] = False,
) -> None:
    """Write a session with its state to one file, for `import` on another machine."""
    from jambacli.session.export import export_session

    path = output or Path(f"{name}.jamba-session")
    size = export_session(name, path, force=force, with_state=not text_only)
    ui.note(f"{path}: {size:,} bytes")


@app.command("import")
@o.quiet_option
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by export.")],
    name: Annotated[str | None, typer.Option("--name", help="Import it under this name.")] = None,
) -> None:
    """Import a session from a file made by `export`."""
    from jambacli.session.export import import_session

    ui.note(f"imported as {import_session(path, name)}")
