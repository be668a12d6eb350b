"""``jamba chat``: a conversation in the terminal, or turn by turn from a pipe; knows nothing of how it is kept."""

from __future__ import annotations

import itertools
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jambacli.engine.chat import Chat


def chat(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; left out: the last used.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Begin a session of that name, or go on with it.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Look at a session without changing it.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    overflow: Annotated[bool, typer.Option("--overflow", help="At the context limit, drop the oldest turns.")] = False,
    temp: o.Temp = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    min_p: o.MinP = None,
    typical_p: o.TypicalP = None,
    repeat_penalty: o.RepeatPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    penalty_last_n: o.PenaltyLastN = None,
    logit_bias: o.LogitBias = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    stop: o.Stop = None,
    ctx: o.Ctx = None,
    kv_type: o.KvType = None,
    no_store: o.NoStore = False,
    threads: o.Threads = None,
    device: o.Device = "auto",
    gpu_memory: o.GpuMemory = None,
    cpu_experts: o.CpuExperts = None,
    cpu_kv: o.CpuKv = False,
    stats: o.Stats = False,
) -> None:
    """Chat; every turn is kept, and nothing that was read is read again, in this process or another."""
    sampling = o.sampling_options(
        temperature=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        penalty_last_n=penalty_last_n,
        logit_bias=logit_bias,
        seed=seed,
    )
    context = o.context(ctx)
    if session is not None and no_store:
        raise UsageError("--session and --no-store exclude one another: a named session is kept on disk")

    from jambacli.engine.chat import Chat

    model = o.load_model(
        name,
        threads,
        device=device,
        gpu_memory=gpu_memory,
        cpu_experts=cpu_experts,
        cpu_kv=cpu_kv,
        ctx=context,
        kv_type=kv_type,
    )
    options: dict[str, Any] = {"ctx": context, "kv_type": kv_type, "store": not no_store}
    options |= {"system": system} if system else {}
    options |= {"read_only": True} if read_only else {}
    talk = Chat(
        model,
        options=options,
        generation={**sampling, "max_tokens": max_tokens, "stop": stop or ()},
        name=session,
        overflow=overflow,
        reading=_reading,
    )
    run_chat(talk, stats=stats, keep_history=not no_store)


def run_chat(talk: Chat, *, stats: bool, keep_history: bool, first: str | None = None) -> None:
    """Talk in the terminal, or turn by turn from a pipe; closes the chat. ``first``: a message that is said at once."""
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            from jambacli.terminal import talk as talk_in_terminal

            talk_in_terminal(talk, keep_history=keep_history, stats=stats, first=first)
        else:
            _piped(talk, stats, first)
    finally:
        talk.close()


def _reading(total: int) -> AbstractContextManager[Callable[[int], None]]:
    return ui.progress("Reading", total, "tokens")


def _piped(chat: Chat, stats: bool, first: str | None) -> None:
    """Every line of standard input is a turn or a command; replies go to stdout, everything else to stderr."""
    from jambacli.engine.generate import Thought

    failed: JambaError | None = None
    for text in itertools.chain([] if first is None else [None], (line.rstrip("\n") for line in sys.stdin)):
        try:
            outcome = chat.handle(text) if text is not None else chat.say(first or "")
            for shown in outcome.lines:
                ui.note(shown)
            if outcome.reply is not None:
                for piece in outcome.reply:
                    if not isinstance(piece, Thought):
                        sys.stdout.write(piece)
                        sys.stdout.flush()
                places = chat.papers.places
                sys.stdout.write("\n" + ("\nSources:\n" + "".join(f"- {p}\n" for p in places) if places else ""))
                sys.stdout.flush()
                if chat.papers.remark:
                    ui.note(chat.papers.remark)
                if stats:
                    s = chat.session.stats
                    ui.note(
                        f"stats: prompt {s.prompt_tokens} reused {s.reused_tokens} prefilled {s.prefilled_tokens} "
                        f"generated {s.generated_tokens} first_token {s.first_token_seconds:.3f} s finish {s.finish}"
                    )
            if outcome.leave:
                break
        except JambaError as error:  # the script goes on; its exit code tells
            failed = error
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    if failed is not None:
        raise typer.Exit(failed.exit_code)
