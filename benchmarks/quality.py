"""Compares files of one size: llama.cpp's quants with an importance matrix, and what ``jamba quantize`` adds, step by step.

    python -m benchmarks.quality MODEL-bf16.gguf --calibration TEXT --held-out TEXT [--peers FOLDER] [-o TABLE.md]

All files of a row's type have the same weights, importance matrix and calibration text. The divergence from MODEL is measured
on the held-out text, cut as llama-perplexity does; with --peers (the folder of llama-imatrix, llama-quantize and
llama-perplexity) also by llama-perplexity, whose own base is its own reading of MODEL.

The steps: the mixture of llama-quantize; types chosen by kinds of tensors; types chosen by measured sensitivities; the mixture
refined; both. ``--step NAME=ARGUMENTS`` adds one: arguments of ``jamba quantize``, in which {size} is the first row's.
Everything is kept in --folder, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Name of a step -> arguments of ``jamba quantize``; {type} is q4_k or q3_k.
STEPS = {
    "types by kind": "--type {type}_x --imatrix {imatrix}",
    "types by sensitivity": "--type {type}_x --imatrix {imatrix} --sensitivity {sensitivity}",
    "refined": "--type {type}_m --imatrix {imatrix} --refine --calibration {calibration}",
    "types by sensitivity, refined": (
        "--type {type}_x --imatrix {imatrix} --sensitivity {sensitivity} --refine --calibration {calibration}"
    ),
}
FIGURES = ("mean", "p99", "p999", "top1", "rms_p", "ratio")
_SHOWN = {
    "mean": "mean KL",
    "p99": "99% KL",
    "p999": "99.9% KL",
    "top1": "same top",
    "rms_p": "RMS of p",
    "ratio": "perplexity ratio",
}


@dataclass(frozen=True)
class Row:
    """One file: its bytes, the figures measured here, and llama-perplexity's mean and 99.9% (None without it)."""

    type: str
    step: str
    size: int
    figures: dict[str, float]
    theirs: tuple[float, float] | None


class Bench:
    """The files of a comparison, in one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = {
            "model": str(options.model),
            "imatrix": str(self.folder / "imatrix.gguf"),
            "sensitivity": str(self.folder / "sensitivity.json"),
            "calibration": str(options.calibration),
        }

    def prepare(self) -> None:
        """The importance matrix, the sensitivities and the bases."""
        o = self.options
        if not Path(self.names["imatrix"]).exists():
            if o.peers:
                arguments = [
                    "-m",
                    o.model,
                    "-f",
                    o.calibration,
                    "-o",
                    self.names["imatrix"],
                    "-c",
                    "512",
                    "--chunks",
                    o.chunks,
                ]
                self.peer("llama-imatrix", *arguments)
            else:
                self.jamba("imatrix", o.model, o.calibration, "-o", self.names["imatrix"], "--chunks", o.chunks)
        self.jamba(
            *("quantize", o.model, "--type", "q4_k_x", "--dry-run", "--imatrix", self.names["imatrix"]),
            *("--sensitivity", self.names["sensitivity"], "--calibration", o.calibration),
            *("--calibration-tokens", o.tokens),
        )
        self.base = self.folder / "base.kld"
        if not self.base.exists():
            limit = str(512 * o.windows)
            self.jamba("eval", "kl", o.model, "--save-base", self.base, "-f", o.held_out, "--tokens", limit)
        self.their_base = self.folder / "their-base.kld"
        if o.peers and not self.their_base.exists():
            arguments = ["-m", o.model, "-f", o.held_out, "--chunks", o.windows, "--save-all-logits", self.their_base]
            self.peer("llama-perplexity", "-c", "512", "-b", "512", *arguments)

    def rows(self) -> Iterable[Row]:
        """Every file's row, as it is measured."""
        steps = STEPS | dict(part.split("=", 1) for part in self.options.step)
        known = self.jamba("quantize", "--help")
        for kind in self.options.types.split(","):
            first = self.folder / f"{kind}-llama.gguf"
            if not first.exists():
                if self.options.peers:
                    self.peer(
                        "llama-quantize",
                        "--imatrix",
                        self.names["imatrix"],
                        self.options.model,
                        first,
                        f"{kind}_M".upper(),
                    )
                else:
                    self.quantize(first, f"--type {kind}_m --imatrix {self.names['imatrix']}")
            yield self.measure(kind, "llama.cpp's mixture, imatrix", first)
            for number, (step, template) in enumerate(steps.items()):
                flags = re.findall(r"--[a-z-]+", template)
                if any(flag not in known for flag in flags):
                    continue
                path = self.folder / f"{kind}-{number}.gguf"
                if not path.exists():
                    self.quantize(path, template.format(type=kind, size=first.stat().st_size, **self.names))
                yield self.measure(kind, step, path)

    def quantize(self, path: Path, arguments: str) -> None:
        """Write one file."""
        self.jamba("quantize", self.options.model, path, *shlex.split(arguments), "--force")

    def measure(self, kind: str, step: str, path: Path) -> Row:
        """The row of one file."""
        found: dict[str, Any] = json.loads(self.jamba("eval", "kl", path, "--base", self.base, "--json"))
        figures = {name: found[name] for figure in FIGURES for name in (figure, f"{figure}_error")}
        theirs = None
        if self.options.peers:
            text = self.peer(
                *("llama-perplexity", "-m", path, "-c", "512", "-b", "512"),
                *("--kl-divergence", "--kl-divergence-base", self.their_base),
            )
            both = [re.search(pattern, text) for pattern in (r"Mean +KLD: +(\S+)", r"99.9% +KLD: +(\S+)")]
            theirs = float(both[0][1]) if both[0] else 0.0, float(both[1][1]) if both[1] else 0.0
        return Row(kind, step, path.stat().st_size, figures, theirs)

    def jamba(self, *arguments: object) -> str:
        """Run ``jamba``; its standard output. What it says goes to the terminal."""
        command = [sys.executable, "-m", "jambacli", *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode()

    def peer(self, program: str, *arguments: object) -> str:
        """Run a program of llama.cpp; all it prints."""
        command = [str(Path(self.options.peers) / program), *map(str, arguments)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout.decode(errors="replace")


def table(rows: list[Row]) -> str:
    """The rows as Markdown; less than the first row of a type in percent behind its mean and 99.9%."""
    peers = any(row.theirs for row in rows)
    head = ["type", "step", "bytes", *_SHOWN]
    head += ["mean KL, llama.cpp", "99.9% KL, llama.cpp"] if peers else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        first = next(other for other in rows if other.type == row.type)
        cells = [row.type, row.step, f"{row.size:,}"]
        for figure in FIGURES:
            value, error = row.figures[figure], row.figures[f"{figure}_error"]
            shown = f"{value:.2%} ± {error:.2%}" if figure in ("top1", "rms_p") else f"{value:.5f} ± {error:.5f}"
            less = (
                f" ({value / first.figures[figure] - 1:+.0%})"
                if row is not first and figure in ("mean", "p99", "p999")
                else ""
            )
            cells.append(shown + less)
        if row.theirs and first.theirs:
            for value, other in zip(row.theirs, first.theirs, strict=True):
                cells.append(f"{value:.5f}" + (f" ({value / other - 1:+.0%})" if row is not first else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--types", default="q4_k,q3_k")
    parser.add_argument(
        "--peers", help="the folder of llama.cpp's programs; without it the first row's file is made here"
    )
    parser.add_argument("--folder", default="quality", help="for the files that are made (default: quality)")
    parser.add_argument("--chunks", type=int, default=40, help="chunks of 512 tokens for the imatrix (default: 40)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens for the sensitivities (default: 4096)")
    parser.add_argument("--windows", type=int, default=24, help="windows of 512 held-out tokens (default: 24)")
    parser.add_argument("--step", action="append", default=[], metavar="NAME=ARGUMENTS")
    parser.add_argument("--output", "-o", type=Path)
    options = parser.parse_args(arguments)
    bench = Bench(options)
    bench.prepare()
    rows = []
    for row in bench.rows():
        rows.append(row)
        print(
            f"{row.type} {row.step}: mean {row.figures['mean']:.5f}, 99.9% {row.figures['p999']:.4f}", file=sys.stderr
        )
    text = table(rows)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
