"""From a name to a verified model in the store: what to fetch, whether it fits, fetching it; knows nothing of terminals.

The order is: ask the source what it has, look for the bytes on this disk, check the disk, read the files' heads, let the
caller decide, fetch, verify, register. Nothing is registered before its digests and its header have been checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jambacli import ui
from jambacli.errors import BadFileError, JambaError, UnsupportedError, UsageError
from jambacli.files import path_of
from jambacli.hub import download, huggingface, ollama, pick_file
from jambacli.hub import preview as previews
from jambacli.hub.aliases import SHORT, load_table
from jambacli.hub.download import Remote, Unreachable
from jambacli.hub.names import Hub, Name, Ollama, parse_name, with_quant
from jambacli.hub.preview import Fit, Other
from jambacli.hub.resolve import find_named
from jambacli.hub.store import Entry, Store, StoredFile, set_id
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from jambacli.gguf.summary import Summary
    from jambacli.model.config import JambaConfig

# Offered where another model is too big.
_SMALL_MODEL = 4e9


@dataclass(frozen=True)
class Request:
    """What is wanted beside the name: a type, a revision, a name of the user's own, a context it is to fit with."""

    quant: str | None = None
    revision: str | None = None
    name: str | None = None
    ctx: int | None = None
    kv_type: str = "f16"


@dataclass(frozen=True)
class Found:
    """A model at its source: where its files are, where this disk has copies of them, and what else the source has."""

    source: dict[str, Any]
    remotes: list[Remote]
    copies: list[Path]
    quant: str
    others: list[Other]


class NeedsConversion(JambaError):
    """No GGUF of the wanted type, but a checkpoint to make one of: ``repo``, as ``quant``."""

    def __init__(self, text: str, repo: str, quant: str) -> None:
        super().__init__(text)
        self.repo = repo
        self.quant = quant


def pull(text: str, request: Request, decide: Callable[[Fit], None]) -> Entry:
    """Pull ``text`` and register it. ``decide`` sees how it fits before the bulk is fetched, and raises to stop it.

    JambaError, one line, for everything that can go wrong; NeedsConversion where ``make.make`` could help.
    """
    if request.name is not None and not SHORT.fullmatch(request.name):
        raise UsageError(
            f"--name {request.name[:80]!a} is no name; use small letters, digits, _ . - and one colon at most"
        )
    store = Store()
    if (path := _local(text)) is not None:
        return _register_path(store, path, request)
    name = parse_name(text, revision=request.revision)
    if request.quant is not None:
        name = with_quant(name, request.quant)
    store.prepare()
    known = find_named(store, name)
    try:
        found = _find(name, request)
    except Unreachable as error:
        if known is None or not store.complete(known):
            raise
        ui.warn(f"{error}; {known.name} stays as it is")
        return known
    entry_name = request.name or name.text
    return obtain(store, entry_name, found, request, decide)


def obtain(store: Store, name: str, found: Found, request: Request, decide: Callable[[Fit], None]) -> Entry:
    """Fetch what is missing of ``found``, verify it, and register it under ``name``."""
    key = set_id([remote.digest for remote in found.remotes])
    size = sum(remote.size for remote in found.remotes)
    with store.lock(key):
        folder = store.folder(key)
        targets = _targets(store, key, found.remotes)
        have = store.get(name)
        if have is not None and store.complete(have) and (have.set_id == key or have.source == found.source):
            ui.note(f"{name} is here already ({format_bytes(size)})")
            return have
        left = size - sum(download.fetched_bytes(t, r.size) for t, r in zip(targets, found.remotes, strict=True))
        if left and found.copies and (copied := _verified_copies(found)):
            summary = _sound(found.copies[0], None)
            ui.note(f"{found.copies[0]} is it: linked, nothing to download")
            return _register(store, name, found, None, copied, summary)
        store.need_disk(left, name)
        with download.open_client() as client:
            if left:

                def head(i: int, n: int) -> Path:
                    return download.fetch_head(client, found.remotes[i], targets[i], n)

                try:
                    seen = previews.preview([t.name for t in targets], [r.size for r in found.remotes], head)
                except (BadFileError, UnsupportedError) as error:
                    previews.forget(folder)
                    raise JambaError(f"{name} is no model that runs here: {error}; nothing was kept") from error
                weights, experts = seen.weight_bytes, seen.expert_bytes
                others = found.others
                judged = fit(
                    name, seen.config, weights, experts, size=size, left=left, others=others, request=request,
                    tensors=seen.tensors,
                )  # fmt: skip
                decide(judged)
            digests = _fetch_all(client, name, found.remotes, targets)
        summary = _sound(targets[0], folder)
        files = [
            StoredFile(t.name, r.size, digest) for t, r, digest in zip(targets, found.remotes, digests, strict=True)
        ]
        return _register(store, name, found, key, files, summary)


def _targets(store: Store, key: str, remotes: Sequence[Remote]) -> list[Path]:
    """Where the files go: under the names of the registered set where there is one, whoever named it."""
    for entry in store.entries():
        if entry.set_id == key and len(entry.files) == len(remotes):
            return store.paths(entry)
    return [store.folder(key) / remote.name for remote in remotes]


def _find(name: Name, request: Request) -> Found:
    """The first of the name's sources that has it."""
    first: JambaError | None = None
    for source in name.sources:
        try:
            return _on_ollama(source) if isinstance(source, Ollama) else _on_hub(name, source, request)
        except huggingface.NotOnHub as error:
            first = first or error
    repo = name.weights
    if repo is not None and (first is None or isinstance(first, pick_file.NoSuchGGUF)):
        _offer_conversion(name, repo, request, first)
    if isinstance(first, pick_file.NoSuchGGUF) and name.model and name.quant and repo:
        make = f"jamba pull {name.model.name} --quant {name.quant.lower()}"
        raise pick_file.NoSuchGGUF(f"{first}; or make it of the checkpoint with: {make}", first.types)
    raise first or JambaError(f"{name.text}: no repository is known to have it")


def _offer_conversion(name: Name, repo: str, request: Request, first: JambaError | None) -> None:
    """Raise NeedsConversion where ``repo`` has safetensors to make the wanted type of."""
    if first is not None and isinstance(first, pick_file.NoSuchGGUF) and first.types and request.quant is None:
        return
    listing = huggingface.list_repo(repo, request.revision)
    weights = [f for f in listing.files if f.path.endswith(".safetensors")]
    if not weights:
        return
    quant = name.quant or (name.model.quant if name.model else pick_file.USUAL)
    nbytes = sum(f.size or 0 for f in weights)
    size = f" ({format_bytes(nbytes)} to download)" if nbytes else ""
    base = name.model.name if name.model else repo
    raise NeedsConversion(
        f"there is no GGUF of {name.text}, but a checkpoint{size}; convert and quantize it in one step with: "
        f"jamba pull {base} --quant {quant.lower()}",
        repo,
        quant,
    )


def _on_hub(name: Name, source: Hub, request: Request) -> Found:
    try:
        listing = huggingface.list_repo(source.repo, source.revision)
    except Unreachable as error:
        cached = huggingface.cached_listing(source.repo, source.revision)
        if cached is None:
            raise
        ui.warn(f"{error}; using what the hub library's cache has")
        listing = cached
    choice = pick_file.choose(listing, source)
    copies = [found for f in choice.files if (found := huggingface.cached_file(listing, f.path)) is not None]
    remotes = huggingface.remotes(listing, choice.files, lambda path: PurePosixPath(path).name)
    described = {
        "kind": "hub",
        "repo": source.repo,
        "revision": source.revision,
        "commit": listing.commit,
        "files": [f.path for f in choice.files],
    }
    at = f"@{source.revision}" if source.revision else ""
    prefix = f"{name.model.name}-" if name.model and not at else f"hf.co/{source.repo}{at}:"
    others = [
        Other(prefix + (c.quant.lower() if name.model else c.quant), c.size)
        for c in pick_file.choices(listing)
        if c.quant and c.size is not None and c is not choice
    ]
    return Found(described, remotes, copies if len(copies) == len(choice.files) else [], choice.quant, others)


def _on_ollama(source: Ollama) -> Found:
    with download.open_client() as client:
        remote = ollama.model_blob(client, source)
    own = ollama.ollamas_own(remote)
    described = {"kind": "ollama", "name": str(source), "registry": ollama.registry(source)}
    return Found(described, [remote], [own] if own else [], "", [])


def fit(
    name: str,
    config: JambaConfig,
    weights: int,
    experts: int,
    *,
    size: int,
    left: int,
    others: Sequence[Other],
    request: Request,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Fit:
    """How a model sits on this machine with what ``request`` wants of it (see ``preview.judge``)."""
    from jambacli.hardware.devices import devices

    known = [
        Other(f"{model.name}-{quant.lower()}" if quant != model.quant else model.name, nbytes)
        for model in load_table().models.values()
        for quant, nbytes in model.sizes.items()
        if nbytes < _SMALL_MODEL
    ]
    return previews.judge(
        name,
        config,
        weights,
        experts,
        size=size,
        left=left,
        ctx=request.ctx,
        kv_type=request.kv_type,
        devices=devices(),
        same=others,
        known=known,
        tensors=tensors,
    )


def _fetch_all(client: Any, name: str, remotes: Sequence[Remote], targets: Sequence[Path]) -> list[str]:
    """The sha256 of each file, fetched where it is missing."""
    done = [download.fetched_bytes(t, r.size) for t, r in zip(targets, remotes, strict=True)]
    digests = []
    with ui.transfers(f"Pulling {name}", sum(r.size for r in remotes), sum(done)) as begin:
        for remote, target, have in zip(remotes, targets, done, strict=True):
            if target.exists():
                # In place means verified; only its sha256 may have to be found where the hub knows another hash.
                kind, _, known = remote.digest.partition(":")
                digest = (
                    known if kind == "sha256" else download.file_digests(target, remote.size, lambda n: None)[0][7:]
                )
            else:
                digest = download.fetch(client, remote, target, begin(remote.name, remote.size, have))
            digests.append(digest)
    return digests


def _verified_copies(found: Found) -> list[StoredFile]:
    """The copies on this disk as files to refer to; empty where one is not what the source promises."""
    files = []
    with ui.progress("Checking the copy on this disk", sum(r.size for r in found.remotes)) as advance:
        for path, remote in zip(found.copies, found.remotes, strict=True):
            try:
                if path.stat().st_size != remote.size:
                    return []
                both = download.file_digests(path, remote.size, advance)
            except OSError:
                return []
            if remote.digest not in both:
                ui.warn(f"{path} is damaged and not used")
                return []
            # The hub's cache has readable names beside each other: parts find their likes there.
            files.append(StoredFile(path.name, remote.size, both[0].removeprefix("sha256:"), str(path.absolute())))
    return files


def _sound(path: Path, folder: Path | None) -> Summary:
    """The summary of a whole file; one that is no sound Jamba GGUF is not kept."""
    from jambacli.gguf.summary import summarize

    try:
        return summarize(path)
    except (BadFileError, UnsupportedError) as error:
        if folder is not None:
            previews.forget(folder)
        raise JambaError(f"{error}; it was not registered") from error


def _register(
    store: Store, name: str, found: Found, key: str | None, files: Sequence[StoredFile], summary: Summary
) -> Entry:
    entry = Entry(
        name,
        found.source,
        tuple(files),
        key,
        (found.quant or summary.file_type or "").upper(),
        summary.config.context_length,
        summary.params,
        time.time(),
    )
    store.register(entry)
    return entry


def _local(text: str) -> Path | None:
    """The file here that ``text`` is the path of, None where it is a name. JambaError for a path that leads to none."""
    if not text.strip():
        return None
    path = path_of(text)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise UsageError(f"{text} is a directory; make a .gguf of a checkpoint with: jamba convert {text}")
    except (OSError, ValueError):
        pass
    if _means_a_path(text):
        raise JambaError(f"{text}: no such file; a file of the hub is named OWNER/REPO/FILE.gguf")
    return None


def _means_a_path(text: str) -> bool:
    """Whether a file is meant that is not here. A repository may be called OWNER/REPO.gguf, but not beside a folder OWNER."""
    if not text.endswith(".gguf") or ":" in text:
        return False
    folder, slash, _ = text.rpartition("/")
    return not slash or text.startswith(("/", "./", "../", "~")) or ("/" not in folder and Path(folder).is_dir())


def _register_path(store: Store, path: Path, request: Request) -> Entry:
    """Refer to a file that lies where the user put it."""
    from jambacli.gguf.reader import SPLIT_NAME, GGUFFile
    from jambacli.gguf.summary import summarize

    if request.quant or request.revision:
        raise UsageError(f"{path} is a file here: --quant and --revision are for names of the hub; see jamba quantize")
    summary = summarize(path)
    with GGUFFile.open(path) as file:
        paths = [part.absolute() for part in file.paths]
    split = SPLIT_NAME.fullmatch(path.name)
    name = request.name or (split["stem"] if split else path.stem).lower()
    if not SHORT.fullmatch(name):
        raise UsageError(f"{name[:80]!a} cannot be its name; give it one with --name")
    store.prepare()
    files = tuple(StoredFile(part.name, part.stat().st_size, "", str(part)) for part in paths)
    found = Found({"kind": "path", "path": str(paths[0])}, [], [], "", [])
    return _register(store, name, found, None, files, replace(summary))
