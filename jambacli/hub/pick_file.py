"""Which GGUF files of a repository a name means: by file, by type, or the usual one; knows nothing of networks."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from jambacli.gguf.reader import SPLIT_NAME
from jambacli.hub.huggingface import Listed, Listing, NotOnHub
from jambacli.hub.names import QUANT, Hub, canonical_quant
from jambacli.hub.paths import sound_path
from jambacli.units import format_bytes

USUAL = "Q4_K_M"
_TYPE = re.compile(rf"(?<![A-Za-z0-9])({QUANT.pattern})(?![A-Za-z0-9])", re.I | re.ASCII)
_OTHER_FILES = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)", re.I)
_MAX_PARTS = 1000


class NoSuchGGUF(NotOnHub):
    """The repository has no GGUF of the wanted type; ``types`` says which it has."""

    def __init__(self, text: str, types: list[str]) -> None:
        super().__init__(text)
        self.types = types


@dataclass(frozen=True)
class Choice:
    """One model of a repository: all its files in order; ``quant`` as its name says, "" where it does not."""

    quant: str
    files: tuple[Listed, ...]
    wanted_parts: int

    @property
    def size(self) -> int | None:
        """Bytes of all files, None where the listing does not say."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def label(self) -> str:
        """What to call it in a list: its type, or its file."""
        size = self.size
        return (self.quant or self.files[0].path) + (f" ({format_bytes(size)})" if size is not None else "")


def choices(listing: Listing) -> list[Choice]:
    """Every GGUF model of the repository, smallest first; the parts of a split one together."""
    groups: dict[tuple[str, str, int], dict[int, Listed]] = {}
    for file in listing.files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or _OTHER_FILES.search(path.name) or not sound_path(file.path):
            continue
        split = SPLIT_NAME.fullmatch(path.name)
        number, count = (int(split["no"]), int(split["count"])) if split else (1, 1)
        if 1 <= number <= count <= _MAX_PARTS:
            groups.setdefault((str(path.parent), split["stem"] if split else path.stem, count), {})[number] = file
    found = [
        Choice(_quant(folder, stem), tuple(parts[n] for n in sorted(parts)), count)
        for (folder, stem, count), parts in groups.items()
    ]
    return sorted(found, key=lambda choice: (choice.size or 0, choice.files[0].path))


def choose(listing: Listing, source: Hub) -> Choice:
    """The model that ``source`` means. NoSuchGGUF, listing what there is, where that is none or not one."""
    found = choices(listing)
    types = [choice.quant for choice in found]
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
        matching = found if len(found) == 1 else [c for c in found if c.quant == USUAL]
        if not matching:
            ask = f"; name one, like {source.repo}:{found[0].quant or 'TYPE'}" if found else ""
            raise NoSuchGGUF(f"{source.repo}: {has}{ask}", types)
    if len(matching) > 1:
        names = ", ".join(c.files[0].path for c in matching)
        raise NoSuchGGUF(f"{source} could be any of {names}; name one as {source.repo}/FILE.gguf", types)
    choice = matching[0]
    if len(choice.files) != choice.wanted_parts:
        raise NoSuchGGUF(
            f"{source}: {listing.repo} has {len(choice.files)} of its {choice.wanted_parts} parts only; "
            "the upload is incomplete",
            types,
        )
    return choice


def _quant(folder: str, stem: str) -> str:
    for text in (stem, PurePosixPath(folder).name):
        if marks := _TYPE.findall(text):
            return canonical_quant(marks[-1])
    return ""
