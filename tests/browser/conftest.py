"""One browser and one server for all tests; each begins with a new conversation, and the library has what came before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.page import Page, PageServer, browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Chromium."""
    for needed in ("starlette", "uvicorn", "pypdfium2", "lxml"):
        pytest.importorskip(needed, reason="needs jambacli[serve,docs]")
    with browser() as made:
        yield made


@pytest.fixture(scope="session")
def server(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server of the demo model."""
    running = PageServer(tmp_path_factory.mktemp("page") / "home")
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def page(driver: Any, server: PageServer) -> Iterator[Page]:
    """The page, empty."""
    server.go_on()
    opened = Page(driver, server.url).open()
    yield opened
    server.go_on()
    assert opened.errors() == []
