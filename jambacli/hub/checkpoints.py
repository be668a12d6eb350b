"""Finds the HF checkpoint directory that a user means, and downloads it from the Hugging Face hub when it is a repository.

Downloads go to huggingface_hub's own cache, which resumes them and shares them with transformers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from jambacli.convert.hf_checkpoint import INDEX, no_weights, read_json
from jambacli.convert.quantized.scheme import SIDE_FILES
from jambacli.convert.to_gguf import check_config
from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of
from jambacli.gguf.values import shown
from jambacli.hub.environment import check_environment

_REPO = re.compile(r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/)?(?P<id>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})/?")
logger = logging.getLogger(__name__)

#: Files that a conversion reads besides the safetensors files.
COMPANION_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "README.md",
    *SIDE_FILES,
    INDEX,
]


# Seconds to wait for a connection to the hub.
_PATIENCE = 10.0


def find_checkpoint(source: str) -> Path:
    """The directory that ``source`` (a directory, or a hub repository as OWNER/NAME) names, downloaded if necessary.

    Raises UsageError for a name that is neither, JambaError when the download fails or is refused.
    """
    path = path_of(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # the name is too long or has a zero byte, so no file has it
        is_folder = is_file = False
    if is_folder:
        return path
    if is_file:
        hint = "it is already in GGUF; jamba quantize changes its type" if path.suffix == ".gguf" else (
            "convert takes the directory that contains it"
        )  # fmt: skip
        raise UsageError(f"{source} is a file: {hint}")
    match = _REPO.fullmatch(source)
    if match is None or source.startswith((".", "/", "~")):
        raise UsageError(f"{shown(source)}: no such directory, and not a hub repository like ai21labs/AI21-Jamba2-3B")
    return fetch_checkpoint(match["id"])


def fetch_checkpoint(repo: str) -> Path:
    """Download the files of a hub repository that a conversion needs, and return their directory.

    The config is downloaded first, so that another architecture is refused before gigabytes are transferred. The token is
    the one that huggingface_hub has stored.
    """
    check_environment()
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    # It says every one of its tries, for half a minute where there is no network.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _one_line_errors(repo):
        offline = not _answers()
        config = Path(hf_hub_download(repo, "config.json", local_files_only=offline))
        check_config(read_json(config), f"{repo}/config.json")
        logger.info("downloading %s from the hub", repo)
        for weights in ("model*.safetensors", "*.safetensors"):
            folder = Path(snapshot_download(repo, allow_patterns=[*COMPANION_FILES, weights], local_files_only=offline))
            if next(folder.glob("*.safetensors"), None):
                return folder
        raise no_weights(repo, HfApi().list_repo_files(repo))


def _answers() -> bool:
    """Whether the hub can be reached at all; where it cannot, what has been downloaded is used at once."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=_PATIENCE)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return False
    except httpx.HTTPError:
        pass
    return True


@contextlib.contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn the hub library's exceptions into JambaErrors of one line that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise JambaError(
            f"{repo} is gated: accept its terms on https://huggingface.co/{repo}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise JambaError(
            f"{repo}: no such directory and no such repository on the hub (if it is private, `hf auth login` first)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _hub_error(repo, error.__cause__) from error
        raise JambaError(
            f"{repo}: not in the hub's cache, and the hub gives no valid answer (offline, or a network's login page?); "
            "name a directory, or try again when online"
        ) from error
    except errors.EntryNotFoundError as error:
        raise JambaError(f"{repo} has no config.json, so it is not a transformers checkpoint") from error
    except errors.OfflineModeIsEnabled as error:
        raise JambaError(f"{repo}: the hub library is in offline mode; unset HF_HUB_OFFLINE to download") from error
    except errors.HfHubHTTPError as error:
        raise _hub_error(repo, error) from error
    except JambaError:
        raise
    except Exception as error:  # the library does not wrap its HTTP client's exceptions
        what = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise JambaError(f"{repo}: the download failed: {what}; run the command again to resume") from error


def _hub_error(repo: str, error: Exception) -> JambaError:
    return JambaError(f"{repo}: the hub answered with an error: {' '.join(str(error).split())[:200]}")
