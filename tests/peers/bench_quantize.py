"""Times ``jamba quantize`` and llama.cpp's quantizer on one file, in turn: ``python -m tests.peers.bench_quantize``.

Both run as whole processes with the same threads; wall and processor time are told, and whether the files are equal.
Without a file, a 3B-shaped one of full width and a few layers (about 1.3 GB in bf16) is made in the scratch folder.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import jamba_gguf
from tests.support.jamba_gguf import Shape
from tests.support.repository import REPO

WIDE_3B = Shape(
    layers=6,
    hidden=2560,
    ffn=8192,
    experts=1,
    attention=(3,),
    heads=20,
    kv_heads=1,
    dt_rank=160,
    vocab=16384,
    tied=True,
)
_THEIRS = (
    "import sys; from pathlib import Path; from tests.support import llama_quantize as q; "
    "sys.exit(not q.quantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], threads=int(sys.argv[4])))"
)


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command, children included."""
    before, start = os.times(), time.monotonic()
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    wall, after = time.monotonic() - start, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Compare the types named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--types", default="q8_0,q4_0,q4_k_m,q3_k_m,q2_k")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        source = (arguments.source or jamba_gguf.write(Path(folder) / "in.gguf", WIDE_3B)).resolve()
        one, other = Path(folder) / "jamba.gguf", Path(folder) / "llama.gguf"
        print(f"{source.stat().st_size / 1e9:.2f} GB, {arguments.threads} threads")
        for kind in arguments.types.split(","):
            for _ in range(arguments.rounds):
                threads = str(arguments.threads)
                ours = [sys.executable, "-m", "jambacli", "quantize", str(source), str(one), "--force"]
                a, a_cpu = timed([*ours, "--type", kind, "--threads", threads])
                b, b_cpu = timed([sys.executable, "-c", _THEIRS, str(source), str(other), kind, threads])
                same = "equal" if filecmp.cmp(one, other, shallow=False) else "DIFFERENT"
                print(
                    f"{kind}: jamba {a:.2f} s ({a_cpu:.2f} s of processor), llama.cpp {b:.2f} s ({b_cpu:.2f} s): "
                    f"{b / a:.1f} times as fast ({b_cpu / a_cpu:.1f} by processor time), files {same}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
