"""``jamba config``: the user's defaults, where each value comes from, and the environment variables that are looked at."""

from __future__ import annotations

import json
import os
import shutil
from typing import Annotated, Any

import typer

from jambacli import settings, ui
from jambacli.commands import common
from jambacli.errors import BadFileError, JambaError

app = typer.Typer(
    help="The options that hold where the command line gives none. "
    "A flag comes before an environment variable, that before the file, and that before the model's own.",
    invoke_without_command=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A setting, such as model, temp or threads.")]

#: Variables besides those of settings, and what they are for.
VARIABLES = {
    "JAMBA_HOME": "the folder of models, sessions, presets, prefixes and settings",
    "JAMBA_CONFIG": "the file of settings",
    "JAMBA_CACHE_BUDGET": "how large the stored prefixes may become, such as 20G",
    "JAMBA_CPU_ISA": "the instruction set to use at most: generic, avx2, avxvnni, avx512, vnni, amx",
    "JAMBA_CPU_POOL": "own: threads of this program in place of OpenMP's",
    "JAMBA_API_KEY": "the key that requests to jamba serve need",
    "JAMBA_UPSTREAM_KEY": "the key for the server behind jamba serve --upstream",
    "JAMBA_OLLAMA_REGISTRY": "the registry of names that begin with ollama:",
    "OLLAMA_MODELS": "where Ollama keeps its models, which are not downloaded twice",
    "HF_TOKEN": "the token for private repositories of the Hugging Face hub",
    "HF_ENDPOINT": "another server in place of the Hugging Face hub",
    "HF_HUB_OFFLINE": "1: no downloads",
    "CUDA_VISIBLE_DEVICES": "the GPUs to use",
    "PAGER": "the command that shows long texts",
    "NO_COLOR": "any text: no colours",
}
# Variables whose values are not shown.
_SECRET = ("JAMBA_API_KEY", "JAMBA_UPSTREAM_KEY", "HF_TOKEN")


@app.callback()
def show(ctx: typer.Context, as_json: Json = False) -> None:
    """Show every value and where it is set, if no subcommand is given."""
    if ctx.invoked_subcommand is None:
        _list(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show every value and where it is set; the same as `jamba config`."""
    _list(as_json)


@app.command()
def get(name: Name, as_json: Json = False) -> None:
    """Print one value; nothing where it is not set."""
    setting = settings.known(name)
    found = settings.find(setting.name)
    if as_json:
        print(json.dumps(_row(setting, found, None), ensure_ascii=False))
    elif found is not None:
        print(_shown(found.value))


@app.command("set")
def set_(
    name: Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value; on or off for a switch.")],
    as_json: Json = False,
) -> None:
    """Set a value in the file. Comments and other lines of the file stay."""
    setting = settings.known(name)
    if setting.name == "model":
        _note_unknown_model(value)
    path = settings.write(name, value)
    if as_json:
        row = {"name": setting.name, "value": setting.parse(value), "file": str(path)}
        print(json.dumps(row, ensure_ascii=False))
    else:
        ui.note(f"{setting.name} = {_shown(setting.parse(value))} in {path}")
    if os.environ.get(setting.variable, "").strip():
        ui.warn(f"{setting.variable} is set and comes before the file")


@app.command()
def unset(name: Name, as_json: Json = False) -> None:
    """Remove a value from the file."""
    setting = settings.known(name)
    had = setting.name in settings.read_file(settings.config_path())
    path = settings.write(name, None)
    if as_json:
        print(json.dumps({"name": setting.name, "removed": had, "file": str(path)}, ensure_ascii=False))
    else:
        ui.note(f"{setting.name} removed from {path}" if had else f"{setting.name} is not set in {path}")


@app.command()
def path(as_json: Json = False) -> None:
    """Print the path of the file, whether it exists or not."""
    file = settings.config_path()
    print(json.dumps({"path": str(file), "exists": file.exists()}, ensure_ascii=False) if as_json else file)


def _note_unknown_model(name: str) -> None:
    """Warn of a model that is not on this machine: it may be pulled later."""
    from jambacli.hub.resolve import resolve_model

    try:
        resolve_model(name)
    except JambaError as error:
        ui.warn(error.worded())


def _list(as_json: bool) -> None:
    file = settings.config_path()
    rows, problem = [], None
    for setting in settings.SETTINGS.values():
        try:
            found, wrong = settings.find(setting.name), None
        except BadFileError as error:
            found, wrong, problem = None, None, error.worded()
        except JambaError as error:
            found, wrong = None, error.worded()
        rows.append(_row(setting, found, wrong))
    variables = [_variable(name, about) for name, about in VARIABLES.items()]
    if as_json:
        shown = {"path": str(file), "exists": file.exists(), "problem": problem, "settings": rows}
        print(json.dumps({**shown, "environment": variables}, indent=2, ensure_ascii=False))
        return
    lines = []
    for row in rows:
        if row["problem"] is not None:
            value, where = "(wrong)", row["problem"]
        elif row["source"] is None:
            value, where = f"({row['unset']})", ""
        else:
            value, where = _shown(row["value"]), row["where"]
        lines.append((row["name"], value, where))
    width = shutil.get_terminal_size((100, 24)).columns
    names = max(len(name) for name, _, _ in lines)
    values = min(max(len(value) for _, value, _ in lines), max(20, width - names - 24))
    for name, value, where in lines:
        print(ui.harmless(f"{name:<{names}}  {value:<{values}}  {where}".rstrip()))
    given = [v for v in variables if v["set"]]
    if given:
        print("\nOther environment variables:")
        for v in given:
            print(ui.harmless(f"{v['name']} = {v['value'] or '(not shown)'}  ({v['about']})"))
    ui.note(f"file: {file}{'' if file.exists() else ' (not there yet)'}; other variables: jamba config --json")
    if problem is not None:
        ui.warn(problem)


def _row(setting: settings.Setting, found: settings.Value | None, problem: str | None) -> dict[str, Any]:
    return {
        "name": setting.name,
        "value": None if found is None else found.value,
        "source": None if found is None else found.source,
        "where": None if found is None else found.where,
        "unset": setting.unset,
        "variable": setting.variable,
        "about": common.first_sentence(setting.about),
        "problem": problem,
    }


def _variable(name: str, about: str) -> dict[str, Any]:
    value = os.environ.get(name)
    shown = None if name in _SECRET else value
    return {"name": name, "set": value is not None, "value": shown, "about": about}


def _shown(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
