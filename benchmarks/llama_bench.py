"""Prefill and decode beside llama.cpp's own ``llama-bench``, whole programs alternating on the same file.

    python -m benchmarks.llama_bench --peer avx2=DIR --peer vnni=DIR FILE.gguf ...

Each DIR holds llama-bench and the libraries of a llama.cpp compiled for that level: ``llama-bench`` loads
libggml-cpu.so from its own directory, so every level needs a directory of its own. Prints the medians as a Markdown
table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

Key = tuple[str, str, str]  # file, level, test


def main() -> None:
    """Measure the files and print the table."""
    options = _parser().parse_args()
    peers = dict(text.split("=", 1) for text in options.peer)
    tests = [(options.prompt, 0, depth) for depth in options.depth if options.prompt]
    tests += [(0, options.generate, depth) for depth in options.depth if options.generate]
    ours: dict[Key, list[float]] = {}
    theirs: dict[Key, list[float]] = {}
    for file in options.files:
        for level, directory in peers.items():
            for _ in range(options.rounds):
                for prompt, generate, depth in tests:
                    key = (file.name, level, _test_name(prompt, generate, depth))
                    speed = _jamba(file, level, prompt, generate, depth, options)
                    ours.setdefault(key, []).append(speed)
                    if depth <= options.peer_depth:
                        speed = _llama_bench(Path(directory), file, prompt, generate, depth, options)
                        theirs.setdefault(key, []).append(speed)
            for row in _rows(ours, theirs, file.name, level):
                print(row, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--peer", action="append", required=True, metavar="LEVEL=DIR")
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-d", "--depth", type=int, nargs="+", default=[0])
    parser.add_argument("--peer-depth", type=int, default=16384, help="deepest context that llama-bench has to read")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def _test_name(prompt: int, generate: int, depth: int) -> str:
    return f"prefill {prompt}" if prompt else f"decode {generate} at {depth}"


def _jamba(file: Path, level: str, prompt: int, generate: int, depth: int, o: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "jambacli", "bench", str(file), "-p", str(prompt), "-n", str(generate)]
    command += ["-d", str(depth), "-t", str(o.threads), "-r", "1", "--kv-type", o.kv_type, "-o", "json", "-q"]
    if depth:
        command += ["--fill", "random"]
    environment = {**os.environ, "JAMBA_CPU_ISA": level}
    return float(_json(command, environment)[0]["tokens_per_second"])


def _llama_bench(directory: Path, file: Path, prompt: int, generate: int, depth: int, o: argparse.Namespace) -> float:
    command = [str(directory / "llama-bench"), "-m", str(file), "-p", str(prompt), "-n", str(generate)]
    command += ["-d", str(depth), "-t", str(o.threads), "-r", "1", "-ctk", o.kv_type, "-ctv", o.kv_type, "-o", "json"]
    if o.kv_type != "f16":
        command += ["-fa", "on"]
    return float(_json(command, {**os.environ, "LD_LIBRARY_PATH": str(directory)})[0]["avg_ts"])


def _json(command: list[str], environment: dict[str, str]) -> list[dict[str, float]]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: list[dict[str, float]] = json.loads(done.stdout)
    return result


def _rows(ours: dict[Key, list[float]], theirs: dict[Key, list[float]], file: str, level: str) -> Iterator[str]:
    for key, speeds in ours.items():
        if key[:2] != (file, level):
            continue
        mine = statistics.median(speeds)
        if key in theirs:
            peer = statistics.median(theirs[key])
            yield f"| {file} | {level} | {key[2]} | {mine:.1f} | {peer:.1f} | {mine / peer:.2f} |"
        else:
            yield f"| {file} | {level} | {key[2]} | {mine:.1f} | | |"


if __name__ == "__main__":
    print("| file | level | test | jamba, tokens/s | llama.cpp, tokens/s | ratio |\n|---|---|---|---:|---:|---:|")
    main()
