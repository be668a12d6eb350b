"""Makes a quantized GGUF from a hub repository's HF checkpoint: downloads it, converts, quantizes and registers the result.

The checkpoint is downloaded by the same resumable downloads as a GGUF, and removed once the GGUF is registered.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jambacli.convert.hf_checkpoint import no_weights, read_json
from jambacli.convert.to_gguf import TYPES, check_config
from jambacli.errors import JambaError, UsageError
from jambacli.hub import download, huggingface
from jambacli.hub.checkpoints import COMPANION_FILES
from jambacli.hub.download import RemoteFile
from jambacli.hub.huggingface import ListedFile, Listing
from jambacli.hub.names import Hub, canonical_quant, parse_name, with_quant
from jambacli.hub.paths import is_safe_path
from jambacli.hub.pick_file import Conversion
from jambacli.hub.preview import DownloadFit
from jambacli.hub.pull import PullOptions, fit_this_machine
from jambacli.hub.store import Store, StoredFile, StoreEntry, discard, set_id
from jambacli.model.config import JambaConfig
from jambacli.progress import Progress, Transfers, no_progress, no_transfers

logger = logging.getLogger(__name__)

_DIRECT = set(TYPES) - {"auto"}


def make_from_checkpoint(
    text: str,
    conversion: Conversion,
    options: PullOptions,
    decide: Callable[[DownloadFit], None],
    *,
    progress: Progress = no_progress,
    transfers: Transfers = no_transfers,
) -> StoreEntry:
    """Download the checkpoint ``conversion.repo`` and register it as a GGUF of type ``conversion.quant`` under ``text``.

    ``decide`` is called with how the result fits this machine before the weights are downloaded, and raises to stop. The
    disk must have room for the checkpoint, a converted copy of the same size, and the result. Raises JambaError.
    """
    from jambacli.quantize import recipes

    kind = conversion.quant.lower()
    if kind not in _DIRECT:
        try:
            recipes.get_recipe(kind)
        except ValueError as error:
            raise UsageError(str(error), remedy="set {quant} to one of them") from error
    name = with_quant(parse_name(text, revision=options.revision), conversion.quant)
    store = Store()
    store.prepare()
    revision = next((s.revision for s in name.sources if isinstance(s, Hub)), options.revision)
    listing = huggingface.list_repo(conversion.repo, revision)
    remotes = huggingface.remote_files(listing, _files_to_download(listing), lambda path: path)
    source = set_id([f"{r.name} {r.digest}" for r in remotes])
    made = "made-" + hashlib.sha256(f"{source} {kind}".encode()).hexdigest()
    with store.lock(made), store.lock(source):
        folder = store.folder(made)
        known = next((e for e in store.entries() if e.set_id == made and store.is_complete(e)), None)
        if known is None:
            discard(folder)

            def decide_on(config: JambaConfig, to_download: int) -> None:
                weights, experts = _estimate_bytes(config, kind)
                size = sum(remote.size for remote in remotes)
                fit = fit_this_machine(
                    name.text, config, weights, experts, size=size, to_download=to_download, same=(), options=options
                )
                decide(fit)

            checkpoint = _download_checkpoint(store, listing, remotes, source, decide_on, transfers)
            path = _convert(checkpoint, folder, conversion.repo, kind, progress)
            with progress("Hashing", path.stat().st_size) as advance:
                digest = download.file_digests(path, path.stat().st_size, advance)[0].removeprefix("sha256:")
            files: tuple[StoredFile, ...] = (StoredFile(path.name, path.stat().st_size, digest),)
        else:
            files = known.files
        entry = _entry(store, options.own_name or name.text, listing, revision, made, files, kind)
        store.register(entry)
        discard(store.folder(source))
    return entry


def _files_to_download(listing: Listing) -> list[ListedFile]:
    """The files that a conversion needs, config.json first: COMPANION_FILES and the safetensors (``model*`` if there are
    any)."""
    files = [f for f in listing.files if is_safe_path(f.path)]
    weights: list[ListedFile] = []
    # The first that exists, as transformers chooses.
    for pattern in ("model.safetensors", "model*.safetensors", "*.safetensors"):
        weights = weights or [f for f in files if "/" not in f.path and fnmatch.fnmatch(f.path, pattern)]
    if not weights:
        raise no_weights(listing.repo, [f.path for f in listing.files])
    beside = [f for f in files if any(fnmatch.fnmatch(f.path, pattern) for pattern in COMPANION_FILES)]
    if not any(f.path == "config.json" for f in beside):
        raise JambaError(f"{listing.repo} has no config.json, so it is not a transformers checkpoint")
    # The config first, so that another architecture is refused before gigabytes are downloaded.
    return sorted(beside, key=lambda f: f.path != "config.json") + sorted(weights, key=lambda f: f.path)


def _download_checkpoint(
    store: Store,
    listing: Listing,
    remotes: Sequence[RemoteFile],
    key: str,
    decide: Callable[[JambaConfig, int], None],
    transfers: Transfers,
) -> Path:
    """The checkpoint's directory: in the hub's cache if that has all of it, else downloaded into the store."""
    total = sum(remote.size for remote in remotes)
    cached = [huggingface.cached_file(listing, r.name) for r in remotes]
    if cached[0] and all(c is not None and c.stat().st_size == r.size for c, r in zip(cached, remotes, strict=True)):
        store.require_disk_space(total + total * 3 // 4, f"making a GGUF of {listing.repo}")
        config = _config(listing, cached[0])
        store.require_disk_space(_converted_bytes(config, total) * 7 // 4, f"making a GGUF of {listing.repo}")
        decide(config, 0)
        return cached[0].parent
    folder = store.folder(key)
    targets = [folder / remote.name for remote in remotes]
    done = [download.fetched_bytes(t, r.size) for t, r in zip(targets, remotes, strict=True)]
    to_download = total - sum(done)
    # The download, a converted copy of the same size, and at most three quarters of it quantized.
    store.require_disk_space(to_download + total + total * 3 // 4, f"making a GGUF of {listing.repo}")
    with download.open_client() as client:
        if not targets[0].exists():
            download.fetch(client, remotes[0], targets[0], lambda n: None)
            done[0] = remotes[0].size
        config = _config(listing, targets[0])
        needed = to_download + _converted_bytes(config, total) * 7 // 4
        store.require_disk_space(needed, f"making a GGUF of {listing.repo}")
        decide(config, to_download)
        with transfers(f"Pulling {listing.repo}", total, sum(done)) as begin:
            for remote, target, have in zip(remotes, targets, done, strict=True):
                if not target.exists():
                    download.fetch(client, remote, target, begin(remote.name, remote.size, have))
    return folder


def _config(listing: Listing, path: Path) -> JambaConfig:
    """The checkpoint's config. Raises UnsupportedError when it is for another architecture."""
    source = f"{listing.repo}/config.json"
    values = read_json(path)
    check_config(values, source)
    return JambaConfig.from_hf(values, source)


def _converted_bytes(config: JambaConfig, total: int) -> int:
    """The size of the converted copy: that of the checkpoint, or 16 bits per weight of a quantized one."""
    return max(total, 2 * config.params())


def _estimate_bytes(config: JambaConfig, kind: str) -> tuple[int, int]:
    """Estimated bytes of the weights in type ``kind``, and of the experts among them."""
    digits = re.search(r"\d+", kind)
    bits = float(digits[0]) if digits else 8.0
    # Block scales, and tensors kept in a finer type, add to the bits in the type's name.
    per_weight = bits if bits >= 16 else bits + (0.9 if bits < 8 else 0.5)
    experts = 3 * config.n_experts * config.ffn * config.hidden * config.n_moe_layers
    return int(config.params() * per_weight / 8), int(experts * per_weight / 8)


def _convert(checkpoint: Path, folder: Path, repo: str, kind: str, progress: Progress) -> Path:
    """Convert ``checkpoint`` to a GGUF of type ``kind`` in ``folder``; the unquantized file in between is removed."""
    from jambacli.convert.to_gguf import convert
    from jambacli.gguf.reader import GGUFFile
    from jambacli.quantize import quantize_file as quantizing
    from jambacli.quantize import recipes

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = repo.rpartition("/")[2]
    direct = kind in _DIRECT
    label = canonical_quant(kind) if direct else recipes.get_recipe(kind).label
    path = folder / f"{stem}-{label}.gguf"
    converted = path if direct else folder / "converted.gguf"
    try:
        logger.info("converting %s", repo)
        convert(checkpoint, converted, type=kind if direct else "auto", name=stem, progress=progress)
        if not direct:
            logger.info("quantizing it to %s", label)
            with GGUFFile.open(converted) as file:
                request = quantizing.Request(recipes.get_recipe(kind), recipes.RecipeOptions())
                quantizing.quantize(quantizing.plan(file, request), path, progress)
    except BaseException:
        discard(folder)
        raise
    if not direct:
        converted.unlink()
    return path


def _entry(
    store: Store, name: str, listing: Listing, revision: str | None, made: str, files: tuple[StoredFile, ...], kind: str
) -> StoreEntry:
    from jambacli.gguf.summary import summarize

    summary = summarize(store.folder(made) / files[0].name)
    source: dict[str, object] = {
        "kind": "hub",
        "repo": listing.repo,
        "revision": revision,
        "commit": listing.commit,
        "files": [],
        "made": True,
    }
    context, params = summary.config.context_length, summary.params
    return StoreEntry(name, source, files, made, canonical_quant(kind), context, params, time.time())
