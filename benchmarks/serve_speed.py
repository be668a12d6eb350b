"""Measures ``jamba serve`` beside llama-server: both serve one file, and the same requests go to them in turn.

    python -m benchmarks.serve_speed --peer DIR --shape moe --quant q4_k_m

Each client sends one chat request, all at the same time, and reads its reply as a stream. Every message is new; in the case
"shared" a system message is the same for all, and one request has read it before. Prints the medians over the rounds: seconds
to the first byte and to the first text (the median client's and the last one's), tokens a second of a client after its first
text, and tokens a second of all clients from the requests to the last text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.chat_servers import Answer, Program, Requests, ask, server_parser
from benchmarks.scratch_model import scratch_model
from jambacli.errors import JambaError

# Tokens that the chat template adds, at most.
_AROUND = 64


@dataclass(frozen=True)
class Figures:
    """Of one round: seconds to the first byte and the first text, tokens a second of a client and of all."""

    first_byte: float
    first_text: float
    last_first_text: float
    client_speed: float
    throughput: float
    read: float

    @staticmethod
    def of(answers: Sequence[Answer]) -> Figures:
        """The figures of the clients of a round."""
        speeds = [(a.written - 1) / max(a.last_text - a.first_text, 1e-9) for a in answers]
        return Figures(
            statistics.median(a.first_byte for a in answers),
            statistics.median(a.first_text for a in answers),
            max(a.first_text for a in answers),
            statistics.median(speeds),
            sum(a.written for a in answers) / max(a.last_text for a in answers),
            statistics.median(a.read for a in answers),
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a Markdown table, or with ``--json`` one object."""
    parser = server_parser("serve_speed", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a message (default: 200)")
    parser.add_argument("--generate", type=int, default=48, help="tokens of a reply (default: 48)")
    parser.add_argument(
        "--shared", type=int, default=1000, help="tokens of the system message in the case 'shared' (default: 1000)"
    )
    parser.add_argument("--shared-clients", type=int, default=4, help="clients in the case 'shared' (default: 4)")
    parser.add_argument("--rounds", "-r", type=int, default=3)
    options = parser.parse_args(arguments)
    tokens = options.shared + options.prompt + options.generate + _AROUND
    most = max(*options.clients, options.shared_clients)
    with scratch_model(options) as (path, _), contextlib.ExitStack() as stack:
        peers = [None, options.peer] if options.peer is not None else [None]
        programs = [Program(path, options.threads, most, tokens, peer) for peer in peers]
        ports = {program.name: stack.enter_context(program.running()) for program in programs}
        requests = Requests(path)
        figures: dict[str, dict[str, list[Figures]]] = {}
        for port in ports.values():  # the first pass of each program, which touches all weights
            ask_all(port, [requests.body(_messages(requests.text(options.prompt)), 4)])
        for _ in range(options.rounds):
            for case, common, count in _cases(options):
                bodies = _bodies(requests, common, options.prompt, count, options.generate)
                for name, port in ports.items():
                    if common:
                        ask_all(port, bodies[:1])
                    found = Figures.of(ask_all(port, bodies[1:]))
                    figures.setdefault(case, {}).setdefault(name, []).append(found)
                    print(f"{case}, {name}: {_shown(found)}", file=sys.stderr, flush=True)
    medians = {case: {name: _median(runs) for name, runs in runs.items()} for case, runs in figures.items()}
    if options.json:
        print(json.dumps({c: {n: dataclasses.asdict(f) for n, f in m.items()} for c, m in medians.items()}))
    else:
        print("\n".join(_table(medians)))


def _cases(options: Any) -> list[tuple[str, int, int]]:
    cases = [(f"{count} client{'s' if count > 1 else ''}", 0, count) for count in options.clients]
    if options.shared:
        cases.append((f"{options.shared_clients} clients, shared", options.shared, options.shared_clients))
    return cases


def _bodies(requests: Requests, common: int, prompt: int, count: int, generate: int) -> list[dict[str, Any]]:
    """``count`` requests with a system message of ``common`` tokens in common, after one more that reads it."""
    first = [{"role": "system", "content": requests.text(common)}] if common else []
    return [requests.body([*first, *_messages(requests.text(prompt))], generate) for _ in range(count + 1)]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask_all(port: int, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Send the requests at the same time, each from a client of its own."""
    ready = threading.Barrier(len(bodies) + 1)
    began: list[float] = []

    def one(body: dict[str, Any]) -> Answer:
        ready.wait()
        ready.wait()
        return ask(port, body, began[0])

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(one, body) for body in bodies]
        ready.wait()
        began.append(time.perf_counter())
        ready.wait()
        return [answer.result() for answer in answers]


def _median(runs: Sequence[Figures]) -> Figures:
    names = [field.name for field in dataclasses.fields(Figures)]
    return Figures(**{name: statistics.median(getattr(run, name) for run in runs) for name in names})


def _shown(f: Figures) -> str:
    first = (
        f"first byte {f.first_byte:.3f} s, first text {f.first_text:.2f} s, the last client's {f.last_first_text:.2f} s"
    )
    return f"{first}, {f.client_speed:.1f} tokens/s a client, {f.throughput:.1f} in all, {f.read:.0f} read"


def _table(medians: dict[str, dict[str, Figures]]) -> list[str]:
    lines = [
        "| case | | first byte, s | first text, s | last client's first text, s | tokens/s a client | tokens/s in all |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case, programs in medians.items():
        for name, f in programs.items():
            times = f"{f.first_byte:.3f} | {f.first_text:.2f} | {f.last_first_text:.2f}"
            lines.append(f"| {case} | {name} | {times} | {f.client_speed:.1f} | {f.throughput:.1f} |")
        if len(programs) == 2:
            mine, peer = programs.values()
            times = f"{peer.first_byte / mine.first_byte:.1f}x | {peer.first_text / mine.first_text:.1f}x"
            times += f" | {peer.last_first_text / mine.last_first_text:.1f}x"
            speeds = f"{mine.client_speed / peer.client_speed:.2f}x | {mine.throughput / peer.throughput:.2f}x"
            lines.append(f"| | ahead by | {times} | {speeds} |")
    return lines


if __name__ == "__main__":
    try:
        main()
    except JambaError as error:
        sys.exit(f"error: {error}")
