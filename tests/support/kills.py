"""Kill commands with SIGKILL or SIGTERM at random moments, and look at what the next run finds; run by a test.

    python -m tests.support.kills FOLDER KILLS SEED [KIND...]

This process imports the program and forks each command, so that a kill costs a few hundred milliseconds. The moment is chosen
in the command's own processor time, so a busy machine does not move all kills to its start. Each kind runs some lives that are
killed, then one to its end, and so on. After a kill, what has its final name must be whole; after a run to the end, the result
must equal the one of a run that nobody killed, and no part may be left. Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli import unfinished

# Lines of a run's standard error that report damage.
_BAD = re.compile(
    r"internal:|Traceback|damaged|corrupt|is not valid|unreadable|cannot (?:read|write)|failed", re.IGNORECASE
)
_MESSAGES = [f"How many herons were counted on day {i}?" for i in range(4)]
_LIVES = 4  # killed ones before one that runs to its end
_KILLED = (None, 143, -signal.SIGTERM)
_HANGS = 300.0
_LOOK = 0.002  # seconds between two looks at a command
_REPORT = "Report of the lake.\n\nLeila Haddad counted 42 herons. Ann Byron counted 17 swans.\n\n"


class Kind:
    """One kind of command. ``folder``: where its files are, with a JAMBA_HOME of its own."""

    #: How many kills of a hundred are of this kind.
    share = 10
    #: Replies that were kept as far as they got.
    cut = 0
    #: SIGTERM ends it in good order, with exit code 0, wherever it is.
    ends_at_sigterm = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)

    def arguments(self) -> list[str]:
        """The command line of the next run."""
        raise NotImplementedError

    def given(self) -> bytes:
        """Its standard input."""
        return b""

    def result(self, out: bytes) -> Any:
        """What a run to the end produced, the same each time. ``out``: its standard output."""
        raise NotImplementedError

    def check(self, expected: Any) -> None:
        """Raise AssertionError for anything that a kill left wrong. ``expected``: the result of a run to the end."""

    def reset(self) -> None:
        """Remove the result, so that the next run makes it again."""

    def beside(self) -> Callable[[], None]:
        """Start what the run needs meanwhile; returns how it ends."""
        return lambda: None


class _ToFile(Kind):
    """A command that writes one file, ``out``, in the place of an older one."""

    name = "out.gguf"
    _OLD = b"an older file"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.out = folder / self.name
        self.reset()

    def result(self, out: bytes) -> Any:
        return hashlib.sha256(self.out.read_bytes()).hexdigest()

    def check(self, expected: Any) -> None:
        assert self.out.read_bytes() == self._OLD or self.result(b"") == expected, f"{self.out.name} is damaged"

    def reset(self) -> None:
        self.out.write_bytes(self._OLD)


class Convert(_ToFile):
    share = 15

    def __init__(self, folder: Path) -> None:
        from tests.support.checkpoints import make_checkpoint

        super().__init__(folder)
        self._source = make_checkpoint(folder / "checkpoint")

    def arguments(self) -> list[str]:
        return ["convert", str(self._source), "-o", str(self.out), "--force"]


class Quantize(_ToFile):
    share = 15

    def __init__(self, folder: Path) -> None:
        from tests.support.small_models import small_file

        super().__init__(folder)
        self._source = small_file(folder, "f32")

    def arguments(self) -> list[str]:
        return ["quantize", str(self._source), str(self.out), "--type", "q4_k_m", "--force"]


class Pull(Kind):
    share = 15

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # A server in a process of its own: this one has no threads when it forks.
        read, write = os.pipe()
        self._server = os.fork()
        if self._server == 0:
            _serve_hub(folder, write)
        os.close(write)
        self._url = os.read(read, 200).decode()
        os.close(read)

    def arguments(self) -> list[str]:
        os.environ["HF_ENDPOINT"] = self._url
        return ["pull", "me/small-GGUF", "--yes"]

    def result(self, out: bytes) -> Any:
        from jambacli.hub.store import Store

        store = Store(self.home / "models")
        return [
            [hashlib.sha256(p.read_bytes()).hexdigest() for p in store.paths(entry)]
            for entry in store.entries()
            if store.is_complete(entry)
        ]

    def check(self, expected: Any) -> None:
        found = self.result(b"")
        assert found in ([], expected), "a pulled file is damaged"

    def reset(self) -> None:
        shutil.rmtree(self.home / "models", ignore_errors=True)

    def close(self) -> None:
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)


def _serve_hub(folder: Path, write: int) -> None:
    from tests.support.hub_servers import Repo, running
    from tests.support.small_models import small_file

    data = small_file(folder, "bf16").read_bytes()
    with running() as server:
        server.repos["me/small-GGUF"] = Repo({"small-BF16.gguf": data})
        os.write(write, server.url.encode())
        os.close(write)
        while os.getppid() != 1:
            time.sleep(1)
    os._exit(0)


class Export(_ToFile):
    name = "session.zip"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        code, _, errors = ended(self, ["chat", "jamba:tiny", "--session", "kept", *_SHORT], b"Hello\n/quit\n")
        assert code == 0, errors

    def arguments(self) -> list[str]:
        return ["sessions", "export", "kept", "-o", str(self.out), "--force"]

    def result(self, out: bytes) -> Any:
        import zipfile

        with zipfile.ZipFile(self.out) as archive:
            assert archive.testzip() is None
            return sorted((i.filename, i.CRC) for i in archive.infolist())


_SHORT = ["--max-tokens", "6", "--temp", "0"]


class Chat(Kind):
    """A named session: whichever turns a life finished are there in the next."""

    share = 15

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._known = self.cut = 0

    def arguments(self) -> list[str]:
        return ["chat", "jamba:tiny", "--session", "killed", "--max-tokens", "24", "--temp", "0"]

    def given(self) -> bytes:
        done = sum(turn["role"] == "user" for turn in self._turns())
        return "".join(f"{message}\n" for message in _MESSAGES[done:]).encode()

    def result(self, out: bytes) -> Any:
        return [[turn["role"], turn["content"], turn.get("ids")] for turn in self._turns()]

    def check(self, expected: Any) -> None:
        found = self.result(b"")
        assert len(found) >= self._known, f"{self._known - len(found)} turns are lost"
        same = expected[: len(found)]
        if found and found != same and found[:-1] == same[:-1] and same[-1][1].startswith(found[-1][1]):
            self.cut += 1
            return self.reset()  # SIGTERM ends a reply: it is kept as far as it got, and what follows it differs
        assert found == same, f"a turn differs from the one of an uninterrupted chat: {found[-2:]} {same[-2:]}"
        self._known = len(found)

    def reset(self) -> None:
        for name in ("sessions", "prefixes"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        self._known = 0

    def _turns(self) -> list[dict[str, Any]]:
        path = self.home / "sessions" / "killed.json"
        return json.loads(path.read_bytes())["turns"] if path.exists() else []


class Run(Kind):
    share = 5

    def arguments(self) -> list[str]:
        return ["run", "jamba:tiny", _REPORT + "How many herons?", *_SHORT]

    def result(self, out: bytes) -> Any:
        return out.decode()

    def reset(self) -> None:
        """What is stored stays: the next run starts from it."""


class Ask(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.document = folder / "report.txt"
        self.document.write_text(_REPORT * 20)

    def arguments(self) -> list[str]:
        return ["ask", str(self.document), "How many herons were counted?", "-m", "jamba:tiny", *_SHORT]

    def result(self, out: bytes) -> Any:
        return out.decode()

    def reset(self) -> None:
        shutil.rmtree(self.home / "prefixes", ignore_errors=True)
        shutil.rmtree(self.home / "replies", ignore_errors=True)


class Summarize(Ask):
    share = 5

    def arguments(self) -> list[str]:
        return ["summarize", str(self.document), "-m", "jamba:tiny", *_SHORT]


class Batch(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._lines, self._out = folder / "in.jsonl", folder / "out.jsonl"
        body = {"model": "m", "max_tokens": 8, "temperature": 0}
        with self._lines.open("w") as file:
            for i in range(6):
                asked = {**body, "messages": [{"role": "user", "content": f"{_REPORT}Question {i}: how many swans?"}]}
                line = {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions", "body": asked}
                file.write(json.dumps(line) + "\n")

    def arguments(self) -> list[str]:
        return ["batch", str(self._lines), "-m", "jamba:tiny", "-o", str(self._out)]

    def result(self, out: bytes) -> Any:
        answers = [json.loads(line) for line in self._out.read_text().splitlines()]
        found = sorted((a["custom_id"], a["response"]["body"]["choices"][0]["message"]["content"]) for a in answers)
        assert [name for name, _ in found] == [f"q{i}" for i in range(6)], "an answer is missing or there twice"
        return found

    def check(self, expected: Any) -> None:
        if self._out.exists():  # it was killed after its end
            assert self.result(b"") == expected
            self.reset()

    def reset(self) -> None:
        self._out.unlink(missing_ok=True)


class Serve(Kind):
    share = 5
    ends_at_sigterm = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._replies: list[str] = []

    def arguments(self) -> list[str]:
        return ["serve", "jamba:tiny", "--port", str(self._port), "--parallel", "2"]

    def result(self, out: bytes) -> Any:
        return self._replies

    def check(self, expected: Any) -> None:
        assert self._replies == expected[: len(self._replies)], (
            "a reply differs from the one of a server that was not killed"
        )

    def beside(self) -> Callable[[], None]:
        """A client, in a process of its own, that asks until the server is gone or everything is answered; then it ends it."""
        read, write = os.pipe()
        client = os.fork()
        if client == 0:
            os.close(read)
            _ask_server(self._port, write, self.folder / "client")
        os.close(write)

        def end() -> None:
            os.kill(client, signal.SIGKILL)  # a server that was killed early never listens: it would wait for it
            with os.fdopen(read, "rb") as said:
                data = said.read()
            os.waitpid(client, 0)
            self._replies = [json.loads(line) for line in data.splitlines()]

        return end


def _ask_server(port: int, write: int, errors: Path) -> None:
    import http.client

    try:
        deadline, messages = time.monotonic() + _HANGS, []
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            time.sleep(0.02)
        for text in _MESSAGES[:3]:
            messages.append({"role": "user", "content": text})
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_HANGS)
            body = {"model": "m", "messages": messages, "max_tokens": 6, "temperature": 0}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            said = json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]
            os.write(write, json.dumps(said).encode() + b"\n")
            messages.append({"role": "assistant", "content": said})
            connection.close()
    except BaseException:  # the server was killed; if it was not, the replies that are missing say so
        errors.write_text(traceback.format_exc())
    os.write(_served[1], b".")
    os._exit(0)


# A server's client writes here when everything is answered.
_served = os.pipe()


def child(kind: Kind, arguments: list[str], given: bytes) -> int:
    """A process that runs a command, with its output in the kind's folder."""
    inputs = kind.folder / "stdin"
    inputs.write_bytes(given)
    process = os.fork()
    if process:
        return process
    try:
        os.environ["JAMBA_HOME"] = str(kind.home)
        os.chdir(kind.folder)
        unfinished._searched.clear()  # what this process's parent has searched
        for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", _WRITE), (2, "stderr", _WRITE)):
            os.dup2(os.open(kind.folder / name, flags, 0o600), number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
        faulthandler.register(signal.SIGUSR1, sys.stderr, all_threads=True)
        sys.argv = ["jamba", "-q", *arguments]
        from jambacli.__main__ import main

        main()
    except SystemExit as error:
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 98
    except BaseException:
        traceback.print_exc()
        code = 99
    # As Python ends: what is registered runs, then buffers are written.
    import atexit

    for end in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            end()
    os._exit(code)


_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def processor_seconds(process: int) -> float:
    """Processor time of a process."""
    return time.clock_gettime(~process << 3 | 2)


def one_life(kind: Kind, after: float | None, number: int) -> tuple[int | None, float, bytes, str]:
    """Run the kind's command; after so many seconds of processor time send it the signal. Returns its exit code (None: it was
    killed), the processor time, its output and its messages."""
    os.set_blocking(_served[0], False)
    with contextlib.suppress(BlockingIOError):
        os.read(_served[0], 100)
    process = child(kind, kind.arguments(), kind.given())
    end = kind.beside()
    # Looks are counted instead of seconds: while all of this is stopped from outside, nothing hangs.
    looks, used, status, sent = round(_HANGS / _LOOK), 0.0, 0, False
    for look in itertools.count():
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        used = processor_seconds(process)
        if after is not None and used >= after and not sent:
            os.kill(process, number)
            sent = True
        with contextlib.suppress(BlockingIOError):
            if os.read(_served[0], 1):
                os.kill(process, signal.SIGTERM)
        if look > looks:
            os.kill(process, signal.SIGUSR1)  # it writes where its threads are
            time.sleep(1)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"it hangs: {(kind.folder / 'stderr').read_text(errors='replace')[-5000:]}")
        time.sleep(_LOOK)
    end()
    code = os.waitstatus_to_exitcode(status)
    out, errors = (kind.folder / "stdout").read_bytes(), (kind.folder / "stderr").read_text(errors="replace")
    return None if code == -signal.SIGKILL else code, used, out, errors


def ended(kind: Kind, arguments: list[str], given: bytes) -> tuple[int, bytes, str]:
    """Run another command to its end: its exit code, output and messages."""
    process = child(kind, arguments, given)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, (kind.folder / "stdout").read_bytes(), (kind.folder / "stderr").read_text(errors="replace")


def parts(folder: Path) -> list[str]:
    """What writers leave while they write."""
    found = (p for p in folder.rglob("*") if p.name.endswith((".part", ".tmp")) or p.parent.name == "unfinished")
    return sorted(str(p.relative_to(folder)) for p in found)


def kill_often(kind: Kind, kills: int, rng: random.Random, report: dict[str, Any]) -> None:
    """Kill the kind's command so often, and put what was found into the report."""
    name = type(kind).__name__.lower()
    code, lasts, out, errors = one_life(kind, None, 0)
    report["wrong"] += [] if code == 0 else [f"{name}: {code}: {errors}"]
    expected = kind.result(out)
    kind.reset()
    counts = report[name] = {"kills": 0, "ended before": 0, "parts found and removed": 0, "runs to the end": 0}
    lives = 0
    while counts["kills"] < kills:
        lives += 1
        whole = lives % (_LIVES + 1) == 0
        number = signal.SIGTERM if lives % 7 == 0 else signal.SIGKILL
        after = None if whole else rng.uniform(0.0, lasts)
        code, _, out, errors = one_life(kind, after, number)
        where = f"{name}, life {lives}"
        try:
            result = kind.result(out) if code == 0 else None
            if kind.ends_at_sigterm and code == 0 and number == signal.SIGTERM and not whole and result != expected:
                code = 143
            kind.check(expected)
            assert not _BAD.search(errors), errors
            if code in _KILLED:
                counts["kills"] += 1
            elif whole:
                counts["runs to the end"] += 1
            else:
                counts["ended before"] += 1
            left = parts(kind.folder)
            counts["parts found and removed"] += bool(left)
            if code == 0:
                assert not left, f"left after a run to the end: {left}"
                assert result == expected, "the result differs from the one of a run that was not killed"
                kind.reset()
            else:
                assert code in _KILLED, f"exit code {code} after {after}: {errors} {out[-300:]!r}"
            counts["replies cut"] = kind.cut
        except AssertionError as error:
            report["wrong"].append(f"{where}: {' '.join(str(error).split())[:600]}")
            kind.reset()


KINDS = {kind.__name__.lower(): kind
         for kind in (Convert, Quantize, Pull, Export, Chat, Run, Ask, Summarize, Batch, Serve)}  # fmt: skip


def main(folder: Path, kills: int, seed: int, names: list[str]) -> None:
    import torch

    import jambacli.commands

    torch.set_num_threads(1)
    os.environ |= {"JAMBA_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for module in pkgutil.walk_packages(jambacli.__path__, "jambacli."):
        if not any(part in module.name for part in ("__main__", "gpu", "training", "triton", "cuda", "evaluation")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    gc.freeze()
    report: dict[str, Any] = {"seed": seed, "wrong": []}
    chosen = names or list(KINDS)
    total = sum(KINDS[name].share for name in chosen)
    for name in chosen:
        kind = KINDS[name](folder / name)
        try:
            kill_often(kind, max(1, round(kills * KINDS[name].share / total)), random.Random(f"{name} {seed}"), report)
        finally:
            close = getattr(kind, "close", None)
            if close is not None:
                close()
        print(name, report[name], report["wrong"][-3:], file=sys.stderr, flush=True)
    report["kills"] = sum(report[name]["kills"] for name in chosen)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
