"""Downloads one file with range requests that resume where the last one stopped, and verifies its digest.

A file is written in order to ``NAME.part`` in the target's directory, so resuming needs only the length of the part:
however the process ends, the next one requests only the rest. The part is renamed to ``NAME`` once its size and digest are
those that the server listed.
"""

from __future__ import annotations

import email.utils
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jambacli.errors import JambaError
from jambacli.files import sync_directory
from jambacli.hub.environment import check_environment, seconds
from jambacli.units import format_bytes, format_seconds

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

# Consecutive failures, without a byte received between them, before a download is given up.
TRIES = 5
# Seconds before the first retry; doubled for each further one, with jitter, up to the longest.
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_MAX_FILE = 1 << 46
_READ = 1 << 20


class Unreachable(JambaError):
    """The server does not answer, or only with errors that may be temporary."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    ``size``: bytes. ``digest``: ``sha256:HEX``, or ``git:HEX`` (git's blob hash) for files that a hub stores in git itself.
    ``refusal(status, headers)``: the error for a status that is neither 200, 206 nor worth a retry.
    """

    name: str
    url: str
    size: int
    digest: str
    refusal: Callable[[int, Mapping[str, str]], JambaError]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest) or not 0 <= self.size <= _MAX_FILE:
            raise JambaError(f"{self.name[:100]!a}: the server's listing has no valid size and digest for it")


def stall_seconds() -> float:
    """Seconds without a byte after which a connection counts as dead: HF_HUB_DOWNLOAD_TIMEOUT, or 20."""
    return max(0.1, seconds("HF_HUB_DOWNLOAD_TIMEOUT", 20.0))


def open_client() -> httpx.Client:
    """A client that follows redirects (without sending credentials to other hosts) and honours the proxy variables."""
    import httpx

    from jambacli import __version__

    check_environment()

    limits = httpx.Timeout(stall_seconds(), pool=None)
    agent = {"User-Agent": f"jamba/{__version__}", "Accept-Encoding": "identity"}
    return httpx.Client(timeout=limits, follow_redirects=True, headers=agent)


def part_path(target: Path) -> Path:
    """The partial file of a download to ``target``."""
    return target.with_name(f"{target.name}.part")


def fetched_bytes(target: Path, size: int) -> int:
    """How many bytes of ``target`` are on disk already, complete or partial. A complete file of another size is removed."""
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


def fetch_head(client: httpx.Client, remote: RemoteFile, target: Path, upto: int) -> Path:
    """Download the first ``upto`` bytes (or the whole file, if it is shorter) and return the file that holds them.

    They are the beginning of the download: ``fetch`` resumes after them.
    """
    if target.exists():
        return target
    part = part_path(target)
    with _open_part(part) as file:
        _Transfer(client, remote, file, lambda n: None).run(min(upto, remote.size))
    return part


def fetch(client: httpx.Client, remote: RemoteFile, target: Path, advance: Callable[[int], None]) -> str:
    """Download ``remote`` to ``target`` and return its sha256 in hex. ``advance`` is called with the bytes as they arrive.

    A file with the wrong digest is removed; if part of it came from an earlier run, it is downloaded once more from the
    start. Raises JambaError, and keeps the part, for a connection that stays broken, a refusal or a full disk.
    """
    part = part_path(target)
    for attempt in (1, 2):
        with _open_part(part) as file:
            before = file.tell()
            transfer = _Transfer(client, remote, file, advance)
            transfer.hash_existing()
            transfer.run(remote.size)
            valid = transfer.digest_matches()
            if valid:
                file.flush()
                os.fsync(file.fileno())
        if valid:
            part.replace(target)
            sync_directory(target.parent)
            return transfer.sha256.hexdigest()
        part.unlink(missing_ok=True)
        if before == 0 or attempt == 2:
            break
        logger.warning("%s is damaged; downloading it again from the start", remote.name)
        advance(-remote.size)
    raise JambaError(
        f"{remote.name} is damaged: its {remote.digest.partition(':')[0]} is not the one that the server lists; it was "
        "removed. Pull again; if that fails in the same way, the server's copy is damaged"
    )


def file_digests(path: Path, size: int, advance: Callable[[int], None]) -> tuple[str, str]:
    """The sha256 and the git blob hash of the file at ``path`` (``size`` bytes), each as ``kind:HEX``."""
    sha256, git = hashlib.sha256(), _git_hash(size)
    with path.open("rb") as file:
        while data := file.read(_READ):
            sha256.update(data)
            git.update(data)
            advance(len(data))
    return f"sha256:{sha256.hexdigest()}", f"git:{git.hexdigest()}"


def wait_before(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Seconds to wait before retry ``attempt`` (from 1): what Retry-After asks for, else exponential with jitter."""
    asked = (headers or {}).get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,6}", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25))


def _git_hash(size: int) -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _open_part(part: Path) -> BinaryIO:
    try:
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered, so that the file's length counts every byte that has arrived.
        return part.open("ab+", buffering=0)
    except OSError as error:
        raise JambaError(f"cannot write {part}: {error.strerror or error}") from error


class _Transfer:
    """The download of one file into its part: the loop of requests, and the length and hashes so far."""

    def __init__(
        self, client: httpx.Client, remote: RemoteFile, file: BinaryIO, advance: Callable[[int], None]
    ) -> None:
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

    def hash_existing(self) -> None:
        """Hash the bytes of earlier runs."""
        self.file.seek(0)
        for _ in range(0, self.have, _READ):
            self._hash(self.file.read(_READ))

    def digest_matches(self) -> bool:
        kind, _, listed = self.remote.digest.partition(":")
        return listed == (self.sha256 if kind == "sha256" else self.git).hexdigest()

    def run(self, stop: int) -> None:
        """Request and write until the part has ``stop`` bytes."""
        import httpx

        while self.have < stop:
            before, wait = self.have, None
            try:
                wait, why = self._request(stop)
            except httpx.TimeoutException:
                why = f"no data for {format_seconds(stall_seconds())}"
            except httpx.TransportError as error:
                why = " ".join(str(error).split()) or type(error).__name__
            except httpx.HTTPError as error:
                raise JambaError(f"{self.remote.name}: {' '.join(str(error).split())[:200]}") from error
            except httpx.InvalidURL as error:
                raise JambaError(f"{self.remote.name}: the server sent an invalid URL: {error}") from error
            if self.have >= stop:
                return
            self.failures = 1 if self.have > before else self.failures + 1
            self._wait(why, wait)

    def _wait(self, why: str, asked: float | None) -> None:
        kept = f"{format_bytes(self.have)} of {format_bytes(self.remote.size)} are stored; pull again to resume"
        if self.failures >= TRIES:
            raise Unreachable(f"{self.remote.name}: {why}, {TRIES} times in a row; {kept}")
        wait = wait_before(self.failures) if asked is None else asked
        if wait > LONGEST_WAIT:
            raise Unreachable(f"{self.remote.name}: {why}; the server asks to wait {format_seconds(wait)}; {kept}")
        logger.info("%s: %s; resuming at %s", self.remote.name, why, format_bytes(self.have))
        time.sleep(wait)

    def _request(self, stop: int) -> tuple[float | None, str]:
        """One request for the bytes from ``have`` to ``stop``; returns the wait that the server asks for and why the
        request ended before ``stop``."""
        span = f"bytes={self.have}-{stop - 1}"
        headers = {**self.remote.headers, "Range": span, "Accept-Encoding": "identity"}
        with self.client.stream("GET", self.remote.url, headers=headers) as answer:
            status = answer.status_code
            if status in _RETRY_STATUS:
                what = "asks to slow down" if status == 429 else "has an error"
                asked = wait_before(self.failures + 1, answer.headers) if "retry-after" in answer.headers else None
                return asked, f"the server {what} ({status})"
            if status == 416:
                self._restart()
                return None, "the server has no such range (416)"
            if status not in (200, 206):
                raise self.remote.refusal(status, answer.headers)
            self._check_range(status, answer.headers)
            for data in answer.iter_raw():
                self._write(data[: stop - self.have])
                if self.have >= stop:
                    break
        return None, "the connection ended early"

    def _check_range(self, status: int, headers: Mapping[str, str]) -> None:
        """Check that the answer starts at ``have``; start over when the server does not support ranges."""
        if status == 200:
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) != self.remote.size:
                raise self._size_changed(int(length))
            if self.have:
                self._restart()
            return
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
        if span is None or int(span[1]) != self.have:
            raise JambaError(f"{self.remote.name}: the server answered with a different range from the one requested")
        if span[2] != "*" and int(span[2]) != self.remote.size:
            raise self._size_changed(int(span[2]))

    def _size_changed(self, size: int) -> JambaError:
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
                f"cannot write {self.file.name}: {error.strerror or error}; the part is kept, pull again to resume"
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
