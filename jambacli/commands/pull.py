"""``jamba pull``: a name in, a model in the store out, with a question where it does not fit; knows nothing of hubs."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError
from jambacli.units import format_bytes, format_context

if TYPE_CHECKING:
    from jambacli.hub.preview import Fit
    from jambacli.hub.pull import Request
    from jambacli.hub.store import Entry


class _Instead(Exception):
    """The user would rather have another model."""

    def __init__(self, name: str) -> None:
        self.name = name


@o.quiet_option
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
        typer.Option("--quant", help="This type; made from the checkpoint where no GGUF of it exists, e.g. q4_k_m."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, tag or commit of the repository.")
    ] = None,
    own_name: Annotated[str | None, typer.Option("--name", help="Keep it under this name.")] = None,
    ctx: Annotated[
        str | None, typer.Option("--ctx", "-c", help="It must fit with this context, e.g. 256k; default: what fits.")
    ] = None,
    kv_type: Annotated[str, typer.Option("--kv-type", help="Keys and values as f16, bf16, f32 or q8_0.")] = "f16",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: download also what does not fit.")] = False,
) -> None:
    """Download a model, or go on where it stopped, verify it and keep it under a name."""
    from jambacli.hub import pull as hub
    from jambacli.hub.demo import is_in_the_box
    from jambacli.model.config import KV_TYPES

    if is_in_the_box(name):
        ui.note(f"{name} comes with the program: jamba run {name}")
        return
    kv_type = kv_type.lower()
    if kv_type not in KV_TYPES:
        raise UsageError(f"--kv-type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
    request = hub.Request(quant, revision, own_name, o.context(ctx), kv_type)
    try:
        entry = _pull(name, request, yes)
    except _Instead as chosen:
        entry = _pull(chosen.name, hub.Request(None, None, own_name, request.ctx, kv_type), yes)
    ui.note(f"{entry.name} is ready: jamba run {shlex.quote(entry.name)}")


def _pull(name: str, request: Request, yes: bool) -> Entry:
    from jambacli.hub import pull as hub

    try:
        return hub.pull(name, request, lambda fit: _decide(fit, yes))
    except hub.NeedsConversion as needed:
        if request.quant is None and not (yes or _asked(f"{needed}\nDo that now?")):
            raise
        from jambacli.hub.from_checkpoint import make

        return make(name, needed, request, lambda fit: _decide(fit, yes))


def _decide(fit: Fit, yes: bool) -> None:
    """Say what is coming; ask, or refuse where nobody can be asked, when it does not fit."""
    more = "" if fit.left == fit.size else f", {format_bytes(fit.size - fit.left)} of it here already"
    ui.note(f"{fit.name}: {format_bytes(fit.size)}{more}; {_verdict(fit)}")
    if fit.fits or yes:
        return
    instead = [f"{other.name} ({format_bytes(other.size)})" for other in fit.instead]
    hint = f"; what fits: {', '.join(instead)}" if instead else ""
    if not _can_ask():
        raise JambaError(f"{fit.name} does not fit this machine{hint}; use --yes to download it all the same")
    ui.note(f"It does not fit this machine{hint}.")
    for other in fit.instead:
        if _asked(f"Pull {other.name} instead?"):
            raise _Instead(other.name)
    if not _asked(f"Download {fit.name} all the same?"):
        raise JambaError(f"{fit.name} was not downloaded")


def _verdict(fit: Fit) -> str:
    plan = fit.plan
    need = f"{format_bytes(plan.total)} of memory with {format_context(plan.ctx)} tokens of context"
    if fit.fits:
        best = min(
            plan.fits, key=lambda f: ("fits", "tight", "experts in RAM", "from disk", "too big").index(f.verdict)
        )
        how = {"tight": ", once other programs make room", "experts in RAM": ", some experts in RAM"}.get(
            best.verdict, ""
        )
        return f"needs {need}: fits {best.device.name}{how}"
    free = ", ".join(f"{f.device.name} has {format_bytes(f.device.available)}" for f in plan.fits)
    shorter = f"; with up to {format_context(fit.longest)} it would fit" if fit.longest else ""
    return f"needs {need}, but {free} free{shorter}"


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _asked(question: str) -> bool:
    if not _can_ask():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
