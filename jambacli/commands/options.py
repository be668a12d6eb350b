"""Options that several commands share, and what they become: generation, session and device options, a loaded model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from jambacli import presets, settings, ui
from jambacli.commands import common
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing
from jambacli.units import parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.options import GenerationOptions
    from jambacli.runtime.options import DeviceOptions
    from jambacli.session.options import SessionOptions


def _sampling_option(*flags: str, **settings: Any) -> Any:
    """An option in the group "Sampling" of the help."""
    return typer.Option(*flags, rich_help_panel="Sampling", **settings)


def _on_or_off(text: str | None, field: str) -> str | None:
    """The text "on" or "off" in lower case, or None. Raises UsageError for another."""
    if text is not None and text.lower() not in ("on", "off"):
        raise UsageError("is neither on nor off", field=field, value=text)
    return text and text.lower()


def _at_least_one(number: int | None) -> int | None:
    """A number of tokens, or -1 for no limit. Raises UsageError for another."""
    if number is not None and number < 1 and number != -1:
        raise UsageError("is neither at least 1 nor -1, which is no limit", field="max_tokens", value=number)
    return number


def _runtime_option(*flags: str, **settings: Any) -> Any:
    """An option in the group "Runtime" of the help."""
    return typer.Option(*flags, rich_help_panel="Runtime", **settings)


Temp = Annotated[float | None, _sampling_option("--temp", help="Temperature; 0 is greedy.")]
TopP = Annotated[
    float | None,
    _sampling_option("--top-p", help="Keep the most likely tokens, up to this total probability."),
]
TopK = Annotated[int | None, _sampling_option("--top-k", help="Keep the K most likely tokens; 0: all.")]
MinP = Annotated[
    float | None,
    _sampling_option("--min-p", help="Drop tokens less likely than this fraction of the most likely one."),
]
TypicalP = Annotated[
    float | None,
    _sampling_option("--typical-p", help="Keep the most typical tokens, up to this total probability."),
]
RepeatPenalty = Annotated[
    float | None,
    _sampling_option("--repeat-penalty", help="Divide the logits of repeated tokens by this."),
]
PresencePenalty = Annotated[
    float | None,
    _sampling_option("--presence-penalty", help="Subtract this from the logits of repeated tokens."),
]
FrequencyPenalty = Annotated[
    float | None, _sampling_option("--frequency-penalty", help="Subtract this per repetition.")
]
PenaltyLastN = Annotated[
    int | None,
    _sampling_option("--penalty-last-n", help="Apply penalties to this many last tokens; -1: all."),
]
LogitBias = Annotated[
    list[str] | None,
    _sampling_option("--logit-bias", help="TOKEN=BIAS, added to a token's logit; repeatable."),
]
Seed = Annotated[
    int | None, _sampling_option("--seed", min=-1, help="The same seed gives the same text; -1: a random one.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Stop after this many tokens; -1: no limit.", callback=_at_least_one),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop before this text; repeatable.")]
Ctx = Annotated[
    str | None,
    _runtime_option("--ctx", "-c", help="Context length, e.g. 256k; default: the model's."),
]
KvType = Annotated[
    str | None,
    _runtime_option(
        "--kv-type", help="Keys and values as f16, bf16, f32 or q8_0.", callback=lambda text: text and text.lower()
    ),
]
Threads = Annotated[
    int | None,
    _runtime_option("--threads", "-t", min=1, help="CPU threads; default: the cores."),
]
Device = Annotated[str, _runtime_option("--device", help="auto, cpu, cuda or cuda:N.", show_default=True)]
GpuMemory = Annotated[
    str | None,
    _runtime_option("--gpu-memory", help="Use at most this much GPU memory, e.g. 20G."),
]
CpuExperts = Annotated[
    int | None,
    _runtime_option("--cpu-experts", min=0, help="Keep the experts of this many layers in RAM."),
]
CpuKv = Annotated[
    bool,
    _runtime_option("--cpu-kv/--no-cpu-kv", show_default=False, help="Keep keys and values in RAM, not on the GPU."),
]
Precise = Annotated[
    bool,
    _runtime_option(
        "--precise/--no-precise", show_default=False, help="Round activations less: slower, closer to the exact model."
    ),
]
Lookup = Annotated[
    str | None,
    _runtime_option(
        "--lookup",
        metavar="[on|off]",
        help="Draft tokens from earlier text: faster, the same reply; default: on where it is fast.",
        callback=lambda text: _on_or_off(text, "lookup"),
    ),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Let a model that can think do so before it answers, or not; default: its template's.",
    ),
]
ChatTemplateFile = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="FILE", help="Use this Jinja template in place of the model's own."),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT|@FILE",
        help="System message, or @ and the file that holds it; @@ for a text that begins with @.",
    ),
]
Stats = Annotated[
    bool,
    _runtime_option("--stats/--no-stats", show_default=False, help="Print speed, token counts and memory to stderr."),
]

NoStore = Annotated[
    bool, _runtime_option("--no-store/--store", show_default=False, help="Store no text or state on disk.")
]
PresetName = Annotated[
    presets.Preset | None,
    typer.Option("--preset", metavar="NAME", parser=presets.find, help="Use a preset's system message and options."),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Fill in a variable of the preset; repeatable."),
]

#: Maximum size of a text that is read whole, in bytes.
MAX_INPUT = 256 << 20


@dataclass(frozen=True, kw_only=True)
class GenerationArguments:
    """The arguments of a command that generates text: one option per field, in the order of its ``--help``."""

    preset: PresetName = None
    param: Param = None
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
    think: Think = None
    chat_template: ChatTemplateFile = None
    ctx: Ctx = None
    kv_type: KvType = None
    no_store: NoStore = False
    threads: Threads = None
    device: Device = "auto"
    gpu_memory: GpuMemory = None
    cpu_experts: CpuExperts = None
    cpu_kv: CpuKv = False
    precise: Precise = False
    lookup: Lookup = None
    stats: Stats = False

    def generation(self) -> GenerationOptions:
        """The options of a reply. Raises UsageError for a value out of its range."""
        with importing():
            from jambacli.engine.options import GenerationOptions

        # The fields of both classes by the same name; the others are those whose name or type differs.
        options = {f.name for f in fields(GenerationOptions)}
        chosen: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name in options}
        chosen["temperature"] = self.temp
        chosen["logit_bias"] = parse_logit_bias(self.logit_bias) if self.logit_bias else None
        chosen["lookup"] = None if self.lookup is None else self.lookup == "on"
        chosen["stop"] = self.stop or ()
        for name in ("seed", "max_tokens"):  # as in other programs
            chosen[name] = None if chosen[name] == -1 else chosen[name]
        return GenerationOptions(**chosen)

    def session(self, system: str | None = None) -> SessionOptions:
        """The options of a session, with the system message of ``--system`` or of the preset.

        Raises UsageError when ``--ctx`` is not a number of tokens, and as ``system_message`` does.
        """
        with importing():
            from jambacli.session.options import SessionOptions

        text = self.system_message(system)
        return SessionOptions(ctx=context(self.ctx), kv_type=self.kv_type, store=not self.no_store, system=text or None)

    def system_message(self, text: str | None) -> str | None:
        """The system message of ``--system``, else the preset's with its variables; None without either.

        Raises JambaError for a file that cannot be read, UsageError for the preset's variables.
        """
        given = presets.parse_given(self.param or ())
        if self.preset is None:
            if given:
                raise UsageError("fills in a variable of a preset", field="param", remedy="add {preset}")
            return system_message(text)
        return self.preset.filled(given) if text is None else system_message(text)

    def schema(self, path: Path | None) -> Mapping[str, Any] | None:
        """The JSON schema of ``--schema``, else the preset's. Raises JambaError for a file that is not one."""
        if path is None:
            return None if self.preset is None else self.preset.schema
        from jambacli.engine.constraints.json_schema import read_schema

        return read_schema(path)

    def load_model(self, name: str | None, chat_template: str | None = None) -> Jamba:
        """Load a model as ``load_model`` does. ``chat_template``: used where none was given.

        Raises UsageError for a biased token, or for thoughts, that it does not have; notes when there are none to switch off.
        """
        model = load_model(
            self.preset.model if name is None and self.preset is not None else name,
            device_options(self),
            ctx=context(self.ctx),
            kv_type=self.kv_type,
            chat_template=chat_template if self.chat_template is None else self.chat_template,
        )
        if self.logit_bias:
            self.generation().sampling(model.sampling).check_vocabulary(model.config.vocab_size)
        if self.think is not None:
            from jambacli.session.thinking import can_think

            if not can_think(model.template, model.tokenizer):
                if self.think:
                    raise UsageError(f"needs a chat template with thoughts; {model.name} has none", field="think")
                ui.note(f"{model.name} does not think; there is nothing to switch off")
        return model


@dataclass(frozen=True, kw_only=True)
class PresetArguments:
    """The options that a preset may hold: one per field, in the order of its ``--help``."""

    temp: Temp = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    typical_p: TypicalP = None
    repeat_penalty: RepeatPenalty = None
    presence_penalty: PresencePenalty = None
    frequency_penalty: FrequencyPenalty = None
    penalty_last_n: PenaltyLastN = None
    seed: Seed = None
    max_tokens: MaxTokens = None
    stop: Stop = None
    think: Think = None

    def chosen(self) -> dict[str, Any]:
        """The options that are set, by their Python names. Raises UsageError for a value out of its range."""
        chosen: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or value == []:
                continue
            if f.name == "stop":
                chosen["stop"] = tuple(value)
                continue
            setting = settings.SETTINGS[f.name.replace("_", "-")]
            try:
                chosen[f.name] = setting.check(value)
            except UsageError as error:
                raise UsageError(error.problem, field=f.name, value=value) from None
        return chosen


@dataclass(frozen=True, kw_only=True)
class DeviceArguments:
    """The arguments of a command that measures a model: one option per field, in the order of its ``--help``."""

    kv_type: KvType = None
    threads: Threads = None
    device: Device = "auto"
    gpu_memory: GpuMemory = None
    cpu_experts: CpuExperts = None
    cpu_kv: CpuKv = False
    precise: Precise = False

    def load_model(self, name: str | None, ctx: int) -> Jamba:
        """Load a model as ``load_model`` does, with memory planned for ``ctx`` tokens."""
        return load_model(name, device_options(self), ctx=ctx, kv_type=self.kv_type)


def device_options(arguments: GenerationArguments | DeviceArguments) -> DeviceOptions:
    """The device options that the arguments set."""
    from jambacli.runtime.options import DeviceOptions

    return DeviceOptions(
        device=arguments.device,
        threads=arguments.threads,
        gpu_memory=gpu_memory_bytes(arguments.gpu_memory),
        cpu_experts=arguments.cpu_experts,
        cpu_kv=arguments.cpu_kv,
        precise=arguments.precise,
    )


def _with_arguments(group: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces a command's parameter ``arguments`` by the fields of a dataclass, as options.

    Typer itself has no groups of options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(group, include_extras=True)
        options = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in fields(group)
        ]
        signature = inspect.signature(command, eval_str=True)
        own = signature.parameters.values()
        options = common.beside(own, options)
        parameters = [p for q in own for p in (options if q.name == "arguments" else [q])]

        @functools.wraps(command)
        def grouped(**values: Any) -> None:
            arguments = group(**{option.name: values.pop(option.name) for option in options})
            command(**values, arguments=arguments)

        grouped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return grouped

    return decorate


#: Decorators for a command with a parameter ``arguments`` of one of these classes.
preset_options = _with_arguments(PresetArguments)
generation_options = _with_arguments(GenerationArguments)
measurement_options = _with_arguments(DeviceArguments)


def model_path(name: str | None) -> Path:
    """The file or directory of that name; without a name, that of the last used or the demo model, with a note."""
    from jambacli.hub.resolve import resolve_model

    return _default_model() if name is None else resolve_model(name)


def is_path(name: str) -> bool:
    """Whether ``name`` is the path of a file or directory rather than a model's name."""
    from jambacli.files import path_of

    try:
        return path_of(name).exists()
    except (OSError, ValueError):
        return False


def chosen_model(name: str | None) -> str | None:
    """``name``, or without one the user's default; None where there is none either.

    Raises JambaError for a default that is no model, naming where it is set.
    """
    from jambacli.hub.resolve import resolve_model

    chosen = settings.find("model") if name is None else None
    if chosen is None:
        return name
    try:
        resolve_model(chosen.value)
    except JambaError as error:
        raise JambaError(f"the default model ({chosen.where}): {error.worded()}") from None
    return str(chosen.value)


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
    options: DeviceOptions,
    *,
    ctx: int | None = None,
    kv_type: str | None = None,
    chat_template: str | None = None,
) -> Jamba:
    """Load the model of that name; for None the user's default, the last used or the demo model, with a note that says
    which."""
    began = time.perf_counter()
    with importing():
        from jambacli.api import Jamba

    from jambacli.documents.given_texts import read_chat_template
    from jambacli.hub.converted_cache import converted_gguf

    name = chosen_model(name)
    path = model_path(name)
    if chat_template is not None:
        read_chat_template(chat_template)  # what is wrong with it is reported before a checkpoint is converted
    if path.is_dir():  # convert it here, with progress; Jamba.load then finds the result
        converted_gguf(path, ui.progress)
        began = time.perf_counter()
    model = Jamba.load(name, options, ctx=ctx, kv_type=kv_type, chat_template=chat_template, progress=ui.loading)
    with contextlib.suppress(JambaError):  # who needs it will say what is wrong with it
        model.tokenizer  # noqa: B018 - it takes longer than the weights, which are mapped
    model.load_seconds = time.perf_counter() - began
    return model


def system_message(text: str | None) -> str | None:
    """The system message of ``--system``: the text, or that of the file after an @. Raises JambaError for the file."""
    from jambacli.documents.given_texts import text_or_file

    return None if text is None else text_or_file(text, "system")


def gpu_memory_bytes(text: str | None) -> int | None:
    """``--gpu-memory`` in bytes; None without it."""
    return None if text is None else parse_size(text, "--gpu-memory")


def context(ctx: str | None) -> int | None:
    """``--ctx`` as a number of tokens. Raises UsageError when it is not one."""
    if ctx is None:
        return None
    tokens = parse_size(ctx, "--ctx")
    if tokens < 1:
        raise UsageError("must be at least 1", field="ctx")
    return tokens


def parse_logit_bias(texts: Sequence[str]) -> dict[int, float]:
    """The TOKEN=BIAS arguments of ``--logit-bias`` as a mapping. Raises UsageError for anything else."""
    bias: dict[int, float] = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise UsageError("is not TOKEN=BIAS, such as 518=-inf or 42=1.5", field="logit_bias", value=text) from None
    return bias


def read_text(path: Path | None) -> str:
    """The text of a file, or of stdin for ``-``. Raises JambaError when it is missing, too large or not UTF-8."""
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
    """Whether something is piped in: standard input is a pipe, a file or a socket."""
    if sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
