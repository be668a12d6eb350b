"""``jamba bench``: prefill and decode rates of a file or of a synthetic model, as a table."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jambacli import ui
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.load import one_model
from jambacli.errors import UsageError
from jambacli.units import format_bytes, format_count, parse_size

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.evaluation.bench import Case, Fill, Result, Runner
    from jambacli.runtime.options import DeviceOptions

_COMPARE = ("llama.cpp",)
_FILLS = ("read", "random")


def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: a synthetic model.")
    ] = None,
    model_name: t.Model = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Synthetic model: jamba-mini, jamba-3b, jamba-large, moe or a config.json."),
    ] = None,
    quant: Annotated[str | None, typer.Option("--quant", help="File type of the synthetic model, e.g. q4_k_m.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Prompt lengths, comma-separated; 0: none.")] = "512",
    generate: Annotated[
        str, typer.Option("--generate", "-n", help="Generated lengths, comma-separated; 0: none.")
    ] = "128",
    both: Annotated[str, typer.Option("--pg", help="Prompt+generation pairs such as 512+128, comma-separated.")] = "",
    batch: Annotated[
        str,
        typer.Option("--batch", "-b", help="Sequences that decode together, comma-separated: 1,2,4,8."),
    ] = "1",
    step_tokens: Annotated[
        str,
        typer.Option("--step-tokens", help="Tokens of each sequence in one step of decode, comma-separated: 1,2,4."),
    ] = "1",
    depth: Annotated[str, typer.Option("--depth", "-d", help="Tokens already in the context, comma-separated.")] = "0",
    fill: Annotated[
        str | None,
        typer.Option("--fill", help="Fill that context: read or random; default: read up to 32,768 tokens."),
    ] = None,
    threads: Annotated[
        str, typer.Option("--threads", "-t", help="Thread counts, comma-separated; default: the cores.")
    ] = "",
    isa: Annotated[
        str,
        typer.Option("--isa", help="Instruction sets of the CPU, comma-separated: avx2,vnni; default: the best."),
    ] = "",
    kv_type: Annotated[
        str, typer.Option("--kv-type", help="KV types, comma-separated: f16, bf16, f32, q8_0, q5_1, q4_0.")
    ] = "f16",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Runs of each measurement.")] = 5,
    chunk: Annotated[
        int | None, typer.Option("--chunk", min=1, help="Tokens per piece of prefill; default: 512, on a GPU 4,096.")
    ] = None,
    device: t.Device = "auto",
    gpu_memory: t.GpuMemory = None,
    cpu_experts: t.CpuExperts = None,
    cpu_kv: t.CpuKv = False,
    precise: t.Precise = False,
    lora: t.Lora = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Measure another program on the same file: llama.cpp.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Format on stdout: md, json or csv.")] = "md",
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
) -> None:
    """Measure tokens per second, time to first token, memory, and the share of this machine's peak rates."""
    name = one_model(name, model_name)
    if as_json:
        if output == "csv":
            raise UsageError("exclude each other", field=("json", "output"))
        output = "json"
    if output not in ("md", "json", "csv"):
        raise UsageError("is not one of md, json, csv", field="output", value=output)
    if compare is not None and compare not in _COMPARE:
        raise UsageError(f"is not known; known: {', '.join(_COMPARE)}", field="compare", value=compare)
    if fill is not None and fill not in _FILLS:
        raise UsageError(f"is not one of {', '.join(_FILLS)}", field="fill", value=fill)
    if compare is not None:
        if fill == "random":
            raise UsageError("--compare makes both programs read the context: leave out --fill random")
        fill = "read"
    if lora and (name is None or compare is not None):
        raise UsageError("goes with a MODEL that is measured alone", field="lora")
    if name is not None and (shape or quant):
        raise UsageError("give a MODEL, or --shape and --quant for a synthetic one, not both")
    from jambacli.runtime.options import DeviceOptions

    cases = _cases(prompt, generate, both, depth, batch, step_tokens)
    if compare is not None and any(c.sequences > 1 for c in cases):
        raise UsageError("--compare measures one sequence: leave out --batch")
    levels = _levels(isa)
    thread_counts = _numbers(threads, "--threads") or [0]
    if any(t < 1 for t in thread_counts) and threads:
        raise UsageError("must be at least 1", field="threads")
    if compare is not None and device not in ("auto", "cpu"):
        raise UsageError("--compare measures both programs on the CPU: leave out --device")
    rows: list[dict[str, Any]] = []
    kv_types = [k.strip() for k in kv_type.split(",") if k.strip()]
    longest = max(c.depth + (c.n_prompt + c.n_gen) * (repetitions if c.depth else 1) for c in cases)
    where = DeviceOptions(
        device=device if compare is None else "cpu",
        gpu_memory=o.gpu_memory_bytes(gpu_memory),
        cpu_experts=cpu_experts,
        cpu_kv=cpu_kv,
        precise=precise,
    )
    plan = {"ctx": max(longest, 64), "kv_type": _largest(kv_types)}
    try:
        with _model(name, shape or "jamba-3b", quant or "q4_k_m", where, plan, compare is not None, lora or ()) as (
            model,
            path,
        ):
            if model.model.device.type != "cpu":
                thread_counts = thread_counts[:1]  # CPU threads do not matter on a GPU
            for level, count, kv in itertools.product(levels, thread_counts, kv_types):
                with _at_level(level):
                    _measure(
                        rows,
                        model,
                        path if compare else None,
                        cases,
                        count,
                        kv,
                        repetitions,
                        chunk,
                        level,
                        cast("Fill | None", fill),
                    )
    finally:  # also after Ctrl-C: what was measured took its time
        if rows:
            print({"md": _markdown, "json": _json, "csv": _csv}[output](rows), flush=True)


def _numbers(text: str, what: str) -> list[int]:
    return [parse_size(part, what) for part in text.split(",") if part.strip()]


def _levels(names: str) -> list[str]:
    """The instruction sets to measure; by default the one in use, "" where the C++ kernels were not built."""
    from jambacli.kernels import cpu

    levels = [name.strip().lower() for name in names.split(",") if name.strip()]
    if levels and not cpu.available():
        raise UsageError("needs the C++ kernels, which were not built", field="isa", value=names)
    for name in levels:
        if name not in cpu.runnable_isas():
            raise UsageError(f"is none of this machine's: {', '.join(cpu.runnable_isas())}", field="isa", value=name)
    return levels or [str(cpu.cpu_features().get("isa", ""))]


@contextlib.contextmanager
def _at_level(isa: str) -> Iterator[None]:
    """Run the C++ kernels at the level ``isa``."""
    from jambacli.kernels import cpu

    before = str(cpu.cpu_features().get("isa", ""))
    if isa != before:
        cpu.set_isa(isa)
    try:
        yield
    finally:
        if isa != before:
            cpu.set_isa(before)


def _cases(prompt: str, generate: str, both: str, depth: str, batch: str, step_tokens: str) -> list[Case]:
    from jambacli.evaluation.bench import Case

    sequences, at_once = _numbers(batch, "--batch") or [1], _numbers(step_tokens, "--step-tokens") or [1]
    for field, value, numbers in (("batch", batch, sequences), ("step_tokens", step_tokens, at_once)):
        if any(n < 1 for n in numbers):
            raise UsageError("has a number below 1", field=field, value=value)
    parts = [(p, 0, 1, 1) for p in _numbers(prompt, "--prompt") if p]
    lengths = [n for n in _numbers(generate, "--generate") if n]
    parts += [(0, max(n // t, 1) * t, t, b) for n, b, t in itertools.product(lengths, sequences, at_once)]
    for pair in filter(None, both.split(",")):
        p, plus, n = pair.partition("+")
        if not plus:
            raise UsageError(f"--pg {pair!r} is not a pair such as 512+128")
        parts.append((parse_size(p, "--pg"), parse_size(n, "--pg"), 1, 1))
    cases = [Case(p, n, d, t, b) for d in _numbers(depth, "--depth") or [0] for p, n, t, b in parts if p + n]
    if not cases:
        raise UsageError("there is nothing to measure: give -p or -n a length")
    return cases


def _largest(kv_types: list[str]) -> str:
    """The KV type that takes the most memory, for the plan."""
    from jambacli.model.config import KV_TYPES, check_kv_type

    for kv_type in kv_types:
        check_kv_type(kv_type)
    return max(kv_types, key=KV_TYPES.__getitem__, default="f16")


@contextlib.contextmanager
def _model(
    name: str | None,
    shape: str,
    quant: str,
    where: DeviceOptions,
    plan: dict[str, Any],
    needs_file: bool,
    loras: Sequence[str],
) -> Iterator[tuple[Jamba, Path | None]]:
    """The model to measure, and its file if another program has to read it (temporary for a synthetic model).

    ``plan``: ctx and kv_type to plan GPU memory for.
    """
    from jambacli.api import Jamba
    from jambacli.evaluation.bench_gpu import synthetic_on
    from jambacli.evaluation.synthetic import shape_config, synthetic_bytes, write_gguf

    options = {**dataclasses.asdict(where), **plan}
    if name is not None:
        from jambacli.hub.resolve import resolve_model

        yield Jamba.load(name, **options, loras=loras, progress=ui.loading), resolve_model(name)
        return
    config, label = shape_config(shape), f"synthetic {Path(shape).stem if '/' in shape else shape} {quant.lower()}"
    size = synthetic_bytes(config, quant)
    if not needs_file:
        ui.note(f"making the random weights of {label} in memory: {format_bytes(size)} ...")
        with ui.progress("Making weights", size) as made:
            model = Jamba(synthetic_on(where, config, quant, **plan, advance=made), {}, label)
        yield model, None
        return
    with tempfile.TemporaryDirectory(prefix="jamba-bench-") as folder:
        path = Path(folder) / "synthetic.gguf"
        ui.note(f"writing the random weights of {label} to a temporary file: {format_bytes(size)} ...")
        with ui.progress("Making weights", size) as made:
            write_gguf(path, config, quant, advance=made)
        model = Jamba.load(path, **options, progress=ui.loading)
        model.name = label
        yield model, path


def _measure(
    rows: list[dict[str, Any]],
    model: Jamba,
    peer_file: Path | None,
    cases: list[Case],
    threads: int,
    kv_type: str,
    repetitions: int,
    chunk: int | None,
    isa: str,
    fill: Fill | None,
) -> None:
    """Measure the cases and add their rows; after Ctrl-C those of the finished cases, without shares of the peak rates, which
    are measured last."""
    from jambacli import kernels
    from jambacli.evaluation.bench import ModelRunner, fill_at, measure, prefill_speed, weight_bytes_per_token
    from jambacli.evaluation.bench_gpu import device_name, gpu_rates
    from jambacli.evaluation.llama_cpp import LlamaCppRunner
    from jambacli.hardware.devices import cpu_key, remember_speed
    from jambacli.hardware.peaks import matrix_rate, read_bandwidth
    from jambacli.kernels.cpu import cpu_features

    used = kernels.set_threads(threads or None)
    runners: list[Runner] = [ModelRunner(model.model, kv_type, chunk or model.model.prefill_chunk, fill=fill)]
    peer = LlamaCppRunner(peer_file, used, kv_type) if peer_file else None
    if peer is not None:
        runners.append(peer)
        if peer.handicap:
            ui.warn(f"llama.cpp: {peer.handicap}")
    results: list[Result] = []
    interrupted: KeyboardInterrupt | None = None
    try:
        with ui.progress("Measuring", len(cases) * repetitions * len(runners), "runs") as done:
            measure(runners, cases, repetitions, done, results)
    except KeyboardInterrupt as error:
        interrupted = error
    finally:
        if peer is not None:
            peer.close()
    speed = prefill_speed(model.model.config, [r for r in results if r.runner == runners[0].name])
    on_gpu = model.model.device.type == "cuda"
    if speed is not None and not on_gpu and isa == cpu_features().get("best_isa", ""):
        with contextlib.suppress(OSError):  # only used for the estimates of ``jamba show``
            remember_speed(cpu_key(used), speed)
    bandwidth, gemm, rate = math.nan, "", math.nan
    if interrupted is None:
        bandwidth, gemm, rate = gpu_rates(model.model.device) if on_gpu else (read_bandwidth(), *matrix_rate())
    measured = interrupted is None
    device = device_name(model.model.device)
    touched, flops = weight_bytes_per_token(model.model), 2 * model.config.active_params()
    for result in results:
        ours = next(r for r in results if r.case == result.case and r.runner == runners[0].name)
        case = result.case
        decodes = case.n_gen > 0 and not case.n_prompt
        one = _one_token_step(result, results) if decodes else None
        one_token = case.at_once == case.sequences == 1
        rows.append(
            {
                "model": model.name,
                "params": model.config.params(),
                "backend": result.runner,
                "device": device,
                "on_gpu": on_gpu,
                "threads": used,
                "isa": isa if result.runner == runners[0].name else None,
                "kv_type": kv_type,
                "test": case.name,
                "sequences": case.sequences if decodes else None,
                "step_tokens_of_one_sequence": case.at_once if decodes else None,
                "step_seconds": result.step_seconds if decodes else None,
                "step_against_one_token": result.step_seconds / one.step_seconds if one else None,
                "fill": fill_at(case.depth, fill),
                "tokens_per_second": result.rate,
                "spread": result.spread,
                "first_token_seconds": result.first_token_seconds,
                "peak_memory_bytes": result.peak_memory,
                "bandwidth_share": touched / result.step_seconds / bandwidth
                if decodes and one_token and measured
                else None,
                "matrix_share": result.rate * flops / rate if not case.n_gen and measured else None,
                "ratio": ours.rate / result.rate if peer is not None and result is not ours else None,
                "read_bandwidth_bytes_per_second": bandwidth if measured else None,
                "matrix_rate_flops": rate if measured else None,
                "matrix_type": gemm if measured else None,
                "repetitions": result.rates,
            }
        )
    if interrupted is not None:
        raise interrupted


def _one_token_step(result: Result, results: list[Result]) -> Result | None:
    """The measurement of steps of one token that ``result`` is compared with; None where there is none."""
    case = result.case
    found = [r for r in results if r.runner == result.runner and not r.case.n_prompt and r.case.depth == case.depth]
    found = [r for r in found if r.case.at_once == r.case.sequences == 1]
    return min(found, key=lambda r: abs(r.case.n_gen - case.n_gen), default=None)


_COLUMNS = ["model", "params", "backend", "threads", "isa", "kv", "test", "tokens/s", "first token", "peak memory"]
_STEPS = ["sequences", "tokens of one sequence a step", "time of a step", "against one token"]
_SHARES = ["of bandwidth", "of matrix rate", "jamba / it"]


def _markdown(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, and a line about the machine."""

    def percent(x: float | None) -> str:
        return "" if x is None else f"{x:.0%}"

    with_steps = any((r["step_tokens_of_one_sequence"] or 1) * (r["sequences"] or 1) > 1 for r in rows)
    names = _COLUMNS + (_STEPS if with_steps else []) + _SHARES
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * 7 + " ---: |" * (len(names) - 7)]
    for r in rows:
        cells = [
            r["model"],
            format_count(r["params"]),
            r["backend"],
            str(r["threads"]),
            r["isa"] or "",
            r["kv_type"],
            r["test"],
            f"{r['tokens_per_second']:.2f} ± {r['spread']:.2f}",
            "" if r["first_token_seconds"] is None else f"{r['first_token_seconds']:.2f} s",
            format_bytes(r["peak_memory_bytes"]),
            *(_step_cells(r) if with_steps else []),
            percent(r["bandwidth_share"]),
            percent(r["matrix_share"]),
            "" if r["ratio"] is None else f"{r['ratio']:.2f}x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    lines.append("")
    if random := list(dict.fromkeys(r["test"] for r in rows if r["fill"] == "random")):
        lines += [f"Filled with random keys, values and states, not computed: the context of {', '.join(random)}.", ""]
    if first["matrix_rate_flops"] is None:
        return "\n".join(lines).rstrip("\n")
    verb = "copies" if first["on_gpu"] else "reads"
    lines.append(
        f"{first['device']}: {verb} {format_bytes(first['read_bandwidth_bytes_per_second'])}/s and multiplies "
        f"{first['matrix_type']} matrices at {first['matrix_rate_flops'] / 1e9:,.0f} GFLOP/s"
        f"{'' if first['on_gpu'] else ' with ' + str(first['threads']) + ' threads'}."
    )
    return "\n".join(lines)


def _step_cells(row: dict[str, Any]) -> list[str]:
    if row["step_seconds"] is None:
        return ["", "", "", ""]
    against = row["step_against_one_token"]
    return [
        str(row["sequences"]),
        str(row["step_tokens_of_one_sequence"]),
        f"{row['step_seconds'] * 1000:.2f} ms",
        "" if against is None else f"{against:.2f}x",
    ]


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1)


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    names = [k for k in rows[0] if k != "repetitions"]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")
