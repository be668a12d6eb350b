"""The Python API: ``Jamba.load(...)``, sessions, logits. The command line uses the same; knows nothing of consoles."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.engine.sampling import Sampling, model_defaults
from jambacli.errors import JambaError
from jambacli.files import jamba_home
from jambacli.session.session import Session
from jambacli.startup import importing
from jambacli.text.template import ChatTemplate
from jambacli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from jambacli.model.config import JambaConfig
    from jambacli.model.jamba import JambaModel


class Jamba:
    """A loaded model with its tokenizer and chat template.

    Attributes: ``name`` (str), ``path`` (of the first file, or None), ``model`` (JambaModel), ``config`` (JambaConfig),
    ``tokenizer`` (Tokenizer), ``template`` (ChatTemplate or None), ``fingerprint`` (str), ``metadata`` (the file's
    key-value pairs), ``sampling`` (the file's own defaults), ``load_seconds``.
    """

    def __init__(
        self, model: JambaModel, metadata: Mapping[str, Any], name: str = "model", path: Path | None = None
    ) -> None:
        self.name = name
        self.path = path
        self.model = model
        self.metadata = metadata
        self.config: JambaConfig = model.config
        self.sampling: Sampling = model_defaults(metadata)
        self.load_seconds = 0.0

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        *,
        threads: int | None = None,
        device: str = "auto",
        ctx: int | None = None,
        kv_type: str | None = None,
        gpu_memory: int | None = None,
        cpu_experts: int | None = None,
        cpu_kv: bool = False,
    ) -> Jamba:
        """Load a model by name, by the path of a GGUF file (any part of a split one) or of a Hugging Face checkpoint.

        A checkpoint directory is converted once, in its own precision, and kept under ``JAMBA_HOME/converted``.
        None is the model used last, else the embedded demonstration model: tiny, always there. Weights are mapped, not
        read. ``threads`` is for the whole process. Raises JambaError for an unknown name or a file that is no sound
        Jamba GGUF.

        ``device`` is "auto" (a card that works, else the CPU), "cpu" or "cuda[:N]". What a card holds is planned for
        ``ctx`` tokens (the model's own limit by default) of ``kv_type``, in ``gpu_memory`` bytes (what is free); experts
        that do not fit, or those of ``cpu_experts`` layers, stay in RAM; with ``cpu_kv`` so do keys and values.
        """
        from jambacli.gguf.reader import GGUFFile
        from jambacli.hub.resolve import last_used, remember_used, resolve_model

        known = last_used() if name is None else resolve_model(str(name))
        if known is None:
            from jambacli.data import embedded_model

            path = embedded_model()
        else:
            path = known
        if path.is_dir():
            from jambacli.hub.converted_cache import converted

            path = converted(path)
        start = time.perf_counter()
        file = GGUFFile.open(path)  # before torch is imported: what is wrong with a file is said at once
        with importing():
            from jambacli.kernels import set_threads
            from jambacli.runtime.device import load_gguf_on
            from jambacli.runtime.options import DeviceOptions

            importlib.import_module("jambacli.runtime.loader")  # what brings torch
        if threads is not None:
            set_threads(threads)
        where = DeviceOptions(device=device, gpu_memory=gpu_memory, cpu_experts=cpu_experts, cpu_kv=cpu_kv)
        model = load_gguf_on(file, where, ctx=ctx, kv_type=kv_type)
        loaded = cls(model, file.metadata, str(file.metadata.get("general.name") or path.stem), path)
        loaded.load_seconds = time.perf_counter() - start
        if name is not None:
            with contextlib.suppress(JambaError, OSError):  # a home that cannot be written loads models all the same
                remember_used(str(name))
        return loaded

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's own tokenizer."""
        return Tokenizer(self.metadata, self.name, jamba_home() / "tokenizers")

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The file's own chat template, None where it has none."""
        source = self.tokenizer.template
        return ChatTemplate(source, self.tokenizer, self.name) if source else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """What identifies the weights: stored states belong to it."""
        from jambacli.cache.fingerprint import fingerprint
        from jambacli.gguf.reader import GGUFFile

        source = self.model.source
        if not isinstance(source, GGUFFile):
            raise JambaError(f"{self.name} comes from no file: its state cannot be stored")
        return fingerprint(source)

    def session(self, **options: Any) -> Session:
        """A new conversation; options are those of Session (``ctx``, ``kv_type``, ``system``, ``sampling``)."""
        return Session(self, **options)

    def logits(self, token_ids: Sequence[int], *, chunk: int = 512, kv_type: str = "f32") -> torch.Tensor:
        """Logits float32 [len(token_ids), n_vocab] of one sequence from its beginning, for evaluation."""
        import torch

        if not len(token_ids):
            raise JambaError("there are no tokens to compute logits for")
        ids = torch.as_tensor(token_ids, dtype=torch.int64)
        state = self.model.new_state(len(ids), kv_type)
        rows = [self.model.forward(part, state, logits="all") for part in ids.split(chunk)]
        return torch.cat([r.cpu() for r in rows if r is not None])
