"""Finds the checkpoint directory a user means, fetching it from the Hugging Face hub; knows nothing of its tensors.

Downloads go to huggingface_hub's own cache, which resumes them and shares them with transformers.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from jambacli import ui
from jambacli.convert.hf_checkpoint import INDEX, no_weights, read_json
from jambacli.convert.to_gguf import check_config
from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of
from jambacli.gguf.values import shown

_REPO = re.compile(r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/)?(?P<id>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})/?")
BESIDE_THE_WEIGHTS = [
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
    INDEX,
]


def find_checkpoint(source: str) -> Path:
    """The directory that ``source`` (a directory, or a hub repository as OWNER/NAME) names, downloaded if need be.

    Raises UsageError for a name that is neither, JambaError where the hub cannot or will not hand it over.
    """
    path = path_of(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte: no file has that name
        is_folder = is_file = False
    if is_folder:
        return path
    if is_file:
        hint = "it is a GGUF file already; jamba quantize changes its type" if path.suffix == ".gguf" else (
            "convert takes the directory it lies in"
        )  # fmt: skip
        raise UsageError(f"{source} is a file: {hint}")
    match = _REPO.fullmatch(source)
    if match is None or source.startswith((".", "/", "~")):
        raise UsageError(f"{shown(source)}: no such directory, and not a hub repository like ai21labs/AI21-Jamba2-3B")
    return fetch_checkpoint(match["id"])


def fetch_checkpoint(repo: str) -> Path:
    """Download what a conversion needs of a hub repository and return its directory.

    The config comes first: another architecture is refused before gigabytes are fetched. A token is taken from where
    huggingface_hub keeps it.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with _one_line_errors(repo):
        config = Path(hf_hub_download(repo, "config.json"))
        check_config(read_json(config), f"{repo}/config.json")
        ui.note(f"fetching {repo} from the hub")
        for weights in ("model*.safetensors", "*.safetensors"):
            folder = Path(snapshot_download(repo, allow_patterns=[*BESIDE_THE_WEIGHTS, weights]))
            if next(folder.glob("*.safetensors"), None):
                return folder
        raise no_weights(repo, HfApi().list_repo_files(repo))


@contextlib.contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn the hub library's exceptions into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise JambaError(
            f"{repo} is gated: accept its terms on https://huggingface.co/{repo}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise JambaError(
            f"{repo}: no such directory here and no such repository on the hub (if it is private, `hf auth login` first)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _answered(repo, error.__cause__) from error
        raise JambaError(
            f"{repo}: not in the hub's cache, and the hub cannot be reached (offline?); "
            "give a directory, or try again when online"
        ) from error
    except errors.EntryNotFoundError as error:
        raise JambaError(f"{repo} has no config.json: it is no transformers checkpoint") from error
    except errors.OfflineModeIsEnabled as error:
        raise JambaError(f"{repo}: the hub library is in offline mode; unset HF_HUB_OFFLINE to download") from error
    except errors.HfHubHTTPError as error:
        raise _answered(repo, error) from error
    except JambaError:
        raise
    except Exception as error:  # the library lets its HTTP client's own exceptions through
        what = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise JambaError(f"{repo}: downloading failed: {what}; run it again to resume") from error


def _answered(repo: str, error: Exception) -> JambaError:
    return JambaError(f"{repo}: the hub answered with an error: {' '.join(str(error).split())[:200]}")
