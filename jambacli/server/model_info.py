"""What is known of a model without loading it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jambacli.engine.sampling import Sampling, model_defaults
from jambacli.errors import JambaError
from jambacli.server.memory import summary_of
from jambacli.text.tool_calls import call_form


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as the lists of the APIs describe it. Numbers that are not known are 0, texts empty.

    ``created``: seconds since 1970. ``size``: bytes of its files. ``context``: tokens that a request may have; ``trained``:
    tokens that the model was made for. ``status``: "loaded", "loading", "unloaded" or "failed". ``expires``: when an idle one
    will be unloaded, None for never. ``thinks``: it can be asked for thoughts; ``tools``: it can call tools. ``problem``: why
    it could not be loaded.
    """

    name: str
    created: float = 0.0
    size: int = 0
    digest: str = "0" * 64
    parameters: int = 0
    quantization: str = "unknown"
    context: int = 0
    trained: int = 0
    vocabulary: int = 0
    hidden: int = 0
    template: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    status: str = "loaded"
    expires: float | None = None
    on_gpu: bool = False
    thinks: bool = False
    tools: bool = False
    problem: str | None = None


def file_info(name: str, path: Path) -> ModelInfo:
    """What the headers of a model's file or checkpoint say. Of one that cannot be read, the name alone."""
    from jambacli.gguf.reader import GGUFFile

    try:
        summary = summary_of(path)
        changed = path.stat().st_mtime
        metadata = {}
        if not path.is_dir():
            with GGUFFile.open(path) as file:
                metadata = dict(file.metadata)
        template = metadata.get("tokenizer.chat_template")
        return ModelInfo(
            name=name,
            created=changed,
            size=summary.file_bytes,
            digest=_digest(path, summary.file_bytes, changed),
            parameters=summary.params,
            quantization=summary.file_type or "unknown",
            context=summary.config.context_length,
            trained=summary.config.context_length,
            vocabulary=summary.config.vocab_size,
            hidden=summary.config.hidden,
            template=template if isinstance(template, str) else "",
            sampling=model_defaults(metadata),
            status="unloaded",
            thinks=isinstance(template, str) and "think" in template,
            tools=isinstance(template, str) and call_form(template) is not None,
        )
    except (JambaError, OSError) as error:
        return ModelInfo(name=name, status="failed", problem=str(error))


def _digest(path: Path, size: int, changed: float) -> str:
    return hashlib.sha256(f"{path}|{size}|{changed}".encode("utf-8", "surrogateescape")).hexdigest()
