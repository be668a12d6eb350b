"""``--chat-template FILE`` and ``--system @FILE``: what the files may be and change, and models with a broken template."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from jambacli import Jamba
from jambacli.errors import BadFileError
from tests.support.cli_runner import Done, jamba
from tests.support.small_models import TEMPLATE, small_file

#: Another template, with letters outside ASCII and without documents.
OTHER = (
    "{%- for m in messages -%}{{- '<|im_start|>Fürst ' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>Fürst assistant\n' }}{%- endif -%}"
)
BROKEN = "{% for m in messages %}{{ m.content }}"
FAILING = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("own"), "q8_0"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same weights with the other template in their file."""
    return str(small_file(tmp_path_factory.mktemp("other"), "q8_0", template=OTHER))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("broken"), "q8_0", template=BROKEN))


def run(model: str, *options: str, prompt: str = "How many herons?") -> Done:
    return jamba("run", model, prompt, "--temp", "0", "-n", "6", "--json", "--no-store", *options)


def line(done: Done) -> str:
    """The one line of an error."""
    (said,) = done.stderr.decode().splitlines()
    return said


@pytest.mark.parametrize(
    "encoded",
    [
        OTHER.encode(),
        codecs.BOM_UTF8 + OTHER.encode(),
        OTHER.replace("\n", "\r\n").encode().replace(b"'\r\n", b"'\\n"),
        codecs.BOM_UTF16_LE + OTHER.encode("utf-16-le"),
        OTHER.encode("latin-1"),
        json.dumps({"chat_template": OTHER}).encode(),
        json.dumps(
            {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OTHER}]}
        ).encode(),
    ],
    ids=["utf-8", "bom", "crlf", "utf-16", "latin-1", "json", "json-named"],
)
def test_a_template_of_a_file_is_as_good_as_the_models_own(
    model: str, other_model: str, tmp_path: Path, encoded: bytes
) -> None:
    file = tmp_path / "my template.jinja"
    file.write_bytes(encoded)
    with_file, own = run(model, "--chat-template", str(file)), run(other_model)
    given, expected = json.loads(with_file.stdout), json.loads(own.stdout)
    assert (given["text"], given["prompt_tokens"]) == (expected["text"], expected["prompt_tokens"])
    assert json.loads(run(model).stdout)["prompt_tokens"] != expected["prompt_tokens"]
    assert (b"it is not UTF-8" in with_file.stderr) == (encoded == OTHER.encode("latin-1"))


def test_python_takes_a_path_or_the_template_itself(model: str, other_model: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(OTHER, encoding="utf-8")
    expected = Jamba.load(other_model).session(store=False).conversation
    expected.add_user("Who?")
    for given in (file, str(file), OTHER):
        loaded = Jamba.load(model, chat_template=given)
        conversation = loaded.session(store=False).conversation
        conversation.add_user("Who?")
        assert conversation.render().ids == expected.render().ids and loaded.chat_template == OTHER
    assert Jamba.load(model).chat_template is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b"\x7fELF\x00\x01", "is a program"),
        (bytes(range(256)) * 8, "is binary"),
        (b"Answer briefly.", "is not a chat template: it does not read the variable `messages`"),
        (b'{"model": 1}', 'has no text "chat_template"'),
        (BROKEN.encode(), "does not parse: Unexpected end of template"),
        (b"{{ messages " + b"x" * (1 << 20), "characters long"),
    ],
)
def test_a_file_that_is_no_template_is_refused_in_one_line(
    model: str, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_bytes(content)
    done = run(model, "--chat-template", str(file))
    assert done.returncode == 1 and words in line(done) and str(file) in line(done)
    assert run(model, "--chat-template", str(tmp_path)).returncode == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{% for m in messages %}{% for i in range(99999999) %}x{% endfor %}{% endfor %}",
            "fails on this conversation",
        ),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails on this conversation"),
        (FAILING, "fails on this conversation"),
        ("{{ raise_exception('no ' ~ messages|length) }}", "the chat template refuses this conversation: no 1"),
    ],
)
def test_a_hostile_template_is_held_as_the_models_own(model: str, tmp_path: Path, source: str, words: str) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(source, encoding="utf-8")
    done = run(model, "--chat-template", str(file))
    assert done.returncode in (1, 2) and words in line(done)


def test_a_session_goes_on_with_the_template_that_it_was_made_with(model: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(OTHER, encoding="utf-8")
    chat = ("chat", model, "--temp", "0", "-n", "4", "--stats", "--session", "s")

    def figures(done: Done) -> tuple[int, int]:
        words = done.stderr.decode().split("stats: prompt ")[1].split()
        return int(words[0]), int(words[2])

    first = jamba(*chat, "--chat-template", str(file), stdin=b"How many herons were counted at the lake?\n")
    file.unlink()  # the session has it
    second = jamba(*chat, stdin=b"Who?\n")
    assert b"session s goes on with the chat template that it was made with" in second.stderr
    assert figures(second)[1] >= figures(first)[0] and b"read again" not in second.stderr
    file.write_text(TEMPLATE.replace("im_start|>", "im_start|>The "), encoding="utf-8")
    third = jamba(*chat, "--chat-template", str(file), stdin=b"And?\n")
    assert (
        b"session s was made with another chat template: what this one renders otherwise is read again" in third.stderr
    )
    assert third.returncode == 0 and figures(third)[1] < 30
    fourth = jamba(*chat, stdin=b"Really?\n")
    assert figures(fourth)[1] >= figures(third)[0]


def test_loading_a_session_of_another_template_says_so(model: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(OTHER, encoding="utf-8")
    jamba("chat", model, "-n", "2", "--session", "a", "--chat-template", str(file), stdin=b"Who?\n")
    done = jamba("chat", model, "-n", "2", "--session", "b", stdin=b"/load a\n")
    assert b"session a was made with another chat template" in done.stderr
    assert b"another chat template" not in jamba("chat", model, "--session", "b", stdin=b"Hi.\n/stats\n").stderr


def test_a_broken_template_leaves_raw_and_another_template(broken: str, model: str, tmp_path: Path) -> None:
    refused = run(broken)
    assert refused.returncode == 1 and line(refused) == (
        "error: small q8_0: the chat template does not parse: Unexpected end of template. Jinja was looking for the "
        "following tags: 'endfor' or 'else'. The innermost block that needs to be closed is 'for'.; give one that works "
        "with --chat-template, or continue plain text with --raw"
    )
    assert json.loads(run(broken, "--raw").stdout)["text"] == json.loads(run(model, "--raw").stdout)["text"]
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    assert json.loads(run(broken, "--chat-template", str(file)).stdout)["text"] == json.loads(run(model).stdout)["text"]
    document = tmp_path / "d.txt"
    document.write_text("Mira counted 42 herons.", encoding="utf-8")
    for command in (
        ("chat", broken),
        ("ask", str(document), "Who counted?", "--model", broken),
        ("summarize", str(document), "--model", broken),
    ):
        done = jamba(*command, "-n", "2", stdin=b"Hello.\n")
        assert done.returncode == 1 and done.stderr.decode().rstrip().endswith(
            "give one that works with --chat-template"
        )
        assert jamba(*command, "-n", "2", "--chat-template", str(file), stdin=b"Hello.\n").returncode == 0


def test_show_describes_a_broken_template_and_one_that_is_given(broken: str, model: str, tmp_path: Path) -> None:
    shown = jamba("show", broken)
    text = " ".join(shown.stdout.decode().split())
    assert shown.returncode == 0 and "does not parse" in text and "use --chat-template FILE" in text
    assert json.loads(jamba("show", broken, "--json").stdout)["template"]["problem"].startswith(
        "the chat template does not"
    )
    assert json.loads(jamba("show", model, "--json").stdout)["template"]["problem"] is None
    file = tmp_path / "t.jinja"
    file.write_text("{{ '<|bom|>' + messages[0].content }}{% if tools %}{% endif %}", encoding="utf-8")
    given = json.loads(jamba("show", broken, "--json", "--chat-template", str(file)).stdout)
    assert (
        given["template"] == {"family": "Jamba 1.5 to 1.7", "handles": ["tools"], "problem": None}
        and not given["notes"]
    )


def test_earlier_answers_of_a_batch_count_with_the_same_template_alone(model: str, tmp_path: Path) -> None:
    prompts, file = tmp_path / "p.txt", tmp_path / "t.jinja"
    prompts.write_text("Who?\n", encoding="utf-8")
    file.write_text(OTHER, encoding="utf-8")
    line = ("batch", str(prompts), "--model", model, "-n", "2", "-o", str(tmp_path / "out.jsonl"))
    keys = []
    for options in ((), ("--chat-template", str(file)), ("--no-think",)):
        from jambacli.batch.items import Keys, common_parts
        from jambacli.engine.options import GenerationOptions

        think = False if "--no-think" in options else None
        loaded = Jamba.load(model, chat_template=file if "--chat-template" in options else None)
        keys.append(Keys(*common_parts(loaded, GenerationOptions(think=think), 100, "f16")).key("Who?"))
        done = jamba(*line, *options, "--fresh")
        assert done.returncode == 0, done.stderr
    assert len(set(keys)) == 3


def test_raw_and_a_template_exclude_each_other(model: str, tmp_path: Path) -> None:
    for options in (("--chat-template", "x"), ("--think",)):
        done = run(model, "--raw", *options)
        assert done.returncode == 2 and line(done).startswith("error: --raw works without the chat template")


@pytest.mark.parametrize(
    "encoded",
    [b"Sei kurz, F\xc3\xbcrst.\n", codecs.BOM_UTF8 + "Sei kurz, Fürst.\r\n".encode(), "Sei kurz, Fürst.".encode("utf-16"),
     "Sei kurz, Fürst.".encode("latin-1")],
)  # fmt: skip
def test_a_system_message_of_a_file_is_that_text(model: str, tmp_path: Path, encoded: bytes) -> None:
    file = tmp_path / "a system.txt"
    file.write_bytes(encoded)
    given, typed = run(model, "--system", f"@{file}"), run(model, "--system", "Sei kurz, Fürst.")
    assert json.loads(given.stdout)["prompt_tokens"] == json.loads(typed.stdout)["prompt_tokens"]
    assert json.loads(given.stdout)["text"] == json.loads(typed.stdout)["text"]


def test_an_at_sign_twice_is_one_and_not_a_file(model: str) -> None:
    once, twice = run(model, "--system", " @x"), run(model, "--system", "@@x")
    assert json.loads(twice.stdout)["prompt_tokens"] <= json.loads(once.stdout)["prompt_tokens"]
    assert run(model, "--system", "Tell @x").returncode == 0


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("@no-such.txt", 1, "there is no file no-such.txt; a text that begins with @ is written @@"),
        ("@", 2, "--system needs the name of a file after the @"),
        ("@-", 2, "--system needs the name of a file after the @"),
        ("@EMPTY", 1, "is empty"),
        ("@BINARY", 1, "is binary, not text"),
        ("@.", 1, "is a directory"),
        ("@a\nb", 1, "there is no file a?b"),
    ],
)
def test_a_system_file_that_cannot_be_read_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").write_bytes(b"\n")
    (tmp_path / "BINARY").write_bytes(bytes(range(256)) * 8)
    for command in (("run", model, "Hi."), ("chat", model), ("batch", "EMPTY", "--model", model)):
        done = jamba(*command, "--system", given, "-n", "1")
        assert done.returncode == code and words in line(done)


def test_a_chat_takes_a_system_message_of_a_file(model: str, tmp_path: Path) -> None:
    file = tmp_path / "s.txt"
    file.write_text("Answer in verse.\n", encoding="utf-8")
    done = jamba("chat", model, "-n", "1", stdin=f"/system @{file}\n/system @@x\n/system @{tmp_path}/no\n".encode())
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "the system message is now: Answer in verse." and lines[1] == "the system message is now: @x"
    assert "there is no file" in lines[2] and done.returncode == 1


def test_a_broken_template_in_a_server_is_one_line_at_its_start(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    monkeypatch.setattr("jambacli.commands.serve._server", lambda *_: pytest.fail("it serves"))
    done = jamba("serve", broken, "--port", "0")
    assert done.returncode == 1 and line(done).endswith("give one that works with --chat-template")


def test_a_template_is_for_one_served_model(model: str, other_model: str, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    done = jamba("serve", model, other_model, "--port", "0", "--chat-template", str(tmp_path))
    assert done.returncode == 2 and line(done) == "error: --chat-template goes with one model, served alone"


def test_the_library_names_the_file(model: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(FAILING, encoding="utf-8")
    with Jamba.load(model, chat_template=file).session(store=False) as session, pytest.raises(BadFileError) as caught:
        session.send("Hi.")
    assert str(caught.value).startswith(f"{file}: the chat template fails") and "with chat_template" in str(
        caught.value
    )
