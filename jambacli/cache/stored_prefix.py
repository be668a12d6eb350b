"""A stored prefix as data, and the bytes of its blobs.

segment      keys and values of up to 512 tokens: per attention layer k, then v, each [tokens, n_kv_heads, row], raw
checkpoint   conv, then ssm, float32 (see ``model.state``)
logits       float32 [vocab], little-endian
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jambacli.cache.prefix_store import Prefix, PrefixStore
from jambacli.errors import JambaError

if TYPE_CHECKING:
    import torch

    from jambacli.model.state import Checkpoint, StateLayout


class DamagedPrefixError(JambaError):
    """A part of a stored prefix is missing or damaged."""


@dataclass(frozen=True)
class Segment:
    """Keys and values of tokens ``start:stop``: per attention layer k and v, each [stop - start, n_kv_heads, row]."""

    start: int
    stop: int
    pairs: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class StoredPrefix:
    """The state after ``tokens``, read from a store; tensors are on the CPU.

    ``conv`` and ``ssm`` are float32 as in ``model.state``; ``logits`` are float32 [vocab] after the last token, None where
    they were not stored. ``record`` is the prefix's entry in the store's index.
    """

    record: Prefix
    tokens: list[int]
    conv: torch.Tensor
    ssm: torch.Tensor
    logits: np.ndarray | None
    _store: PrefixStore
    _layout: StateLayout

    @property
    def position(self) -> int:
        """How many tokens it covers."""
        return self.record.position

    def segments(self) -> Iterator[Segment]:
        """Keys and values in order, one segment in memory at a time: together they may be gigabytes.

        Raises DamagedPrefixError at one that is missing, damaged or of another layout.
        """
        size, needed = self.record.segment_tokens, segments_needed(self.record)
        for i, name in enumerate(self.record.segments[:needed]):
            start, stop = i * size, min((i + 1) * size, self.position)
            exactly = size if i < needed - 1 else None
            yield Segment(start, stop, _pairs(self._layout, self._store.get_blob(name), stop - start, exactly))


def segments_needed(record: Prefix) -> int:
    """How many of the prefix's segments hold its tokens."""
    return -(-record.position // record.segment_tokens)


def read_prefix(store: PrefixStore, record: Prefix, tokens: Sequence[int], layout: StateLayout) -> StoredPrefix:
    """Read a prefix of ``tokens``; its segments are read later, as they are iterated.

    Raises DamagedPrefixError when a part is missing, or the checkpoint or the logits are damaged or of another layout.
    """
    import torch

    if len(record.segments) < segments_needed(record) or not all(map(store.has_blob, record.blobs)):
        raise DamagedPrefixError("a part of the stored prefix is missing")
    data = store.get_blob(record.checkpoint)
    logits = store.get_blob(record.logits) if record.logits else None
    sizes = [layout.conv.numel(), layout.ssm.numel()]
    if data is None or len(data) != 4 * sum(sizes) or (record.logits and logits is None):
        raise DamagedPrefixError("the checkpoint of the stored prefix is damaged")
    values = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
    conv, ssm = values.split(sizes)
    return StoredPrefix(
        record=record,
        tokens=list(tokens[: record.position]),
        conv=conv.view(layout.conv),
        ssm=ssm.view(layout.ssm),
        logits=np.frombuffer(logits, dtype="<f4").astype(np.float32) if logits else None,
        _store=store,
        _layout=layout,
    )


def segment_bytes(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> bytes:
    """The blob of a segment whose layers' keys and values are these."""
    return b"".join(_raw(x) for pair in pairs for x in pair)


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """The blob of a checkpoint."""
    return _raw(checkpoint.conv) + _raw(checkpoint.ssm)


def logits_bytes(logits: np.ndarray) -> bytes:
    """The blob of logits float32 [vocab]."""
    return logits.astype("<f4").tobytes()


def _raw(x: torch.Tensor) -> bytes:
    import torch

    return x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _pairs(
    layout: StateLayout, data: bytearray | None, tokens: int, exactly: int | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first ``tokens`` keys and values of a segment's blob, which must hold ``exactly`` that many tokens if set.

    A wrong number of tokens in a segment before the last would shift all later segments.
    """
    import torch

    if data is None:
        raise DamagedPrefixError("a segment of the stored prefix is missing or damaged")
    rows = [row for row in layout.kv_rows for _ in range(2)]
    if not rows:
        return []
    per_token = sum(row.numel() * layout.kv_dtype.itemsize for row in rows)
    stored = len(data) // per_token if per_token else 0
    if stored * per_token != len(data) or stored < tokens or stored != (exactly or stored):
        raise DamagedPrefixError("a segment of the stored prefix does not have the size in the index")
    values = torch.frombuffer(data, dtype=layout.kv_dtype)
    parts = values.split([stored * row.numel() for row in rows])
    tensors = [part.view(stored, *row)[:tokens] for part, row in zip(parts, rows, strict=True)]
    return list(zip(tensors[::2], tensors[1::2], strict=True))
