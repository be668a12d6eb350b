"""Measures what storing the state on disk costs: the same turns with the store and without, alternating.

    python -m benchmarks.store_cost --shape moe --quant q4_k_m --turns 20 --reply 128

Two sessions of one model in one process answer the same messages turn by turn; one of them is stored. The time of a turn is
from the message to the end of the reply, including the commit. What is still being written during the next turn slows that
one and counts there.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.made_up_vocabulary import words
from benchmarks.scratch_model import parser_of, scratch_model

if TYPE_CHECKING:
    from jambacli.session.session import Session


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one line, or one JSON object with ``--json``."""
    parser = parser_of("store_cost", __doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--message", type=int, default=48, help="tokens of a message (default: 48)")
    parser.add_argument("--reply", type=int, default=128, help="tokens of a reply (default: 128)")
    parser.add_argument("--threads", "-t", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with scratch_model(options) as (path, _):
        result = measure(path, options.turns, options.message, options.reply, options.threads)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{options.turns} turns of {options.message} + {options.reply} tokens: median {result['stored']:.3f} s stored, "
        f"{result['not stored']:.3f} s not; saving adds {100 * result['overhead']:.1f}% (median of the turns' ratios), "
        f"{100 * result['overhead of the sum']:.1f}% of the whole; {result['bytes per turn'] / 1e6:.1f} MB written per turn"
    )


def measure(path: Path, turns: int, message: int, reply: int, threads: int | None) -> dict[str, Any]:
    """Seconds per turn with and without the store, and what the store adds as a fraction."""
    from jambacli.api import Jamba
    from jambacli.cache.prefix_store import PrefixStore

    model = Jamba.load(path, threads=threads)
    vocabulary, rng = model.metadata["tokenizer.ggml.tokens"], random.Random(1)
    never = {t: float("-inf") for t in model.tokenizer.stop_ids}
    generation: dict[str, Any] = {"max_tokens": reply, "temperature": 1.0, "seed": 1, "logit_bias": never}

    def turn(session: Session, text: str) -> float:
        began = time.perf_counter()
        for _ in session.send(text, **generation):
            pass
        return time.perf_counter() - began

    stored, plain = model.session(name="stored"), model.session(store=False)
    times: dict[str, list[float]] = {"stored": [], "not stored": []}
    for i in range(turns + 1):
        text = words(rng, message, vocabulary, model.tokenizer)
        pairs = [("stored", stored), ("not stored", plain)]
        for name, session in pairs if i % 2 else pairs[::-1]:
            seconds = turn(session, text)
            if i:  # the first turn warms up
                times[name].append(seconds)
    began = time.perf_counter()
    stored.close()
    ratios = [a / b for a, b in zip(times["stored"], times["not stored"], strict=True)]
    return {
        "stored": statistics.median(times["stored"]),
        "not stored": statistics.median(times["not stored"]),
        "overhead": statistics.median(ratios) - 1,
        "overhead of the sum": sum(times["stored"]) / sum(times["not stored"]) - 1,
        "last write": time.perf_counter() - began,
        "bytes per turn": PrefixStore().stats()["bytes"] / (turns + 1),
    }


if __name__ == "__main__":
    main()
