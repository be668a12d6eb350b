"""Measures what a restart costs: continuing a long conversation in a new process, and llama.cpp reading it again.

    python -m benchmarks.restart --shape moe --quant q4_k_m --tokens 6600

makes a random model of the shape (weights do not matter for speed), holds a conversation of so many tokens in one process, and
continues it in others. Times are from the end of importing torch to the first new text. llama.cpp (if llama-cpp-python is
installed) keeps no state between processes: it loads the file and reads all tokens.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.made_up_vocabulary import words
from benchmarks.scratch_model import parser_of, scratch_model
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.session.session import Session

_TURNS = 6
_REPLY = 24
_NEW = "what follows from all this ?"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a Markdown table, or one JSON object with ``--json``."""
    parser = parser_of("restart", __doc__)
    parser.add_argument("--tokens", type=int, default=6600, help="tokens of the conversation (default: 6600)")
    parser.add_argument("--repetitions", "-r", type=int, default=3)
    parser.add_argument("--threads", "-t", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with scratch_model(options) as (path, _):
        result = measure(path, options.tokens, options.repetitions, options.threads)
    print(json.dumps(result) if options.json else _table(result))


def measure(path: Path, tokens: int, repetitions: int, threads: int | None) -> dict[str, Any]:
    """Figures for each kind of turn after a conversation of ``tokens``, and for llama.cpp's first token; in seconds."""
    first = _in_new_process(path, "begin", tokens, threads)
    kinds: dict[str, list[dict[str, float]]] = {"append": [], "regenerate": [], "edit the last message": []}
    peer: list[float] = []
    missing = None
    for _ in range(repetitions):
        for kind, runs in kinds.items():
            runs.append(_in_new_process(path, kind, tokens, threads))
        if missing is None:
            try:
                peer.append(_peer_seconds(path, int(kinds["append"][-1]["prompt"]), threads))
            except JambaError as error:
                missing = str(error)
    return {
        "model": path.name,
        "tokens": int(first["prompt"] + first["generated"]),
        "first read seconds": first["first token"],
        "turns": {
            kind: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for kind, runs in kinds.items()
        },
        "spread": {kind: [run["first token"] for run in runs] for kind, runs in kinds.items()},
        "llama.cpp": peer,
        "llama.cpp missing": missing,
    }


def _in_new_process(path: Path, kind: str, tokens: int, threads: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.restart", "--one", kind, str(path), str(tokens)]
    done = subprocess.run([*command, str(threads or 0)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise JambaError(f"the process of {kind!r} failed: {done.stderr.strip()[-400:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    print(f"{kind}: {figures['read']:,} tokens read, first token after {figures['first token']:.2f} s", file=sys.stderr)
    return figures


def _one(kind: str, path: str, tokens: int, threads: int) -> None:
    """Run one turn in this process and print its figures as JSON."""
    began = time.perf_counter()
    import torch  # noqa: F401

    imported = time.perf_counter()
    from jambacli.api import Jamba

    model = Jamba.load(path, threads=threads or None)
    options: dict[str, Any] = {"max_tokens": _REPLY, "temperature": 1.0, "seed": 1}
    never = {t: float("-inf") for t in model.tokenizer.stop_ids}
    options["logit_bias"] = never
    with model.session(name="long") if kind == "begin" else model.session(resume="long") as session:
        opened = time.perf_counter()
        first = 0.0
        for piece in _pieces(session, kind, tokens, options):
            first = first or (time.perf_counter() if piece else 0.0)
        ended = time.perf_counter()
        s = session.stats
    closed = time.perf_counter()
    figures = {
        "import torch": imported - began,
        "open": opened - imported,
        "first token": first - imported,
        "save at exit": closed - ended,
        "prompt": s.prompt_tokens,
        "reused": s.reused_tokens,
        "read": s.prefilled_tokens,
        "generated": s.generated_tokens,
    }
    print(json.dumps(figures))


def _pieces(session: Session, kind: str, tokens: int, options: dict[str, Any]) -> Iterator[str]:
    if kind == "append":
        yield from session.send(_NEW, **options)
    elif kind == "regenerate":
        yield from session.answer(**{**options, "seed": 2})
    elif kind.startswith("edit"):
        turns = session.conversation.turns
        last = max(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[last].content = "and what else " + _NEW
        yield from session.answer(**options)
    else:
        rng, model = random.Random(1), session.model
        vocabulary = model.metadata["tokenizer.ggml.tokens"]
        for left in range(_TURNS, 0, -1):
            share = (tokens - len(session.sequence.tokens)) // left - _REPLY - 12
            yield from session.send(words(rng, share, vocabulary, model.tokenizer), **options)


def _peer_seconds(path: Path, tokens: int, threads: int | None) -> float:
    """Seconds that llama.cpp takes to read ``tokens`` in a new process, without loading and warming up."""
    from jambacli.evaluation.llama_cpp import LlamaCppRunner
    from jambacli.kernels.cpu import default_threads

    runner = LlamaCppRunner(path, threads or default_threads())
    try:
        runner.start(0, tokens + 8)
        return runner.prefill(tokens) + runner.decode(1)
    finally:
        runner.close()


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"A conversation of {result['tokens']:,} tokens, continued in a new process.",
        "",
        "| turn | tokens in context | read | first new token after torch is imported, s | of that, opening, s |",
        "|---|---|---|---|---|",
    ]
    for kind, run in result["turns"].items():
        lines.append(
            f"| {kind} | {run['prompt']:,.0f} | {run['read']:,.0f} | {run['first token']:.2f} | {run['open']:.2f} |"
        )
    if result["llama.cpp"]:
        seconds, tokens = statistics.median(result["llama.cpp"]), result["turns"]["append"]["prompt"]
        lines.append(f"| llama.cpp, append | {tokens:,.0f} | {tokens:,.0f} | {seconds:.2f} (without loading) | |")
        ratio = seconds / result["turns"]["append"]["first token"]
        lines += ["", f"ratio of llama.cpp's time to this program's, medians of this run: {ratio:.1f}x"]
    else:
        lines += ["", f"llama.cpp was not measured: {result['llama.cpp missing']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        try:
            main()
        except JambaError as error:
            sys.exit(f"error: {error}")
