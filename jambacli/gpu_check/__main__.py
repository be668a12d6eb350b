"""``python -m jambacli.gpu_check``: check and measure everything on one CUDA GPU, in nine minutes.

Results are saved after each step as JSON in $OUT/gpu_check.json (or --out), with a Markdown table next to it. ``--tiny`` tests
the whole path in a minute on a machine without a GPU, under TRITON_INTERPRET=1; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from jambacli.gpu_check.suite import PARTS, CheckOptions, all_good, run_in_workers, run_parts, write_report


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0 if every part ran and every comparison held."""
    parsed = _parser().parse_args(arguments)
    import torch

    from jambacli.kernels.triton.interpret import interpreted

    if not torch.cuda.is_available() and not (parsed.tiny and interpreted()):
        print("there is no CUDA GPU; TRITON_INTERPRET=1 with --tiny tests the check itself", file=sys.stderr)
        return 1
    _log_to_stderr()
    options = _options(parsed)
    if options.also and not parsed.worker:  # it has its own packages, but this copy of the program
        root = str(Path(__file__).parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    out = Path(parsed.out) if parsed.out else Path(os.environ.get("OUT", ".")) / "gpu_check.json"
    if parsed.worker:
        return run_parts(options, out, parsed.failure)
    if torch.cuda.is_available():
        results = run_in_workers(options, out, _worker_command)
    else:
        run_parts(options, out)
        results = json.loads(out.read_text())
    print(write_report(results, out))
    return 0 if all_good(results) else 1


def _log_to_stderr() -> None:
    logger = logging.getLogger("jambacli")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def _parser() -> argparse.ArgumentParser:
    default = CheckOptions()
    parser = argparse.ArgumentParser(prog="python -m jambacli.gpu_check", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test that every part runs")
    parser.add_argument("--budget", type=float, default=default.budget, help="seconds for everything (default: 520)")
    parser.add_argument("--out", help="path of the JSON results; the table is written to the same directory")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, comma-separated")
    parser.add_argument("--shapes", default=",".join(default.shapes), help="model shapes, comma-separated")
    parser.add_argument("--quants", default=",".join(default.quants), help="file types, comma-separated")
    parser.add_argument("--limits", default="24,48", help="GB of GPU memory to simulate, comma-separated")
    parser.add_argument("--formats", default="all", help="formats of the matrix-vector product alone, comma-separated")
    parser.add_argument("--tune", action="store_true", help="try other tiles for the matrix-vector product too")
    parser.add_argument(
        "--also", metavar="PYTHON", help="another Python, with another torch and Triton, that repeats some parts"
    )
    parser.add_argument("--wrong", default="", help=argparse.SUPPRESS)  # kernels found wrong by earlier workers
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shard", default=default.shard, help=argparse.SUPPRESS)
    parser.add_argument("--failure", help=argparse.SUPPRESS)  # how the previous worker ended
    return parser


def _options(parsed: argparse.Namespace) -> CheckOptions:
    """The parsed options; SystemExit for an unknown part or format."""
    from jambacli.gpu_check.products import FORMATS

    # A worker runs one part at a time, "warm" among them.
    parts = tuple(parsed.parts.split(",")) if parsed.worker else _known("parts", parsed.parts, PARTS)
    return CheckOptions(
        parts=parts,
        shapes=tuple(parsed.shapes.split(",")),
        quants=tuple(parsed.quants.split(",")),
        limits=tuple(float(x) for x in parsed.limits.split(",") if x),
        formats=_known("formats", parsed.formats, FORMATS),
        tune=parsed.tune,
        tiny=parsed.tiny,
        budget=parsed.budget,
        shard=parsed.shard,
        wrong=tuple(name for name in parsed.wrong.split(",") if name),
        also=parsed.also,
    )


def _known(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    named = known if text == "all" else tuple(text.split(","))
    if unknown := set(named) - set(known):
        sys.exit(f"--{option} {', '.join(sorted(unknown))}: known are all, {', '.join(known)}")
    return tuple(name for name in known if name in named)


def _worker_command(options: CheckOptions, out: Path, failure: str | None) -> list[str]:
    """The command line of a worker with these options."""
    return [
        *(options.also or sys.executable, "-m", "jambacli.gpu_check", "--worker", "--out", str(out)),
        *("--shard", options.shard, "--wrong", ",".join(options.wrong)),
        *("--parts", ",".join(options.parts), "--shapes", ",".join(options.shapes)),
        *("--quants", ",".join(options.quants), "--limits", ",".join(f"{x:g}" for x in options.limits)),
        *("--formats", ",".join(options.formats), "--budget", str(options.budget)),
        *(["--failure", failure] if failure is not None else []),
        *(["--tiny"] if options.tiny else []),
        *(["--tune"] if options.tune else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
