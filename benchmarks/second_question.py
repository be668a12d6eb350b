"""Measures what a second question costs: ``jamba ask`` about a long document, then others in new processes, and llama.cpp.

    python -m benchmarks.second_question --shape moe --quant q4_k_m --tokens 30000
    python -m benchmarks.second_question --shape moe --quant q4_k_m --schema

makes a random model of the shape (weights do not matter for speed) and runs the command as a user would. With ``--peer``,
llama.cpp is measured instead (if llama-cpp-python is installed): it keeps no state between processes, so it loads the file and
reads as many tokens. ``--schema`` instead compares decode with a JSON schema and without one.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.made_up_vocabulary import words
from benchmarks.scratch_model import parser_of, scratch_model
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.api import Jamba

_QUESTIONS = ["what follows from all this ?", "who said so and when ?", "which of these is the longest ?", "why ?"]
_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 20,
    "maxItems": 60,
    "items": {
        "type": "object",
        "properties": {
            "party": {"type": "string", "minLength": 20, "maxLength": 60},
            "kind": {"enum": ["buyer", "seller", "agent"]},
            "amount": {"type": "integer", "minimum": 0, "maximum": 1000000},
            "paid": {"type": "boolean"},
        },
        "required": ["party", "kind", "amount", "paid"],
        "additionalProperties": False,
    },
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = parser_of("second_question", __doc__)
    parser.add_argument("--tokens", type=int, default=30_000, help="tokens of the document (default: 30000)")
    parser.add_argument("--repetitions", "-r", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="measure llama.cpp instead")
    parser.add_argument("--schema", action="store_true", help="measure decode with a schema instead")
    options = parser.parse_args(arguments)
    with scratch_model(options) as (path, folder):
        if options.peer:
            print(json.dumps(peer(path, options.tokens)))
        elif options.schema:
            print(json.dumps(schema_speed(path, options.repetitions)))
        else:
            print(json.dumps(questions(path, options.tokens, options.repetitions, folder)))


def questions(path: Path, tokens: int, repetitions: int, folder: Path) -> dict[str, Any]:
    """Seconds and tokens of a first question and of others about the same document, each in a process of its own."""
    from jambacli.api import Jamba

    model = Jamba.load(path)
    document = folder / "document.txt"
    document.write_text(_text(model, tokens), encoding="utf-8")
    del model
    first = _ask(path, document, "how many are there ?")
    later = [_ask(path, document, _QUESTIONS[i % len(_QUESTIONS)]) for i in range(repetitions)]
    middle = {key: statistics.median(run[key] for run in later) for key in first}
    return {
        "first": first,
        "later": middle,
        "spread of whole processes": [run["process to first text"] for run in later],
        "ratio, reading to first text": first["first"] / middle["first"],
        "ratio, whole process": first["process to first text"] / middle["process to first text"],
    }


def _text(model: Jamba, tokens: int) -> str:
    """A document of about ``tokens`` tokens, including the titles of its parts."""
    from jambacli.documents.extract.pieces import parts_of_lines
    from jambacli.documents.load import Document
    from jambacli.documents.pages import entries_of
    from jambacli.documents.reader import Reader, Task
    from jambacli.session.options import SessionOptions

    lines = [line.strip() for line in re.findall(r"(?:\S+ ?){12}", _words(model, tokens))]
    size = 0
    for _ in range(3):
        document = Document("document.txt", "line", tuple(parts_of_lines(enumerate(lines, 1))))
        size = len(Reader(model, options=SessionOptions(store=False)).prompt(entries_of([document]), Task("why ?")))
        lines = lines[: max(1, len(lines) * tokens // size)] if size > tokens * 1.005 else lines
    return "\n".join(lines)


def _words(model: Jamba, tokens: int) -> str:
    return words(random.Random(1), tokens, model.metadata["tokenizer.ggml.tokens"], model.tokenizer)


def _ask(path: Path, document: Path, question: str) -> dict[str, float]:
    """Run ``jamba ask`` in a new process: its own figures, and the seconds until its first text on stdout."""
    # A random model may stop at once or generate incomplete characters: forbid its stop tokens.
    command = [sys.executable, "-m", "jambacli", "ask", str(document), question, "--model", str(path)]
    command += ["--stats", "--temp", "1", "--seed", "1", "--max-tokens", "8"]
    for stop in ("1", "2", "4"):
        command += ["--logit-bias", f"{stop}=-inf"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    _, stderr = process.communicate()
    shown = stderr.decode()
    found = re.search(r"first +([\d.]+) s.*?document ([\d,]+) tokens, ([\d,]+) of them", shown, re.DOTALL)
    read = re.search(r"prefill +([\d,]+) tokens", shown)
    if process.returncode or found is None or read is None:
        raise JambaError(f"jamba ask failed: {shown.strip()[-300:]}")
    numbers = [float(n.replace(",", "")) for n in (*found.groups(), read[1])]
    return {
        "process to first text": seconds,
        "first": numbers[0],
        "document tokens": numbers[1],
        "document tokens read": numbers[2],
        "prompt tokens read": numbers[3],
    }


def peer(path: Path, tokens: int) -> dict[str, float]:
    """Seconds that llama.cpp takes to load the file, and then to read ``tokens`` and generate one."""
    from jambacli.evaluation.llama_cpp import LlamaCppRunner
    from jambacli.kernels.cpu import default_threads

    began = time.perf_counter()
    runner = LlamaCppRunner(path, default_threads())
    try:
        runner.start(0, tokens + 8)
        loaded = time.perf_counter() - began
        return {"load": loaded, "first": runner.prefill(tokens) + runner.decode(1), "tokens": tokens}
    finally:
        runner.close()


def schema_speed(path: Path, repetitions: int, tokens: int = 200) -> dict[str, Any]:
    """Tokens per second of decode and sampling, without and with a schema in turn, and their ratio."""
    from jambacli.api import Jamba

    model = Jamba.load(path)
    never = {t: float("-inf") for t in model.tokenizer.stop_ids}
    rates: dict[str, list[float]] = {"free": [], "schema": []}
    with model.session(ctx=4096, store=False) as session:
        for i in range(repetitions + 1):
            for kind, options in (("free", {"logit_bias": never}), ("schema", {"schema": _SCHEMA})):
                session.conversation.turns.clear()
                # With many tokens left: near the limit a schema's choices take longer.
                pieces = session.send("go", max_tokens=3000, temperature=1.5, top_p=1.0, seed=i, **options)
                next(pieces)
                start, before = time.perf_counter(), session.sequence.counters.decoded
                while session.sequence.counters.decoded - before < tokens:
                    next(pieces)
                count = session.sequence.counters.decoded - before
                if i:  # the first round warms up
                    rates[kind].append(count / (time.perf_counter() - start))
                pieces.close()  # type: ignore[attr-defined]
    middle = {kind: statistics.median(each) for kind, each in rates.items()}
    return {"tokens/s": middle, "ratio": middle["schema"] / middle["free"], "all": rates}


if __name__ == "__main__":
    try:
        main()
    except JambaError as error:
        sys.exit(f"error: {error}")
