"""How many sequences to run at once: as many as measurements show worthwhile and as fit in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jambacli.engine.checkpoints import KEPT_CHECKPOINTS
from jambacli.hardware.devices import devices
from jambacli.model.config import CHECKPOINT_BYTES, MAX_DRAFT

if TYPE_CHECKING:
    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel

#: More replies at once are hardly faster: see docs/batch.md.
MOST_PARALLEL = 8
#: Where many requests wait anyway, more of their prompts are read together.
MOST_IN_BULK = 16
# The share of the free memory that sequences may take.
_SHARE = 0.5


def default_parallel(model: JambaModel, tokens: int, kv_type: str | None = None, *, most: int = MOST_PARALLEL) -> int:
    """How many sequences of up to ``tokens`` tokens to run at once on this machine: 1 to ``most``."""
    cpu, *gpus = devices()
    device = model.kv_device or model.device
    if device.type == "cuda":
        index = device.index or 0
        free = gpus[index].available if index < len(gpus) else 0
    else:
        free = cpu.available
    room = int(free * _SHARE) - CHECKPOINT_BYTES
    drafts = model.decoder is not None and model.decoder.max_tokens > 1
    return max(1, min(most, room // sequence_bytes(model.config, tokens, kv_type, drafts=drafts)))


def sequence_bytes(config: JambaConfig, tokens: int, kv_type: str | None = None, *, drafts: bool = False) -> int:
    """Bytes of a sequence of up to ``tokens`` tokens in a BatchEngine: its state, checkpoints, and keys and values.

    ``drafts``: with copies of the state for each token of a step with a draft.
    """
    kv = min(tokens, config.context_length) * config.kv_bytes_per_token(kv_type or "f16")
    copies = 1 + KEPT_CHECKPOINTS + (1 + MAX_DRAFT if drafts else 0)
    return config.state_bytes() * copies + kv
