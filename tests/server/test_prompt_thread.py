"""Work in the thread for prompts that nobody waits for any more, or for which the server has no time left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from jambacli.server.errors import ApiError
from jambacli.server.prompt_thread import PromptThread

_LONG = 60.0


class Rendering:
    """Work that lasts until it is cancelled, as the rendering of a hostile template."""

    def __init__(self) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.cancelled.wait(_LONG)
        raise ValueError("the process that renders it ended")


@pytest.fixture
def rendering() -> Rendering:
    return Rendering()


@pytest.fixture
def thread(rendering: Rendering) -> Iterator[PromptThread]:
    with closing(PromptThread(rendering.cancelled.set)) as made:
        yield made


async def _begun(rendering: Rendering) -> None:
    assert await asyncio.to_thread(rendering.begun.wait, _LONG)


def test_work_whose_client_has_gone_ends(thread: PromptThread, rendering: Rendering) -> None:
    async def go() -> object:
        waiting = asyncio.ensure_future(thread.run(rendering))
        await _begun(rendering)
        following = asyncio.ensure_future(thread.run(lambda: "the next one"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await following

    assert asyncio.run(go()) == "the next one"


def test_a_client_that_has_gone_ends_no_other_work(thread: PromptThread, rendering: Rendering) -> None:
    done: list[str] = []

    async def go() -> None:
        first = asyncio.ensure_future(thread.run(rendering))
        await _begun(rendering)
        second = asyncio.ensure_future(thread.run(lambda: done.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not rendering.cancelled.is_set() and not first.done()
        rendering.cancelled.set()
        with pytest.raises(ValueError, match="ended"):
            await first

    asyncio.run(go())
    assert done == []


def test_a_server_that_stops_refuses_what_is_not_prepared(thread: PromptThread, rendering: Rendering) -> None:
    async def go() -> list[object]:
        works = [asyncio.ensure_future(thread.run(work)) for work in (rendering, lambda: "never prepared")]
        await _begun(rendering)
        thread.stop_soon()
        return [*await asyncio.gather(*works, return_exceptions=True)]

    for error in asyncio.run(go()):
        assert isinstance(error, ApiError) and error.status == 503 and "stopping" in error.message


def test_closing_ends_the_work(rendering: Rendering) -> None:
    thread = PromptThread(rendering.cancelled.set)

    async def go() -> None:
        waiting = asyncio.ensure_future(thread.run(rendering))
        await _begun(rendering)
        await asyncio.to_thread(thread.close)
        with pytest.raises(ApiError):
            await waiting

    asyncio.run(go())
