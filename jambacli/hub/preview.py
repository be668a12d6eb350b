"""What a model will be before all of it is here, and whether it fits this machine; knows nothing of where it comes from.

The first bytes of a GGUF hold its metadata and tensor list: with the sizes of its files they make a summary, by the same
reader that reads whole files, over files of the full size with nothing behind their heads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.errors import BadFileError
from jambacli.gguf.reader import MAGIC
from jambacli.runtime.memory_plan import Plan, memory_plan

if TYPE_CHECKING:
    from jambacli.gguf.summary import Summary
    from jambacli.hardware.devices import Device
    from jambacli.model.config import JambaConfig

_FIRST_HEAD = 1 << 21
_LONGEST_HEAD = 1 << 26
# Beyond the weights of a model that is known by its size alone: runtime, state, scratch and some context.
_ROOM_BESIDE_WEIGHTS = 1_200_000_000
_GOOD = ("fits", "tight", "experts in RAM")


@dataclass(frozen=True)
class Other:
    """Another model that could be pulled: what to call it, and its bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Fit:
    """How a model of ``size`` bytes sits on this machine: the plan at ``plan.ctx`` tokens, and what would fit instead.

    ``fits`` is whether any device holds it; ``longest`` is the longest context that some device holds, 0 where none does.
    """

    name: str
    size: int
    left: int
    plan: Plan
    fits: bool
    longest: int
    instead: tuple[Other, ...]


def preview(names: Sequence[str], sizes: Sequence[int], head: Callable[[int, int], Path]) -> Summary:
    """The summary of a model from its files' heads; ``head(i, n)`` is a file with the first ``n`` bytes of file ``i``.

    Raises what ``weights.summary.summarize`` raises for a file that is no sound Jamba GGUF.
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
                # A head that is too short looks damaged.
                if length >= min(_LONGEST_HEAD, max(sizes)):
                    raise BadFileError(names[0], error.problem_in_file) from error
        length *= 4


def judge(
    name: str,
    config: JambaConfig,
    weights: int,
    experts: int,
    *,
    size: int,
    left: int,
    ctx: int | None,
    kv_type: str,
    devices: Sequence[Device],
    same: Sequence[Other],
    known: Sequence[Other],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Fit:
    """Whether a model of ``weights`` bytes (``experts`` of them the experts') fits, and what would where it does not.

    ``tensors``: its own, (format, shape) by name, as ``memory_plan`` takes them.

    ``size`` is of its files, ``left`` what of them is still to come. ``ctx`` None is the longest context that fits, the
    model's own at most. What fits is looked for in ``same``, its other types, and among the ``known`` models.
    """
    share = experts / weights
    longest_ctx = config.context_length

    def planned(nbytes: int, tokens: int, own: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> Plan:
        return memory_plan(config, nbytes, int(share * nbytes), tokens, kv_type, devices, own)

    plan = planned(weights, ctx or longest_ctx, tensors)
    longest = max((fit.largest_ctx_offload[kv_type] for fit in plan.fits), default=0)
    if ctx is None and not _good(plan) and longest:
        plan = planned(weights, longest, tensors)
    if _good(plan):
        return Fit(name, size, left, plan, True, longest, ())
    smaller = [o for o in same if o.size < size and _good(planned(o.size, ctx or 4096))]
    instead = [max(smaller, key=lambda o: o.size)] if smaller else []
    room = max((d.available for d in devices), default=0) - _ROOM_BESIDE_WEIGHTS
    instead += [o for o in known if o.size < min(size, room) and o.name not in [i.name for i in instead]]
    return Fit(name, size, left, plan, False, longest, tuple(instead[:3]))


def _good(plan: Plan) -> bool:
    return any(fit.verdict in _GOOD for fit in plan.fits)


def _sparse(source: Path, target: Path, head: int, size: int, name: str) -> None:
    with source.open("rb") as had, target.open("wb") as file:
        first = had.read(head)
        if first[: len(MAGIC)] != MAGIC:
            raise _NotGGUF(name, f"is no GGUF file: it begins with {first[:4]!r}")
        file.write(first)
        file.truncate(size)


class _NotGGUF(BadFileError):
    """Not worth reading more of."""


def forget(folder: Path) -> None:
    """Remove a set that turned out to be no model."""
    shutil.rmtree(folder, ignore_errors=True)
