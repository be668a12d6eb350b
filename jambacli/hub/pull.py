"""Pulls a model: from a name to verified, registered files in the store.

The order is: list what the source has, look for copies on this disk, check the disk space, read the heads of the files, let the
caller decide, download, verify, register. Nothing is registered before its digests and its header have been checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.files import path_of
from jambacli.hub import download, huggingface, ollama
from jambacli.hub.aliases import DEFAULT_QUANT, SHORT, load_table
from jambacli.hub.download import RemoteFile, Unreachable
from jambacli.hub.names import Hub, Name, Ollama, parse_name, with_quant
from jambacli.hub.pick_file import Conversion, NoSuchGGUF, candidates, pick_candidate
from jambacli.hub.preview import Alternative, DownloadFit, assess_fit, preview
from jambacli.hub.resolve import find_named
from jambacli.hub.store import Store, StoredFile, StoreEntry, discard, set_id
from jambacli.progress import Progress, Transfers, no_progress, no_transfers
from jambacli.units import format_bytes

if TYPE_CHECKING:
    import httpx

    from jambacli.gguf.summary import Summary
    from jambacli.model.config import JambaConfig

logger = logging.getLogger(__name__)

# Models up to this many bytes are offered as alternatives to one that does not fit.
_SMALL_MODEL = 4e9


@dataclass(frozen=True)
class PullOptions:
    """Options of a pull.

    ``quant``: the type. ``revision``: a branch, tag or commit. ``own_name``: the name to register it under, None for the name
    that is pulled. ``ctx``: the context in tokens that must fit, None for the longest that fits. ``kv_type``: the type of
    keys and values in that context.
    """

    quant: str | None = None
    revision: str | None = None
    own_name: str | None = None
    ctx: int | None = None
    kv_type: str = "f16"


@dataclass(frozen=True)
class RemoteModel:
    """A model at its source.

    ``source``: the entry's description of it. ``files``: its files to download, in order. ``copies``: copies of all of them on
    this disk, else empty. ``quant``: the type in its name, "" for none. ``alternatives``: other types at the same source.
    """

    source: dict[str, Any]
    files: list[RemoteFile]
    copies: list[Path]
    quant: str
    alternatives: list[Alternative]


class NeedsConversion(JambaError):
    """There is no GGUF of the requested type, but it can be made from a checkpoint: see ``offer``."""

    def __init__(self, problem: str, offer: Conversion) -> None:
        super().__init__(problem, remedy="set {quant} to convert and quantize it in one step")
        self.offer = offer


def pull(
    text: str,
    options: PullOptions,
    decide: Callable[[DownloadFit], None],
    *,
    progress: Progress = no_progress,
    transfers: Transfers = no_transfers,
) -> StoreEntry:
    """Pull ``text`` and register it.

    ``decide`` is called with how the model fits this machine before most of it is downloaded, and raises to stop. Raises
    JambaError for every failure; NeedsConversion when ``from_checkpoint.make_from_checkpoint`` can make it.
    """
    if options.own_name is not None and not SHORT.fullmatch(options.own_name):
        raise UsageError(
            "is not a valid name; use lowercase letters, digits, _ . - and at most one colon",
            field="own_name",
            value=options.own_name[:80],
        )
    store = Store()
    if (path := _local_file(text)) is not None:
        return _register_path(store, path, options)
    name = parse_name(text, revision=options.revision)
    if options.quant is not None:
        name = with_quant(name, options.quant)
    store.prepare()
    known = find_named(store, name)
    try:
        model = _find(name, options)
    except Unreachable as error:
        if known is None or not store.is_complete(known):
            raise
        logger.warning("%s; keeping the copy of %s already here", error, known.name)
        return known
    return _obtain(store, options.own_name or name.text, model, options, decide, progress, transfers)


def _obtain(
    store: Store,
    name: str,
    model: RemoteModel,
    options: PullOptions,
    decide: Callable[[DownloadFit], None],
    progress: Progress,
    transfers: Transfers,
) -> StoreEntry:
    """Download the missing files of ``model``, verify them and register the model under ``name``."""
    key = set_id([file.digest for file in model.files])
    size = sum(file.size for file in model.files)
    with store.lock(key):
        folder = store.folder(key)
        targets = _targets(store, key, model.files)
        have = store.get(name)
        if have is not None and store.is_complete(have) and (have.set_id == key or have.source == model.source):
            logger.info("%s is already downloaded (%s)", name, format_bytes(size))
            return have
        missing = size - sum(download.fetched_bytes(t, f.size) for t, f in zip(targets, model.files, strict=True))
        if missing and model.copies and (copies := _verified_copies(model, progress)):
            summary = _checked_summary(model.copies[0], None)
            logger.info("%s is the same file: linked, nothing to download", model.copies[0])
            return _register(store, name, model, None, copies, summary)
        store.require_disk_space(missing, name)
        with download.open_client() as client:
            if missing:

                def head(i: int, n: int) -> Path:
                    return download.fetch_head(client, model.files[i], targets[i], n)

                try:
                    seen = preview([t.name for t in targets], [f.size for f in model.files], head)
                except (BadFileError, UnsupportedError) as error:
                    discard(folder)
                    raise JambaError(f"{name} cannot be run: {error}; nothing was kept") from error
                fit = fit_this_machine(
                    name, seen.config, seen.weight_bytes, seen.expert_bytes, size=size, to_download=missing,
                    same=model.alternatives, options=options, tensors=seen.tensors,
                )  # fmt: skip
                decide(fit)
            digests = _fetch_all(client, name, model.files, targets, transfers)
        summary = _checked_summary(targets[0], folder)
        files = [StoredFile(t.name, f.size, digest) for t, f, digest in zip(targets, model.files, digests, strict=True)]
        return _register(store, name, model, key, files, summary)


def _targets(store: Store, key: str, remotes: Sequence[RemoteFile]) -> list[Path]:
    """The target paths of the files: those of a registered entry with the same set, if there is one, else new ones."""
    for entry in store.entries():
        if entry.set_id == key and len(entry.files) == len(remotes):
            return store.paths(entry)
    return [store.folder(key) / remote.name for remote in remotes]


def _find(name: Name, options: PullOptions) -> RemoteModel:
    """The model at the first of the name's sources that has it. Raises the first source's error when none has."""
    first: JambaError | None = None
    for source in name.sources:
        try:
            return _on_ollama(source) if isinstance(source, Ollama) else _on_hub(name, source)
        except huggingface.NotOnHub as error:
            first = first or error
    repo = name.weights
    if repo is not None and (first is None or isinstance(first, NoSuchGGUF)):
        _offer_conversion(name, repo, options, first)
    if isinstance(first, NoSuchGGUF) and name.model and name.quant and repo:
        raise NoSuchGGUF(first.problem, first.types, Conversion(name.model.name, repo, name.quant))
    raise first or JambaError(f"{name.text}: no known repository has it")


def _offer_conversion(name: Name, repo: str, options: PullOptions, first: JambaError | None) -> None:
    """Raise NeedsConversion when ``repo`` has safetensors from which the requested type can be made."""
    if first is not None and isinstance(first, NoSuchGGUF) and first.types and options.quant is None:
        return
    listing = huggingface.list_repo(repo, options.revision)
    weights = [f for f in listing.files if f.path.endswith(".safetensors")]
    if not weights:
        return
    quant = name.quant or (name.model.quant if name.model else DEFAULT_QUANT)
    nbytes = sum(f.size or 0 for f in weights)
    size = f" ({format_bytes(nbytes)} to download)" if nbytes else ""
    offer = Conversion(name.model.name if name.model else repo, repo, quant)
    raise NeedsConversion(f"there is no GGUF of {name.text}, only an HF checkpoint{size}", offer)


def _on_hub(name: Name, source: Hub) -> RemoteModel:
    try:
        listing = huggingface.list_repo(source.repo, source.revision)
    except Unreachable as error:
        cached = huggingface.cached_listing(source.repo, source.revision)
        if cached is None:
            raise
        logger.warning("%s; using the hub library's cache", error)
        listing = cached
    chosen = pick_candidate(listing, source)
    copies = [found for f in chosen.files if (found := huggingface.cached_file(listing, f.path)) is not None]
    files = huggingface.remote_files(listing, chosen.files, lambda path: PurePosixPath(path).name)
    description = {
        "kind": "hub",
        "repo": source.repo,
        "revision": source.revision,
        "commit": listing.commit,
        "files": [f.path for f in chosen.files],
    }
    at = f"@{source.revision}" if source.revision else ""
    prefix = f"{name.model.name}-" if name.model and not at else f"hf.co/{source.repo}{at}:"
    alternatives = [
        Alternative(prefix + (c.quant.lower() if name.model else c.quant), c.size)
        for c in candidates(listing)
        if c.quant and c.size is not None and c is not chosen
    ]
    copies = copies if len(copies) == len(chosen.files) else []
    return RemoteModel(description, files, copies, chosen.quant, alternatives)


def _on_ollama(source: Ollama) -> RemoteModel:
    with download.open_client() as client:
        remote = ollama.model_blob(client, source)
    copy = ollama.local_blob(remote)
    description = {"kind": "ollama", "name": str(source), "registry": ollama.registry(source)}
    return RemoteModel(description, [remote], [copy] if copy else [], "", [])


def fit_this_machine(
    name: str,
    config: JambaConfig,
    weights: int,
    experts: int,
    *,
    size: int,
    to_download: int,
    same: Sequence[Alternative],
    options: PullOptions,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> DownloadFit:
    """How a model fits this machine with the context and KV type of ``options`` (see ``preview.assess_fit``)."""
    from jambacli.hardware.devices import devices

    known = [
        Alternative(f"{model.name}-{quant.lower()}" if quant != model.quant else model.name, nbytes)
        for model in load_table().models.values()
        for quant, nbytes in model.sizes.items()
        if nbytes < _SMALL_MODEL
    ]
    return assess_fit(
        name,
        config,
        weights,
        experts,
        size=size,
        to_download=to_download,
        ctx=options.ctx,
        kv_type=options.kv_type,
        devices=devices(),
        same=same,
        known=known,
        tensors=tensors,
    )


def _fetch_all(
    client: httpx.Client, name: str, remotes: Sequence[RemoteFile], targets: Sequence[Path], transfers: Transfers
) -> list[str]:
    """Download the files that are missing; returns the sha256 in hex of each file."""
    done = [download.fetched_bytes(t, r.size) for t, r in zip(targets, remotes, strict=True)]
    digests = []
    with transfers(f"Pulling {name}", sum(r.size for r in remotes), sum(done)) as begin:
        for remote, target, have in zip(remotes, targets, done, strict=True):
            if target.exists():
                # A file under its final name has been verified; its sha256 is computed only if the hub lists another hash.
                kind, _, digest = remote.digest.partition(":")
                if kind != "sha256":
                    digest = download.file_digests(target, remote.size, lambda n: None)[0].removeprefix("sha256:")
            else:
                digest = download.fetch(client, remote, target, begin(remote.name, remote.size, have))
            digests.append(digest)
    return digests


def _verified_copies(model: RemoteModel, progress: Progress) -> list[StoredFile]:
    """The copies on this disk as files to refer to; empty when one of them differs from the source."""
    files = []
    with progress("Checking the copy on this disk", sum(file.size for file in model.files)) as advance:
        for path, remote in zip(model.copies, model.files, strict=True):
            try:
                if path.stat().st_size != remote.size:
                    return []
                both = download.file_digests(path, remote.size, advance)
            except OSError:
                return []
            if remote.digest not in both:
                logger.warning("%s is damaged and is not used", path)
                return []
            # The hub's cache keeps a model's files side by side under their own names, so split parts find each other.
            files.append(StoredFile(path.name, remote.size, both[0].removeprefix("sha256:"), str(path.absolute())))
    return files


def _checked_summary(path: Path, folder: Path | None) -> Summary:
    """The summary of a complete file. Raises JambaError for a file that is not a valid Jamba GGUF, and removes ``folder``."""
    from jambacli.gguf.summary import summarize

    try:
        return summarize(path)
    except (BadFileError, UnsupportedError) as error:
        if folder is not None:
            discard(folder)
        raise JambaError(f"{error}; it was not registered") from error


def _register(
    store: Store, name: str, model: RemoteModel, key: str | None, files: Sequence[StoredFile], summary: Summary
) -> StoreEntry:
    entry = StoreEntry(
        name,
        model.source,
        tuple(files),
        key,
        (model.quant or summary.file_type or "").upper(),
        summary.config.context_length,
        summary.params,
        time.time(),
    )
    store.register(entry)
    return entry


def _local_file(text: str) -> Path | None:
    """The existing file that ``text`` is the path of; None when ``text`` is a name. Raises JambaError for a path that does not
    exist."""
    if not text.strip():
        return None
    path = path_of(text)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise UsageError(f"{text} is a directory; convert a checkpoint to a .gguf with: jamba convert {text}")
    except (OSError, ValueError):
        pass
    if _means_a_path(text):
        raise JambaError(f"{text}: no such file; a file on the hub is named OWNER/REPO/FILE.gguf")
    return None


def _means_a_path(text: str) -> bool:
    """Whether ``text``, which is no existing file, is meant as a path. A repository may be called OWNER/REPO.gguf, but
    with a local directory OWNER that is taken as a path."""
    if not text.endswith(".gguf") or ":" in text:
        return False
    folder, slash, _ = text.rpartition("/")
    return not slash or text.startswith(("/", "./", "../", "~")) or ("/" not in folder and Path(folder).is_dir())


def _register_path(store: Store, path: Path, options: PullOptions) -> StoreEntry:
    """Register a local file; it stays where it is."""
    from jambacli.gguf.reader import SPLIT_NAME, GGUFFile
    from jambacli.gguf.summary import summarize

    if options.quant or options.revision:
        raise UsageError(
            f"{path} is a local file, which has one type and no revisions",
            remedy="leave {quant} and {revision} out, or use jamba quantize to change its type",
        )
    summary = summarize(path)
    with GGUFFile.open(path) as file:
        paths = [part.absolute() for part in file.paths]
    split = SPLIT_NAME.fullmatch(path.name)
    name = options.own_name or (split["stem"] if split else path.stem).lower()
    if not SHORT.fullmatch(name):
        raise UsageError(f"{name[:80]!a} cannot be used as a name", remedy="choose another {own_name}")
    store.prepare()
    files = tuple(StoredFile(part.name, part.stat().st_size, "", str(part)) for part in paths)
    model = RemoteModel({"kind": "path", "path": str(paths[0])}, [], [], "", [])
    return _register(store, name, model, None, files, summary)
