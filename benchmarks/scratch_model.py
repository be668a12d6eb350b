"""The random model for benchmarks of whole turns: its command-line options, and a scratch directory."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.made_up_vocabulary import chat_vocabulary


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m benchmarks.MODULE`` with the model's options, to which the module adds its own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=(description or "").split("\n")[0]
    )
    parser.add_argument("--shape", default="moe", help="a named shape or a config.json (default: moe)")
    parser.add_argument("--quant", default="q4_k_m", help="file type of the weights (default: q4_k_m)")
    parser.add_argument(
        "--file", type=Path, default=None, help="a model with a vocabulary; made there if it does not exist"
    )
    return parser


@contextlib.contextmanager
def scratch_model(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The model that the options name, made if it does not exist, and a directory that is deleted afterwards.

    Sets ``JAMBA_HOME`` to an empty directory in it, also for child processes.
    """
    with tempfile.TemporaryDirectory(prefix="jamba-measured-") as text:
        folder = Path(text)
        path = options.file or folder / "model.gguf"
        if not path.exists():
            make_model(path, options.shape, options.quant)
        os.environ["JAMBA_HOME"] = str(folder / "home")
        yield path, folder


def make_model(path: Path, shape: str, quant: str) -> None:
    """Write a random model of the shape with a vocabulary, so that it reads and writes (meaningless) text."""
    from jambacli.evaluation.synthetic import shape_config, write_gguf

    config = shape_config(shape)
    write_gguf(path, config, quant, vocabulary=chat_vocabulary(config.vocab_size))
