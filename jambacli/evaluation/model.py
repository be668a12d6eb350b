"""What the evaluations need of a loaded model; ``jambacli.Jamba`` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from jambacli.model.config import JambaConfig
    from jambacli.session.session import Session
    from jambacli.text.tokenizer import Tokenizer


class EvaluatedModel(Protocol):
    """A named model with its tokenizer, its logits and sessions with it."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def config(self) -> JambaConfig:
        """Its sizes."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    def logits(self, token_ids: Sequence[int], *, kv_type: str = ...) -> torch.Tensor:
        """Logits float32 [len(token_ids), n_vocab] of one sequence from its beginning."""

    def session(self, **options: Any) -> Session:
        """A new conversation; ``options`` as ``Session``."""
