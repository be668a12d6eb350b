"""The process for chat templates: hostile templates end in one line, interrupts are obeyed, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from jambacli.errors import JambaError, UsageError
from jambacli.text import template_process
from jambacli.text.template import ChatTemplate, TemplateError
from jambacli.text.template_process import shared
from jambacli.text.tokenizer import Tokenizer
from tests.support.repository import REPO
from tests.support.template_bombs import bombs
from tests.support.vocabularies import byte_level_metadata

BOMBS = dict(bombs())
ENDLESS = BOMBS["tuples: equal"]
MESSAGES = [{"role": "user", "content": "Hi"}]
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"
# A program that renders a template with the text ECHO or ENDLESS.
PROGRAM = """
import os, sys
from jambacli.text.template import ChatTemplate
from jambacli.text.template_process import shared
from jambacli.text.tokenizer import Tokenizer
from tests.support.vocabularies import byte_level_metadata
from tests.text.test_template_process import ECHO, ENDLESS, MESSAGES
tokenizer = Tokenizer(byte_level_metadata(["hello"])[0])
"""
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, Tokenizer(byte_level_metadata(["hello"])[0]), "evil.gguf")


def running(*arguments: str, program: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments, "-c", PROGRAM + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        **options,
    )


def own_child() -> int:
    child = shared()._child
    assert child is not None
    return child._process.pid


def ends(process: int) -> bool:
    """Whether the process of that number ends, soon or at all."""
    for _ in range(600):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """The most memory that the processes for templates had together, in bytes."""
    most, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.02):
            total = 0
            for child in me.children(recursive=True):
                try:
                    if any("template_worker" in word for word in child.cmdline()):
                        total += child.memory_info().rss
                except psutil.Error:
                    continue
            most[0] = max(most[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: most[0]
    done.set()
    thread.join()


def burst(names: list[str], peak: Callable[[], int]) -> None:
    for name in names:
        try:
            template(BOMBS[name]).render(MESSAGES)
        except JambaError as error:
            assert str(error).startswith(("evil.gguf: the chat template", "the chat template refuses")), name
            assert "\n" not in str(error) and len(str(error)) < 1500, name
    assert peak() < 500 << 20


@posix
def test_hostile_templates_are_refused_or_finish(peak: Callable[[], int]) -> None:
    burst(["tuples: key", "int: n.a // 7", "width", "constants", "text: n.a.translate({97: n.a})", "texts kept"], peak)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_every_bomb_is_refused_or_finishes(part: int, peak: Callable[[], int]) -> None:
    assert len(BOMBS) >= 127
    burst(list(BOMBS)[part::12], peak)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ENDLESS, "it takes more than 2 seconds"),
        ("{{ 'x'.center(9 ** 9) }}", "it takes more than 256 MB of memory"),
        ("{% for i in range(99999) %}{{ 'xxxxxxxxxx' }}{% endfor %}", "it produces more than 26"),
        ("{% include 'x' %}", "no loader for this environment specified"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__' of 'list' object is unsafe"),
    ],
)
@posix
def test_the_reason_is_named(source: str, reason: str) -> None:
    hostile = template(source)
    with pytest.raises(TemplateError, match=rf"^evil\.gguf: the chat template fails on this conversation: {reason}"):
        hostile.render(MESSAGES)
    assert template(ECHO).render(MESSAGES) == "Hi"


def test_a_template_that_hangs_when_it_is_compiled_is_named() -> None:
    with pytest.raises(
        TemplateError, match=r"^evil\.gguf: the chat template does not parse: it takes more than 2 seconds"
    ):
        template(BOMBS["negative power"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@posix
def test_an_interrupt_ends_a_rendering_and_its_process(number: signal.Signals) -> None:
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
t = ChatTemplate(ENDLESS, tokenizer)
print(shared()._child._process.pid, flush=True)
try:
    t.render(MESSAGES)
except KeyboardInterrupt:
    assert ChatTemplate(ECHO, tokenizer).render(MESSAGES) == "Hi"  # a chat goes on
    sys.exit(130)
"""
    process = running(program=program)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), errors
    assert ends(child)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_the_process_ends_with_its_parent_and_is_not_reached_by_the_terminal() -> None:
    program = (
        "t = ChatTemplate(ENDLESS, tokenizer)\nprint(shared()._child._process.pid, flush=True)\nt.render(MESSAGES)"
    )
    process = running(program=program)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert os.getpgid(child) != os.getpgid(process.pid)
    os.kill(child, signal.SIGINT)
    assert psutil.pid_exists(child)
    process.kill()
    process.communicate()
    assert ends(child)


@posix
def test_nothing_is_left_at_the_end() -> None:
    program = "print(ChatTemplate(ECHO, tokenizer).render(MESSAGES), shared()._child._process.pid)"
    process = running("-X", "dev", "-W", "error", program=program)
    output, errors = process.communicate(timeout=120)
    text, child = output.split()
    assert (text, errors, process.returncode) == ("Hi", "", 0)
    assert not psutil.pid_exists(int(child))


@posix
def test_a_killed_process_is_replaced() -> None:
    echo = template(ECHO)
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = own_child()
        os.kill(before, number)
        assert echo.render(MESSAGES) == "Hi"
        assert own_child() != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_a_process_of_its_own(tmp_path: Path) -> None:
    program = """
t = ChatTemplate(ECHO, tokenizer)
mine = shared()._child._process.pid
if not (copy := os.fork()):
    assert t.render(MESSAGES) == "Hi" and shared()._child._process.pid != mine
    shared().close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 7
assert t.render(MESSAGES) == "Hi" and shared()._child._process.pid == mine
"""
    process = running("-W", "error", program=program)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0


@posix
def test_closed_streams_and_a_deleted_directory_do_not_matter(tmp_path: Path) -> None:
    gone, out = tmp_path / "gone", tmp_path / "out"
    gone.mkdir()
    program = f"""
os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
text = ChatTemplate(ECHO, tokenizer).render(MESSAGES)
open({str(out)!r}, "w").write(f"{{text}} {{shared()._child is not None}}")
"""
    running(program=program).communicate(timeout=120)
    assert out.read_text() == "Hi True"


def test_threads_take_turns() -> None:
    echo = template(ECHO)
    texts = [f"text {i} " * 50 for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: echo.render([{"role": "user", "content": text}]), texts)) == texts


@posix
def test_a_rendering_can_be_cancelled_from_another_thread() -> None:
    endless, echo = template(BOMBS["loops"]), template(ECHO)
    with ThreadPoolExecutor(1) as pool:
        rendering = pool.submit(endless.render, MESSAGES)
        while not rendering.done():
            endless.cancel()
            time.sleep(0.01)
        with pytest.raises(TemplateError, match="the process that renders it ended"):
            rendering.result()
    echo.cancel()
    assert echo.render(MESSAGES) == "Hi"


def test_without_processes_templates_are_rendered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    shared().close()
    monkeypatch.setattr(template_process.subprocess, "Popen", refused)
    assert template(ECHO).render(MESSAGES) == "Hi"
    with pytest.raises(TemplateError, match="it takes more than"):
        template(BOMBS["loops"]).render(MESSAGES)
    assert shared()._child is None


class _Name(str):
    def __str__(self) -> str:
        return "not this"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, "a"), "(1, 'a')"),
        ({1: (2.5, None)}, "{1: (2.5, None)}"),
        (b"x", "b'x'"),
        (10**3000, str(10**3000)),
        ([float("inf"), True], "[inf, True]"),
        ("\ud800 \U0001f9a9", "\ud800 \U0001f9a9"),
        (_Name("role"), "role"),
        ({"a": _Name("b")}, "{'a': 'b'}"),
        (range(3), "[0, 1, 2]"),
    ],
)
def test_values_arrive_as_they_are(value: object, text: str) -> None:
    assert template("{{ x }}").render([], x=value) == text


def test_other_values_are_the_users_error() -> None:
    with pytest.raises(UsageError, match=r"a value of the type \w*Path,"):
        template("{{ x }}").render([], x=[Path()])
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        template("{{ x }}").render([], x=deep)


def test_more_templates_than_are_kept_and_long_texts() -> None:
    templates = [template(f"{i} {ECHO}") for i in range(20)]
    text = "שלום " * 400_000
    assert [t.render([{"content": text}]) for t in templates[::7]] == [f"{i} {text}" for i in range(0, 20, 7)]
