"""A server with the page, the demo model and a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.page.page import Page
from tests.server.page.talking import Talk
from tests.support.servers import serving


@pytest.fixture
def talk(tiny: Jamba, own_home: Path) -> Iterator[Talk]:
    """A client of the page of a server that keeps everything."""
    with serving(tiny, store=True, page=Page()) as running:
        yield Talk(running.client)
