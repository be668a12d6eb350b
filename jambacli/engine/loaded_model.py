"""A loaded model with its tokenizer, chat template, fingerprint, sampling defaults."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.engine.sampling import Sampling, model_defaults
from jambacli.errors import BadFileError, JambaError
from jambacli.files import jamba_home
from jambacli.text.template import ChatTemplate
from jambacli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from jambacli.cache.adapted_weights import AdaptedWeights
    from jambacli.cache.fingerprint import Weights
    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel
    from jambacli.model.lora import AdapterSet

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model ready to compute.

    Attributes: ``name``; ``path`` (of the first file, or None); ``model`` (JambaModel); ``config`` (JambaConfig);
    ``metadata`` (the file's key-value pairs); ``sampling`` (the file's defaults); ``load_seconds``; ``chat_template`` (the
    text of a chat template that replaces the file's own, or None).
    """

    def __init__(
        self,
        model: JambaModel,
        metadata: Mapping[str, Any],
        name: str = "model",
        path: Path | None = None,
        *,
        chat_template: str | None = None,
        template_name: str | None = None,
    ) -> None:
        """``chat_template``: a template in place of the file's own, called ``template_name`` in errors."""
        self.name = name
        self.path = path
        self.model = model
        self.metadata = metadata
        self.config: JambaConfig = model.config
        self.sampling: Sampling = model_defaults(metadata)
        self.load_seconds = 0.0
        self.chat_template = chat_template
        self._template_name = template_name or name
        self._said_unstored = False

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the file."""
        try:
            cache = jamba_home() / "tokenizers"
        except JambaError:  # a user without a home directory: merge rules are computed at every start
            cache = None
        tokenizer = Tokenizer(self.metadata, self.name, cache)
        rows = self.model.config.vocab_size
        if tokenizer.vocab_size < rows:  # a reply could hold a token without a text
            raise BadFileError(
                self.name,
                f"the vocabulary has {tokenizer.vocab_size:,} tokens, but the model has {rows:,}; convert it again",
            )
        return tokenizer

    def say_unstored(self, why: JambaError) -> None:
        """Warn that nothing can be stored, once for all sequences."""
        if not self._said_unstored:
            self._said_unstored = True
            logger.warning("%s; nothing will be stored on disk", why)

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template that was given, or else that in the file; None when it has none. Raises TemplateError."""
        if self.chat_template is not None:
            return ChatTemplate(self.chat_template, self.tokenizer, self._template_name)
        source = self.tokenizer.template
        return ChatTemplate(source, self.tokenizer, self.name) if source else None

    def cancel_rendering(self) -> None:
        """Let a rendering of the template that another thread waits for fail at once."""
        template = self.__dict__.get("template")  # as far as it was needed yet
        if template is not None:
            template.cancel()

    @property
    def loras(self) -> AdapterSet:
        """The LoRA adapters that were loaded, with the scales they have by default."""
        return self.model.adapters

    @functools.cached_property
    def weights(self) -> Weights | AdaptedWeights:
        """The identity of the weights, to which stored states belong, with the default adapters. Raises JambaError for a model
        without a file."""
        return self.weights_with(self.model.adapters)

    def weights_with(self, adapters: AdapterSet) -> Weights | AdaptedWeights:
        """The identity of the weights with these adapters. Raises JambaError for a model without a file."""
        from jambacli.cache.adapted_weights import AdaptedWeights

        return AdaptedWeights(self._base_weights, adapters.key) if adapters.key else self._base_weights

    @functools.cached_property
    def _base_weights(self) -> Weights:
        from jambacli.cache.fingerprint import Weights
        from jambacli.gguf.reader import GGUFFile

        source = self.model.source
        if not isinstance(source, GGUFFile):
            raise JambaError(f"{self.name} was not loaded from a file, so its state cannot be stored")
        return Weights(source)

    @property
    def fingerprint(self) -> str:
        """The name of the weights (see ``cache.fingerprint``). Raises JambaError for a model without a file."""
        return self.weights.name

    def logits(self, token_ids: Sequence[int], *, chunk: int = 512, kv_type: str = "f32") -> torch.Tensor:
        """The logits after each token of a new sequence, float32 [len(token_ids), n_vocab] on the CPU.

        ``chunk``: tokens per pass. Raises JambaError for no tokens.
        """
        import torch

        if not len(token_ids):
            raise JambaError("there are no tokens to compute logits for")
        ids = torch.as_tensor(token_ids, dtype=torch.int64)
        state = self.model.new_state(len(ids), kv_type)
        rows = [self.model.forward(part, state, logits="all") for part in ids.split(chunk)]
        return torch.cat([r.cpu() for r in rows if r is not None])
