"""What the shared options of a command line become: generation, session and device options, a loaded model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from jambacli import presets, settings, ui
from jambacli.commands import common
from jambacli.commands import option_types as t
from jambacli.commands.load import load_model
from jambacli.errors import UsageError
from jambacli.startup import importing
from jambacli.units import parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.options import GenerationOptions
    from jambacli.runtime.options import DeviceOptions
    from jambacli.session.options import SessionOptions


@dataclass(frozen=True, kw_only=True)
class PresetArguments:
    """How a reply is chosen, which a preset may hold: one option per field, in the order of the ``--help``."""

    temp: t.Temp = None
    top_p: t.TopP = None
    top_k: t.TopK = None
    min_p: t.MinP = None
    typical_p: t.TypicalP = None
    repeat_penalty: t.RepeatPenalty = None
    presence_penalty: t.PresencePenalty = None
    frequency_penalty: t.FrequencyPenalty = None
    penalty_last_n: t.PenaltyLastN = None
    seed: t.Seed = None
    max_tokens: t.MaxTokens = None
    stop: t.Stop = None
    think: t.Think = None

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
class PlacementArguments:
    """Where and how a model computes: one option per field, in the order of the ``--help``."""

    kv_type: t.KvType = None
    threads: t.Threads = None
    device: t.Device = "auto"
    gpu_memory: t.GpuMemory = None
    cpu_experts: t.CpuExperts = None
    cpu_kv: t.CpuKv = False
    precise: t.Precise = False
    lora: t.Lora = None

    def device_options(self) -> DeviceOptions:
        """The device options that the arguments set."""
        from jambacli.runtime.options import DeviceOptions

        return DeviceOptions(
            device=self.device,
            threads=self.threads,
            gpu_memory=gpu_memory_bytes(self.gpu_memory),
            cpu_experts=self.cpu_experts,
            cpu_kv=self.cpu_kv,
            precise=self.precise,
        )


@dataclass(frozen=True, kw_only=True)
class DeviceArguments(PlacementArguments):
    """The arguments of a command that measures a model."""

    def load_model(self, name: str | None, ctx: int) -> Jamba:
        """Load a model as ``load_model`` does, with memory planned for ``ctx`` tokens."""
        return load_model(name, self.device_options(), ctx=ctx, kv_type=self.kv_type, loras=self.lora or ())


@dataclass(frozen=True, kw_only=True)
class GenerationArguments(PlacementArguments, PresetArguments):
    """The arguments of a command that generates text: those of a preset, then of placement, then these."""

    preset: t.PresetName = None
    param: t.Param = None
    logit_bias: t.LogitBias = None
    chat_template: t.ChatTemplateFile = None
    ctx: t.Ctx = None
    no_store: t.NoStore = False
    lookup: t.Lookup = None
    stats: t.Stats = False

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
            self.device_options(),
            ctx=context(self.ctx),
            kv_type=self.kv_type,
            chat_template=chat_template if self.chat_template is None else self.chat_template,
            loras=self.lora or (),
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


def with_arguments(group: type[Any], place: str = "arguments") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces a command's parameter ``place`` by the fields of a dataclass, as options.

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
        parameters = [p for q in own for p in (options if q.name == place else [q])]

        @functools.wraps(command)
        def grouped(**values: Any) -> None:
            values[place] = group(**{option.name: values.pop(option.name) for option in options})
            command(**values)

        grouped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return grouped

    return decorate


#: Decorators for a command with a parameter ``arguments`` of one of these classes.
preset_options = with_arguments(PresetArguments)
generation_options = with_arguments(GenerationArguments)
measurement_options = with_arguments(DeviceArguments)


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
