"""What the server says of itself and its model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from jambacli import __version__
from jambacli.cache.prefix_store import PrefixStore
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.server.context import Server


def model_entry(server: Server) -> dict[str, Any]:
    """The model in a list of models."""
    worker = server.worker
    config = worker.model.config
    meta = {"n_ctx": worker.ctx, "n_ctx_train": config.context_length, "n_vocab": config.vocab_size}
    entry: dict[str, Any] = {"id": server.name, "object": "model", "created": int(worker.started), "owned_by": "jamba"}
    size = model_bytes(server)
    return {**entry, "max_model_len": worker.ctx, "meta": {**meta, **({"size": size} if size else {})}}


def model_bytes(server: Server) -> int:
    """The size of the model's file, of a split one of its first part."""
    path = server.worker.model.path
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def props(server: Server) -> dict[str, Any]:
    """The properties that llama-server's clients ask for."""
    worker = server.worker
    model, tokenizer = worker.model, worker.model.tokenizer
    sampling = server.defaults.sampling(model.sampling)
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
        "model_alias": server.name,
        "model_path": model.path.name if model.path is not None else "",
        "chat_template": model.template.source if model.template is not None else "",
        "modalities": {"vision": False, "audio": False},
        "bos_token": tokenizer.pieces[tokenizer.bos_id] if tokenizer.bos_id is not None else "",
        "eos_token": tokenizer.pieces[eos] if eos is not None else "",
        "build_info": f"jamba {__version__}",
    }


def tokenizer_info(server: Server) -> dict[str, Any]:
    """The markers and the template, by the names that transformers' tokenizers have for them."""
    model = server.worker.model
    tokenizer = model.tokenizer
    eos = next(iter(sorted(tokenizer.stop_ids)), None)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": tokenizer.pieces[tokenizer.bos_id] if tokenizer.bos_id is not None else None,
        "eos_token": tokenizer.pieces[eos] if eos is not None else None,
        "add_bos_token": tokenizer.add_bos,
        "model_max_length": server.worker.ctx,
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


def metrics(server: Server) -> str:
    """The counters and gauges, in Prometheus' text format."""
    worker = server.worker
    lines: list[str] = []

    def add(name: str, kind: str, text: str, value: float) -> None:
        lines.extend((f"# HELP jamba_{name} {text}", f"# TYPE jamba_{name} {kind}", f"jamba_{name} {value:g}"))

    for name, text in _COUNTERS.items():
        add(f"{name}_total", "counter", text, worker.counts[name])
    add("prefill_seconds_total", "counter", "Seconds of reading prompts.", worker.seconds["prefill"])
    add("decode_seconds_total", "counter", "Seconds of generating.", worker.seconds["decode"])
    add("requests_active", "gauge", "Requests being read or answered.", worker.active)
    add("requests_waiting", "gauge", "Requests in the queue.", worker.waiting)
    add("parallel", "gauge", "Requests at once, at most.", worker.engine.parallel)
    add("uptime_seconds", "gauge", "Seconds since the start.", time.time() - worker.started)
    try:
        store = PrefixStore()
        add("store_bytes", "gauge", "Bytes of stored prefixes.", store.stats()["bytes"])
        add("store_budget_bytes", "gauge", "Bytes that stored prefixes may take.", store.budget)
    except (JambaError, OSError):
        pass
    return "\n".join(lines) + "\n"
