"""The Hugging Face hub through its own library: listings, access, its cache, its errors.

``remote_files`` gives the URLs of a model's files; ``hub.download`` downloads them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jambacli.errors import JambaError
from jambacli.hub import download
from jambacli.hub.download import RemoteFile, Unreachable
from jambacli.hub.environment import check_environment, proxy_for
from jambacli.hub.paths import is_safe_path

logger = logging.getLogger(__name__)

T = TypeVar("T")
_HUB_PAGE = "https://huggingface.co"


class NotOnHub(JambaError):
    """There is no such repository, revision or file, or the token has no access to it."""


@dataclass(frozen=True)
class ListedFile:
    """One file of a repository. ``size`` and ``digest`` (as in ``RemoteFile``) are None when the listing lacks them."""

    path: str
    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit. ``revision`` is what was requested, None for main."""

    repo: str
    revision: str | None
    commit: str
    files: tuple[ListedFile, ...]


def list_repo(repo: str, revision: str | None) -> Listing:
    """The files of ``repo`` at ``revision``: from the hub, or from the hub library's cache in offline mode.

    Raises JambaError without access, NotOnHub when there is no such repository, Unreachable when the hub does not answer.
    """
    check_environment()
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        found = cached_listing(repo, revision)
        if found is None:
            raise JambaError(
                f"{repo}: the hub library is in offline mode and its cache has no such model; unset HF_HUB_OFFLINE"
            )
        return found
    api = HfApi(endpoint=_endpoint())
    info = _ask(
        repo,
        revision,
        None,
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=download.stall_seconds()),
    )
    files = tuple(
        ListedFile(s.rfilename, _whole(_lfs(s, "size") or s.size), _digest(_lfs(s, "sha256"), s.blob_id))
        for s in info.siblings or ()
    )
    bad = next((f.path for f in files if not isinstance(f.path, str) or not _inside(f.path)), None)
    if bad is not None:
        raise JambaError(
            f"{repo}: its listing contains {bad[:80]!a}, a path outside the repository; nothing was downloaded"
        )
    commit = str(info.sha or revision or "main")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise JambaError(f"{repo}: the hub gives {commit[:60]!a} as its commit, which is not a commit hash")
    return Listing(repo, revision, commit, files)


def cached_listing(repo: str, revision: str | None) -> Listing | None:
    """The files of ``repo`` in the hub library's cache; None when it has none. Uses no network."""
    check_environment()
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    commit = revision or "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (home / "refs" / (revision or "main")).read_text().strip()
    folder = home / "snapshots" / commit
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not folder.is_dir():
        return None
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            blob = path.resolve().name
            digest = _digest(blob if len(blob) == 64 else None, blob if len(blob) == 40 else None)
            files.append(ListedFile(name, path.stat().st_size, digest))
    return Listing(repo, revision, commit, tuple(files))


def cached_file(listing: Listing, path: str) -> Path | None:
    """``path`` at the listing's commit in the hub library's cache; None when it is not cached."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repo, path, revision=listing.commit)
    return Path(found) if isinstance(found, str) else None


def remote_files(listing: Listing, files: Iterable[ListedFile], name: Callable[[str], str]) -> list[RemoteFile]:
    """The downloads of ``files``. ``name`` gives the local name of a path. Sizes that the listing lacks are requested."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name="jamba")
    out = []
    for file in files:
        size, digest = file.size, file.digest
        url = hf_hub_url(listing.repo, file.path, revision=listing.commit, endpoint=_endpoint())
        if size is None or digest is None:
            seen = _ask(
                listing.repo,
                listing.revision,
                file.path,
                lambda url=url: get_hf_file_metadata(url, timeout=download.stall_seconds()),  # type: ignore[misc]
            )
            etag = str(seen.etag or "")
            size, digest = seen.size, _digest(etag if len(etag) == 64 else None, etag if len(etag) == 40 else None)
        out.append(
            RemoteFile(
                name(file.path),
                url,
                -1 if size is None else size,
                digest or "",
                _refuser(listing.repo, listing.revision, file.path),
                headers,
            )
        )
    return out


def _refuser(repo: str, revision: str | None, path: str) -> Callable[[int, Mapping[str, str]], JambaError]:
    return lambda status, headers: _refusal(repo, revision, path, status, headers)


def _ask(repo: str, revision: str | None, path: str | None, call: Callable[[], T]) -> T:
    """The result of one request to the hub, retried after temporary failures. Every failure becomes a JambaError."""
    from huggingface_hub import errors

    for attempt in range(1, download.TRIES + 1):
        try:
            return call()
        except errors.OfflineModeIsEnabled as error:
            raise JambaError(f"{repo}: the hub library is in offline mode; unset HF_HUB_OFFLINE to download") from error
        except errors.HfHubHTTPError as error:
            answer: Any = error.response
            status = getattr(answer, "status_code", 0)
            headers: Mapping[str, str] = getattr(answer, "headers", {})
            if status not in (408, 429) and status < 500:
                raise _refusal(repo, revision, path, status, headers, error) from error
            what = "asks to slow down" if status == 429 else "has an error"
            why = f"the hub {what} ({status})"
            wait = download.wait_before(attempt, headers)
        except (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
            raise JambaError(f"{repo}: the hub library cannot read its own files: {error}") from error
        except json.JSONDecodeError as error:
            raise JambaError(
                f"{repo}: {_page()} answers, but not as a hub does (a network's login page, or a wrong HF_ENDPOINT?)"
            ) from error
        except ValueError as error:  # the library's own check of names
            raise JambaError(f"{repo}: {' '.join(str(error).split())[:200]}") from error
        except Exception as error:  # the library does not wrap its HTTP client's exceptions
            stalled = "Timeout" in type(error).__name__
            text = " ".join(str(error).split())[:160] or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in text:
                raise JambaError(
                    f"{repo}: the certificate of {_page()} is not trusted; if this network replaces certificates, set "
                    "SSL_CERT_FILE to the file of its authority"
                ) from error
            if type(error).__name__ in ("LocalProtocolError", "InvalidURL", "UnsupportedProtocol"):
                raise JambaError(
                    f"{repo}: the request cannot be made ({type(error).__name__}); check the variables that begin with HF_"
                ) from error
            proxy = proxy_for(_page())
            through = f" through the proxy {proxy}" if proxy is not None else ""
            why = f"the hub does not answer{through}" if stalled else f"the hub cannot be reached{through}: {text}"
            wait = download.wait_before(attempt)
        if attempt == download.TRIES:
            raise Unreachable(f"{repo}: {why}, {attempt} times in a row; try again later")
        if wait > download.LONGEST_WAIT:
            raise Unreachable(f"{repo}: {why} and to wait {wait:.0f} s; try again then")
        logger.info("%s: %s; trying again", repo, why)
        time.sleep(wait)
    raise AssertionError


def _refusal(
    repo: str,
    revision: str | None,
    path: str | None,
    status: int,
    headers: Mapping[str, str],
    error: Exception | None = None,
) -> JambaError:
    """The error for a status of the hub: what it means and what to do about it."""
    lower = {key.lower(): value for key, value in headers.items()}
    code, kind = lower.get("x-error-code", ""), type(error).__name__
    page = f"{_page()}/{repo}"
    log_in = "log in with: hf auth login (or set HF_TOKEN)"
    if code == "GatedRepo" or kind == "GatedRepoError":
        return JambaError(f"{repo} is gated ({status}): ask for access on {page}, then {log_in}")
    if code == "RevisionNotFound" or kind == "RevisionNotFoundError":
        return NotOnHub(f"{repo} has no revision {(revision or 'main')!a}; see {page}/commits/main")
    if code == "EntryNotFound" or (status == 404 and path is not None):
        return NotOnHub(f"{repo} has no file {path!a}; see {page}/tree/{revision or 'main'}")
    if status == 401 and code != "RepoNotFound" and kind != "RepositoryNotFoundError":
        return JambaError(f"{repo}: the hub does not accept the token (401); {log_in}")
    if status in (401, 404):
        if _has_token():
            return NotOnHub(
                f"{repo}: no such repository on the hub, or your token may not see it ({status}); see {page}"
            )
        return NotOnHub(f"{repo}: no such repository on the hub ({status}); if it is private, {log_in}")
    if status == 403:
        return JambaError(f"{repo}: access is forbidden (403); see whether it can be granted on {page}, then {log_in}")
    return JambaError(f"{repo}{f'/{path}' if path else ''}: the hub answered with an error ({status}); see {page}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _endpoint() -> str | None:
    """The current value of HF_ENDPOINT; None for the library's default."""
    return os.environ.get("HF_ENDPOINT") or None


def _page() -> str:
    return (_endpoint() or _HUB_PAGE).rstrip("/")


def _inside(path: str) -> bool:
    """Whether a listed path stays inside its repository. Unusual but harmless characters are allowed."""
    parts = PurePosixPath(path).parts
    return is_safe_path(path) or not (
        path.startswith("/") or "\\" in path or ".." in parts or not path.isprintable() or re.match(r"[A-Za-z]:", path)
    )


def _lfs(sibling: Any, key: str) -> Any:
    lfs = getattr(sibling, "lfs", None)
    return lfs.get(key) if isinstance(lfs, dict) else getattr(lfs, key, None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _digest(sha256: Any, git: Any) -> str | None:
    if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256):
        return f"sha256:{sha256}"
    return f"git:{git}" if isinstance(git, str) and re.fullmatch(r"[0-9a-f]{40}", git) else None
