"""Ollama's registries: the manifest of a name, and the URL of its model blob.

The API is that of container registries: GET /v2/NAMESPACE/MODEL/manifests/TAG, then /blobs/DIGEST.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError, UsageError
from jambacli.hub import download
from jambacli.hub.download import RemoteFile, Unreachable
from jambacli.hub.names import Ollama

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

DEFAULT_REGISTRY = "https://registry.ollama.ai"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_MAX_MANIFEST = 1 << 20


def registry(source: Ollama) -> str:
    """The URL of the name's registry: the host in the name, else JAMBA_OLLAMA_REGISTRY, else Ollama's own."""
    if source.host is not None:
        return f"{source.scheme}://{source.host}"
    base = os.environ.get("JAMBA_OLLAMA_REGISTRY") or DEFAULT_REGISTRY
    if not re.fullmatch(r"https?://[^\s/]+", base.rstrip("/")):
        raise UsageError(f"JAMBA_OLLAMA_REGISTRY={base[:100]!a} is not a URL; write it like https://HOST:PORT")
    return base.rstrip("/")


def model_blob(client: httpx.Client, source: Ollama) -> RemoteFile:
    """The URL, size and digest of the name's GGUF. Raises JambaError when the registry has none or refuses."""
    base = f"{registry(source)}/v2/{source.namespace}/{source.model}"
    manifest = _manifest(client, source, f"{base}/manifests/{source.tag}")
    layers = manifest.get("layers")
    models = [
        layer
        for layer in (layers if isinstance(layers, list) else ())
        if isinstance(layer, dict) and str(layer.get("mediaType", "")).partition(";")[0] == _MODEL_LAYER
    ]
    if len(models) != 1:
        what = "no model file" if not models else f"{len(models)} model files instead of one"
        raise JambaError(f"{source}: its manifest has {what}, so it cannot be run")
    size, digest = models[0].get("size"), models[0].get("digest")
    if not isinstance(size, int) or not isinstance(digest, str) or not digest.startswith("sha256:"):
        raise JambaError(f"{source}: its manifest has no valid size and digest")

    def refusal(status: int, headers: Mapping[str, str]) -> JambaError:
        return _refusal(source, status)

    return RemoteFile(f"{source.model}-{source.tag}.gguf", f"{base}/blobs/{digest}", size, digest, refusal)


def local_blob(remote: RemoteFile) -> Path | None:
    """The blob in the store of an Ollama on this machine; None when that has no blob of this digest and size."""
    home = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    path = home / "blobs" / remote.digest.replace(":", "-")
    try:
        return path if path.stat().st_size == remote.size else None
    except OSError:
        return None


def _manifest(client: httpx.Client, source: Ollama, url: str) -> dict[str, Any]:
    import httpx

    for attempt in range(1, download.TRIES + 1):
        wait = download.wait_before(attempt)
        try:
            answer = client.get(url, headers={"Accept": _MANIFEST})
            if answer.status_code == 200:
                manifest = json.loads(answer.content[:_MAX_MANIFEST])
                if isinstance(manifest, dict):
                    return manifest
                raise ValueError
            if answer.status_code not in (408, 429) and answer.status_code < 500:
                raise _refusal(source, answer.status_code)
            what = "asks to slow down" if answer.status_code == 429 else "has an error"
            why, wait = (
                f"the registry {what} ({answer.status_code})",
                download.wait_before(attempt, answer.headers),
            )
        except (ValueError, RecursionError):
            raise JambaError(f"{source}: {registry(source)} does not answer as an Ollama registry does") from None
        except httpx.TimeoutException:
            why = "the registry does not answer"
        except httpx.HTTPError as error:
            why = f"{registry(source)} cannot be reached: {' '.join(str(error).split())[:160]}"
        if attempt == download.TRIES or wait > download.LONGEST_WAIT:
            raise Unreachable(f"{source}: {why}; try again later")
        logger.info("%s: %s; trying again", source, why)
        time.sleep(wait)
    raise AssertionError


def _refusal(source: Ollama, status: int) -> JambaError:
    url = registry(source)
    if status == 404:
        return JambaError(f"{source}: {url} has no such model or tag (404)")
    if status in (401, 403):
        return JambaError(
            f"{source}: {url} requires a log-in for it ({status}); pull it with ollama, or make it public"
        )
    return JambaError(f"{source}: {url} answered with an error ({status})")
