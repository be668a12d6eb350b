"""``jamba run``: one prompt, one answer, streamed; knows nothing of how it is computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import UsageError
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.engine.api import Jamba
    from jambacli.engine.session import Session


def run(
    first: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; left out: the last used.")
    ] = None,
    second: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What to say.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read (more of) the prompt from a file.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object with text and figures, not streamed.")
    ] = False,
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
    """Answer a prompt: from the command line, a file, standard input, or all of them together."""
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
    name, words = _model_and_prompt(first, second)
    prompt = _prompt(words, file)

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
    session = model.session(ctx=context, kv_type=kv_type, system=system, store=not no_store)
    raw = raw or model.template is None
    if raw and system:
        raise UsageError("--system needs the chat template; leave out --raw, or put it into the prompt")

    say = session.complete if raw else session.send
    pieces = say(prompt, max_tokens=max_tokens, stop=stop or (), reading=_reading, **sampling)
    with session:
        text, interrupted = _stream(pieces, show=not as_json)
    figures = figures_of_reply(model, session)
    if as_json:
        print(json.dumps({"model": model.name, "text": text, **figures}, ensure_ascii=False))
    if stats:
        show_stats(figures)
    if interrupted:
        raise KeyboardInterrupt


def _model_and_prompt(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """Which words are the model and which the prompt: a single one is a model only if it names one."""
    from jambacli.hub.resolve import is_model_name

    if second is not None or first is None:
        return first, second
    return (first, None) if is_model_name(first) else (None, first)


def _prompt(words: str | None, file: Path | None) -> str:
    parts = [] if words is None else [words]
    if file is not None:
        parts.append(o.read_text(file))
    if (file is None or str(file) != "-") and not sys.stdin.isatty() and has_input():
        parts.append(o.read_text(None))
    prompt = "\n\n".join(p for p in parts if p)
    if not prompt:
        raise UsageError("there is no prompt: give one as an argument, with -f FILE, or on standard input")
    return prompt


def has_input() -> bool:
    """Whether standard input is a pipe or a file (not a closed or absent one): only then is it worth waiting for."""
    import os
    import stat

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _reading(total: int) -> AbstractContextManager[Callable[[int], None]]:
    return ui.progress("Reading", total, "tokens")


def _stream(pieces: Iterator[str], show: bool) -> tuple[str, bool]:
    """Print the answer as it comes; the text alone goes to stdout. Returns it and whether Ctrl-C ended it."""
    from jambacli.engine.generate import Thought

    said: list[str] = []
    interrupted = False
    out, watched = sys.stdout.buffer, sys.stdout.isatty()
    try:
        for piece in pieces:
            if isinstance(piece, Thought):
                ui.thought(piece)
                continue
            said.append(piece)
            if show:
                out.write((ui.harmless(piece) if watched else piece).encode("utf-8", "replace"))
                out.flush()
    except KeyboardInterrupt:
        interrupted = True
    if show and said and not said[-1].endswith("\n") and watched:
        out.write(b"\n")
        out.flush()
    return "".join(said), interrupted


def figures_of_reply(model: Jamba, session: Session) -> dict[str, Any]:
    """The figures of one reply, by name."""
    from jambacli.evaluation.peaks import peak_memory

    s = session.stats
    return {
        "finish": s.finish,
        "prompt_tokens": s.prompt_tokens,
        "reused_tokens": s.reused_tokens,
        "prefilled_tokens": s.prefilled_tokens,
        "generated_tokens": s.generated_tokens,
        "load_seconds": round(model.load_seconds, 3),
        "first_token_seconds": round(s.first_token_seconds, 3),
        "prefill_tokens_per_second": round(s.prefilled_tokens / s.prefill_seconds, 2) if s.prefill_seconds else None,
        "decode_tokens_per_second": round(s.decoded_tokens / s.decode_seconds, 2) if s.decode_seconds else None,
        "peak_memory_bytes": peak_memory(),
    }


def show_stats(figures: dict[str, Any]) -> None:
    """The same figures for people, on stderr."""

    def rate(key: str) -> str:
        return f"{figures[key]:,.1f} tokens/s" if figures[key] else "-"

    lines = [
        f"load     {figures['load_seconds']:.2f} s",
        f"prefill  {figures['prefilled_tokens']:,} tokens, {rate('prefill_tokens_per_second')}"
        f" ({figures['reused_tokens']:,} reused)",
        f"decode   {figures['generated_tokens']:,} tokens, {rate('decode_tokens_per_second')} ({figures['finish']})",
        f"first    {figures['first_token_seconds']:.2f} s to the first token",
        f"memory   {format_bytes(figures['peak_memory_bytes'])} at its peak",
    ]
    print("\n" + "\n".join(lines), file=sys.stderr)
