"""The options of commands that generate, the same for all of them; knows nothing of what is generated or asked."""

from __future__ import annotations

import functools
import inspect
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from jambacli import ui
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing
from jambacli.units import parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba

_SAMPLING = "Sampling"
_RUNTIME = "Runtime"

Temp = Annotated[float | None, typer.Option("--temp", help="Temperature; 0 is greedy.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Keep the likeliest of this mass.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the likeliest K; 0: all.", rich_help_panel=_SAMPLING)]
MinP = Annotated[
    float | None, typer.Option("--min-p", help="Drop what is below this share of the best.", rich_help_panel=_SAMPLING)
]
TypicalP = Annotated[
    float | None, typer.Option("--typical-p", help="Keep the most typical of this mass.", rich_help_panel=_SAMPLING)
]
RepeatPenalty = Annotated[
    float | None, typer.Option("--repeat-penalty", help="Divide repeated tokens' logits.", rich_help_panel=_SAMPLING)
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", help="Subtract from tokens already said.", rich_help_panel=_SAMPLING),
]
FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", help="Subtract per repetition.", rich_help_panel=_SAMPLING)
]
PenaltyLastN = Annotated[
    int | None,
    typer.Option("--penalty-last-n", help="How far penalties look back; -1: all.", rich_help_panel=_SAMPLING),
]
LogitBias = Annotated[
    list[str] | None, typer.Option("--logit-bias", help="TOKEN=BIAS, repeatable.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same text.", rich_help_panel=_SAMPLING)]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Stop after this many tokens.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop before this text, repeatable.")]
Ctx = Annotated[
    str | None,
    typer.Option("--ctx", "-c", help="Context length, e.g. 256k; default: the model's.", rich_help_panel=_RUNTIME),
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        help="Keys and values as f16, bf16, f32 or q8_0.",
        callback=lambda text: text and text.lower(),
        rich_help_panel=_RUNTIME,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, help="CPU threads; default: the cores.", rich_help_panel=_RUNTIME),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUNTIME, show_default=True)
]
GpuMemory = Annotated[
    str | None,
    typer.Option("--gpu-memory", help="Use at most this of the card, e.g. 20G.", rich_help_panel=_RUNTIME),
]
CpuExperts = Annotated[
    int | None,
    typer.Option("--cpu-experts", min=0, help="Keep this many layers' experts in RAM.", rich_help_panel=_RUNTIME),
]
CpuKv = Annotated[
    bool, typer.Option("--cpu-kv", help="Keep keys and values in RAM, not on the card.", rich_help_panel=_RUNTIME)
]
Stats = Annotated[bool, typer.Option("--stats", help="Rates, tokens and memory on stderr.", rich_help_panel=_RUNTIME)]

NoStore = Annotated[
    bool, typer.Option("--no-store", help="Keep nothing of the text or its state on disk.", rich_help_panel=_RUNTIME)
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]

MAX_INPUT = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a command that generates text was given: an option a field, in the order of its ``--help``."""

    temp: Temp = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    typical_p: TypicalP = None
    repeat_penalty: RepeatPenalty = None
    presence_penalty: PresencePenalty = None
    frequency_penalty: FrequencyPenalty = None
    penalty_last_n: PenaltyLastN = None
    logit_bias: LogitBias = None
    seed: Seed = None
    max_tokens: MaxTokens = None
    stop: Stop = None
    ctx: Ctx = None
    kv_type: KvType = None
    no_store: NoStore = False
    threads: Threads = None
    device: Device = "auto"
    gpu_memory: GpuMemory = None
    cpu_experts: CpuExperts = None
    cpu_kv: CpuKv = False
    stats: Stats = False

    def generation(self) -> dict[str, Any]:
        """What a Session's ``send`` takes: the sampling options that were given, where to stop. UsageError for a bad one."""
        with importing():
            from jambacli.engine.sampling import Sampling, parse_logit_bias

        sampling: dict[str, Any] = {
            "temperature": self.temp,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "penalty_last_n": self.penalty_last_n,
            "logit_bias": parse_logit_bias(self.logit_bias) if self.logit_bias else None,
            "seed": self.seed,
        }
        chosen = {name: value for name, value in sampling.items() if value is not None}
        Sampling(**chosen)  # what is out of range is said before a model is loaded
        return {**chosen, "max_tokens": self.max_tokens, "stop": self.stop or ()}

    def session(self) -> dict[str, Any]:
        """What a Session takes. UsageError where ``--ctx`` is no number of tokens."""
        return {"ctx": context(self.ctx), "kv_type": self.kv_type, "store": not self.no_store}

    def load_model(self, name: str | None) -> Jamba:
        """The model of that name, as ``load_model`` finds it, where the options put it. UsageError where a biased token is
        none of its own."""
        model = load_model(
            name,
            threads=self.threads,
            device=self.device,
            gpu_memory=self.gpu_memory,
            cpu_experts=self.cpu_experts,
            cpu_kv=self.cpu_kv,
            ctx=context(self.ctx),
            kv_type=self.kv_type,
        )
        if self.logit_bias:
            from jambacli.engine.sampling import Sampling, parse_logit_bias

            Sampling(logit_bias=parse_logit_bias(self.logit_bias)).check_vocabulary(model.config.vocab_size)
        return model


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a command that measures was told to compute: an option a field, in the order of its ``--help``."""

    kv_type: KvType = None
    threads: Threads = None
    device: Device = "auto"
    gpu_memory: GpuMemory = None
    cpu_experts: CpuExperts = None
    cpu_kv: CpuKv = False

    def load_model(self, name: str | None, ctx: int) -> Jamba:
        """The model of that name, as ``load_model`` finds it, planned for ``ctx`` tokens read at once, no more."""
        return load_model(name, ctx=ctx, **vars(self))


def _takes(group: type[Any], parameter: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of a dataclass in the place of its parameter of that name: Typer knows no groups."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(group, include_extras=True)
        options = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in fields(group)
        ]
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for q in signature.parameters.values() for p in (options if q.name == parameter else [q])]

        @functools.wraps(command)
        def spread(**values: Any) -> None:
            given = group(**{option.name: values.pop(option.name) for option in options})
            command(**values, **{parameter: given})

        spread.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return spread

    return decorate


generates = _takes(Given, "given")
measures = _takes(Where, "where")


def hushes(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command ``--quiet`` of its own, so that it may stand behind the command as well as before it."""
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)

    @functools.wraps(command)
    def hushed(*values: Any, quiet: bool = False, **named: Any) -> None:
        if quiet:
            ui.set_quiet(True)
        command(*values, **named)

    hushed.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    return hushed


def model_path(name: str | None) -> Path:
    """The file or directory of that name; without a name, that of the last used or the demo model, with a note."""
    from jambacli.hub.resolve import resolve_model

    return _default_model() if name is None else resolve_model(name)


def _default_model() -> Path:
    from jambacli.hub.demo import demo_model_path
    from jambacli.hub.resolve import last_used

    path = last_used()
    if path:
        ui.note(f"no model given: using {path}, the last used")
        return path
    ui.note(
        "no model given and none used yet: using jamba:tiny, a demo model that can only read short reports "
        "(jamba pull jamba:3b gets a real one)"
    )
    return demo_model_path()


def load_model(
    name: str | None,
    *,
    threads: int | None = None,
    device: str = "auto",
    gpu_memory: str | None = None,
    cpu_experts: int | None = None,
    cpu_kv: bool = False,
    ctx: int | None = None,
    kv_type: str | None = None,
) -> Jamba:
    """The model of that name; without a name, the last used or the demo model, with a note that says which."""
    with importing():
        from jambacli.api import Jamba

    from jambacli.hub.converted_cache import converted_gguf

    path = model_path(name)
    if path.is_dir():  # convert it here, with progress; Jamba.load then finds the result
        converted_gguf(path, ui.progress)
    memory = card_memory(gpu_memory)
    return Jamba.load(
        name, threads=threads, device=device, gpu_memory=memory, cpu_experts=cpu_experts, cpu_kv=cpu_kv, ctx=ctx,
        kv_type=kv_type,
    )  # fmt: skip


def card_memory(text: str | None) -> int | None:
    """``--gpu-memory`` in bytes, None where it was not given."""
    return None if text is None else parse_size(text, "--gpu-memory")


def context(ctx: str | None) -> int | None:
    """``--ctx`` as a number of tokens; UsageError when it is none."""
    if ctx is None:
        return None
    tokens = parse_size(ctx, "--ctx")
    if tokens < 1:
        raise UsageError("--ctx must be at least 1")
    return tokens


def read_text(path: Path | None) -> str:
    """A text file's content, or stdin's for ``-``; JambaError when it is not there, too large or no UTF-8 text."""
    name = "standard input" if path is None or str(path) == "-" else str(path)
    try:
        if path is None or str(path) == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise JambaError(f"cannot read {name}: {error.strerror}") from error
    if len(data) > MAX_INPUT:
        raise JambaError(f"{name} is larger than {MAX_INPUT >> 20} MB of text; give a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JambaError(f"{name} is not UTF-8 text (byte {error.start}); convert it first") from error


def has_input() -> bool:
    """Whether something is piped in: standard input is a pipe or a file, no terminal and not closed or absent."""
    if sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
