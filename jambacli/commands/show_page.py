"""Renders the page that ``jamba show`` prints from a Summary and a MemoryPlan."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jambacli.engine.serving_plan import ServingPlan
from jambacli.gguf.summary import Group, Summary, size_label
from jambacli.model.config import JambaConfig
from jambacli.runtime.memory_plan import DeviceFit, MemoryPlan
from jambacli.units import counted, format_bytes, format_context, format_count, format_seconds

# (attention, MoE) -> glyph, ASCII glyph, colour, meaning.
_LAYERS = {
    (False, False): ("○", "m", "cyan", "Mamba"),
    (False, True): ("●", "M", "cyan", "Mamba + experts"),
    (True, False): ("◇", "a", "bold yellow", "attention"),
    (True, True): ("◆", "A", "bold yellow", "attention + experts"),
}
_VERDICTS = {
    "fits": ("green", "✓", "fits, {spare} to spare"),
    "tight": ("yellow", "~", "tight: needs {short} more than is free now; close other programs"),
    "experts in RAM": ("yellow", "~", "with {offload} of the experts in RAM"),
    "from disk": ("red", "✗", "too small{what} would be read from disk repeatedly, which is slow"),
    "too big": ("red", "✗", "too small by {short}"),
    "unsupported": ("red", "✗", "does not take this type of keys and values"),
}
_MARGIN = 10
_NARROWEST = 20
_ROOM_FOR_BARS = 64  # with fewer columns, bars would leave too little room for the numbers


def print_page(summary: Summary, plan: MemoryPlan, serving: ServingPlan | None = None) -> None:
    """Print the whole page to standard output, in colour on a terminal and plain into a pipe."""
    console = Console(highlight=False, markup=False, emoji=False)
    page = _Page(console)
    # Written in one piece, so that ``main`` and not rich handles a closed pipe.
    with console.capture() as captured:
        _head(page, summary)
        _facts(page, summary)
        _weights(page, summary)
        _memory(page, summary, plan)
        if serving is not None:
            _serving(page, serving)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


class _Page:
    """A console with this page's margins; falls back to ASCII if the output's encoding requires it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = console.encoding.lower().replace("-", "").startswith("utf")
        self.width = max(_NARROWEST, min(console.width, 110))
        self.bars = self.width >= _ROOM_FOR_BARS

    def print(self, content: Text | Table | str = "") -> None:
        if isinstance(content, str):
            content = Text(content)
        if isinstance(content, Text) and not self.unicode:
            content.plain = self.plain(content.plain)
        self.console.print(content, soft_wrap=isinstance(content, Text))

    def plain(self, text: str) -> str:
        """``text`` with only characters that the output can show."""
        if self.unicode:
            return text
        return text.replace(" · ", ", ").encode(self.console.encoding, "replace").decode(self.console.encoding)

    def row(self, label: str, text: str) -> None:
        """Print a labelled line, wrapped with a hanging indent."""
        lines = textwrap.wrap(
            self.plain(text), self.width - _MARGIN, break_long_words=False, break_on_hyphens=False
        ) or [""]
        for i, line in enumerate(lines):
            self.print(Text.assemble((f"{label if i == 0 else '':<{_MARGIN}}", "dim"), line))

    def table(self, header: bool = True) -> Table:
        return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=header)

    def bar(self, share: float, width: int = 12) -> str:
        """A bar of ``share`` of ``width`` characters, in eighths of one; at least an eighth for any positive share."""
        eighths = max(round(share * width * 8), 1 if share > 0 else 0)
        if not self.unicode:
            return "#" * -(-eighths // 8)
        return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def _head(page: _Page, s: Summary) -> None:
    page.print(Text(s.name, style="bold"))
    kind = f" · {s.file_type}" if s.file_type else ""
    page.print(
        f"{s.architecture} · {size_label(s.config)}{kind} · {format_bytes(s.file_bytes)} · "
        f"{s.bits_per_weight:.2f} bits per weight"
    )
    words = {"license": "licence {}", "base_model": "from {}", "source": "source {}", "quantized_by": "quantized by {}"}
    origin = [text.format(s.about[key]) for key, text in words.items() if key in s.about]
    if origin:
        page.print(Text(page.plain(" · ".join(origin)), style="dim"))
    page.print()


def _facts(page: _Page, s: Summary) -> None:
    c = s.config
    _strip(page, c)
    page.row("sizes", _sizes(c))
    page.row("context", f"{c.context_length:,} tokens ({format_context(c.context_length)})")
    v = s.vocabulary
    if v is not None:
        special = [f"{t.role} {t.id} {t.piece}".rstrip() for t in v.special]
        flags = {"adds bos": v.add_bos, "space prefix": v.add_space_prefix}
        switches = [name for name, value in flags.items() if value]
        page.row("tokens", " · ".join([f"{v.size:,} {v.kind}", *special, *switches]))
    else:
        page.row("tokens", "none")
    if s.template is not None:
        handles = f" · takes {', '.join(s.template.handles)}" if s.template.handles else ""
        page.row("chat", f"{s.template.family} template{handles}")
    else:
        page.row("chat", "no template")
    _files(page, s)
    for note in s.notes:
        page.row("note", note)
    page.print()


def _strip(page: _Page, c: JambaConfig) -> None:
    """One glyph per layer in groups of eight, with a legend of the kinds that occur."""
    kinds = list(zip(c.layer_is_attention, c.layer_is_moe, strict=True))
    per_line = max(8, (page.width - _MARGIN) // 9 * 8)
    for start in range(0, len(kinds), per_line):
        line = Text.assemble((f"{'' if start else 'layers':<{_MARGIN}}", "dim"))
        for i, kind in enumerate(kinds[start : start + per_line]):
            glyph, ascii_glyph, style, _ = _LAYERS[kind]
            line.append(f"{' ' if i and i % 8 == 0 else ''}{glyph if page.unicode else ascii_glyph}", style)
        page.console.print(line, soft_wrap=True)
    legend = Text(" " * _MARGIN)
    for kind, (glyph, ascii_glyph, style, meaning) in _LAYERS.items():
        if n := kinds.count(kind):
            legend.append(glyph if page.unicode else ascii_glyph, style)
            legend.append(f" {n} {meaning}   ", "dim")
    page.console.print(legend, soft_wrap=True)


def _sizes(c: JambaConfig) -> str:
    parts = [f"hidden {c.hidden:,}", f"FFN {c.ffn:,}"]
    if c.n_moe_layers:
        parts.append(f"{c.n_experts} experts, {c.n_experts_used} used")
    if c.n_attention_layers:
        at = [i for i, attention in enumerate(c.layer_is_attention) if attention]
        listed = f" (layers {', '.join(map(str, at))})" if len(at) <= 12 and len(at) < c.n_layers else ""
        parts.append(f"{c.n_heads} heads of {c.head_dim}, {c.n_kv_heads} KV{listed}")
    if c.n_mamba_layers:
        parts.append(f"Mamba {c.d_inner:,} inner, {c.d_state} state, {c.d_conv} conv, {c.dt_rank} dt")
    parts.append("embedding tied" if c.tied_embeddings else "embedding not tied")
    return " · ".join(parts)


def _files(page: _Page, s: Summary) -> None:
    if len(s.parts) == 1:
        page.row("file", f"{s.container} · {s.path}")
        return
    shown = [f"{name} {format_bytes(nbytes)}" for name, nbytes in s.parts[:8]]
    if len(s.parts) > 8:
        shown.append(f"and {len(s.parts) - 8} more")
    page.row("files", f"{s.container} · {len(s.parts)} parts · " + " · ".join(shown))


def _weights(page: _Page, s: Summary) -> None:
    table = page.table()
    table.add_column("weights", no_wrap=True)
    for title in ("tensors", "params", "size") if page.bars else ("params", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    if page.bars:
        table.add_column("", no_wrap=True, style="cyan")
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("types")

    def add(name: str, tensors: int, params: int, nbytes: int, types: str, bar: str, style: str = "") -> None:
        cells = [
            name,
            str(tensors),
            format_count(params),
            format_bytes(nbytes),
            bar,
            f"{nbytes * 8 / params:.2f}",
            types,
        ]
        table.add_row(*(cells if page.bars else [c for i, c in enumerate(cells) if i not in (1, 4)]), style=style)

    for g in s.groups:
        add(g.name, g.tensors, g.params, g.nbytes, _formats(page, g), page.bar(g.nbytes / s.weight_bytes))
    add("all", sum(g.tensors for g in s.groups), s.params, s.weight_bytes, "", "", "bold")
    page.print(table)
    page.print()


def _formats(page: _Page, group: Group) -> str:
    ranked = sorted(group.formats.items(), key=lambda item: -item[1])
    times = "×" if page.unicode else "x"
    return ", ".join(f"{name} {times}{n}" for name, n in ranked) if len(ranked) > 1 else ranked[0][0]


def _memory(page: _Page, s: Summary, plan: MemoryPlan) -> None:
    per_token = s.config.kv_bytes_per_token(plan.kv_type)
    others = " · ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in plan.kv.items() if name != plan.kv_type)
    used = plan.kv[plan.kv_type]
    rows: Iterable[tuple[str, int, str]] = (
        ("weights", plan.weights, "mapped from the file"),
        (f"KV {plan.kv_type}", used, f"{_per_token(per_token)} per token · {others}"),
        ("Mamba", plan.state, "the same for any context"),
        ("drafts", plan.drafts, "copies of the Mamba state, once a reply repeats earlier text"),
        ("scratch", plan.scratch, "estimated" if len(plan.fits) == 1 else "estimated, on the CPU"),
    )
    title = f"memory at {format_context(plan.ctx)} tokens of context"
    if plan.ctx > s.config.context_length:
        title += f", more than the model's {format_context(s.config.context_length)}"
    page.print(Text(title, style="dim"))
    table = page.table(header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    if page.bars:
        table.add_column(no_wrap=True, style="cyan")
    table.add_column(style="dim")
    for name, nbytes, remark in rows:
        bar = [page.bar(nbytes / plan.total)] if page.bars else []
        table.add_row(name, format_bytes(nbytes), *bar, page.plain(remark))
    table.add_row(Text("total", "bold"), Text(format_bytes(plan.total), "bold"))
    page.print(table)
    page.print()
    for fit in plan.fits:
        _device(page, plan, fit)


def _serving(page: _Page, plan: ServingPlan) -> None:
    """What this machine does for several users, and the command of an engine that does more."""
    users = counted(plan.users, "user")
    page.print()
    page.print(Text(f"{users} with {format_context(plan.ctx)} tokens of context each", style="dim"))
    for device in plan.devices:
        if not device.at_once:
            page.print(f"{device.device.name}: the model and one context do not fit in what is free")
            continue
        waiting = max(0, plan.users - device.at_once)
        text = f"{device.device.name}: {device.at_once} at a time"
        text += f", {waiting} of {users} wait" if waiting else ", all of them"
        if device.read_seconds is not None and device.per_hour is not None:
            text += f"; reading one whole context takes {format_seconds(device.read_seconds)}"
            text += f", about {device.per_hour:,.1f} an hour; what was read before is not read again"
        page.print(text)
    other = plan.handover
    if other is None:
        page.print("no number of GPUs of 80 GB that this program knows of serves them")
        return
    where = f"{counted(other.gpus, 'GPU')} of {format_bytes(other.gpu_bytes)}"
    where += f" in {counted(other.nodes, 'machine')}, joined with Ray" if other.nodes > 1 else ""
    page.print(f"{'more' if plan.served else 'all of them'} on {where}, with vLLM (docs/scaling.md):")
    page.print(f"  {other.command}")


def _per_token(nbytes: int) -> str:
    return f"{nbytes / 1024:.4g} KiB" if nbytes >= 1024 else f"{nbytes} B"


def _device(page: _Page, plan: MemoryPlan, fit: DeviceFit) -> None:
    device = fit.device
    style, mark, words = _VERDICTS[fit.verdict]
    verdict = words.format(
        spare=format_bytes(fit.spare),
        short=format_bytes(-fit.spare),
        offload=format_bytes(fit.offload),
        what=f", RAM too: {format_bytes(fit.offload)} of experts" if fit.offload else ": weights",
    )
    if fit.cpu_kv:
        verdict += "; fits with --cpu-kv, which keeps keys and values (and experts, if needed) in RAM"
    memory = "RAM" if device.kind == "cpu" else "memory"
    page.print(
        Text.assemble(
            (f"{mark if page.unicode else '*'} ", style),
            (device.name, "bold"),
            f" · {format_bytes(device.total)} {memory}, {format_bytes(device.available)} free · ",
            (verdict, style),
        )
    )
    if fit.prefill_seconds is not None and fit.verdict != "too big":
        source = "measured on this machine" if device.measured else f"estimated from {device.how}"
        # With weights read from disk, or experts in RAM, the device's rate does not decide.
        takes = "takes about" if fit.verdict in ("fits", "tight") else "would take at least"
        time = format_seconds(fit.prefill_seconds)
        page.print(f"  prefill of {format_context(plan.ctx)} tokens {takes} {time} ({source})")
    if fit.spare < 0:
        _longest(page, "longest context that fits now", fit.largest_ctx)
    if fit.verdict not in ("fits", "experts in RAM") and fit.largest_ctx_offload != fit.largest_ctx:
        _longest(page, "longest with experts in RAM", fit.largest_ctx_offload)


def _longest(page: _Page, label: str, largest: Mapping[str, int]) -> None:
    best = [f"{format_context(n)} in {name}" for name, n in largest.items() if n and name in ("f16", "q8_0", "q4_0")]
    if best:
        page.print(f"  {label}: {', '.join(best)}")
