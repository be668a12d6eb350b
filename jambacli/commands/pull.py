"""``jamba pull``: downloads a model by name; asks first when it does not fit this machine."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError
from jambacli.units import format_bytes, format_context

if TYPE_CHECKING:
    from jambacli.hub.pick_file import Conversion
    from jambacli.hub.preview import DownloadFit
    from jambacli.hub.pull import PullOptions
    from jambacli.hub.store import StoreEntry


class _Instead(Exception):
    """The user chose another model."""

    def __init__(self, name: str) -> None:
        self.name = name


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="jamba:q4_0, OWNER/REPO:Q4_K_M, OWNER/REPO/FILE.gguf, ollama:NAME:TAG, or a .gguf's path.",
        ),
    ],
    quant: Annotated[
        str | None,
        typer.Option("--quant", help="The type, e.g. q4_k_m; quantized from the checkpoint if there is no such GGUF."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, tag or commit of the repository.")
    ] = None,
    own_name: Annotated[str | None, typer.Option("--name", help="Register it under this name.")] = None,
    ctx: Annotated[
        str | None,
        typer.Option(
            "--ctx",
            "-c",
            help="Check that it fits with this context length, e.g. 256k; default: the longest that fits.",
        ),
    ] = None,
    kv_type: Annotated[
        str, typer.Option("--kv-type", help="Keys and values as f16, bf16, f32, q8_0, q5_1 or q4_0.")
    ] = "f16",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; download even what does not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the name and the files.")] = False,
) -> None:
    """Download a model, or resume its download, verify it and register it under a name."""
    from jambacli.cache.fingerprint import record
    from jambacli.hub import pull as hub
    from jambacli.hub.demo import DEMO_NAME, demo_model_path, is_demo_model
    from jambacli.hub.store import Store
    from jambacli.model.config import KV_TYPES

    if is_demo_model(name):
        ui.note(f"{name} comes with the program; run it with: jamba run {name}")
        if as_json:
            print(json.dumps({"name": DEMO_NAME, "files": [str(demo_model_path())]}))
        return
    kv_type = kv_type.lower()
    if kv_type not in KV_TYPES:
        raise UsageError(f"--kv-type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
    options = hub.PullOptions(quant, revision, own_name, o.context(ctx), kv_type)
    try:
        entry = _pull(name, options, yes)
    except _Instead as chosen:
        entry = _pull(chosen.name, hub.PullOptions(None, None, own_name, options.ctx, kv_type), yes)
    paths = Store().paths(entry)
    for path in paths[:1]:
        record(path)
    if as_json:
        shown = {"name": entry.name, "bytes": entry.size, "type": entry.quant, "files": [str(path) for path in paths]}
        print(json.dumps(shown))
    ui.note(f"{entry.name} is ready: jamba run {shlex.quote(entry.name)}")


def _pull(name: str, options: PullOptions, yes: bool) -> StoreEntry:
    from jambacli.hub import pull as hub
    from jambacli.hub.pick_file import NoSuchGGUF

    def decide(fit: DownloadFit) -> None:
        _decide(fit, yes)

    try:
        return hub.pull(name, options, decide, progress=ui.progress, transfers=ui.transfers)
    except NoSuchGGUF as error:
        if error.offer is None:
            raise
        raise JambaError(f"{error.problem}; or make it from the checkpoint with: {_command(error.offer)}") from error
    except hub.NeedsConversion as needed:
        how = f"{needed.problem}; convert and quantize it in one step with: {_command(needed.offer)}"
        if options.quant is None and not (yes or ui.asked(f"{how}\nDo that now?")):
            raise JambaError(how) from needed
        from jambacli.hub.from_checkpoint import make_from_checkpoint

        return make_from_checkpoint(name, needed.offer, options, decide, progress=ui.progress, transfers=ui.transfers)


def _command(offer: Conversion) -> str:
    return f"jamba pull {offer.name} --quant {offer.quant.lower()}"


def _decide(fit: DownloadFit, yes: bool) -> None:
    """Show the model's size and whether it fits. If it does not fit, ask, or refuse without a terminal."""
    more = "" if fit.to_download == fit.size else f", {format_bytes(fit.size - fit.to_download)} already downloaded"
    ui.note(f"{fit.name}: {format_bytes(fit.size)}{more}; {_verdict(fit)}")
    if fit.fits or yes:
        return
    fitting = [f"{other.name} ({format_bytes(other.size)})" for other in fit.alternatives]
    hint = f"; what fits: {', '.join(fitting)}" if fitting else ""
    if not ui.can_ask():
        raise JambaError(f"{fit.name} does not fit this machine{hint}; use --yes to download it anyway")
    ui.note(f"It does not fit this machine{hint}.")
    for other in fit.alternatives:
        if ui.asked(f"Pull {other.name} instead?"):
            raise _Instead(other.name)
    if not ui.asked(f"Download {fit.name} anyway?"):
        raise JambaError(f"{fit.name} was not downloaded")


def _verdict(fit: DownloadFit) -> str:
    plan = fit.plan
    need = f"{format_bytes(plan.total)} of memory with {format_context(plan.ctx)} tokens of context"
    if fit.fits:
        best = min(
            plan.fits,
            key=lambda f: ("fits", "tight", "experts in RAM", "from disk", "too big", "unsupported").index(f.verdict),
        )
        how = {"tight": " once other programs free memory", "experts in RAM": " with some experts in RAM"}.get(
            best.verdict, ""
        )
        return f"needs {need}: fits {best.device.name}{how}"
    free = ", ".join(f"{f.device.name} has {format_bytes(f.device.available)}" for f in plan.fits)
    shorter = f"; it would fit with up to {format_context(fit.longest_ctx)} tokens" if fit.longest_ctx else ""
    return f"needs {need}, but {free} free{shorter}"
