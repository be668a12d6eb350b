"""Picks the GGUF files of a repository that a name means: by file name, by type, or the default type."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from jambacli.gguf.reader import SPLIT_NAME
from jambacli.hub.aliases import DEFAULT_QUANT
from jambacli.hub.huggingface import ListedFile, Listing, NotOnHub
from jambacli.hub.names import QUANT, Hub, canonical_quant
from jambacli.hub.paths import is_safe_path
from jambacli.units import format_bytes

_TYPE = re.compile(rf"(?<![A-Za-z0-9])({QUANT.pattern})(?![A-Za-z0-9])", re.I | re.ASCII)
_OTHER_FILES = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)", re.I)
_MAX_PARTS = 1000


@dataclass(frozen=True)
class Conversion:
    """A GGUF that can be made from an HF checkpoint: pull ``name`` with ``quant``, made from the repository ``repo``."""

    name: str
    repo: str
    quant: str


class NoSuchGGUF(NotOnHub):
    """The repository has no GGUF of the requested type; ``types`` are those it has.

    ``offer``: set when the type can be made from the model's checkpoint.
    """

    def __init__(self, problem: str, types: list[str], offer: Conversion | None = None) -> None:
        super().__init__(problem, remedy="set {quant} to make it from the checkpoint" if offer else None)
        self.types = types
        self.offer = offer


@dataclass(frozen=True)
class Candidate:
    """One GGUF model of a repository: its files in order. ``quant`` is the type in its name, "" when it has none.

    ``n_parts``: how many files the names say it has.
    """

    quant: str
    files: tuple[ListedFile, ...]
    n_parts: int

    @property
    def size(self) -> int | None:
        """Bytes of all files, None when the listing has no sizes."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def label(self) -> str:
        """Its type (else its file name) and size, for a list."""
        size = self.size
        return (self.quant or self.files[0].path) + (f" ({format_bytes(size)})" if size is not None else "")


def candidates(listing: Listing) -> list[Candidate]:
    """All GGUF models of the repository, smallest first; the parts of a split model are one candidate."""
    groups: dict[tuple[str, str, int], dict[int, ListedFile]] = {}
    for file in listing.files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or _OTHER_FILES.search(path.name) or not is_safe_path(file.path):
            continue
        split = SPLIT_NAME.fullmatch(path.name)
        number, count = (int(split["no"]), int(split["count"])) if split else (1, 1)
        if 1 <= number <= count <= _MAX_PARTS:
            groups.setdefault((str(path.parent), split["stem"] if split else path.stem, count), {})[number] = file
    found = [
        Candidate(_quant(folder, stem), tuple(parts[n] for n in sorted(parts)), count)
        for (folder, stem, count), parts in groups.items()
    ]
    return sorted(found, key=lambda candidate: (candidate.size or 0, candidate.files[0].path))


def pick_candidate(listing: Listing, source: Hub) -> Candidate:
    """The model that ``source`` means. Raises NoSuchGGUF, listing the models there are, when it is not exactly one."""
    found = candidates(listing)
    types = [candidate.quant for candidate in found]
    has = f"it has {', '.join(c.label for c in found)}" if found else "it has no GGUF files at all"
    if source.file is not None:
        matching = [c for c in found if any(f.path == source.file for f in c.files)]
        if not matching:
            paths = [f.path for f in listing.files if f.path.lower().endswith(".gguf")]
            near = difflib.get_close_matches(source.file, paths, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else has
            raise NoSuchGGUF(f"{source.repo} has no file {source.file!a}; {hint}", types)
    elif source.quant is not None:
        matching = [c for c in found if c.quant == source.quant]
        if not matching:
            raise NoSuchGGUF(f"{source.repo} has no GGUF of type {source.quant}; {has}", types)
    else:
        matching = found if len(found) == 1 else [c for c in found if c.quant == DEFAULT_QUANT]
        if not matching:
            ask = f"; name one, like {source.repo}:{found[0].quant or 'TYPE'}" if found else ""
            raise NoSuchGGUF(f"{source.repo}: {has}{ask}", types)
    if len(matching) > 1:
        names = ", ".join(c.files[0].path for c in matching)
        raise NoSuchGGUF(f"{source} could be any of {names}; name one as {source.repo}/FILE.gguf", types)
    candidate = matching[0]
    if len(candidate.files) != candidate.n_parts:
        raise NoSuchGGUF(
            f"{source}: {listing.repo} has only {len(candidate.files)} of its {candidate.n_parts} parts; "
            "the upload is incomplete",
            types,
        )
    return candidate


def _quant(folder: str, stem: str) -> str:
    for text in (stem, PurePosixPath(folder).name):
        if marks := _TYPE.findall(text):
            return canonical_quant(marks[-1])
    return ""
