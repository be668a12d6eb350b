"""``jamba preset``: save, list, show and remove presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jambacli import presets, ui
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.errors import BadFileError, UsageError

app = typer.Typer(
    help="System messages, sampling and schemas under a name, for --preset of run, chat, ask, summarize, batch and serve.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A preset's name.")]


@app.command()
@o.preset_options
def save(
    name: Name,
    system: t.System = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE", help="Replies are JSON that follows this schema.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model, where the command line names none.")
    ] = None,
    description: Annotated[str | None, typer.Option("--description", help="A line for the list.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the preset of that name.")] = False,
    as_json: Json = False,
    *,
    arguments: o.PresetArguments,
) -> None:
    """Save a preset. {{ name }} in the system message is filled in by -p name=value when it is used."""
    if description is not None and not description.isprintable():
        raise UsageError("is not one plain line", field="description")
    read = None
    if schema is not None:
        from jambacli.engine.constraints.json_schema import read_schema

        read = read_schema(schema)
    preset = presets.Preset(
        presets.check_name(name),
        Path(),
        description=description or "",
        system=o.system_message(system) or None,
        options=arguments.chosen(),
        schema=read,
        model=model,
    )
    if not (preset.system or preset.options or preset.schema or preset.model):
        raise UsageError("the preset would be empty: give --system, --schema, --model or an option such as --temp")
    path = presets.save(preset, force=force)
    names = preset.variables
    if as_json:
        print(json.dumps({"name": preset.name, "path": str(path), "variables": names}, ensure_ascii=False))
        return
    ui.note(f"saved {path}" + (f"; variables: {', '.join(names)}" if names else ""))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All presets, yours and those that come with the program."""
    found = list(presets.readable())
    if as_json:
        listed = [p.to_json() for p in found if isinstance(p, presets.Preset)]
        keep = ("name", "description", "shipped", "path", "variables")
        print(json.dumps([{k: p[k] for k in keep} for p in listed], ensure_ascii=False))
    for preset in found:
        if isinstance(preset, BadFileError):
            ui.warn(preset.worded())
    good = [p for p in found if isinstance(p, presets.Preset)]
    if as_json or not good:
        return
    width = max(len(p.name) for p in good)
    for p in good:
        about = p.description or (p.system or "").partition("\n")[0][:60]
        print(ui.harmless(f"{p.name:<{width}}  {'shipped' if p.shipped else 'yours  '}  {about}".rstrip()))


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """The text of a preset, as in its file."""
    preset = presets.find(name)
    if as_json:
        print(json.dumps(preset.to_json(), ensure_ascii=False))
        return
    print(ui.harmless(presets.as_toml(preset)), end="")
    ui.note(f"file: {preset.path}")


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Presets to remove.")], as_json: Json = False
) -> None:
    """Remove presets of yours. Those that come with the program stay."""
    for name in names:
        presets.remove(name)
        ui.note(f"removed {name}")
    if as_json:
        print(json.dumps({"removed": names}, ensure_ascii=False))
