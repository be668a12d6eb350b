"""The state of a sequence: keys and values of the attention layers, convolution and recurrent state of the Mamba layers.

Keys and values are append-only, so going back to an earlier position costs nothing. A Mamba layer keeps only its latest
convolution window and recurrent state, a few megabytes of fixed size that cannot be cut back. A ``Checkpoint`` copies
that part at one position, and ``SequenceState.restore`` goes back to it. All backends share one layout, so a state can
move between them:

    conv  float32 [n_mamba_layers, d_inner, d_conv - 1]     the last inputs of the convolution, oldest first
    ssm   float32 [n_mamba_layers, d_inner, d_state]        the recurrent state h
    k, v  per attention layer [tokens, n_kv_heads, row]     row: head_dim values, or bytes of kernels.kv_blocks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from jambacli.errors import JambaError, UsageError
from jambacli.hardware.huge_pages import prefer_huge_pages
from jambacli.kernels.kv_blocks import BLOCK_BYTES, row_length
from jambacli.model.config import JambaConfig, check_kv_type
from jambacli.model.lora import NO_ADAPTERS, AdapterSet

KV_DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    **dict.fromkeys(BLOCK_BYTES, torch.uint8),
}

# The first allocation of a cache, in tokens; it doubles from there.
_FIRST_TOKENS = 256
# The slots of a history are a multiple of this.
_HISTORY_SLOTS = 4


class ContextFullError(JambaError):
    """The tokens do not fit into the context of the state."""


class PassAbandonedError(JambaError):
    """A pass was abandoned between two layers; the state is inconsistent until it is restored."""


@dataclass(frozen=True)
class Checkpoint:
    """A copy of the Mamba part at ``position`` (tokens seen). Keys and values are append-only and need no copy.

    ``conv`` and ``ssm`` have the layout of ``SequenceState``. ``written`` identifies the state and the overwrites of its
    keys so far, see ``SequenceState.restorable``.
    """

    position: int
    conv: torch.Tensor
    ssm: torch.Tensor
    written: tuple[int, int] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return self.conv.nbytes + self.ssm.nbytes


@dataclass(frozen=True)
class MambaState:
    """One Mamba layer's views of the state's tensors: conv [d_inner, d_conv - 1], ssm [d_inner, d_state]."""

    conv: torch.Tensor
    ssm: torch.Tensor


class KVCache:
    """The keys and values of one attention layer: ``k`` and ``v`` [capacity, n_kv_heads, row]. Capacity grows by doubling."""

    def __init__(self, n_kv_heads: int, row: int, dtype: torch.dtype, device: torch.device) -> None:
        self.k = torch.empty(0, n_kv_heads, row, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)

    @property
    def capacity(self) -> int:
        """Tokens that fit. If memory ran out while the cache grew, keys have more room than values."""
        return min(self.k.shape[0], self.v.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes allocated, including pages that were never written and take no physical memory."""
        return self.k.nbytes + self.v.nbytes

    def reserve(self, tokens: int, used: int, limit: int) -> bool:
        """Make room for ``tokens``, at most ``limit``, and keep the first ``used``. True if the cache was reallocated."""
        if tokens <= self.capacity:
            return False
        capacity = min(max(tokens, 2 * self.capacity, _FIRST_TOKENS), limit)
        for name in ("k", "v"):
            old = getattr(self, name)
            if tokens <= old.shape[0]:
                continue
            new = old.new_empty(capacity, *old.shape[1:])
            if new.device.type == "cpu":
                prefer_huge_pages(new.data_ptr(), new.nbytes)
            new[:used] = old[:used]
            setattr(self, name, new)
        return True


@dataclass(frozen=True)
class StateLayout:
    """The shapes and types of a model's state: a stored state must match them to be loaded.

    ``conv`` and ``ssm`` as in ``SequenceState``; ``kv_rows``: the shape of one token's keys or values in each attention
    layer, [n_kv_heads, row]; ``kv_dtype``: their type (uint8 for blocks).
    """

    conv: torch.Size
    ssm: torch.Size
    kv_rows: tuple[torch.Size, ...]
    kv_dtype: torch.dtype


class SequenceState:
    """The state of one sequence after ``position`` tokens, for a context of at most ``ctx`` tokens.

    ``layers[i]`` is the MambaState or KVCache of layer i, which ``JambaModel.forward`` updates in place. ``kv_tokens`` is
    the number of valid keys and values. After ``restore`` it may exceed ``position`` until new tokens overwrite them.
    """

    _made = 0

    def __init__(
        self,
        config: JambaConfig,
        ctx: int,
        kv_type: str = "f16",
        device: torch.device | str = "cpu",
        kv_device: torch.device | str | None = None,
        *,
        precise: bool = False,
        adapters: AdapterSet = NO_ADAPTERS,
    ) -> None:
        """``kv_device``: device of keys and values if not ``device`` (host memory for a model on a GPU). ``precise``:
        decode with 15-bit activations, see DeviceOptions; states of the two modes differ. ``adapters``: those in use.

        Raises UsageError for an unknown ``kv_type`` or a ``ctx`` below 1, UnsupportedError for a KV type that does not
        fit the model's heads.
        """
        check_kv_type(kv_type)
        if ctx < 1:
            raise UsageError("is below 1", field="ctx", value=ctx)
        config.check_kv_type(kv_type)
        row = row_length(kv_type, config.head_dim)
        self.ctx = ctx
        self.head_dim = config.head_dim
        self.kv_type = kv_type
        self.precise = precise
        self.adapters = adapters
        self.device = torch.device(device)
        self.position = 0
        self.kv_tokens = 0
        #: Number of reallocations of caches. Code that stores their addresses compares it.
        self.moves = 0
        # Copies of conv and ssm before each token of a revocable span, [n_mamba_layers, slots, ...].
        self._history: tuple[torch.Tensor, torch.Tensor] | None = None
        self._revocable = 0  # tokens that ``retract`` may take back: those from slot 0 on
        self._newest_checkpoint = 0  # highest position of a checkpoint since the last recorded overwrite
        #: Set during a forward pass, and afterwards if the pass did not finish.
        self.interrupted = False
        #: Asked between the layers of a pass: whether to abandon it, with PassAbandonedError.
        self.abandon: Callable[[], bool] | None = None
        self.conv = torch.zeros(config.n_mamba_layers, config.d_inner, config.d_conv - 1, device=self.device)
        self.ssm = torch.zeros(config.n_mamba_layers, config.d_inner, config.d_state, device=self.device)
        mamba = (MambaState(conv, ssm) for conv, ssm in zip(self.conv, self.ssm, strict=True))
        self.layers: list[MambaState | KVCache] = [
            KVCache(config.n_kv_heads, row, KV_DTYPES[kv_type], torch.device(kv_device or self.device))
            if is_attention
            else next(mamba)
            for is_attention in config.layer_is_attention
        ]
        SequenceState._made += 1
        self._id = SequenceState._made
        # Each overwrite of old keys: (its number, first position overwritten), in order of position. See ``restorable``.
        self._overwritten: list[tuple[int, int]] = []
        self._n_overwritten = 0

    @property
    def caches(self) -> list[KVCache]:
        """The attention layers' caches, in layer order."""
        return [part for part in self.layers if isinstance(part, KVCache)]

    @property
    def layout(self) -> StateLayout:
        """The shapes and types of this state."""
        rows = tuple(cache.k.shape[1:] for cache in self.caches)
        return StateLayout(self.conv.shape, self.ssm.shape, rows, KV_DTYPES[self.kv_type])

    @property
    def nbytes(self) -> int:
        """Bytes allocated: the Mamba part, its history, and the caches with their spare capacity."""
        history = sum(x.nbytes for x in self._history or ())
        return self.conv.nbytes + self.ssm.nbytes + history + sum(cache.nbytes for cache in self.caches)

    def check_room(self, tokens: int) -> None:
        """Raises ContextFullError if ``tokens`` more do not fit, JambaError if an earlier pass was interrupted."""
        self._check_consistent()
        if self.position + tokens > self.ctx:
            raise ContextFullError(
                f"the context is full: it holds {self.position} tokens, {tokens} more do not fit into {self.ctx}",
                remedy="use a larger {ctx}",
            )

    def begin(self, tokens: int, *, revocable: bool = False) -> None:
        """Start a pass over ``tokens`` more: reserve room and mark the state as interrupted until ``commit``.

        ``revocable``: reserve slots of the history for them too. Raises as ``check_room`` does.
        """
        self.check_room(tokens)
        self._reserve(self.position + tokens)
        if revocable:
            self.reserve_history(tokens)
        self.interrupted = True
        self._revocable = 0
        self._overwrite(self.position)

    def commit(self, tokens: int, *, revocable: bool = False) -> None:
        """Finish the pass that ``begin`` started: every layer now includes the ``tokens``.

        ``revocable``: the history holds conv and ssm before each of them, from slot 0 on.
        """
        self.position += tokens
        self.kv_tokens = self.position
        self.interrupted = False
        if revocable:
            self.allow_retract(tokens)

    def reserve_history(self, tokens: int) -> None:
        """Make room for conv and ssm before each of ``tokens`` tokens. A larger history replaces a smaller one."""
        if self._history is not None and self._history[0].shape[1] >= tokens:
            return
        slots = -(-tokens // _HISTORY_SLOTS) * _HISTORY_SLOTS
        conv, ssm = (x.new_empty(x.shape[0], slots, *x.shape[1:]) for x in (self.conv, self.ssm))
        if ssm.device.type == "cpu":
            prefer_huge_pages(ssm.data_ptr(), ssm.nbytes)
        self._history = conv, ssm
        self.moves += 1

    def history_layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The history of each Mamba layer: conv [slots, d_inner, d_conv - 1], ssm [slots, d_inner, d_state]. Empty without."""
        return zip(*self._history, strict=True) if self._history else iter(())

    def keep(self, slot: int) -> None:
        """Copy conv and ssm to a reserved slot of the history."""
        assert self._history is not None
        for kept, now in zip(self._history, (self.conv, self.ssm), strict=True):
            kept[:, slot].copy_(now)

    def allow_retract(self, tokens: int) -> None:
        """The last ``tokens`` tokens may be taken back: the history holds conv and ssm before each, from slot 0 on."""
        self._revocable = tokens

    @property
    def revocable(self) -> int:
        """The number of last tokens that ``retract`` can take back."""
        return self._revocable

    def retract(self, tokens: int) -> None:
        """Take back the last ``tokens`` tokens of a revocable span that was the last pass.

        The state is then, to the bit, what it was before them. Checkpoints taken behind them are no longer restorable.
        Raises JambaError for more tokens than ``revocable``.
        """
        self._check_consistent()
        if not 0 <= tokens <= self._revocable:
            raise JambaError(f"{tokens} tokens cannot be taken back: the last pass left {self._revocable} revocable")
        if tokens == 0:
            return
        assert self._history is not None
        self._revocable -= tokens
        for kept, now in zip(self._history, (self.conv, self.ssm), strict=True):
            now.copy_(kept[:, self._revocable])
        self.position -= tokens
        # Recorded only where a checkpoint may depend on these keys: drafts are taken back every few tokens.
        if self._newest_checkpoint > self.position:
            self._overwrite(self.position)
        self.kv_tokens = min(self.kv_tokens, self.position)

    def snapshot(self) -> Checkpoint:
        """A checkpoint of the current position. Raises JambaError after an interrupted pass."""
        self._check_consistent()
        return self.checkpoint(self.position, self.conv.clone(), self.ssm.clone())

    def checkpoint(self, position: int, conv: torch.Tensor, ssm: torch.Tensor) -> Checkpoint:
        """A checkpoint from stored tensors, for the keys and values that this state holds now."""
        if conv.shape != self.conv.shape or ssm.shape != self.ssm.shape:
            raise JambaError("this checkpoint comes from a model with other sizes")
        self._newest_checkpoint = max(self._newest_checkpoint, position)
        return Checkpoint(position, conv, ssm, (self._id, self._n_overwritten))

    def restorable(self, checkpoint: Checkpoint) -> bool:
        """Whether the keys and values before the checkpoint's position are unchanged since it was taken."""
        owner, number = checkpoint.written
        lost = any(n > number and first < checkpoint.position for n, first in self._overwritten)
        return owner == self._id and checkpoint.position <= self.kv_tokens and not lost

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the exact state at the time of the checkpoint, at an earlier or later position.

        Raises JambaError if other tokens have overwritten keys and values before that position.
        """
        if not self.restorable(checkpoint):
            raise JambaError(
                f"the checkpoint at token {checkpoint.position} no longer belongs to this state: "
                "the tokens before it have been replaced since it was taken"
            )
        self.conv.copy_(checkpoint.conv)
        self.ssm.copy_(checkpoint.ssm)
        self.position = checkpoint.position
        self._revocable = 0
        self.interrupted = False

    def reset(self) -> None:
        """Make the sequence empty; allocated memory is kept."""
        self.conv.zero_()
        self.ssm.zero_()
        self.position = 0
        self._revocable = 0
        self.interrupted = False

    def kv(self, start: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of the keys and values of tokens ``start:stop``, [stop - start, n_kv_heads, row], a pair per layer."""
        if not 0 <= start <= stop <= self.kv_tokens:
            raise JambaError(f"keys and values {start}:{stop} are not in the state, which holds {self.kv_tokens}")
        for cache in self.caches:
            yield cache.k[start:stop], cache.v[start:stop]

    def load_kv(self, start: int, stop: int, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Write stored keys and values of tokens ``start:stop``, as ``kv`` returned them; later ones become invalid.

        The Mamba part is unchanged: restore a ``checkpoint`` made afterwards. Raises JambaError for tensors of another
        model or KV type, ContextFullError if they do not fit.
        """
        caches = self.caches
        if len(pairs) != len(caches):
            raise JambaError(f"{len(pairs)} layers of keys and values for a model with {len(caches)} attention layers")
        if not 0 <= start <= min(stop, self.kv_tokens):
            raise JambaError(f"keys and values {start}:{stop} leave a gap: the state holds {self.kv_tokens} tokens")
        if stop > self.ctx:
            raise ContextFullError(
                f"{stop} stored tokens do not fit into a context of {self.ctx}", remedy="use a larger {ctx}"
            )
        for cache, pair in zip(caches, pairs, strict=True):
            if any(x.shape != (stop - start, *cache.k.shape[1:]) or x.dtype != cache.k.dtype for x in pair):
                raise JambaError("these keys and values were made by another model or with another KV type")
        self._reserve(stop)
        self._revocable = 0
        self._overwrite(start)
        for cache, (k, v) in zip(caches, pairs, strict=True):
            cache.k[start:stop] = k
            cache.v[start:stop] = v
        self.kv_tokens = stop

    def _check_consistent(self) -> None:
        if self.interrupted:
            raise JambaError("an interrupted pass left the state inconsistent; restore a checkpoint first")

    def _reserve(self, tokens: int) -> None:
        if any(cache.capacity < tokens for cache in self.caches):
            self.moves += 1  # first, since memory may run out after some caches have moved
        for cache in self.caches:
            cache.reserve(tokens, self.kv_tokens, self.ctx)

    def _overwrite(self, first: int) -> None:
        """Record that tokens from ``first`` on are about to be replaced, which invalidates later checkpoints."""
        if first >= self.kv_tokens:
            return
        self.kv_tokens = first
        self._newest_checkpoint = min(self._newest_checkpoint, first)
        self._n_overwritten += 1
        self._overwritten = [(n, at) for n, at in self._overwritten if at < first]
        self._overwritten.append((self._n_overwritten, first))
