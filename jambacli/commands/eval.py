"""``jamba eval``: perplexity, divergence from a reference, recall, the worth of lookup decoding, as tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import eval_common as c
from jambacli.commands import options as o
from jambacli.commands.eval_kl import kl
from jambacli.commands.inputs import read_text
from jambacli.errors import UsageError
from jambacli.units import parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.evaluation.needle import Trial

app = typer.Typer(help="Measure a model: perplexity, divergence, recall, lookup decoding.", no_args_is_help=True)


@app.command()
@o.measurement_options
def perplexity(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names or .gguf files; default: as in run.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", "-f", help="A text file (- for stdin); default: the demo model's held-out text."),
    ] = None,
    ctx: c.WindowSize = "512",
    tokens: c.Limit = None,
    as_llama: c.AsLlama = False,
    *,
    arguments: o.DeviceArguments,
    as_json: c.Json = False,
) -> None:
    """Measure perplexity on a text, with its standard error; several models make a table."""
    from jambacli.evaluation.perplexity import perplexity as measure_perplexity

    rows = []
    names: list[str | None] = [*models] if models else [None]
    for name in names:
        model = arguments.load_model(name, c.size(ctx))
        windows = c.windows_of(model, text, ctx, tokens, as_llama)
        with ui.progress(f"Reading with {model.name}", sum(len(w.ids) for w in windows), "tokens") as done:
            rows.append(
                {**c.about(model), **asdict(measure_perplexity(model, windows, arguments.kv_type or "f16", done))}
            )
        del model  # GPU memory may hold only one at a time
    if as_json:
        print(json.dumps(rows if len(rows) > 1 else rows[0], ensure_ascii=False))
        return
    cells = [(r["file"], r["type"], f"{r['value']:.4f} ± {r['error']:.4f}", f"{r['tokens']:,}") for r in rows]
    c.table([("model", "type", "perplexity", "tokens"), *cells])


app.command()(kl)


@app.command()
@o.measurement_options
def needle(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: as in run.")
    ] = None,
    tokens: Annotated[
        str, typer.Option("--tokens", "-n", help="Lengths of the texts in tokens, comma-separated.")
    ] = "512,2048",
    documents: Annotated[int, typer.Option("--documents", min=1, help="Texts per length.")] = 10,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Questions per text.")] = 10,
    kinds: Annotated[
        str | None,
        typer.Option("--kinds", help="Kinds of question, comma-separated: who, count, code ...; default: all."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the texts and questions.")] = 0,
    *,
    arguments: o.DeviceArguments,
    show: Annotated[bool, typer.Option("--show", help="Show every wrong answer on stderr.")] = False,
    as_json: c.Json = False,
) -> None:
    """Measure recall of facts from texts of reports about invented people, by length and depth."""
    from jambacli.evaluation.needle import needle as ask
    from jambacli.evaluation.needle import parse_kinds

    chosen = parse_kinds(kinds)
    lengths = [parse_size(part, "--tokens") for part in tokens.split(",") if part.strip()]
    if not lengths:
        raise UsageError("--tokens names no length")
    loaded = arguments.load_model(model, max(lengths) + 1024)
    rows = []
    with ui.progress("Asking", len(lengths) * documents * questions, "questions") as done:
        for length in lengths:
            found = list(ask(loaded, length, documents, questions, seed, arguments.kv_type, chosen, done))
            rows.append({"length": length, **_recall(found)})
            for f in found if show else ():
                if not f.correct:
                    ui.note(f"{length}: {f.question} expected {f.expected!r}, got {f.reply!r}")
    if as_json:
        print(json.dumps({**c.about(loaded), "recall": rows}, ensure_ascii=False))
        return
    head = ("tokens", "recall", *(f"depth {d}" for d in ("0-25%", "25-50%", "50-75%", "75-100%")), "questions")
    cells = [
        (
            f"{r['prompt_tokens']:,}",
            f"{r['right']:.1%} ± {r['error']:.1%}",
            *("" if d is None else f"{d:.0%}" for d in r["by_depth"]),
            str(r["questions"]),
        )
        for r in rows
    ]
    c.table([head, *cells])


@app.command()
@o.measurement_options
def lookup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text file (- for stdin).")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name or a .gguf; default: as in run.", show_default=False)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Instead of a model, random weights: jamba-mini, jamba-3b, jamba-large or moe."),
    ] = None,
    quant: Annotated[str, typer.Option("--quant", help="File type of the random weights.")] = "q4_k_m",
    quoted: Annotated[
        str | None,
        typer.Option("--quoted", help="Force replies that quote this much of FILE, in percent, comma-separated: 0,70."),
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Ask this about FILE; repeatable. Default: three.")
    ] = None,
    length: Annotated[str, typer.Option("--length", "-n", help="Tokens of a reply.")] = "256",
    tokens: Annotated[str, typer.Option("--tokens", help="Use at most this many tokens of FILE.")] = "4096",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, help="Runs of each reply; the fastest counts.")
    ] = 2,
    *,
    arguments: o.DeviceArguments,
    as_json: c.Json = False,
) -> None:
    """Measure lookup decoding: how many drafted tokens are accepted, and how much faster replies about a text are."""
    from jambacli.evaluation import lookup as evaluation

    shares = [parse_size(part, "--quoted") / 100 for part in (quoted or "").split(",") if part.strip()]
    if shape is not None and (model is not None or not shares):
        raise UsageError("--shape, without a --model, needs --quoted: random weights quote nothing by themselves")
    limit, n_reply, repeat = parse_size(tokens, "--tokens"), parse_size(length, "--length"), repetitions
    text = read_text(file)
    loaded = arguments.load_model(model, limit + n_reply + 1024) if shape is None else _random(shape, quant, arguments)
    if shares and not loaded.metadata.get("tokenizer.ggml.tokens"):  # random weights in a file: any tokens will do
        loaded = _with_demo_tokenizer(loaded)
    ids = loaded.tokenizer.encode(text)[:limit]
    text, kv_type = loaded.tokenizer.decode(ids), arguments.kv_type or "f16"
    rows: list[evaluation.LookupResult] = []
    if shares:
        with ui.progress("Decoding", 2 * repeat * len(shares) * n_reply, "tokens") as done:
            for share in shares:
                reply = evaluation.quoting(ids, share, n_reply)
                name = f"{share:.0%} quoted"
                rows.append(
                    evaluation.forced_reply(loaded, ids, reply, name, kv_type=kv_type, repetitions=repeat, done=done)
                )
    else:
        asked = questions or evaluation.QUESTIONS
        with ui.progress("Asking", 2 * repeat * len(asked), "replies") as done:
            answers = evaluation.own_replies(
                loaded, text, asked, max_tokens=n_reply, kv_type=kv_type, repetitions=repeat, done=done
            )
            rows += answers
    if as_json:
        results = [{**asdict(r), "ratio": r.ratio} for r in rows]
        print(json.dumps({**c.about(loaded), "replies": results}, ensure_ascii=False))
        return
    head = ("reply", "prompt", "tokens", "tokens/s", "with lookup", "ratio", "accepted", "tokens a step", "same")
    cells = [
        (
            r.reply if len(r.reply) <= 40 else f"{r.reply[:39]}…",
            f"{r.prompt_tokens:,}",
            f"{r.tokens:,}",
            f"{r.plain_rate:,.1f}",
            f"{r.lookup_rate:,.1f}",
            f"{r.ratio:.2f}x",
            f"{r.accepted:,} of {r.drafted:,}",
            f"{r.tokens / r.steps:.2f}",
            "yes" if r.same else "NO",
        )
        for r in rows
    ]
    c.table([head, *cells])


def _random(shape: str, quant: str, arguments: o.DeviceArguments) -> Jamba:
    """Random weights of a shape on the CPU, with the demo model's tokenizer."""
    from jambacli.api import Jamba
    from jambacli.evaluation.synthetic import shape_config, synthetic_model
    from jambacli.kernels import set_threads

    if arguments.threads is not None:
        set_threads(arguments.threads)
    label = f"synthetic {shape} {quant.lower()}"
    ui.note(f"making {label} in memory ...")
    return _with_demo_tokenizer(Jamba(synthetic_model(shape_config(shape), quant), {}, label))


def _with_demo_tokenizer(model: Jamba) -> Jamba:
    """The same weights with the demo model's tokenizer."""
    from jambacli.api import Jamba
    from jambacli.gguf.reader import GGUFFile
    from jambacli.hub.demo import demo_model_path

    return Jamba(model.model, GGUFFile.open(demo_model_path()).metadata, model.name, model.path)


def _recall(found: list[Trial]) -> dict[str, Any]:
    from jambacli.evaluation.needle import standard_error

    share = sum(f.correct for f in found) / len(found)
    quarters: list[float | None] = []
    for quarter in range(4):
        inside = [f.correct for f in found if min(3, int(f.depth * 4)) == quarter]
        quarters.append(sum(inside) / len(inside) if inside else None)
    kinds = {k: [f.correct for f in found if f.kind == k] for k in sorted({f.kind for f in found})}
    return {
        "prompt_tokens": round(sum(f.tokens for f in found) / len(found)),
        "right": share,
        "error": standard_error(share, len(found)),
        "by_depth": quarters,
        "by_kind": {k: sum(v) / len(v) for k, v in kinds.items()},
        "questions": len(found),
    }
