"""Draws a training log as an SVG: losses above, held-out accuracy below, over tokens.

python -m tools.plot_training docs/demo_model_log.jsonl docs/demo_model.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 760, 230, 56, 26, 62
_COLORS = ["#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989"]

Series = dict[str, list[tuple[float, float]]]


def plot(log: Path, output: Path) -> None:
    """Draw ``log`` (the log.jsonl of a training run) to ``output``."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    losses = _series(lines, "loss", lambda key: "key-value" if key.startswith("key-value") else "text")
    exact = _series(lines, "exact", str)
    height = 2 * (_TOP + _HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_panel(losses, "loss (nats a token, weighted)", 0, 8.0, 2.0, 0),
        *_panel(exact, "held-out answers right to the last token", 0, 1.0, 0.25, _TOP + _HEIGHT + _GAP),
        "</svg>",
    ]
    output.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _series(lines: Sequence[dict[str, Any]], field: str, name: Any) -> Series:
    """The curves of ``field`` by name, over million tokens. Values of one line with the same name are averaged."""
    curves: Series = {}
    for line in lines:
        grouped: dict[str, list[float]] = {}
        for key, value in line[field].items():
            grouped.setdefault(name(key), []).append(value)
        for key, values in grouped.items():
            curves.setdefault(key, []).append((line["tokens"] / 1e6, sum(values) / len(values)))
    return curves


def _panel(curves: Series, title: str, low: float, high: float, step: float, top: int) -> Iterable[str]:
    right = max(x for curve in curves.values() for x, _ in curve)
    y0, width = top + _TOP, _WIDTH - _LEFT - 20

    def at(x: float, y: float) -> str:
        clipped = min(high, max(low, y))
        return f"{_LEFT + width * x / right:.1f},{y0 + _HEIGHT * (high - clipped) / (high - low):.1f}"

    yield f'<text x="{_LEFT}" y="{y0 - 9}" font-weight="bold">{title}</text>'
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        y = y0 + _HEIGHT * (high - value) / (high - low)
        yield f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for i in range(int(right) + 1):
        x = _LEFT + width * i / right
        yield f'<text x="{x:.1f}" y="{y0 + _HEIGHT + 17}" text-anchor="middle">{i}</text>'
    yield f'<text x="{_LEFT + width}" y="{y0 + _HEIGHT + 34}" text-anchor="end">million tokens</text>'
    for i, (name, curve) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        points = " ".join(at(x, y) for x, y in curve)
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield f'<text x="{_LEFT + 4 + 110 * i}" y="{y0 + _HEIGHT + 34}" fill="{color}">{name}</text>'


if __name__ == "__main__":
    plot(Path(sys.argv[1]), Path(sys.argv[2]))
