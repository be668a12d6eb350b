"""``jamba sessions``: list, search, show, rename, copy, remove, export and import chats."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands.confirm import confirm
from jambacli.commands.durations import age
from jambacli.errors import JambaError, UsageError
from jambacli.units import counted, format_bytes

if TYPE_CHECKING:
    from jambacli.session.library import SessionSummary

app = typer.Typer(help="The chats saved on this machine.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A session's name.")]
NewName = Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All sessions, the most recently used first, each with the first line of its first message."""
    from jambacli.session import library

    found = list(library.summaries())
    if as_json:
        print(json.dumps([_as_json(s) for s in found], ensure_ascii=False))
        return
    if not found:
        ui.note("no sessions yet; `jamba chat --session NAME` starts one")
        return
    width = max(len(s.name) for s in found)
    for s in found:
        _print_row(s, width, s.title)


@app.command()
def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Words, in any case.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most this many sessions.")] = 50,
    as_json: Json = False,
) -> None:
    """The sessions with a message that holds all these words, or with such a name."""
    from jambacli.session import library

    found = list(library.search(" ".join(text), limit))
    if as_json:
        rows = [
            {**_as_json(f.summary), "role": f.role or None, "excerpt": f.excerpt, "matches": f.matches} for f in found
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not found:
        ui.note("no session holds these words")
    width = max((len(f.summary.name) for f in found), default=0)
    for f in found:
        more = f" (and {counted(f.matches - 1, 'more message')})" if f.matches > 1 else ""
        _print_row(f.summary, width, f"{f.role}: {f.excerpt}{more}" if f.role else f.summary.title)
    if len(found) == limit:
        ui.note(f"the first {limit:,}; --limit shows more")


def _as_json(s: SessionSummary) -> dict[str, Any]:
    row = dataclasses.asdict(s)
    return {**row, "bytes": row.pop("size"), "updated": row.pop("modified")}


def _print_row(s: SessionSummary, width: int, text: str) -> None:
    """A session's figures and a line of text; on a terminal the text has a line of its own, as long as there is room."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.modified))
    figures = (
        f"{s.name:<{width}}  {counted(s.turns, 'turn'):>10}  {s.tokens:>8,} tokens  {format_bytes(s.size):>7}  {when}"
    )
    documents = f"  {counted(s.documents, 'document')}" if s.documents else ""
    line, text = ui.harmless(f"{figures}  {s.model}{documents}"), ui.harmless(text)
    if not sys.stdout.isatty():
        print(f"{line}  {text}".rstrip())
        return
    print(line)
    if text:
        room = max(20, shutil.get_terminal_size().columns - 5)
        print("    " + (text if len(text) <= room else f"{text[: room - 1]}…"))


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
def rename(name: Name, new: NewName, as_json: Json = False) -> None:
    """Give a session another name."""
    from jambacli.session import library

    library.rename(name, new)
    _renamed("renamed", name, new, as_json)


@app.command()
def copy(name: Name, new: NewName, as_json: Json = False) -> None:
    """Copy a session, to go on from it twice. The stored state is shared."""
    from jambacli.session import library

    library.copy(name, new)
    _renamed("copied", name, new, as_json)


def _renamed(what: str, name: str, new: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({what: name, "name": new}, ensure_ascii=False))
    else:
        ui.note(f"{what} {name} to {new}")


@app.command()
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sessions to remove.")] = None,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="Remove all chats without a name of their own.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="TIME", help="Only those last saved before, e.g. 30d or 12h.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove sessions; asks first on a terminal. Their stored state is deleted when the store is full, or by `jamba cache
    clear`."""
    from jambacli.session import library, session_file

    if not (names or unnamed or older_than):
        raise UsageError("name the sessions to remove, or use --unnamed or --older-than")
    chosen = list(dict.fromkeys(session_file.check_name(name) for name in names or ()))
    if not names or unnamed:
        chosen += [n for n in session_file.names() if session_file.is_generated(n) or not unnamed]
    if older_than is not None:
        old = library.older_than(age(older_than))
        chosen = [name for name in chosen if name in old or not session_file.exists(name)]
    removed = _remove(chosen, bool(names), yes) if chosen else []
    if as_json:
        print(json.dumps({"removed": removed}, ensure_ascii=False))
    elif not chosen:
        ui.note("there are no such sessions" if older_than else "there are no unnamed sessions")


def _remove(chosen: list[str], named: bool, yes: bool) -> list[str]:
    """Remove sessions, after a question on a terminal; those that are removed. Sessions that were not named themselves and
    are open elsewhere are left out with a warning."""
    from jambacli.session import library, session_file

    present = [name for name in chosen if session_file.exists(name)]
    if present and not yes:
        some = ", ".join(present[:5]) + (" and others" if len(present) > 5 else "")
        confirm(f"Remove {counted(len(present), 'session')} ({some})?", "nothing was removed")
    removed = []
    for name in chosen:
        try:
            library.remove(name)
        except JambaError as error:
            if named:
                raise
            ui.warn(error.problem)
            continue
        removed.append(name)
        ui.note(f"removed {name}")
    return removed


@app.command()
def export(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; default: NAME.jamba-session, or NAME.md; -: print it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only", help="Leave out the state: a small file, but the text is computed again when used."
        ),
    ] = False,
    md: Annotated[bool, typer.Option("--md", help="Write what was said as Markdown, for people.")] = False,
    as_json: Json = False,
) -> None:
    """Write a session with its state to one file, for `import` on another machine, or as Markdown."""
    if md:
        _export_markdown(name, output, force, as_json)
        return
    from jambacli.session.export import export_session

    path = output or Path(f"{name}.jamba-session")
    if str(path) == "-":
        raise UsageError("- prints only Markdown; add --md, or give the name of a file")
    _written(path, export_session(name, path, force=force, with_state=not text_only), as_json)


def _export_markdown(name: str, output: Path | None, force: bool, as_json: bool) -> None:
    from jambacli.commands.reply import write
    from jambacli.files import atomic_write, refuse_existing
    from jambacli.session import session_file
    from jambacli.session.transcript import to_markdown

    saved = session_file.read(name)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(saved.updated))
    text = to_markdown(saved.turns, title=name, model=saved.model, note=when)
    if output is not None and str(output) == "-":
        write(ui.harmless(text) if sys.stdout.isatty() else text)
        return
    path = output or Path(f"{name}.md")
    refuse_existing(path, force)
    data = text.encode("utf-8", "replace")
    with atomic_write(path) as file:
        file.write(data)
    _written(path, len(data), as_json)


def _written(path: Path, size: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(path), "bytes": size}, ensure_ascii=False))
    else:
        ui.note(f"{path}: {size:,} bytes")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by export.")],
    name: Annotated[str | None, typer.Option("--name", help="Import it under this name.")] = None,
    as_json: Json = False,
) -> None:
    """Import a session from a file made by `export`."""
    from jambacli.session.export import import_session

    imported = import_session(path, name)
    if as_json:
        print(json.dumps({"name": imported}, ensure_ascii=False))
    else:
        ui.note(f"imported as {imported}")
