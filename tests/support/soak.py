"""Many turns in several sessions of two processes on one store, and what they hold on to; run by a test.

    python -m tests.support.soak FOLDER TURNS SEED [--second]

Turns are short replies, edits of earlier turns, regenerated replies, documents, reopened and branched sessions, summaries of
what is stored. Both processes write the same store and try the same names. Prints one JSON object: rows of turns, memory,
descriptors, threads and the size of the store.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jambacli import Jamba
from jambacli.errors import JambaError
from jambacli.session import session_file
from tests.support.repository import REPO

_ROWS = 20
_NAMES = [f"soak-{i}" for i in range(6)]
_LONGEST = 16  # turns of a session before it starts again
_OPEN = 3
_DOCUMENT = "{i}: Leila Haddad counted {i} herons at the lake, and Ann Byron counted {j} swans on the same day.\n"
_BUDGET = 96 << 20


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def held(folder: Path) -> dict[str, int]:
    """What this process and the store hold: kilobytes of memory that is used, descriptors, threads, kilobytes and files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory": int(status["RssAnon"].split()[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": int(status["Threads"]),
        "store": folder_bytes(folder) >> 10,
        "files": sum(1 for _ in folder.rglob("*")),
    }


class Soak:
    """The open sessions of this process."""

    def __init__(self, model: Jamba, rng: random.Random) -> None:
        self.model, self.rng = model, rng
        self.open: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def session(self) -> Any:
        """One of the sessions, opened if it is not: another process may have it."""
        name = self.rng.choice(list(self.open) if self.open and self.rng.random() < 0.9 else _NAMES)
        if name not in self.open:
            while len(self.open) >= _OPEN:
                self.open.pop(next(iter(self.open))).close()
            try:
                exists = session_file.exists(name)
                self.open[name] = self.model.session(**({"resume": name} if exists else {"name": name}))
                self.count("reopened" if exists else "new")
            except JambaError:  # the other process has it
                self.count("refused, open elsewhere")
                return self.model.session()
        return self.open[name]

    def turn(self) -> None:
        """One reply, of some kind."""
        session, kind = self.session(), self.rng.random()
        turns = session.conversation.turns
        # One token in a reply or two: what is measured is what stays.
        options: dict[str, Any] = {"max_tokens": self.rng.choice([1, 2, 3]), "temperature": self.rng.choice([0.0, 0.8])}
        if len(turns) >= _LONGEST:
            session.clear()
            self.count("cleared")
        elif turns and kind < 0.15:
            self.count("regenerated")
            return self.said(session.answer(**options))
        elif len(turns) > 3 and kind < 0.35:  # an edit of an earlier message
            del turns[2:]
            session.changed()
            self.count("edited")
        number = self.rng.randrange(1000)
        if kind > 0.9:
            document = {"title": f"report {number % 20}", "text": _DOCUMENT.format(i=number % 20, j=number % 7) * 3}
            self.said(session.send(f"How many herons, {number}?", documents=[document], **options))
            self.count("with a document")
        elif kind > 0.88:
            pieces = session.send(f"Stop after the first piece, {number}.", max_tokens=30, temperature=0)
            next(pieces, None)
            pieces.close()
            self.count("stopped")
        else:
            self.said(session.send(f"Question {number}?", **options))
            self.count("plain")
        if session.name is None:
            session.close()

    def said(self, pieces: Any) -> None:
        for _ in pieces:
            pass

    def close(self) -> None:
        for session in self.open.values():
            session.close()
        self.open.clear()


def main(folder: Path, turns: int, seed: int, second: bool) -> None:
    os.environ |= {"JAMBA_HOME": str(folder), "JAMBA_CACHE_BUDGET": str(_BUDGET)}
    folder.mkdir(parents=True, exist_ok=True)
    other = None
    if not second:
        command = [sys.executable, "-m", "tests.support.soak", str(folder), str(turns), str(seed + 1), "--second"]
        with (folder.parent / "second.json").open("w") as out:
            other = subprocess.Popen(command, stdout=out, cwd=REPO)
    model = Jamba.load(threads=1)
    soak, began = Soak(model, random.Random(seed)), time.process_time()
    rows: list[dict[str, Any]] = []
    for number in range(turns):
        soak.turn()
        if (number + 1) % max(1, turns // _ROWS) == 0:
            soak.close()
            gc.collect()
            rows.append({"turns": number + 1, "seconds": round(time.process_time() - began), **held(folder)})
            print(rows[-1], file=sys.stderr, flush=True)
    soak.close()
    report: dict[str, Any] = {"rows": rows, "counts": soak.counts}
    if other is not None:
        report["second's exit code"] = other.wait()
        report["second"] = json.loads((folder.parent / "second.json").read_text())
        report["parts left"] = [str(p) for p in folder.rglob("*.part")]
        report["modes"] = sorted({oct(p.stat().st_mode & 0o777) for p in folder.rglob("*") if p.is_file()})
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "--second" in sys.argv)
