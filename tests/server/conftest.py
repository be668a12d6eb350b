"""One model for the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jambacli.api import Jamba
from tests.support.servers import QUESTION, Running, serving


@pytest.fixture(scope="session")
def tiny() -> Jamba:
    """The demo model."""
    return Jamba.load("jamba:tiny")


@pytest.fixture(scope="module")
def server(tiny: Jamba) -> Iterator[Running]:
    """A server of it that stores nothing."""
    with serving(tiny) as running:
        yield running


@pytest.fixture(scope="session")
def said(tiny: Jamba) -> str:
    """What a session answers to the question."""
    with tiny.session(store=False) as session:
        return "".join(session.send(QUESTION, temperature=0))
