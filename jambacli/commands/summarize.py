"""``jamba summarize``: files in, a summary out; knows nothing of how they are read or of what is kept."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.commands import reading as r


def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, directories, globs, or - for standard input."),
    ] = None,
    length: Annotated[str, typer.Option("--length", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option("--style", metavar="bullets|prose", help="A list or a text.")] = "prose",
    focus: Annotated[str | None, typer.Option("--focus", help="What to pay most attention to.")] = None,
    language: r.Language = None,
    citations: r.Citations = False,
    as_json: r.Json = False,
    schema: r.Schema = None,
    output: r.Output = None,
    model: r.Model = None,
    temp: o.Temp = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    min_p: o.MinP = None,
    typical_p: o.TypicalP = None,
    repeat_penalty: o.RepeatPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    penalty_last_n: o.PenaltyLastN = None,
    logit_bias: o.LogitBias = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    stop: o.Stop = None,
    ctx: o.Ctx = None,
    kv_type: o.KvType = None,
    no_store: o.NoStore = False,
    threads: o.Threads = None,
    device: o.Device = "auto",
    gpu_memory: o.GpuMemory = None,
    cpu_experts: o.CpuExperts = None,
    cpu_kv: o.CpuKv = False,
    stats: o.Stats = False,
    quiet: r.Quiet = False,
) -> None:
    """Summarize documents; what was read is kept, and what is longer than the context is read in passes."""
    if quiet:
        ui.set_quiet(True)
    output = r.output_path(output)
    from jambacli.engine.tasks import Wish, summarize_documents

    wish = Wish(length=length, style=style, focus=focus, language=language)
    sampling = o.sampling_options(
        temperature=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        penalty_last_n=penalty_last_n,
        logit_bias=logit_bias,
        seed=seed,
    )
    context = o.context(ctx)
    names = list(files or ()) or r.stdin_as_file("there is nothing to summarize: name files, or pipe a text in")
    task = r.task_of(wish.instruction(), citations, schema)
    entries = r.read_entries(names, output)

    loaded = o.load_model(
        model,
        threads,
        device=device,
        gpu_memory=gpu_memory,
        cpu_experts=cpu_experts,
        cpu_kv=cpu_kv,
        ctx=context,
        kv_type=kv_type,
    )
    options: dict[str, Any] = {"ctx": context, "kv_type": kv_type, "store": not no_store}
    generation = {**sampling, "max_tokens": max_tokens, "stop": stop or ()}
    with r.reader(loaded, options, generation) as reader:
        r.check_schema(reader, task)
        work = summarize_documents(reader, entries, task, wish, tell=ui.note, size=r.say_size)
        r.deliver(reader, work, task, key="summary", output=output, as_json=as_json, stats=stats)
