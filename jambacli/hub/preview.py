"""The summary of a model before it is downloaded, and whether it fits this machine.

The first bytes of a GGUF hold its metadata and tensor list. They are written to sparse files of the model's full sizes, which
the reader of whole files then summarizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.errors import BadFileError
from jambacli.gguf.reader import MAGIC
from jambacli.runtime.memory_plan import MemoryPlan, memory_plan

if TYPE_CHECKING:
    from jambacli.gguf.summary import Summary
    from jambacli.hardware.devices import Device
    from jambacli.model.config import JambaConfig

_FIRST_HEAD = 1 << 21
_LONGEST_HEAD = 1 << 26
# Memory beyond the weights of a model of which only the size is known: runtime, state, scratch and some context.
_BYTES_BESIDES_WEIGHTS = 1_200_000_000
_USABLE = ("fits", "tight", "experts in RAM")


@dataclass(frozen=True)
class Alternative:
    """Another model that could be pulled: its name, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class DownloadFit:
    """How a model fits this machine.

    ``size``: bytes of its files. ``to_download``: the bytes that remain to be downloaded. ``plan``: the memory plan
    at ``plan.ctx`` tokens. ``fits``: whether some device can run it. ``longest_ctx``: the longest context with which some
    device can run it, 0 for none. ``alternatives``: models that fit when this one does not.
    """

    name: str
    size: int
    to_download: int
    plan: MemoryPlan
    fits: bool
    longest_ctx: int
    alternatives: tuple[Alternative, ...]


def preview(names: Sequence[str], sizes: Sequence[int], head: Callable[[int, int], Path]) -> Summary:
    """The summary of a model from the heads of its files; ``head(i, n)`` returns a file with the first ``n`` bytes of file i.

    Raises what ``gguf.summary.summarize`` raises for a file that is not a valid Jamba GGUF.
    """
    from jambacli.gguf.summary import summarize

    length = _FIRST_HEAD
    while True:
        with tempfile.TemporaryDirectory(prefix="jamba-") as folder:
            for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
                _sparse(head(i, min(length, size)), Path(folder) / name, min(length, size), size, name)
            try:
                return summarize(Path(folder) / names[0])
            except BadFileError as error:
                # A head that is too short looks like a damaged file, so a longer one is tried.
                if length >= min(_LONGEST_HEAD, max(sizes)):
                    raise BadFileError(names[0], error.problem_in_file) from error
        length *= 4


def assess_fit(
    name: str,
    config: JambaConfig,
    weights: int,
    experts: int,
    *,
    size: int,
    to_download: int,
    ctx: int | None,
    kv_type: str,
    devices: Sequence[Device],
    same: Sequence[Alternative],
    known: Sequence[Alternative],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> DownloadFit:
    """Whether a model with ``weights`` bytes of weights (``experts`` of them in experts) fits one of ``devices``.

    ``size``: bytes of its files. ``to_download``: the bytes that remain to be downloaded. ``ctx``: context in tokens, None for
    the longest that fits, at most the model's own. ``tensors``: (format, shape) by name, as ``memory_plan`` takes them.
    When it does not fit, alternatives are chosen from ``same`` (its other types) and ``known`` (other models).
    """
    expert_share = experts / weights

    def planned(nbytes: int, tokens: int, own: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> MemoryPlan:
        return memory_plan(config, nbytes, int(expert_share * nbytes), tokens, kv_type, devices, own)

    plan = planned(weights, ctx or config.context_length, tensors)
    longest = max((fit.largest_ctx_offload[kv_type] for fit in plan.fits), default=0)
    if ctx is None and not _usable(plan) and longest:
        plan = planned(weights, longest, tensors)
    if _usable(plan):
        return DownloadFit(name, size, to_download, plan, True, longest, ())
    smaller = [o for o in same if o.size < size and _usable(planned(o.size, ctx or 4096))]
    found = [max(smaller, key=lambda o: o.size)] if smaller else []
    room = max((d.available for d in devices), default=0) - _BYTES_BESIDES_WEIGHTS
    found += [o for o in known if o.size < min(size, room) and o.name not in [f.name for f in found]]
    return DownloadFit(name, size, to_download, plan, False, longest, tuple(found[:3]))


def _usable(plan: MemoryPlan) -> bool:
    return any(fit.verdict in _USABLE for fit in plan.fits)


def _sparse(source: Path, target: Path, head: int, size: int, name: str) -> None:
    """Write ``target`` as a sparse file of ``size`` bytes that begins with the first ``head`` bytes of ``source``."""
    with source.open("rb") as partial, target.open("wb") as file:
        first = partial.read(head)
        if first[: len(MAGIC)] != MAGIC:
            raise BadFileError(name, f"is not a GGUF file: it begins with {first[:4]!r}")
        file.write(first)
        file.truncate(size)
