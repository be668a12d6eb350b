"""The Python API: ``Jamba.load(...)``, sessions, logits. The command line uses the same."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
from pathlib import Path
from typing import Unpack

from jambacli.engine.loaded_model import LoadedModel
from jambacli.errors import JambaError
from jambacli.runtime.options import DeviceKeywords, DeviceOptions
from jambacli.session.options import SessionKeywords, SessionOptions
from jambacli.session.session import Session
from jambacli.startup import importing


class Jamba(LoadedModel):
    """A loaded model: ``load`` one, then open sessions with it.

    Attributes: ``name`` (str), ``path`` (of the first file, or None), ``model`` (JambaModel), ``config`` (JambaConfig),
    ``tokenizer`` (Tokenizer), ``template`` (ChatTemplate or None), ``fingerprint`` (str), ``metadata`` (the file's
    key-value pairs), ``sampling`` (the file's defaults), ``load_seconds``.
    """

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        options: DeviceOptions | None = None,
        *,
        ctx: int | None = None,
        kv_type: str | None = None,
        **keywords: Unpack[DeviceKeywords],
    ) -> Jamba:
        """Load a model by name, by the path of a GGUF file (any part of a split one) or of a Hugging Face checkpoint.

        A checkpoint directory is converted once, in its own precision, and kept under ``JAMBA_HOME/converted``. None is
        the model used last, else the tiny demo model in the package. Weights are mapped, not read.

        ``options``, or its fields as keywords (``device="cuda", threads=8, gpu_memory=20 * 10**9, cpu_experts=4,
        cpu_kv=True, precise=True``), select the device and how it computes: see DeviceOptions. ``threads`` applies to the whole
        process. GPU memory is planned for ``ctx`` tokens (by default the model's limit) of ``kv_type`` (by default f16).

        Raises JambaError for an unknown name, or a file that is not a valid Jamba GGUF.
        """
        if not isinstance(options, DeviceOptions | None):
            raise TypeError(f"options must be DeviceOptions, not {type(options).__name__}; name the device by device=")
        options = dataclasses.replace(options or DeviceOptions(), **keywords)
        from jambacli.gguf.reader import GGUFFile
        from jambacli.hub.resolve import last_used, remember_used, resolve_model

        known = last_used() if name is None else resolve_model(str(name))
        if known is None:
            from jambacli.hub.demo import demo_model_path

            path = demo_model_path()
        else:
            path = known
        if path.is_dir():
            from jambacli.hub.converted_cache import converted_gguf

            path = converted_gguf(path)
        start = time.perf_counter()
        file = GGUFFile.open(path)  # before torch is imported, so that a bad file is reported immediately
        with importing():
            from jambacli.kernels import set_threads
            from jambacli.runtime.device import load_gguf_on

            importlib.import_module("jambacli.runtime.loader")  # this imports torch
        if options.threads is not None:
            set_threads(options.threads)
        model = load_gguf_on(file, options, ctx=ctx, kv_type=kv_type)
        loaded = cls(model, file.metadata, str(file.metadata.get("general.name") or path.stem), path)
        loaded.load_seconds = time.perf_counter() - start
        if name is not None:
            with contextlib.suppress(JambaError, OSError):  # JAMBA_HOME need not be writable to load a model
                remember_used(str(name))
        return loaded

    def session(self, options: SessionOptions | None = None, **keywords: Unpack[SessionKeywords]) -> Session:
        """Open a conversation. ``options``, or its fields as keywords (``ctx=32_768, name="contract"``): see
        SessionOptions, and Session for the errors raised."""
        return Session(self, dataclasses.replace(options or SessionOptions(), **keywords))
