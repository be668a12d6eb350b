"""What the server says of itself and its models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from jambacli import __version__
from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.server.model_info import ModelInfo
    from jambacli.server.models import Models
    from jambacli.server.worker import Worker


def model_entry(model: ModelInfo, *, several: bool = False) -> dict[str, Any]:
    """A model in OpenAI's list of models. ``several``: say whether it is loaded too, as llama-server's router does."""
    known = {"n_ctx": model.context, "n_ctx_train": model.trained, "n_vocab": model.vocabulary, "size": model.size}
    entry: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": int(model.created),
        "owned_by": "jamba",
    }
    if model.context:
        entry["max_model_len"] = model.context
    if meta := {k: v for k, v in known.items() if v}:
        entry["meta"] = meta
    if several:
        entry["status"] = {"value": model.status, **({"error": model.problem} if model.problem else {})}
    return entry


def props(worker: Worker, name: str, defaults: GenerationOptions) -> dict[str, Any]:
    """The properties that llama-server's clients ask for."""
    model, tokenizer = worker.model, worker.model.tokenizer
    sampling = defaults.sampling(model.sampling)
    params = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
    }
    eos = next(iter(sorted(tokenizer.stop_ids)), None)
    return {
        "default_generation_settings": {"n_ctx": worker.ctx, "params": params},
        "total_slots": worker.engine.parallel,
        "model_alias": name,
        "model_path": model.path.name if model.path is not None else "",
        "chat_template": model.template.source if model.template is not None else "",
        "modalities": {"vision": False, "audio": False},
        "bos_token": tokenizer.pieces[tokenizer.bos_id] if tokenizer.bos_id is not None else "",
        "eos_token": tokenizer.pieces[eos] if eos is not None else "",
        "build_info": f"jamba {__version__}",
    }


def tokenizer_info(worker: Worker) -> dict[str, Any]:
    """The markers and the template, by the names that transformers' tokenizers have for them."""
    model = worker.model
    tokenizer = model.tokenizer
    eos = next(iter(sorted(tokenizer.stop_ids)), None)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": tokenizer.pieces[tokenizer.bos_id] if tokenizer.bos_id is not None else None,
        "eos_token": tokenizer.pieces[eos] if eos is not None else None,
        "add_bos_token": tokenizer.add_bos,
        "model_max_length": worker.ctx,
        "chat_template": model.template.source if model.template is not None else None,
    }


#: The counters of /metrics: the worker's name of each, and what it counts.
_COUNTERS = {
    "calls": "Requests accepted.",
    "answered": "Replies finished.",
    "refused": "Requests refused.",
    "failed": "Replies that failed.",
    "cancelled": "Requests whose clients went away.",
    "prompt_tokens": "Tokens of prompts, known ones included.",
    "cached_tokens": "Tokens of prompts that were not read again.",
    "generated_tokens": "Tokens generated.",
}


def metrics(models: Models, started: float) -> str:
    """The counters and gauges of all models together, in Prometheus' text format. ``started``: the server, since 1970."""
    lines: list[str] = []
    found = models.known()
    workers = [m.worker for m in found if m.worker is not None]

    def add(name: str, kind: str, text: str, value: float) -> None:
        lines.extend((f"# HELP jamba_{name} {text}", f"# TYPE jamba_{name} {kind}", f"jamba_{name} {value:g}"))

    for name, text in _COUNTERS.items():
        add(f"{name}_total", "counter", text, sum(m.total(name) for m in found))
    add("prefill_seconds_total", "counter", "Seconds of reading prompts.", sum(m.total("prefill") for m in found))
    add("decode_seconds_total", "counter", "Seconds of generating.", sum(m.total("decode") for m in found))
    add("requests_active", "gauge", "Requests being read or answered.", sum(w.active for w in workers))
    add("requests_waiting", "gauge", "Requests in the queue.", sum(w.waiting for w in workers) + models.wanted)
    add("parallel", "gauge", "Requests at once, at most.", sum(w.engine.parallel for w in workers))
    add("models_loaded", "gauge", "Models that are loaded.", len(workers))
    add("model_loads_total", "counter", "How often a model was loaded.", sum(m.loads for m in found))
    add("uptime_seconds", "gauge", "Seconds since the start.", time.time() - started)
    try:
        store = PrefixStore()
        add("store_bytes", "gauge", "Bytes of stored prefixes.", store.stats()["bytes"])
        add("store_budget_bytes", "gauge", "Bytes that stored prefixes may take.", store.budget)
    except (JambaError, OSError):
        pass
    return "\n".join(lines) + "\n"
