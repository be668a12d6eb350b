"""Options that several commands share: their flags, types and help texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jambacli import presets
from jambacli.errors import UsageError


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


#: Of commands whose argument is the model.
Model = Annotated[str | None, _runtime_option("--model", "-m", help="The model, in place of the argument MODEL.")]
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
        "--kv-type",
        help="Keys and values as f16, bf16, f32, q8_0, q5_1 or q4_0.",
        callback=lambda text: text and text.lower(),
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
Lora = Annotated[
    list[str] | None,
    _runtime_option("--lora", metavar="FILE[:SCALE]", help="Apply a LoRA adapter, a .gguf file; repeatable."),
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
