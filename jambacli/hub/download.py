"""Brings one file's bytes here by ranged requests that go on where the last one stopped; knows nothing of models or hubs.

A file grows under ``NAME.part`` beside its place, in order, so that its length is all there is to remember: whatever ends
the process, the next one asks for the rest only. It gets its name when its size and digest are the promised ones.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jambacli import ui
from jambacli.errors import JambaError
from jambacli.files import sync_directory
from jambacli.units import format_bytes, format_seconds

if TYPE_CHECKING:
    import httpx

# Failures in a row, without a byte between them, before it is given up.
TRIES = 5
# Seconds before the first repetition; doubled each time, with some chance in it, up to the longest.
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_MAX_FILE = 1 << 46
_READ = 1 << 20


class Unreachable(JambaError):
    """The other side does not answer, or only with errors that may pass."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch. ``digest`` is ``sha256:HEX`` or ``git:HEX`` (git's blob hash, for files hubs keep in git itself).

    ``refused`` makes the error of an answer that is none of 200, 206 and the passing ones.
    """

    name: str
    url: str
    size: int
    digest: str
    refused: Callable[[int, Mapping[str, str]], JambaError]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest) or not 0 <= self.size <= _MAX_FILE:
            raise JambaError(f"{self.name[:100]!a}: the server's listing gives no sound size and digest for it")


def stall_seconds() -> float:
    """How long no byte may come before a connection counts as dead: HF_HUB_DOWNLOAD_TIMEOUT, or 20."""
    try:
        return max(0.1, float(os.environ["HF_HUB_DOWNLOAD_TIMEOUT"]))
    except (KeyError, ValueError):
        return 20.0


def open_client() -> httpx.Client:
    """A client that follows redirects (without taking secrets to other hosts) and heeds the proxy variables."""
    import httpx

    from jambacli import __version__

    limits = httpx.Timeout(stall_seconds(), pool=None)
    agent = {"User-Agent": f"jamba/{__version__}", "Accept-Encoding": "identity"}
    return httpx.Client(timeout=limits, follow_redirects=True, headers=agent)


def part_path(target: Path) -> Path:
    """Where the bytes for ``target`` grow."""
    return target.with_name(f"{target.name}.part")


def fetched_bytes(target: Path, size: int) -> int:
    """How many bytes of ``target`` are here already, in place or in its part; what has another size in place is removed."""
    try:
        if target.stat().st_size == size:
            return size
        target.unlink()
    except FileNotFoundError:
        pass
    try:
        found = part_path(target).stat().st_size
    except FileNotFoundError:
        return 0
    return found if found <= size else 0


def fetch_head(client: httpx.Client, remote: Remote, target: Path, upto: int) -> Path:
    """See to it that at least ``upto`` bytes (or all there are) lie in the part; they stay part of the whole."""
    if target.exists():
        return target
    part = part_path(target)
    with _growing(part) as file:
        _Transfer(client, remote, file, lambda n: None).run(min(upto, remote.size))
    return part


def fetch(client: httpx.Client, remote: Remote, target: Path, advance: Callable[[int], None]) -> str:
    """Bring ``remote`` to ``target``; returns its sha256 in hex. ``advance`` gets the count of bytes as they come.

    A digest that is wrong removes what came; where part of it was here before, it is fetched once more from the start.
    JambaError, with the part kept, for a connection that stays broken, a refusal, or a full disk.
    """
    part = part_path(target)
    for attempt in (1, 2):
        with _growing(part) as file:
            before = file.tell()
            transfer = _Transfer(client, remote, file, advance)
            transfer.hash_so_far()
            transfer.run(remote.size)
            good = transfer.digests_match()
            if good:
                file.flush()
                os.fsync(file.fileno())
        if good:
            part.replace(target)
            sync_directory(target.parent)
            return transfer.sha256.hexdigest()
        part.unlink(missing_ok=True)
        if before == 0 or attempt == 2:
            break
        ui.warn(f"{remote.name} came out damaged; fetching it again from the start")
        advance(-remote.size)
    raise JambaError(
        f"{remote.name} is damaged: its {remote.digest.partition(':')[0]} is not the promised one; it was removed, pull again, "
        "and if it stays so, the server's copy is bad"
    )


def file_digests(path: Path, size: int, advance: Callable[[int], None]) -> tuple[str, str]:
    """The sha256 and the git blob hash of the file at ``path``, each as ``kind:HEX``."""
    sha256, git = hashlib.sha256(), _git_hash(size)
    with path.open("rb") as file:
        while data := file.read(_READ):
            sha256.update(data)
            git.update(data)
            advance(len(data))
    return f"sha256:{sha256.hexdigest()}", f"git:{git.hexdigest()}"


def wait_before(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Seconds to wait before repetition ``attempt`` (from 1): what the server asks for, else doubling with some chance."""
    asked = (headers or {}).get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,6}", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25))


def _git_hash(size: int) -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _growing(part: Path) -> BinaryIO:
    try:
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered: what has come is on its way to the disk, and the file's length says so.
        return part.open("ab+", buffering=0)
    except OSError as error:
        raise JambaError(f"cannot write {part}: {error.strerror or error}") from error


class _Transfer:
    """One file growing: the loop of requests, and what has been counted and hashed of it."""

    def __init__(self, client: httpx.Client, remote: Remote, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self.client = client
        self.remote = remote
        self.file = file
        self.advance = advance
        self.failures = 0
        self.have = file.seek(0, os.SEEK_END)
        if self.have > remote.size:
            file.truncate(0)
            self.have = file.seek(0)
        self._reset_hashes()

    def hash_so_far(self) -> None:
        """Hash what an earlier run left."""
        self.file.seek(0)
        for _ in range(0, self.have, _READ):
            self._hash(self.file.read(_READ))

    def digests_match(self) -> bool:
        kind, _, promised = self.remote.digest.partition(":")
        return promised == (self.sha256 if kind == "sha256" else self.git).hexdigest()

    def run(self, stop: int) -> None:
        """Request and write until ``stop`` bytes are here."""
        import httpx

        while self.have < stop:
            before, wait = self.have, None
            try:
                wait, why = self._request(stop)
            except httpx.TimeoutException:
                why = f"nothing came for {format_seconds(stall_seconds())}"
            except httpx.TransportError as error:
                why = " ".join(str(error).split()) or type(error).__name__
            except httpx.HTTPError as error:
                raise JambaError(f"{self.remote.name}: {' '.join(str(error).split())[:200]}") from error
            except httpx.InvalidURL as error:
                raise JambaError(f"{self.remote.name}: the server sent an address that is none: {error}") from error
            if self.have >= stop:
                return
            self.failures = 1 if self.have > before else self.failures + 1
            self._wait(why, wait)

    def _wait(self, why: str, asked: float | None) -> None:
        kept = f"{format_bytes(self.have)} of {format_bytes(self.remote.size)} are kept; pull again to go on"
        if self.failures >= TRIES:
            raise Unreachable(f"{self.remote.name}: {why}, {TRIES} times in a row; {kept}")
        wait = wait_before(self.failures) if asked is None else asked
        if wait > LONGEST_WAIT:
            raise Unreachable(f"{self.remote.name}: {why}; it asks to wait {format_seconds(wait)}; {kept}")
        ui.note(f"{self.remote.name}: {why}; going on at {format_bytes(self.have)}")
        time.sleep(wait)

    def _request(self, stop: int) -> tuple[float | None, str]:
        """One request for the bytes from ``have`` to ``stop``: how long to wait, and why it ended early if it did."""
        wanted = f"bytes={self.have}-{stop - 1}"
        headers = {**self.remote.headers, "Range": wanted, "Accept-Encoding": "identity"}
        with self.client.stream("GET", self.remote.url, headers=headers) as answer:
            status = answer.status_code
            if status in _AGAIN:
                what = "asks to slow down" if status == 429 else "has an error"
                asked = wait_before(self.failures + 1, answer.headers) if "retry-after" in answer.headers else None
                return asked, f"the server {what} ({status})"
            if status == 416:
                self._restart()
                return None, "the server has no such range (416)"
            if status not in (200, 206):
                raise self.remote.refused(status, answer.headers)
            self._check_place(status, answer.headers)
            for data in answer.iter_raw():
                self._write(data[: stop - self.have])
                if self.have >= stop:
                    break
        return None, "the connection ended early"

    def _check_place(self, status: int, headers: Mapping[str, str]) -> None:
        """Whether the bytes that come belong where we are; from the start again where the server knows no ranges."""
        if status == 200:
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) != self.remote.size:
                raise self._changed(int(length))
            if self.have:
                self._restart()
            return
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
        if place is None or int(place[1]) != self.have:
            raise JambaError(f"{self.remote.name}: the server answered with another range than the one asked for")
        if place[2] != "*" and int(place[2]) != self.remote.size:
            raise self._changed(int(place[2]))

    def _changed(self, size: int) -> JambaError:
        return JambaError(
            f"{self.remote.name}: the server has {size} bytes where its listing says {self.remote.size}; pull again later"
        )

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise JambaError(
                f"cannot write {self.file.name}: {error.strerror or error}; what has come is kept, pull again to go on"
            ) from error
        finally:
            self.have = self.file.seek(0, os.SEEK_END)
        self._hash(data)
        self.advance(len(data))

    def _restart(self) -> None:
        self.advance(-self.have)
        self.file.truncate(0)
        self.have = self.file.seek(0)
        self._reset_hashes()

    def _reset_hashes(self) -> None:
        self.sha256, self.git = hashlib.sha256(), _git_hash(self.remote.size)

    def _hash(self, data: bytes) -> None:
        self.sha256.update(data)
        if self.remote.digest.startswith("git:"):
            self.git.update(data)
