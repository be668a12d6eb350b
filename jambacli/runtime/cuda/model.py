"""A model on a GPU that survives a lack of memory, for example because another program has taken some.

A pass that runs out of memory is undone and repeated in smaller pieces. If even the smallest does not fit, the experts of one
layer after another move to host memory. If nothing is left to move, an error says what helps, and the sequence is as it was
before the pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

import torch

from jambacli.errors import GpuMemoryError
from jambacli.model.jamba import JambaModel, Layer
from jambacli.model.state import Checkpoint, SequenceState

if TYPE_CHECKING:
    from jambacli.kernels.triton.ops import TritonOps

logger = logging.getLogger(__name__)

#: The smallest piece of a prompt into which a pass is split. One fewer would use other kernels, which need no less memory.
SMALLEST_PIECE = 64


@dataclass
class Shortage:
    """What a lack of memory has led to so far: ``piece``, the largest number of tokens to try at a time (None: no limit)."""

    piece: int | None = None


@dataclass(frozen=True)
class GpuModel(JambaModel):
    """See the module. ``spill`` moves the experts of a layer to host memory; it returns the layer's index and the layer that
    replaces it, None if there is none left to move."""

    spill: Callable[[tuple[Layer, ...]], tuple[int, Layer] | None] | None = None
    shortage: Shortage = field(default_factory=Shortage)
    #: Triton's operations, of which a self-check may switch some off; None through plain torch.
    kernels: TritonOps | None = None

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, state: SequenceState, *, logits: Literal["last", "all", "none"] = "last"
    ) -> torch.Tensor | None:
        """As ``JambaModel.forward``. Raises GpuMemoryError if memory does not suffice; the state is then unchanged."""
        done = 0
        found: list[torch.Tensor] = []
        while done < len(ids) or len(ids) == 0:
            size = min(len(ids) - done, self.shortage.piece or len(ids))
            last = done + size >= len(ids)
            before: Checkpoint | None = None
            try:
                if self._undoable(size):
                    before = state.snapshot()
                wanted = logits if last or logits == "all" else "none"
                out = super().forward(ids[done : done + size], state, logits=wanted)
            except torch.OutOfMemoryError:
                pass
            else:
                done += size
                if out is not None:
                    found.append(out)
                continue
            # Outside the handler: the error's traceback kept the pass's tensors alive.
            self._undo(state, before)
            self._make_room(size, state)
        return torch.cat(found) if len(found) > 1 else found[0] if found else None

    def _undoable(self, size: int) -> bool:
        """Whether a pass needs a copy of the state to be undone. The decoder changes nothing before it has all its memory."""
        return self.decoder is None or size > self.decoder.max_tokens

    def _undo(self, state: SequenceState, before: Checkpoint | None) -> None:
        if before is not None:  # also if the pass was complete but for its logits
            state.restore(before)
        state.interrupted = False

    def _make_room(self, size: int, state: SequenceState) -> None:
        """Make the next attempt need less memory, or raise JambaError."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size > SMALLEST_PIECE:
            self.shortage.piece = max(SMALLEST_PIECE, size // 2)
            logger.warning(
                "the GPU is out of memory (another program?): prompts are now read %d tokens at a time",
                self.shortage.piece,
            )
            return
        moved = None if self.spill is None else self.spill(self.layers)
        if moved is None:
            raise GpuMemoryError(
                f"the GPU is out of memory after {state.position:,} tokens (does another program use it?)"
            )
        index, layer = moved
        # The model is the same function; only where a layer is computed changes.
        object.__setattr__(self, "layers", (*self.layers[:index], layer, *self.layers[index + 1 :]))
        logger.warning("the GPU is out of memory (another program?): the experts of layer %d are now in RAM", index)


def surviving(
    model: JambaModel,
    spill: Callable[[tuple[Layer, ...]], tuple[int, Layer] | None] | None = None,
    kernels: TritonOps | None = None,
) -> GpuModel:
    """The same model, which survives a lack of GPU memory; ``spill`` and ``kernels`` as in ``GpuModel``."""
    return GpuModel(**{f.name: getattr(model, f.name) for f in fields(JambaModel)}, spill=spill, kernels=kernels)
