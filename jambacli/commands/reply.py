"""Write a reply to standard output, and its statistics to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jambacli import ui
from jambacli.errors import JambaError
from jambacli.interrupts import interrupts_stop
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.session.session import Session


def stream(pieces: Iterable[str], show: bool, session: Session, as_json: bool = False) -> tuple[str, bool]:
    """Collect a reply of the session, with ``show`` printing it as it is generated; thoughts go to stderr. ``as_json``: print
    an object a line for every piece, ``{"text": ...}`` or ``{"thought": ...}``.

    Returns the reply and whether Ctrl-C ended it. A second Ctrl-C ends it at once.
    """
    from jambacli.engine.generate import Thought

    said: list[str] = []
    interrupted = False
    on_terminal = sys.stdout.isatty()
    try:
        with interrupts_stop(session.stop) as came:
            for piece in pieces:
                if isinstance(piece, Thought):
                    if as_json:
                        write_json({"thought": str(piece)})
                    else:
                        ui.thought(piece)
                    continue
                said.append(piece)
                if as_json:
                    write_json({"text": piece})
                elif show:
                    write(ui.harmless(piece) if on_terminal else piece)
        interrupted = came.asked and session.stats.finish == "interrupted"
    except KeyboardInterrupt:
        interrupted = True
    except JambaError:
        if show and not as_json and said and not said[-1].endswith("\n"):
            write("\n")  # the error begins a line of its own
        raise
    return "".join(said), interrupted


def write(text: str) -> None:
    """Write text to stdout as UTF-8 and flush."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def write_json(value: dict[str, Any]) -> None:
    """Write an object in one line to stdout and flush."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def figures_of_reply(model: LoadedModel, session: Session) -> dict[str, Any]:
    """The statistics of the last reply, by name."""
    from jambacli.hardware.peaks import peak_memory

    s = session.stats
    return {
        "finish": s.finish,
        "prompt_tokens": s.prompt_tokens,
        "reused_tokens": s.reused_tokens,
        "prefilled_tokens": s.prefilled_tokens,
        "generated_tokens": s.generated_tokens,
        "drafted_tokens": s.drafted_tokens,
        "accepted_tokens": s.accepted_tokens,
        "tokens_per_step": round(s.decoded_tokens / s.decode_steps, 2) if s.decode_steps else None,
        "load_seconds": round(model.load_seconds, 3),
        "first_token_seconds": round(s.first_token_seconds, 3),
        "prefill_tokens_per_second": round(s.prefilled_tokens / s.prefill_seconds, 2) if s.prefill_seconds else None,
        "decode_tokens_per_second": round(s.decoded_tokens / s.decode_seconds, 2) if s.decode_seconds else None,
        "peak_memory_bytes": peak_memory(),
    }


def show_stats(figures: dict[str, Any]) -> None:
    """Print the statistics to stderr."""

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
    if figures["drafted_tokens"]:
        share = figures["accepted_tokens"] / figures["drafted_tokens"]
        drafts = f"lookup   {figures['drafted_tokens']:,} tokens drafted, {figures['accepted_tokens']:,} accepted"
        lines.insert(3, f"{drafts} ({share:.0%}), {figures['tokens_per_step']:.1f} tokens a step")
    print("\n" + "\n".join(lines), file=sys.stderr)
