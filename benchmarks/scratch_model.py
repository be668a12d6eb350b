"""The random model that a measurement of whole turns is taken on: its options, and a folder for it; knows nothing of turns."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.made_up_vocabulary import chat_vocabulary


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m jambacli.evaluation.MODULE`` that knows the model's options; the module's own are added."""
    parser = argparse.ArgumentParser(
        prog=f"python -m jambacli.evaluation.{module}", description=(description or "").split("\n")[0]
    )
    parser.add_argument("--shape", default="moe", help="a named shape or a config.json (default: moe)")
    parser.add_argument("--quant", default="q4_k_m", help="the weights' type (default: q4_k_m)")
    parser.add_argument(
        "--file", type=Path, default=None, help="a model with a vocabulary, or where to keep the one made"
    )
    return parser


@contextlib.contextmanager
def made(given: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The model that those options name, made where it is not there, and a folder that goes with the measurement.

    ``JAMBA_HOME`` is empty and in that folder from here on, for the processes that are started too.
    """
    with tempfile.TemporaryDirectory(prefix="jamba-measured-") as text:
        folder = Path(text)
        path = given.file or folder / "model.gguf"
        if not path.exists():
            make_model(path, given.shape, given.quant)
        os.environ["JAMBA_HOME"] = str(folder / "home")
        yield path, folder


def make_model(path: Path, shape: str, quant: str) -> None:
    """Write a random model of the shape that reads and writes (meaningless) text."""
    from jambacli.evaluation.synthetic import shape_config, write_gguf

    config = shape_config(shape)
    write_gguf(path, config, quant, vocabulary=chat_vocabulary(config.vocab_size))
