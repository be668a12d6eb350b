"""A quantized GGUF made here of a hub's checkpoint: fetched, converted, quantized, registered; knows nothing of asking.

The checkpoint's files come by the same resumable downloads, and go when the GGUF is there.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jambacli import ui
from jambacli.convert.hf_checkpoint import no_weights, read_json
from jambacli.convert.to_gguf import TYPES, check_config
from jambacli.errors import JambaError, UsageError
from jambacli.hub import download, huggingface
from jambacli.hub.checkpoints import BESIDE_THE_WEIGHTS
from jambacli.hub.download import Remote
from jambacli.hub.huggingface import Listed, Listing
from jambacli.hub.names import Hub, canonical_quant, parse_name, with_quant
from jambacli.hub.paths import sound_path
from jambacli.hub.preview import Fit, forget
from jambacli.hub.pull import NeedsConversion, Request, fit
from jambacli.hub.store import Entry, Store, StoredFile, set_id
from jambacli.model.config import JambaConfig

_DIRECT = set(TYPES) - {"auto"}


def make(text: str, needed: NeedsConversion, request: Request, decide: Callable[[Fit], None]) -> Entry:
    """Pull the checkpoint ``needed.repo`` and register it as a GGUF of type ``needed.quant`` under ``text``'s name.

    ``decide`` sees how it will fit before the weights are fetched. It needs the disk for the checkpoint, the same once
    more, and the result. JambaError, one line, for what goes wrong.
    """
    from jambacli.quantize import recipes

    kind = needed.quant.lower()
    if kind not in _DIRECT:
        try:
            recipes.get_recipe(kind)
        except ValueError as error:
            raise UsageError(f"--quant: {error}") from error
    name = with_quant(parse_name(text, revision=request.revision), needed.quant)
    store = Store()
    store.prepare()
    revision = next((s.revision for s in name.sources if isinstance(s, Hub)), request.revision)
    listing = huggingface.list_repo(needed.repo, revision)
    remotes = huggingface.remotes(listing, _wanted(listing), lambda path: path)
    source = set_id([f"{r.name} {r.digest}" for r in remotes])
    made = "made-" + hashlib.sha256(f"{source} {kind}".encode()).hexdigest()
    with store.lock(made), store.lock(source):
        folder = store.folder(made)
        known = next((e for e in store.entries() if e.set_id == made and store.complete(e)), None)
        if known is None:
            forget(folder)

            def judged(config: JambaConfig, left: int) -> None:
                weights, experts = _estimate(config, kind)
                size = sum(remote.size for remote in remotes)
                decide(fit(name.text, config, weights, experts, size=size, left=left, others=(), request=request))

            checkpoint = _checkpoint(store, listing, remotes, source, judged)
            path = _convert(store, checkpoint, folder, needed.repo, kind)
            with ui.progress("Hashing", path.stat().st_size) as advance:
                digest = download.file_digests(path, path.stat().st_size, advance)[0].removeprefix("sha256:")
            files: tuple[StoredFile, ...] = (StoredFile(path.name, path.stat().st_size, digest),)
        else:
            files = known.files
        entry = _entry(store, request.name or name.text, listing, revision, made, files, kind)
        store.register(entry)
        forget(store.folder(source))
    return entry


def _wanted(listing: Listing) -> list[Listed]:
    """What a conversion needs: the files beside the weights, and the safetensors, transformers' own where there are some."""
    files = [f for f in listing.files if sound_path(f.path)]
    weights: list[Listed] = []
    for pattern in ("model*.safetensors", "*.safetensors"):
        weights = weights or [f for f in files if "/" not in f.path and fnmatch.fnmatch(f.path, pattern)]
    if not weights:
        raise no_weights(listing.repo, [f.path for f in listing.files])
    beside = [f for f in files if any(fnmatch.fnmatch(f.path, pattern) for pattern in BESIDE_THE_WEIGHTS)]
    if not any(f.path == "config.json" for f in beside):
        raise JambaError(f"{listing.repo} has no config.json: it is no transformers checkpoint")
    # The config first: another architecture is refused before gigabytes are fetched.
    return sorted(beside, key=lambda f: f.path != "config.json") + sorted(weights, key=lambda f: f.path)


def _checkpoint(
    store: Store, listing: Listing, remotes: Sequence[Remote], key: str, judged: Callable[[JambaConfig, int], None]
) -> Path:
    """The checkpoint's directory: the hub's cache where all of it is there, else fetched into the store."""
    total = sum(remote.size for remote in remotes)
    cached = [huggingface.cached_file(listing, r.name) for r in remotes]
    if cached[0] and all(c is not None and c.stat().st_size == r.size for c, r in zip(cached, remotes, strict=True)):
        store.need_disk(total + total * 3 // 4, f"making a GGUF of {listing.repo}")
        judged(_config(listing, cached[0]), 0)
        return cached[0].parent
    folder = store.folder(key)
    targets = [folder / remote.name for remote in remotes]
    done = [download.fetched_bytes(t, r.size) for t, r in zip(targets, remotes, strict=True)]
    left = total - sum(done)
    # The download, the same again converted, and at most three quarters of it quantized.
    store.need_disk(left + total + total * 3 // 4, f"making a GGUF of {listing.repo}")
    with download.open_client() as client:
        if not targets[0].exists():
            download.fetch(client, remotes[0], targets[0], lambda n: None)
            done[0] = remotes[0].size
        judged(_config(listing, targets[0]), left)
        with ui.transfers(f"Pulling {listing.repo}", total, sum(done)) as begin:
            for remote, target, have in zip(remotes, targets, done, strict=True):
                if not target.exists():
                    download.fetch(client, remote, target, begin(remote.name, remote.size, have))
    return folder


def _config(listing: Listing, path: Path) -> JambaConfig:
    """The checkpoint's config, refused here if it is another architecture's."""
    source = f"{listing.repo}/config.json"
    values = read_json(path)
    check_config(values, source)
    return JambaConfig.from_hf(values, source)


def _estimate(config: JambaConfig, kind: str) -> tuple[int, int]:
    """About how many bytes of weights ``kind`` makes of it, and how many of those are experts'."""
    digits = re.search(r"\d+", kind)
    bits = float(digits[0]) if digits else 8.0
    # Scales and the tensors that stay finer add to the bits of a type's name.
    per_weight = bits if bits >= 16 else bits + (0.9 if bits < 8 else 0.5)
    experts = 3 * config.n_experts * config.ffn * config.hidden * config.n_moe_layers
    return int(config.params() * per_weight / 8), int(experts * per_weight / 8)


def _convert(store: Store, checkpoint: Path, folder: Path, repo: str, kind: str) -> Path:
    """The GGUF of type ``kind`` in ``folder``; what lies between is removed."""
    from jambacli.convert.to_gguf import convert
    from jambacli.gguf.reader import GGUFFile
    from jambacli.quantize import quantize_file as quantizing
    from jambacli.quantize import recipes

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = repo.rpartition("/")[2]
    direct = kind in _DIRECT
    label = canonical_quant(kind) if direct else recipes.get_recipe(kind).label
    path = folder / f"{stem}-{label}.gguf"
    between = path if direct else folder / "converted.gguf"
    try:
        ui.note(f"converting {repo}")
        convert(checkpoint, between, type=kind if direct else "auto", name=stem, progress=ui.progress)
        if not direct:
            ui.note(f"quantizing it to {label}")
            with GGUFFile.open(between) as file:
                request = quantizing.Request(recipes.get_recipe(kind), recipes.Options())
                quantizing.quantize(quantizing.plan(file, request), path, ui.progress)
    except BaseException:
        forget(folder)
        raise
    if not direct:
        between.unlink()
    return path


def _entry(
    store: Store, name: str, listing: Listing, revision: str | None, made: str, files: tuple[StoredFile, ...], kind: str
) -> Entry:
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
    return Entry(name, source, files, made, canonical_quant(kind), context, params, time.time())
