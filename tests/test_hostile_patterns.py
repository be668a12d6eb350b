"""Patterns that a file, a schema or a request brings (docs/robustness.md lists them): none takes long, whatever it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jambacli.documents.citations import Cited
from jambacli.documents.gitignore import Globs, Ignored
from jambacli.errors import JambaError
from jambacli.presets import Preset
from jambacli.session import library, session_file
from jambacli.text.streaming import StopMatcher
from jambacli.text.tokenizer import Tokenizer
from tests.support.small_models import small_model
from tests.support.vocabularies import byte_level_metadata

#: Seconds of a processor.
SECONDS = 5.0
#: Patterns of gitignore(5) that backtracking takes for ever for, each against ``NAME``.
NAME = "a" * 200
GLOBS = (
    "*a*a*a*a*a*a*a*a*a*a*a*ab",
    "a*" * 60 + "b",
    "*[a]" * 40 + "b",
    "?*" * 60 + "b",
    "*?*?*?*?*?*?*?*?*?*?*?*?*?b",
    "**/" * 300 + "*b",
    "**/a*" * 60 + "/b",
    "[a-z]*" * 50 + "[!a]",
    "\\a*" * 60 + "b",
    "[" * 2000 + "*" * 2000,
    "*" * 4000 + "b",
    "[[:alpha:]]*" * 60 + "[[:digit:]]",
)
#: Regular expressions that backtracking takes for ever for, or that are large automata.
REGEXES = (
    "(a+)+b",
    "(a|aa)+b",
    "(a|a)*b",
    "(.*)*x",
    "(a*)*(a*)*(a*)*b",
    "(a?){60}a{60}",
    "([a-z]+)*[0-9]",
    "(.*.*.*.*.*)=x",
    "(x+x+)+y",
    "(a|b|ab)*c",
    "a{1,5000}{1,5000}",
    "(.{0,3000}a.{0,3000})*",
    "[a-q][^u-z]{1000}x",
    "(\\\\p{L}{1,900}){1,900}",
)


def timed(work: Callable[[], object]) -> None:
    began = time.process_time()
    try:
        work()
    except JambaError as error:
        assert "\n" not in str(error).strip()
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("pattern", GLOBS)
def test_gitignore(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text(f"{pattern}\n" * 3)
    deep = Path(tmp_path, *["a"] * 50, NAME)

    def asked() -> None:
        ignored = Ignored(tmp_path)
        ignored.enter(tmp_path)
        for is_folder in (True, False):
            ignored(tmp_path / NAME, is_folder)
            ignored(deep, is_folder)

    timed(asked)


@pytest.mark.parametrize("pattern", GLOBS)
def test_include_and_exclude(pattern: str) -> None:
    globs = Globs([pattern, f"!{pattern}", f"{pattern}/"])
    timed(lambda: [globs(name) for name in (NAME, "a/" * 60 + NAME)])


@pytest.mark.parametrize("pattern", REGEXES)
def test_schemas(pattern: str) -> None:
    """``pattern`` and ``patternProperties`` of a JSON schema, of --schema, response_format and a tool's parameters."""
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string", "pattern": pattern}},
        "patternProperties": {pattern: {"type": "integer"}},
        "required": ["x"],
    }
    with small_model().session(store=False) as session:
        timed(lambda: "".join(session.send("Hello", max_tokens=12, schema=schema)))


@pytest.mark.parametrize(
    "stops",
    [
        ["a" * 50_000 + "b"],
        ["ab" * 20_000 + "a"],
        ["a" * n + "b" for n in range(1, 65)],
        ["a" * 2000 + str(n) for n in range(64)],
        ["a\0" * 9999],
        ["aa", "a" * 99_999],
        ["\ufffd" * 30_000],
        ["a" * 30_000 + "c" + "a" * 30_000],
        ["aab" * 9999],
        ["aaaaaaab"] * 64,
    ],
)
def test_stop_texts(stops: list[str]) -> None:
    text = "a" * 6000 + "c" + "ab" * 1000

    def matched() -> None:
        matcher = StopMatcher(stops)
        for at in range(0, len(text), 4):
            matcher.push(text[at : at + 4])
        matcher.flush()

    timed(matched)


@pytest.mark.parametrize(
    "pieces",
    [
        ["a" * n for n in range(2, 2000)],
        ["a" * n + "b" for n in range(200)],
        ["<" + "a" * n + ">" for n in range(1, 2000)],
        ["<" + "a" * 200_000 + ">"],
        [f"[{n}]" for n in range(3000)],
        ["(a+)+b", ".*.*.*x", "[a", "a{9,}"],
        ["<" * n for n in range(1, 150)],
        ["\n" * n for n in range(1, 200)],
        ["a" * 30_000],
        [chr(0x4E00 + n) for n in range(9000)],
    ],
)
def test_markers_of_a_vocabulary(pieces: list[str]) -> None:
    metadata = dict(byte_level_metadata(["hello"])[0])
    tokens = list(metadata["tokenizer.ggml.tokens"])
    new = [piece for piece in pieces if piece not in tokens]
    metadata["tokenizer.ggml.tokens"] = tokens + new
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[4] * len(new)]
    text = "a" * 5000 + "<" + "a" * 5000 + "ab" * 1000 + "[17]" * 500 + "\n" * 5000

    def found() -> None:
        pattern = Tokenizer(metadata, "hostile.gguf").marker_pattern("all")
        assert pattern is not None
        for _ in pattern.finditer(text):
            pass

    timed(found)


@pytest.mark.parametrize(
    "said",
    ["1" * 40_000 + ".5", "1." * 20_000, "-" * 40_000, "1 " * 20_000, "and " * 10_000, "[" * 40_000, "document" * 5000,
     "1.1" * 9000 + "x", " " * 40_000, "ids1and" * 5000],
)  # fmt: skip
def test_citations(said: str) -> None:
    def read() -> None:
        cited = Cited()
        text = f"The herons.<citations>{said}</citations>"
        list(cited.answer(text[at : at + 4] for at in range(0, len(text), 4)))
        cited.unknown([])

    timed(read)


@pytest.mark.parametrize(
    "query", ["(a+)+b", ".*" * 200, "[", "\\", "a" * 5000, "a " * 500, "*", "?" * 500, "\0", "(" * 500, "a|b" * 900]
)
def test_searches_in_sessions(query: str) -> None:
    folder = session_file.sessions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    turns = [{"role": "user", "content": "a" * 20_000}]
    saved = session_file.SavedSession("long", "m", "/m.gguf", "f" * 24, "f16", 512, 1.7e9, 1.7e9, turns=turns)
    session_file.write(saved)
    timed(lambda: list(library.search(query)))


@pytest.mark.parametrize("part", ["Credential=", "Credential=a", "Credential=a/", "Credential=,", "=", "/", " ", "Credential",
                                  "Credential=\0/", "Credential=Credential=/"])  # fmt: skip
def test_keys_in_headers(part: str) -> None:
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from jambacli.server.errors import ApiError
    from jambacli.server.http import Access

    access = Access(key="secret")
    value = "AWS4-HMAC-SHA256 " + part * (60_000 // len(part))

    def checked() -> None:
        with pytest.raises(ApiError):
            access._check_key({"authorization": value})
        access._check_key({"authorization": "AWS4-HMAC-SHA256 Credential=secret/2026/x, SignedHeaders=host"})

    timed(checked)


@pytest.mark.parametrize(
    "part",
    ["{{ a = ", "{{a=\n", "{{", "{{ ", "{{a", "{{a=x ", "{{ a = \n}", "{{a={", "{{a-", "{{a=b}}", "{{a=\n}}", " "],
)
def test_variables_of_a_preset(part: str) -> None:
    system = "{{ b = c" + part * (200_000 // len(part))
    preset = Preset("p", Path("p.toml"), system=system)
    timed(lambda: preset.filled(dict.fromkeys(preset.variables, "x")))
