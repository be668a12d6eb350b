"""Citations from the reply to the screen: what a model is made to say comes out as files and pages, in every form."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli_runner import Done, jamba
from tests.support.document_files import pdf_bytes

Says = Callable[[str], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for these tests: the documents are read once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def same_home(own_home: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAMBA_HOME", str(home))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Makes the demo model say a text, token by token, markup as markup, within what a schema allows."""
    from jambacli.api import Jamba
    from jambacli.engine.sampling import Sampler
    from jambacli.hub.demo import demo_model_path

    tokenizer = Jamba.load(demo_model_path()).tokenizer

    def script(text: str) -> None:
        ids = [*tokenizer.encode(text, markers="all"), min(tokenizer.stop_ids)]
        place: weakref.WeakKeyDictionary[Sampler, int] = weakref.WeakKeyDictionary()

        def sample(sampler: Sampler, logits: np.ndarray) -> int:
            at = place.get(sampler, 0)
            place[sampler] = at + 1
            token = ids[min(at, len(ids) - 1)]
            if sampler.constraint is not None:
                allowed = sampler.constraint.allowed()
                assert allowed is None or allowed[token], (
                    f"{tokenizer.pieces[token]!r} is not allowed after {at} tokens"
                )
                assert sampler.constraint.accept(token) == token
            return token

        monkeypatch.setattr(Sampler, "sample", sample)

    return script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.txt, then b.pdf of 230 pages of which page 4 is a scan: 230 documents."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("Mira counted 7 herons.", encoding="utf-8")
    pages = [f"Page {i}." if i != 4 else "" for i in range(1, 231)]
    (folder / "b.pdf").write_bytes(pdf_bytes(pages))
    return folder


def ask(folder: Path, *options: str, code: int = 0) -> Done:
    done = jamba("ask", str(folder), "Who?", "--citations", *options)
    assert done.returncode == code, done.stderr.decode()
    return done


@pytest.mark.parametrize(
    ("section", "places"),
    [
        ("[0]", ["a.txt"]),
        ("[1]", ["b.pdf, page 1"]),
        ("[4, 3, 4]", ["b.pdf, page 5", "b.pdf, page 3"]),
        ("[229, 200]", ["b.pdf, page 230", "b.pdf, page 201"]),
        ("[b.pdf, page 12]", ["b.pdf, page 12"]),
    ],
)
def test_numbers_become_files_and_pages(folder: Path, says: Says, section: str, places: list[str]) -> None:
    says(f" Mira did.<citations>{section}</citations>")
    done = ask(folder)
    lines = "".join(f"- {folder}/{place}\n" for place in places)
    assert done.stdout.decode() == f"Mira did.\n\nSources:\n{lines}"
    assert b"do not exist" not in done.stderr and b"named no" not in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Mira did.", b"cited no documents"),
        ("Mira did.<citations>[]</citations>", b"no document that supports"),
        ("Mira did.<citations>[230, 9999999]</citations>", b"warning: the model cites documents that do not exist"),
        ("Mira did.<citations>the report</citations>", b"no document that supports"),
    ],
)
def test_citations_of_nothing_are_said_on_stderr_alone(folder: Path, says: Says, text: str, told: bytes) -> None:
    says(text)
    done = ask(folder)
    assert done.stdout == b"Mira did.\n" and told in done.stderr


def test_json_carries_answer_and_places(folder: Path, says: Says) -> None:
    says("Mira did. <citations>[5, 0]</citations>")
    value = json.loads(ask(folder, "--json").stdout)
    assert value["answer"] == "Mira did."
    assert value["citations"] == [{"file": f"{folder}/b.pdf", "page": 6}, {"file": f"{folder}/a.txt"}]


def test_a_schema_keeps_its_document_clean_of_the_citations(folder: Path, says: Says, tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}))
    says('{"who": "Mira"}<citations>[229, 0]</citations>')
    places = f"Sources:\n- {folder}/b.pdf, page 230\n- {folder}/a.txt\n"
    done = ask(folder, "--schema", str(schema))
    assert done.stdout == b'{"who": "Mira"}\n' and places in done.stderr.decode()
    out = tmp_path / "out.json"
    done = ask(folder, "--schema", str(schema), "-o", str(out))
    assert done.stdout == b"" and out.read_text() == '{"who": "Mira"}\n' and places in done.stderr.decode()
    value = json.loads(ask(folder, "--schema", str(schema), "--json").stdout)
    assert value["answer"] == {"who": "Mira"} and value["citations"][0] == {"file": f"{folder}/b.pdf", "page": 230}


def test_passes_lead_back_to_pages_too(folder: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of every part its second page; of the parts' answers the second. A file's name is part of what is read: a relative
    # one gives the same parts wherever the test runs.
    says("Mira did.<citations>[1]</citations>")
    (folder / "a.txt").unlink()
    monkeypatch.chdir(folder.parent)
    value = json.loads(ask(Path(folder.name), "--json", "--passes", "--ctx", "1200").stdout)
    assert value["passes"] > 4 and len(value["citations"]) == 1
    assert value["citations"][0]["file"].endswith("b.pdf") and value["citations"][0]["page"] > 20


def test_the_answer_goes_where_it_is_sent(folder: Path, says: Says, tmp_path: Path) -> None:
    says("Mira did.<citations>[0]</citations>")
    expected = f"Mira did.\n\nSources:\n- {folder}/a.txt\n".encode()
    assert ask(folder, "-o", "-").stdout == expected
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.touch()
    link.symlink_to(target)
    ask(folder, "-o", str(link))
    assert link.is_symlink() and target.read_bytes() == expected
    ask(folder, "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()
    assert b"is a directory" in ask(folder, "-o", str(tmp_path), code=1).stderr


def test_a_chat_about_files_names_the_places_under_each_reply(folder: Path, says: Says) -> None:
    says(" Mira did.<citations>[5]</citations>")
    lines = b"And who?\n/regenerate\n/undo\n/undo\nAgain?\n"
    done = jamba("ask", str(folder), "Who?", "-i", "--citations", stdin=lines)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"Mira did.\n\nSources:\n- {folder}/b.pdf, page 6\n" * 4
    says("Nobody did.")
    done = jamba("ask", str(folder), "Who?", "-i", "--citations", stdin=b"And who?\n")
    assert done.stdout == b"Nobody did.\n" * 2 and done.stderr.count(b"the model cited no documents") == 2


def test_citations_in_a_chat_mean_the_documents_given_last(folder: Path, says: Says) -> None:
    says("Yes.<citations>[0]</citations>")
    lines = f"/file {folder / 'a.txt'}\nWho?\n/file {folder / 'b.pdf'}\nWhere?\n".encode()
    done = jamba("chat", stdin=lines)
    assert done.stdout.decode() == (f"Yes.\n\nSources:\n- {folder}/a.txt\nYes.\n\nSources:\n- {folder}/b.pdf, page 1\n")
