"""Kill chatting processes with SIGKILL at random moments, and report what the next process finds; run by a test.

    python -m tests.support.killing MODEL KILLS SEED

This process loads the model on one thread and forks the chatting ones, so that 300 kills take minutes, not an hour. It uses
only the public API of sessions. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

import torch

from jambacli import Jamba
from jambacli.session import session_file

_SESSIONS = 10


def say(session: Any, i: int) -> None:
    for _ in session.send(f"message {i}", max_tokens=3, temperature=0):
        pass


def chat(model: Jamba, name: str, out: int) -> None:
    """Open the session, report its turns, and chat until killed."""

    def tell(*values: object) -> None:
        os.write(out, (" ".join(map(str, values)) + "\n").encode())

    write = session_file.write

    def told_write(session: session_file.SavedSession) -> None:
        write(session)
        tell("saved", len(session.turns))

    session_file.write = told_write
    session = model.session(resume=name) if session_file.exists(name) else model.session(name=name)
    turns = session.conversation.turns
    asked = [t.content for t in turns if t.role == "user"]
    consistent = asked == [f"message {i}" for i in range(len(asked))] and len(turns) == 2 * len(asked)
    missing = len(session._prompt) + len(session._reply_ids) - len(session.sequence.tokens)
    tell("opened", len(turns), int(consistent), missing)
    while True:
        say(session, len(turns) // 2)
        tell("said", len(turns))


def one_life(model: Jamba, name: str, seconds: float, word: str) -> list[list[str]]:
    """What a chat reported before it was killed, so many seconds after it said ``word`` ("": after its start)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            chat(model, name, write)
        except BaseException as error:
            os.write(write, f"failed {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        lines: list[bytes] = []
        while word and not (lines and lines[-1].startswith((word.encode(), b"failed"))):
            lines.append(told.readline())
            if not lines[-1]:
                break
        time.sleep(seconds)  # the moment of the kill, not a wait for something
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [line.split() for line in (b"".join(lines) + told.read()).decode().splitlines()]


def main(path: str, kills: int, seed: int) -> None:
    model, rng = Jamba.load(path, threads=1), random.Random(seed)
    assert model.template is not None and model.fingerprint
    torch.set_num_threads(1)
    known: dict[str, tuple[int, int]] = {}
    report: dict[str, Any] = {"kills": 0, "openings": 0, "failed": [], "lost": [], "inconsistent": 0, "recomputed": 0}
    report |= {"one turn back": 0, "while saving": 0}
    for i in range(kills):
        name = f"k{i % _SESSIONS}"
        # On a machine under load nearly every life would end before it opened anything, so some are counted from there.
        word = "said" if i < _SESSIONS else rng.choice(["", "opened", "opened", "said"])
        told = one_life(model, name, rng.uniform(0.0, 0.25), word)
        report["kills"] += 1
        said, written = known.get(name, (0, 0))
        for word, *values in told:
            if word == "failed":
                report["failed"].append(" ".join(values))
            elif word == "opened":
                report["openings"] += 1
                turns, consistent, missing = map(int, values)
                # The last turn may be lost, but not one that was reported as saved; and no turn may be added.
                if turns < max(said - 2, written) or turns > said + 2:
                    report["lost"].append([turns, said, written])
                report["one turn back"] += turns < said
                report["inconsistent"] += not consistent
                report["recomputed"] += missing > 1
                said = written = turns
            elif word == "said":
                said = int(values[0])
            else:
                written = int(values[0])
        report["while saving"] += written < said
        known[name] = said, written
    # Bit for bit as a chat that was never killed: the same replies to the same messages.
    longest = max(known, key=lambda n: known[n][0])
    turns = session_file.read(longest).turns
    report["turns compared"] = len(turns)
    with model.session(store=False) as straight:
        for i in range(len(turns) // 2):
            say(straight, i)
        report["same"] = [t.ids for t in straight.conversation.turns] == [t.get("ids") for t in turns]
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
