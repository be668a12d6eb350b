"""``jamba ask`` and ``jamba summarize``: read once, streams and files, passes, sources, JSON by a schema, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tests.support.cli_runner import Done, jamba
from tests.support.document_files import pdf_bytes
from tests.support.small_models import small_file

GREEDY = ("--temp", "0", "-n", "6", "--stats")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "f32"))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    folder.mkdir()
    for i in range(1, 4):
        (folder / f"r{i}.txt").write_text(
            f"On day {i} Mira counted {40 + i} herons at the lake.\n" * 20, encoding="utf-8"
        )
    return folder


def run(*arguments: str, stdin: bytes | None = None) -> Done:
    done = jamba(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done


def figures(done: Done) -> dict[str, int]:
    """What --stats says of the document and the prompt."""
    err = done.stderr.decode()
    document = re.search(r"document ([\d,]+) tokens, ([\d,]+) of them read now", err)
    prefill = re.search(r"prefill +([\d,]+) tokens", err)
    assert document and prefill, err
    numbers = [int(n.replace(",", "")) for n in (*document.groups(), prefill[1])]
    return dict(zip(("document", "document_read", "read"), numbers, strict=True))


def test_a_second_question_reads_only_itself(model: str, reports: Path) -> None:
    first = figures(run("ask", str(reports), "Who counted the herons?", "-m", model, *GREEDY))
    assert first["document_read"] == first["document"] > 500
    second = figures(run("ask", str(reports), "And how many?", "-m", model, *GREEDY))
    assert second["document_read"] == 0 and second["read"] < 80
    with_citations = figures(run("ask", str(reports), "And how many?", "-m", model, "--citations", *GREEDY))
    assert with_citations["document_read"] == 0
    summary = figures(run("summarize", str(reports), "-m", model, *GREEDY))
    assert summary["document_read"] == 0


def test_documents_in_another_order_or_with_more_after_them_share_what_was_read(model: str, reports: Path) -> None:
    a, b, c = (str(reports / f"r{i}.txt") for i in (1, 2, 3))
    first = figures(run("ask", a, b, "Who?", "-m", model, *GREEDY))
    turned = figures(run("ask", b, a, "How many?", "-m", model, *GREEDY))
    assert turned["document_read"] == 0
    more = figures(run("ask", a, b, c, "Who?", "-m", model, *GREEDY))
    assert more["document_read"] < more["document"] - first["document"] // 2


def test_no_store_keeps_nothing(model: str, reports: Path, own_home: Path) -> None:
    for _ in range(2):
        done = figures(run("ask", str(reports), "Who?", "-m", model, "--no-store", *GREEDY))
        assert done["document_read"] == done["document"]
    assert not any((own_home / "prefixes" / "blobs").rglob("*")) if (own_home / "prefixes").exists() else True


def test_cleared_documents_are_read_again(model: str, tmp_path: Path) -> None:
    path = tmp_path / "r.pdf"
    path.write_bytes(pdf_bytes([f"On page {i} are {i} herons. " * 5 for i in range(1, 8)]))
    run("ask", str(path), "Who?", "-m", model, *GREEDY)
    run("cache", "clear", "--document", str(path))
    again = figures(run("ask", str(path), "Who?", "-m", model, *GREEDY))
    assert again["document_read"] == again["document"]


def test_texts_and_questions_come_from_pipes_too(model: str, reports: Path) -> None:
    text = (reports / "r1.txt").read_bytes()
    by_dash = run("ask", "-", "Who?", "-m", model, *GREEDY, stdin=text)
    by_pipe = run("ask", "Who?", "-m", model, *GREEDY, stdin=text)
    assert by_dash.stdout == by_pipe.stdout and figures(by_pipe)["document_read"] == 0
    asked = run("ask", str(reports / "r1.txt"), "-m", model, *GREEDY, stdin=b"Who?\n")
    assert figures(asked)["document"] > 100
    assert figures(run("summarize", "-m", model, *GREEDY, stdin=text))["document"] == figures(by_dash)["document"]


def test_the_answer_alone_goes_to_stdout_or_to_a_file(model: str, reports: Path, tmp_path: Path) -> None:
    loud = run("ask", str(reports), "Who?", "-m", model, "--temp", "0", "-n", "6")
    quiet = jamba("ask", str(reports), "Who?", "-m", model, "--temp", "0", "-n", "6", "--quiet")
    assert quiet.stdout == loud.stdout and quiet.stderr == b"" and b"tokens" in loud.stderr
    out = tmp_path / "answer.txt"
    to_file = run("ask", str(reports), "Who?", "-m", model, "--temp", "0", "-n", "6", "-o", str(out))
    assert to_file.stdout == b"" and out.read_bytes().strip() == loud.stdout.strip()
    source = str(reports / "r1.txt")
    assert jamba("ask", source, "Who?", "-m", model, "-o", source).returncode == 2
    assert b"does not exist" in jamba("ask", source, "Who?", "-m", model, "-o", f"{tmp_path}/no/x").stderr


def test_json_holds_text_sources_and_figures(model: str, reports: Path) -> None:
    value = json.loads(run("ask", str(reports), "Who?", "-m", model, "-n", "6", "--json", "--citations").stdout)
    assert {"answer", "citations", "document_tokens", "finish", "passes"} <= set(value) and value["passes"] == 1
    assert "summary" in json.loads(run("summarize", str(reports), "-m", model, "-n", "6", "--json").stdout)


def test_schema_output_is_a_document_of_the_schema(model: str, reports: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"who": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
        "required": ["who", "count"],
    }
    path = tmp_path / "s.json"
    path.write_text(json.dumps(schema), encoding="utf-8")
    command = ("ask", str(reports), "Who?", "-m", model, "--temp", "1.5", "--schema", str(path))
    for extra in ((), ("--citations",), ("-n", "40")):
        jsonschema.validate(json.loads(run(*command, *extra).stdout), schema)
    envelope = json.loads(run(*command, "--json", "--citations").stdout)
    jsonschema.validate(envelope["answer"], schema)
    assert isinstance(envelope["citations"], list) and envelope["finish"] == "stop"
    path.write_text('{"type": "nonsense"}', encoding="utf-8")
    refused = jamba("ask", str(reports), "Who?", "-m", model, "--schema", str(path))
    assert refused.returncode == 2 and b"schema" in refused.stderr and b"read " not in refused.stderr
    path.write_text("[1, ", encoding="utf-8")
    assert jamba("ask", str(reports), "Who?", "-m", model, "--schema", str(path)).returncode == 1


def test_no_larger_context_is_advised_than_the_model_takes(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("herons " * 20_000, encoding="utf-8")
    refused = jamba("ask", str(tmp_path / "long.txt"), "Who?", "-m", "jamba:tiny")
    assert refused.returncode == 1 and b"16,384" in refused.stderr and b"leave out documents, or use" in refused.stderr


@pytest.mark.parametrize("command", [("ask", "FILE", "Who?"), ("summarize", "FILE")])
def test_a_model_that_is_not_there_is_said_before_documents_are_opened(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "damaged.pdf").write_bytes(b"%PDF-1.4 damaged")
    words = [str(tmp_path / "damaged.pdf") if word == "FILE" else word for word in command]
    refused = jamba(*words, "-m", "jamba:nosuch")
    assert refused.returncode == 1 and b"unknown model 'jamba:nosuch'" in refused.stderr


def test_what_does_not_fit_is_said_and_passes_are_offered(model: str, reports: Path) -> None:
    refused = jamba("ask", str(reports), "Who?", "-m", model, "--ctx", "600")
    line = refused.stderr.decode().strip().split("\n")[-1]
    assert refused.returncode == 1 and "--passes" in line and "600" in line and "r" in line
    assert "raise --ctx (the model takes up to 262,144)" in line
    done = run("ask", str(reports), "Who?", "-m", model, "--ctx", "600", "--passes", "-n", "8", "--json")
    assert json.loads(done.stdout)["passes"] >= 3 and b"pass 2 of" in done.stderr


def test_an_interrupted_summary_of_many_files_goes_on_without_reading_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.documents import passes

    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(500):
        (folder / f"{i}.txt").write_text(f"Report {i}: {i} herons at the lake on day {i}.\n", encoding="utf-8")
    command = ["summarize", str(folder), "-m", model, "--ctx", "2400", "--temp", "0", "-n", "8", "--json"]
    whole, read = Reading(monkeypatch), "passes"
    kept = passes.ReplyCache.put
    written = []

    def put(self: passes.ReplyCache, *arguments: object, **more: object) -> None:
        kept(self, *arguments, **more)  # type: ignore[arg-type]
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(passes.ReplyCache, "put", put)
    cut = jamba(*command)
    assert cut.returncode == 130 and cut.stdout == b"" and b"the same command continues" in cut.stderr
    before = whole.tokens
    monkeypatch.setattr(passes.ReplyCache, "put", kept)
    done = run(*command)
    err = done.stderr.decode()
    assert err.count("reusing the stored reply") == 3
    total = sum(int(n.replace(",", "")) for n in re.findall(r"pass \d+ of \d+: .*?, ([\d,]+) tokens", err))
    assert whole.tokens - before <= total + 2400  # the passes that were left, and the last one
    value = json.loads(done.stdout)
    assert value[read] > 4 and value["summary"] == json.loads(run(*command).stdout)["summary"]


class Reading:
    """Counts the tokens that are read from here on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from jambacli.engine.sequence import TokenSequence

        self.tokens = 0
        prefilled = TokenSequence.prefilled

        def counted(sequence: TokenSequence, ids: list[int], stop: int, *rest: object) -> None:
            self.tokens += stop - len(sequence.tokens)
            prefilled(sequence, ids, stop, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(TokenSequence, "prefilled", counted)


def test_an_interrupted_reading_goes_on_where_it_stopped(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.model.jamba import JambaModel

    path = tmp_path / "long.txt"
    path.write_text("".join(f"Line {i}: {i * i} herons came to the lake.\n" for i in range(900)), encoding="utf-8")
    forward, calls = JambaModel.forward, []

    def slow(self: JambaModel, ids: object, *arguments: object, **more: object) -> object:
        calls.append(ids)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return forward(self, ids, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(JambaModel, "forward", slow)
        assert jamba("ask", str(path), "Who?", "-m", model, "-n", "2").returncode == 130
    after = figures(run("ask", str(path), "Who?", "-m", model, *GREEDY))
    assert after["document"] > 9000 and after["document"] - after["document_read"] > 4000


def test_questions_go_on_in_the_chat(model: str, reports: Path) -> None:
    done = run("ask", str(reports), "Who?", "-i", "-m", model, *GREEDY, stdin=b"And how many?\n/undo\n")
    err = done.stderr.decode()
    first, second = [tuple(map(int, m)) for m in re.findall(r"prompt (\d+) reused (\d+) prefilled (\d+)", err)]
    assert first[2] > 500 and second[1] > 500 and second[2] < 80 and "undone" in err
    later = run("ask", str(reports), "-i", "-m", model, *GREEDY, stdin=b"Who?\n")
    assert int(re.findall(r"prefilled (\d+)", later.stderr.decode())[0]) < 80


def test_a_chat_about_files_keeps_them_and_its_language(model: str, reports: Path) -> None:
    """Taken back, started over or edited: the documents are there, read no second time, and the language is asked for."""
    lines = b"Who?\n/undo\nHow many?\n/clear\nAnd when?\n/edit Where?\nWhy?\n"
    done = run("ask", str(reports), "-i", "--language", "Dutch", "-m", model, *GREEDY, stdin=lines)
    stats = [tuple(map(int, m)) for m in re.findall(r"prompt (\d+) reused (\d+) prefilled (\d+)", done.stderr.decode())]
    assert len(stats) == 5 and stats[0][2] > 500
    assert all(prompt > 500 and read < 80 for prompt, _, read in stats[1:])
    (session,) = json.loads(jamba("sessions", "list", "--json").stdout)
    turns = json.loads(jamba("sessions", "show", session["name"], "--json").stdout)["turns"]
    assert [t["content"] for t in turns if t["role"] == "user"] == [f"{w}?\nWrite in Dutch." for w in ("Where", "Why")]


def test_mistakes_are_one_line_with_what_to_do(model: str, reports: Path, tmp_path: Path) -> None:
    one = str(reports / "r1.txt")
    empty = tmp_path / "empty.txt"
    empty.touch()
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("ask", one), 2, "question"),
        (("ask",), 2, "question"),
        (("ask", "Who?"), 2, "files"),
        (("ask", one, " "), 2, "empty"),
        (("ask", "", "Who?"), 2, "name is empty"),
        (("ask", str(tmp_path / "none.pdf"), "Who?"), 1, "no file"),
        (("ask", str(empty), "Who?"), 1, "is empty"),
        (("ask", "https://example.com/a.pdf", "Who?"), 2, "download"),
        (("ask", one, "Who?", "-i", "--json"), 2, "-i"),
        (("ask", one, "Who?", "--citations", "--schema", "x.json"), 1, "x.json"),
        (("summarize",), 2, "nothing to summarize"),
        (("summarize", one, "--style", "haiku"), 2, "bullets"),
        (("summarize", one, "--length", "-3"), 2, "--length"),
        (("summarize", one, "--length", "endless"), 2, "short, medium, long"),
        (("summarize", one, "--ctx", "40"), 1, "--ctx"),
    ]
    for arguments, code, says in cases:
        done = jamba(*arguments, *(("-m", model) if len(arguments) > 1 else ()))
        lines = [line for line in done.stderr.decode().strip().split("\n") if line.startswith("error:")]
        assert done.returncode == code and len(lines) == 1 and says in lines[0], (arguments, done)


def test_many_files_that_cannot_be_read_are_not_all_named(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_bytes(b"\x00\x01" * 100)
    (folder / "r.txt").write_text("42 herons.", encoding="utf-8")
    err = run("ask", str(folder), "How many?", "-m", model, "-n", "2").stderr.decode()
    assert err.count("is binary") == 20 and "warning: 40 more files could not be read" in err


def test_what_interrupts_an_answer_leaves_an_older_file_alone(
    model: str, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.engine.sampling import Sampler

    out, schema = tmp_path / "out.json", tmp_path / "s.json"
    out.write_text("older")
    schema.write_text('{"type": "string", "minLength": 30, "maxLength": 40}')
    sample, drawn = Sampler.sample, []

    def interrupted(self: Sampler, logits: object) -> int:
        drawn.append(1)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return sample(self, logits)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "sample", interrupted)
    done = jamba("ask", str(reports), "Who?", "-m", model, "--schema", str(schema), "-o", str(out))
    assert done.returncode == 130 and out.read_text() == "older" and b"nothing was written" in done.stderr
    assert b"interrupted" in done.stderr.splitlines()[-1]
    drawn.clear()
    done = jamba("ask", str(reports), "Who?", "-m", model, "--schema", str(schema))
    assert done.returncode == 130 and done.stdout == b""


def test_where_nothing_can_be_kept_documents_are_answered_all_the_same(
    model: str, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "file" / "home"))
    for command in (("ask", str(reports), "How many?"), ("summarize", str(reports))):
        done = run(*command, "-m", model, *GREEDY)
        assert done.stderr.count(b"nothing will be stored on disk") == 1
