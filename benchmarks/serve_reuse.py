"""Measures what each turn of a conversation about a long document reads, with ``jamba serve`` and with llama-server.

    python -m benchmarks.serve_reuse --peer DIR --shape moe --quant q4_k_m --tokens 20000

A client without state sends the whole conversation again at every turn. After half of the turns the server is killed
(SIGKILL, as soon as its answer is complete) and started again. Prints for every turn the tokens of the prompt, those of the
new message, those that were read, and the seconds to the first text.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

from benchmarks.chat_servers import Answer, Program, Requests, ask, server_parser
from benchmarks.scratch_model import scratch_model
from jambacli.errors import JambaError

# Tokens that a turn may read besides its message: the headers of messages, and what was not stored when the server was killed.
_ALLOWED = 64
# Tokens of the conversation besides the document, for every turn.
_TURN = 96


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn: tokens of the ``prompt``, of the ``new`` message, ``read``; ``seconds`` to the first text; whether it is the
    first one ``restarted``."""

    prompt: int
    new: int
    read: int
    seconds: float
    restarted: bool


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a Markdown table, or with ``--json`` one object. Exits with 1 where ``jamba serve`` reads more than
    the new message and some tokens around it."""
    parser = server_parser("serve_reuse", __doc__)
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of the document (default: 20000)")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--message", type=int, default=20, help="tokens of a message (default: 20)")
    parser.add_argument("--reply", type=int, default=16, help="tokens of a reply (default: 16)")
    options = parser.parse_args(arguments)
    with scratch_model(options) as (path, _):
        peers = [None, options.peer] if options.peer is not None else [None]
        most = options.tokens + options.turns * (_TURN + options.message + options.reply)
        programs = [Program(path, options.threads, 1, most, peer) for peer in peers]
        found = {program.name: _conversation(program, Requests(path), options) for program in programs}
    if options.json:
        print(json.dumps({name: [dataclasses.asdict(turn) for turn in turns] for name, turns in found.items()}))
    else:
        print("\n".join(_table(found)))
    worst = max(turn.read - turn.new for turn in found[programs[0].name][1:])
    if worst > _ALLOWED:
        sys.exit(f"error: a turn has read {worst} tokens besides its message; at most {_ALLOWED} are expected")


def _conversation(program: Program, requests: Requests, options: Any) -> list[Turn]:
    """The turns of the same conversation with this program, of which the replies are its own."""
    document = requests.text(options.tokens)
    messages: list[dict[str, str]] = []
    turns: list[Turn] = []
    halves = [range(options.turns // 2), range(options.turns // 2, options.turns)]
    for half in halves:
        with program.running() as port:
            for number in half:
                text = requests.text(options.message)
                new = requests.tokens(text)
                messages.append({"role": "user", "content": text if number else f"{document}\n\n{text}"})
                answer: Answer = ask(port, requests.body(messages, options.reply, greedy=True), time.perf_counter())
                messages.append({"role": "assistant", "content": answer.text})
                turns.append(Turn(answer.prompt, new, answer.read, answer.first_text, number == half[0] > 0))
                print(f"{program.name}, turn {number + 1}: {turns[-1]}", file=sys.stderr, flush=True)
    return turns


def _table(found: dict[str, list[Turn]]) -> list[str]:
    names = list(found)
    head = "".join(f" {name}: prompt | read | first text, s |" for name in names)
    lines = [f"| turn | new message |{head}", "|---|---:|" + "---:|---:|---:|" * len(names)]
    for number, turns in enumerate(zip(*found.values(), strict=True), 1):
        cells = "".join(f" {t.prompt:,} | {t.read:,} | {t.seconds:.2f} |" for t in turns)
        restarted = " (after the kill)" if turns[0].restarted else ""
        lines.append(f"| {number}{restarted} | {turns[0].new} |{cells}")
    return lines


if __name__ == "__main__":
    try:
        main()
    except JambaError as error:
        sys.exit(f"error: {error}")
