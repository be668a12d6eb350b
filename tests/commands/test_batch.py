"""``jamba batch``: requests, prompts and files, several at once; the answers of one at a time; errors by line; kills."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jambacli import Jamba
from jambacli.batch.items import Keys
from jambacli.batch.run import csv_columns, csv_head, csv_row
from tests.support.cli_runner import Done, jamba
from tests.support.repository import REPO
from tests.support.small_models import small_file

GREEDY = ("--temp", "0", "-n", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "q8_0"))


def run(*arguments: str, stdin: bytes | None = None) -> Done:
    done = jamba(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done


def chat(i: int, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": f"r{i}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, "temperature": 0, "max_tokens": 8, **body},
    }


def written(path: Path, requests: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in requests), encoding="utf-8")
    return str(path)


def answers(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {v["custom_id"]: v["response"]["body"]["choices"][0]["message"]["content"] for v in lines}
    assert len(found) == len(lines)
    return found


def test_requests_are_answered_as_they_are_alone_and_in_order(model: str, tmp_path: Path) -> None:
    texts = [f"Count {i * 7} herons " + "at the lake " * (i % 5) for i in range(20)]
    source = written(tmp_path / "in.jsonl", [chat(i, text) for i, text in enumerate(texts)])
    out = tmp_path / "out.jsonl"
    done = run("batch", source, "-o", str(out), "-m", model, "--stats")
    assert done.stdout == b"" and b"20 requests" in done.stderr
    assert b"replies  " in done.stderr and b"of them read with another prompt" in done.stderr
    loaded = Jamba.load(model)
    for i, text in enumerate(texts):
        with loaded.session(store=False) as session:
            expected = "".join(session.send(text, max_tokens=8, temperature=0))
        assert answers(out)[f"r{i}"] == expected
    assert list(answers(out)) == [f"r{i}" for i in range(20)]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["in.jsonl", "out.jsonl"]
    refused = jamba("batch", source, "-o", str(out), "-m", model)
    assert refused.returncode == 1 and b"--fresh" in refused.stderr
    one = run("batch", source, "-o", str(out), "-m", model, "--fresh", "--parallel", "1")
    assert b"answered before" not in one.stderr and len(answers(out)) == 20


def test_each_wrong_line_is_named_and_the_others_are_answered(model: str, tmp_path: Path) -> None:
    lines = [
        chat(1, "Who?"),
        "{",
        "",
        chat(1, "And?"),
        chat(2, "Who?", frobnicate=1),
        chat(3, "Who?", temperature=-1),
        chat(4, "lake " * 3000),
        chat(5, "Who?", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
        chat(6, "How many?"),
    ]
    out = tmp_path / "out.jsonl"
    command = ("batch", written(tmp_path / "in.jsonl", lines), "-o", str(out), "-m", model, "--ctx", "1k")
    done = jamba(*command)
    err = done.stderr.decode()
    assert done.returncode == 1 and "6 of 8 requests failed" in err
    for expected in (
        "line 2: is not JSON",
        "line 4: has the custom_id 'r1' of line 1",
        "line 5: the field 'frobnicate'",
    ):
        assert expected in err
    assert "line 7:" in err and "--ctx" in err and "--ctx" not in out.read_text(encoding="utf-8")
    assert "larger context length" in out.read_text(encoding="utf-8")
    values = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [v["custom_id"] for v in values] == ["r1", None, "r1", "r2", "r3", "r4", "r5", "r6"]
    assert [v["response"] and v["response"]["status_code"] for v in values] == [200, None, 400, 400, 400, 400, 400, 200]
    assert values[1]["error"]["message"].startswith("line 2:")
    # What was answered is not answered again; what is corrected is.
    written(tmp_path / "in.jsonl", [lines[0], lines[8], chat(2, "Who?")])
    again = run(*command)
    assert b"2 of 3 requests were answered before" in again.stderr and len(answers(out)) == 3
    assert not out.with_name("out.jsonl.part").exists()


def test_lines_that_are_nearly_right(model: str, tmp_path: Path) -> None:
    bare = chat(1, "Who?")
    del bare["method"]
    lines = [
        "\ufeff" + json.dumps(bare) + "\r",
        {**chat(2, "Who?"), "method": None},
        {**chat(3, "Who?"), "method": "GET"},
        {**chat(4, "Who?"), "url": "/v1/embeddings"},
        {**chat(5, "Who?"), "priority": 1},
        {**chat(6, "Who?"), "body": []},
        {**chat(7, "Who?"), "custom_id": 7},
        chat(8, "Who?", temperature=10**400),
        chat(9, "Who?", logit_bias={"5": 10**400}),
    ]
    out = tmp_path / "out.jsonl"
    done = jamba("batch", written(tmp_path / "in.jsonl", lines), "-o", str(out), "-m", model)
    assert done.returncode == 1
    values = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [v["custom_id"] for v in values] == ["r1", "r2", "r3", "r4", "r5", "r6", None, "r8", "r9"]
    assert [v["response"] and v["response"]["status_code"] for v in values] == [200, 200, *[None] * 5, 400, 400]
    assert values[2]["error"]["message"].startswith("line 3: has the method 'GET'")


def test_nothing_of_others_is_overwritten(model: str, tmp_path: Path) -> None:
    source, out, part = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    written(source, [chat(1, "Who?"), chat(2, "Who?", frobnicate=1)])
    before = source.read_bytes()
    onto_itself = jamba("batch", str(source), "-o", str(source), "-m", model, "--fresh")
    assert onto_itself.returncode != 0 and b"one of the inputs" in onto_itself.stderr
    part.write_bytes(before)
    for given in (source, part):
        refused = jamba("batch", str(given), "-o", str(out), "-m", model, "--fresh")
        assert refused.returncode != 0 and refused.stdout == b""
    assert source.read_bytes() == part.read_bytes() == before
    part.unlink()
    # One of the requests fails, so that the part file stays beside the output.
    assert jamba("batch", str(source), "-o", str(out), "-m", model).returncode == 1
    first = out.read_bytes()
    other = jamba("batch", str(source), "-o", str(out), "-m", model, "--temp", "0.5")
    assert other.returncode == 1 and b"already exists" in other.stderr and b"other options" in other.stderr
    assert out.read_bytes() == first and part.exists()
    out.unlink()
    again = jamba("batch", str(source), "-o", str(out), "-m", model, "--temp", "0.5")
    assert b"starting over" in again.stderr and out.exists()


def test_properties_may_have_the_names_of_columns() -> None:
    names = ("answer", "finish", "file", "error", "who")
    columns = csv_columns(["file"], {"type": "object", "properties": {name: {} for name in names}})
    head, row = csv.reader((csv_head(columns) + csv_row(record_of(names), columns)).decode().splitlines())
    assert head == ["file", "answer", "finish", "answer.file", "answer.error", "who", "error"]
    assert row == ["a.txt", "<answer>", "<finish>", "<file>", "<error>", "<who>", ""]
    whole = csv_columns(["file"], {"type": "array"})
    assert csv_row({"file": "a.txt", "answer": [1, "x"]}, whole) == b'a.txt,"[1, ""x""]",\n'


def record_of(names: tuple[str, ...]) -> dict[str, Any]:
    return {"file": "a.txt", "answer": {name: f"<{name}>" for name in names}, "finish": "stop"}


def test_the_order_of_a_schema_is_part_of_a_key() -> None:
    one, other = {"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}}
    assert Keys("model").key("Who?", one) != Keys("model").key("Who?", other)


def test_prompts_are_lines(model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('Who, "exactly"?\n\n{How many}?\n', encoding="utf-8")
    done = run("batch", str(prompts), "-m", model, *GREEDY)
    values = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda v: v["line"])
    assert [(v["line"], v["prompt"]) for v in values] == [(1, 'Who, "exactly"?'), (3, "{How many}?")]
    assert values[0]["answer"] == run("run", model, 'Who, "exactly"?', *GREEDY).stdout.decode().strip()
    piped = run("batch", "-", "-m", model, *GREEDY, stdin=prompts.read_bytes())
    assert sorted(piped.stdout.splitlines()) == sorted(done.stdout.splitlines())
    table = tmp_path / "out.csv"
    run("batch", str(prompts), "-m", model, *GREEDY, "-o", str(table))
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [r["answer"] for r in rows] == [v["answer"] for v in values]
    other = run("batch", str(prompts), "-m", model, *GREEDY, "--system", "Be brief.")
    assert other.stdout != done.stdout


def test_a_question_about_files_gives_a_row_for_each(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    for i in range(6):
        (folder / f"r{i}.txt").write_text(f"On day {i} Mira counted {40 + i} herons.\n" * (i + 1), encoding="utf-8")
    (folder / "empty.txt").touch()
    out = tmp_path / "answers.jsonl"
    ask = ("batch", str(folder), "--question", "Who?", "-m", model, *GREEDY)
    done = run(*ask, "-o", str(out), "--citations", "--skip-unreadable")
    assert b"empty.txt" in done.stderr and b"skipped" in done.stderr
    values = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [Path(v["file"]).name for v in values] == [f"r{i}.txt" for i in range(6)]
    for value in values[:3]:
        alone = json.loads(run("ask", value["file"], "Who?", "-m", model, *GREEDY, "--json", "--citations").stdout)
        assert value["answer"] == alone["answer"]
    unread = jamba(*ask)
    assert unread.returncode == 1 and b"1 of 7 requests failed" in unread.stderr
    assert [json.loads(line) for line in unread.stdout.splitlines()][-1] == {
        "file": str(folder / "empty.txt"),
        "error": f"{folder / 'empty.txt'}: is empty",
    }
    (folder / "empty.txt").unlink()
    long = folder / "long.txt"
    long.write_text("herons at the lake\n" * 900, encoding="utf-8")
    table = tmp_path / "answers.csv"
    failed = jamba("batch", str(folder), "--question", "Who?", "-m", model, *GREEDY, "-o", str(table), "--ctx", "1k")
    assert failed.returncode == 1 and b"long.txt" in failed.stderr and b"--ctx" in failed.stderr
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [bool(r["error"]) for r in rows] == [True] + [False] * 6 and list(rows[0]) == ["file", "answer", "error"]


def test_files_that_cannot_be_read_fail_in_their_places(model: str, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"Mira counted {i} herons.", encoding="utf-8")
    (tmp_path / "1.pdf").write_bytes(b"no PDF")
    (tmp_path / "2.docx").write_bytes(b"PK\x03\x04 no archive")
    table, files = tmp_path / "out.csv", [str(p) for p in sorted(tmp_path.iterdir())]
    ask = ("batch", *files, "--question", "Who?", "-m", model, *GREEDY, "-o", str(table))
    done = jamba(*ask)
    assert done.returncode == 1 and b"2 of 5 requests failed" in done.stderr and b"1.pdf: is not a PDF" in done.stderr
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [(Path(r["file"]).name, bool(r["error"]), bool(r["answer"])) for r in rows] == [
        ("0.txt", False, True),
        ("1.pdf", True, False),
        ("1.txt", False, True),
        ("2.docx", True, False),
        ("2.txt", False, True),
    ]
    # Read again, with a file that is there now, and without the other.
    (tmp_path / "1.pdf").write_text("%PDF- no PDF either", encoding="utf-8")
    assert jamba(*ask).returncode == 1
    skipped = run(*ask, "--skip-unreadable")
    assert b"3 of 3 requests were answered before" in skipped.stderr and b"2.docx" in skipped.stderr
    assert len(list(csv.DictReader(table.open(encoding="utf-8", newline="")))) == 3
    (tmp_path / "only.txt").touch()
    nothing = jamba("batch", str(tmp_path / "only.txt"), "--question", "Who?", "-m", model, "--skip-unreadable")
    assert nothing.returncode == 1 and b"no file that can be read" in nothing.stderr


def test_a_schema_gives_columns(model: str, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "who": {"type": "string", "maxLength": 8},
            "counts": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["who", "counts"],
        "additionalProperties": False,
    }
    schema["properties"]["counts"]["maxItems"] = 2  # type: ignore[index]
    written(tmp_path / "schema.json", [schema])
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"Mira counted {i} herons.", encoding="utf-8")
    files = [str(tmp_path / f"{i}.txt") for i in range(3)]
    table = tmp_path / "out.csv"
    more = ("-m", model, "--temp", "0", "-n", "60", "--schema", str(tmp_path / "schema.json"))
    run("batch", *files, "--question", "Who?", "-o", str(table), *more)
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert list(rows[0]) == ["file", "who", "counts", "error"] and len(rows) == 3
    assert all(isinstance(json.loads(r["counts"]), list) and not r["error"] for r in rows)
    values = [json.loads(x) for x in run("batch", *files, "--question", "Who?", *more).stdout.splitlines()]
    assert {v["file"]: v["answer"]["who"] for v in values} == {r["file"]: r["who"] for r in rows}


def test_mistakes_are_one_line(model: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [chat(1, "Who?")])
    empty = written(tmp_path / "empty.txt", [""])
    cases: list[tuple[tuple[str, ...], int, str]] = [
        ((source, "-o", str(tmp_path / "out.txt")), 2, ".jsonl nor .csv"),
        ((source, "-o", str(tmp_path / "out.csv")), 2, "JSON lines"),
        ((source, "-o", str(tmp_path / "no" / "out.jsonl")), 1, "does not exist"),
        ((source, source), 2, "--question"),
        ((source, "--citations"), 2, "--citations"),
        ((source, "--system", "x"), 2, "--system"),
        ((empty,), 2, "nothing to answer"),
        ((str(tmp_path / "missing.jsonl"),), 1, "missing.jsonl"),
        ((source, "--question", "Who?", "--system", "x"), 2, "--system"),
    ]
    for arguments, code, text in cases:
        done = jamba("batch", *arguments, "-m", model)
        line = done.stderr.decode().strip().split("\n")[-1]
        assert (done.returncode, line.startswith("error: ")) == (code, True) and text in line, line
        assert done.stdout == b""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(590)])])
def test_killed_at_random_moments_and_run_again_every_answer_is_there_once(
    model: str, tmp_path: Path, kills: int
) -> None:
    """SIGKILL, after more answers each time; the answers are those of a run that was never killed."""
    rng = random.Random(kills)
    total = 30 * (kills + 1)
    requests = [
        chat(
            i,
            f"Count {i} herons at the lake",
            max_tokens=30,
            temperature=rng.choice([0, 1]),
            seed=i,
            logit_bias={"2": -100},
        )
        for i in range(total)
    ]
    source, out = written(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    command = ["batch", source, "-o", str(out), "-m", model]
    sizes = []
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "jambacli", *command], cwd=REPO, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        wanted = (kill * 30 + rng.randrange(1, 20)) * 300  # bytes; a record is longer
        while process.poll() is None and (not part.exists() or part.stat().st_size < wanted):
            time.sleep(0.001)  # a look at the file, not a wait for a time
        time.sleep(rng.random() * 0.05)  # the moment of the kill within a step or a write
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert not out.exists()
        sizes.append(part.stat().st_size)
    assert sizes == sorted(sizes)
    done = run(*command)
    assert b"were answered before" in done.stderr and not part.exists()
    whole = tmp_path / "whole.jsonl"
    run("batch", source, "-o", str(whole), "-m", model)
    assert answers(out) == answers(whole) and len(answers(out)) == total


def test_an_interrupted_batch_says_how_to_go_on(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.batch.part_file import PartFile

    source = written(tmp_path / "in.jsonl", [chat(i, f"Count {i}") for i in range(12)])
    command = ("batch", source, "-o", str(tmp_path / "out.jsonl"), "-m", model)
    add, count = PartFile.add, 0

    def interrupted(part: PartFile, key: str, record: dict[str, Any]) -> None:
        nonlocal count
        add(part, key, record)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "add", interrupted)
        cut = jamba(*command)
    assert cut.returncode == 130 and b"3 of 12 requests answered; the same command continues" in cut.stderr
    assert b"3 of 12 requests were answered before" in run(*command).stderr
    assert len(answers(tmp_path / "out.jsonl")) == 12
