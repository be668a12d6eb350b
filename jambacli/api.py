"""The Python API: ``Jamba.load(...)``, sessions, logits. The command line uses the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from jambacli.engine.loaded_model import LoadedModel
from jambacli.engine.options import GenerationKeywords, GenerationOptions
from jambacli.errors import JambaError
from jambacli.keywords import with_keywords
from jambacli.progress import Progress, no_progress
from jambacli.runtime.options import DeviceKeywords, DeviceOptions
from jambacli.session.options import SessionKeywords, SessionOptions
from jambacli.session.session import Session
from jambacli.startup import importing

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Job, Request
    from jambacli.runtime.lora import LoraName


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchReply:
    """One reply of ``Jamba.generate_batch``.

    ``text``, without thoughts; ``finish``: "stop", "length" or "context", None if it failed; ``error``: why it failed;
    numbers of tokens: of the prompt, those of it that were read for another prompt, and those of the reply.
    """

    text: str = ""
    finish: str | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0

    @staticmethod
    def of(job: Job | None, error: Exception | None) -> BatchReply:
        """The reply of a job that has ended; None if there was none."""
        if job is None:
            return BatchReply(error=error)
        return BatchReply(
            text=job.text,
            finish=None if error is not None else job.result.finish,
            error=error,
            prompt_tokens=len(job.ids),
            reused_tokens=job.counters.reused,
            generated_tokens=len(job.result.ids),
        )


class Jamba(LoadedModel):
    """A loaded model: ``load`` one, then open sessions with it.

    Attributes: ``name`` (str), ``path`` (of the first file, or None), ``model`` (JambaModel), ``config`` (JambaConfig),
    ``tokenizer`` (Tokenizer), ``template`` (ChatTemplate or None), ``chat_template`` (the text
    of a template that replaces the file's own, or None), ``fingerprint`` (str), ``metadata`` (the file's
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
        chat_template: str | Path | None = None,
        loras: Sequence[LoraName] = (),
        progress: Progress = no_progress,
        **keywords: Unpack[DeviceKeywords],
    ) -> Jamba:
        """Load a model by name, by the path of a GGUF file (any part of a split one) or of a Hugging Face checkpoint.

        A checkpoint directory is converted once, in its own precision, and kept under ``JAMBA_HOME/converted``. None is
        the model used last, else the tiny demo model in the package. Weights are mapped, not read.

        ``options``, or its fields as keywords (``device="cuda", threads=8, gpu_memory=20 * 10**9, cpu_experts=4,
        cpu_kv=True, precise=True``), select the device and how it computes: see DeviceOptions. ``threads`` applies to the whole
        process. GPU memory is planned for ``ctx`` tokens (by default the model's limit) of ``kv_type`` (by default f16).

        ``chat_template``: a chat template in place of the file's own: the path of a file, or the template itself.
        ``loras``: LoRA adapters, GGUF files that are applied beside the weights: paths, "PATH:SCALE", or (path, scale).
        ``progress``: shows the bytes of the weights that are placed.

        Raises JambaError for an unknown name, or a file that is not a valid Jamba GGUF or not a chat template.
        """
        if not isinstance(options, DeviceOptions | None):
            raise TypeError(f"options must be DeviceOptions, not {type(options).__name__}; name the device by device=")
        options = with_keywords(options or DeviceOptions(), keywords, cls.load)
        from jambacli.documents.given_texts import read_chat_template
        from jambacli.gguf.jamba_metadata import CHAT_TEMPLATE
        from jambacli.gguf.reader import GGUFFile
        from jambacli.hub.resolve import last_used, remember_used, resolve_model
        from jambacli.text.template_process import shared

        template, template_name = (None, None) if chat_template is None else read_chat_template(chat_template)
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
        if template is not None or isinstance(file.metadata.get(CHAT_TEMPLATE), str):
            shared().start()  # it is ready when torch is
        with progress(f"Loading {path.name}", sum(info.nbytes for info in file.tensors.values())) as advance:
            with importing():
                from jambacli.kernels import set_threads
                from jambacli.runtime.device import load_gguf_on

                importlib.import_module("jambacli.runtime.loader")  # this imports torch
                from jambacli.runtime.lora import load_adapters, with_default
            if options.threads is not None:
                set_threads(options.threads)
            adapters = load_adapters(loras, file.tensors, path)
            model = load_gguf_on(file, options, ctx=ctx, kv_type=kv_type, advance=advance)
            if loras:
                model = with_default(model, adapters)
        loaded = cls(
            model,
            file.metadata,
            str(file.metadata.get("general.name") or path.stem),
            path,
            chat_template=template,
            template_name=template_name,
        )
        loaded.load_seconds = time.perf_counter() - start
        logger.debug(
            "%s: %d bytes, loaded on %s in %.2f s", path, path.stat().st_size, model.device, loaded.load_seconds
        )
        if name is not None:
            with contextlib.suppress(JambaError, OSError):  # JAMBA_HOME need not be writable to load a model
                remember_used(str(name))
        return loaded

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[Mapping[str, Any]]],
        options: GenerationOptions | None = None,
        *,
        parallel: int | None = None,
        ctx: int | None = None,
        kv_type: str | None = None,
        progress: Progress = no_progress,
        **keywords: Unpack[GenerationKeywords],
    ) -> list[BatchReply]:
        """The replies to several prompts, computed together; each is what it would be alone.

        A prompt is a text, sent as a user's message or, without a chat template, continued; or a list of messages, mappings
        with "role" and "content". Prompts that begin with the same tokens read them once. ``options``, or its fields as
        keywords, are those of ``session.send``. ``parallel``: how many at once, by default as many as are worthwhile and fit
        in memory. Nothing is stored on disk. A prompt that fails has an ``error`` in its reply; the others go on.
        """
        from jambacli.engine.batch import BatchEngine
        from jambacli.engine.parallel import MOST_IN_BULK, default_parallel
        from jambacli.session.requests import chat_request, text_request

        options = with_keywords(options or GenerationOptions(), keywords, self.generate_batch)
        ctx = ctx or self.config.context_length
        parallel = parallel or default_parallel(self.model, ctx, kv_type, most=MOST_IN_BULK)
        replies = [BatchReply()] * len(prompts)

        def request(prompt: str | Sequence[Mapping[str, Any]]) -> Request:
            if isinstance(prompt, str) and self.template is None:
                return text_request(self, prompt, options)
            return chat_request(
                self, [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, options
            )

        with progress("Answering", len(prompts), "prompts") as advance:

            def ended(i: int, job: Job | None, error: Exception | None) -> None:
                replies[i] = BatchReply.of(job, error)
                advance(1)

            with BatchEngine(self, parallel=parallel, ctx=ctx, kv_type=kv_type) as engine:
                engine.run_all(((i, functools.partial(request, p)) for i, p in enumerate(prompts)), ended)
        return replies

    def session(self, options: SessionOptions | None = None, **keywords: Unpack[SessionKeywords]) -> Session:
        """Open a conversation. ``options``, or its fields as keywords (``ctx=32_768, name="contract"``): see
        SessionOptions, and Session for the errors raised."""
        elsewhere = {
            "session.send(...)": GenerationKeywords.__annotations__,
            "Jamba.load(...)": DeviceKeywords.__annotations__,
        }
        return Session(self, with_keywords(options or SessionOptions(), keywords, self.session, elsewhere))
