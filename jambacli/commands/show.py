"""``jamba show``: a summary of a model and what a context length costs on this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.load import model_path

if TYPE_CHECKING:
    from jambacli.engine.serving_plan import ServingPlan
    from jambacli.gguf.summary import Summary
    from jambacli.runtime.memory_plan import MemoryPlan


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name, a .gguf (any part of a split one) or an HF checkpoint; default: the last used.",
        ),
    ] = None,
    ctx: Annotated[
        str | None,
        typer.Option("--ctx", "-c", help="Context length to plan memory for, e.g. 256k; default: the model's."),
    ] = None,
    chat_template: t.ChatTemplateFile = None,
    kv_type: Annotated[
        str, typer.Option("--kv-type", help="Keys and values as f16, bf16, f32, q8_0, q5_1 or q4_0.")
    ] = "f16",
    serve: Annotated[
        int | None,
        typer.Option(
            "--serve",
            min=1,
            metavar="USERS",
            help="Plan for so many users at a time, with --ctx each, and print the command of vLLM for them.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model is, layer by layer, and what a context length costs on this machine."""
    from jambacli.gguf.summary import summarize
    from jambacli.hardware.devices import devices
    from jambacli.model.config import check_kv_type
    from jambacli.runtime.memory_plan import memory_plan

    tokens = o.context(ctx)
    kv_type = kv_type.lower()
    check_kv_type(kv_type)
    path = model_path(model)
    if path.is_dir():
        from jambacli.convert.summary import summarize_checkpoint

        summary = summarize_checkpoint(path)
    else:
        summary = summarize(path)
    summary = _with_template(summary, chat_template)
    plan = memory_plan(
        summary.config,
        summary.weight_bytes,
        summary.expert_bytes,
        tokens or summary.config.context_length,
        kv_type,
        devices(),
        summary.tensors,
    )
    serving = None if serve is None else _serving(summary, plan, serve)
    if as_json:
        found = _as_json(summary, plan)
        if serving is not None:
            found["serving"] = {"served": serving.served, **dataclasses.asdict(serving)}
        print(json.dumps(found, indent=2))
        return
    from jambacli.commands.show_page import print_page

    print_page(summary, plan, serving)


def _serving(summary: Summary, plan: MemoryPlan, users: int) -> ServingPlan:
    """The plan for several users; vLLM loads the original checkpoint, or what ``export`` writes."""
    from jambacli.engine.serving_plan import serving_plan

    about, template = summary.about, summary.template
    if summary.path.is_dir():
        repository = str(summary.path)
    else:
        repository = about.get("source") or about.get("base_model") or f"./{summary.path.stem}-hf"
    return serving_plan(
        summary.config,
        plan.weights,
        users,
        plan.ctx,
        plan.kv_type,
        [fit.device for fit in plan.fits],
        repository=repository,
        name=summary.path.stem,
        family=template.family if template else "",
        handles=template.handles if template else (),
    )


def _with_template(summary: Summary, given: str | None) -> Summary:
    """The summary with the chat template that is given in place of the file's own, or with a note if its own does not work."""
    from jambacli.gguf.summary import describe_template

    if given is not None:
        from jambacli.documents.given_texts import read_chat_template

        return dataclasses.replace(summary, template=describe_template(read_chat_template(given)[0]))
    problem = summary.template.problem if summary.template is not None else None
    if problem is None:
        return summary
    note = f"{problem}; use --chat-template FILE, or without a template jamba run --raw"
    return dataclasses.replace(summary, notes=[*summary.notes, note])


def _as_json(summary: Summary, plan: MemoryPlan) -> dict[str, Any]:
    described = dataclasses.asdict(summary)
    described["path"] = str(summary.path)
    del described["tensors"]
    described["bits_per_weight"] = round(summary.bits_per_weight, 4)
    described["parts"] = [{"name": name, "bytes": nbytes} for name, nbytes in summary.parts]
    config = summary.config
    described["config"] |= {
        "state_bytes": config.state_bytes(),
        "kv_bytes_per_token": config.kv_bytes_per_token(plan.kv_type),
    }
    return {**described, "plan": dataclasses.asdict(plan)}
