"""The table of files of one size: each row beside the first of its type."""

from __future__ import annotations

from benchmarks.quality import FIGURES, STEPS, Row, table
from jambacli.commands import quantize


def row(kind: str, step: str, mean: float) -> Row:
    figures = dict.fromkeys((*FIGURES, *(f"{figure}_error" for figure in FIGURES)), 0.5)
    return Row(kind, step, 7_994_848, {**figures, "mean": mean}, (mean, 2 * mean))


def test_rows_are_compared_with_the_first_of_their_type() -> None:
    lines = table([row("q4_k", "a", 0.004), row("q4_k", "b", 0.001), row("q3_k", "a", 0.02)]).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "0.00400" in lines[2] and "%)" not in lines[2]
    assert "0.00100 ± 0.50000 (-75%)" in lines[3] and lines[3].endswith("| 0.00100 (-75%) | 0.00200 (-75%) |")
    assert "%)" not in lines[4]


def test_steps_name_options_of_the_command() -> None:
    names = quantize.quantize.__annotations__
    for template in STEPS.values():
        for word in template.split():
            assert not word.startswith("--") or word[2:].replace("-", "_") in names
