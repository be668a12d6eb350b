"""A server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from jambacli.api import Jamba
from jambacli.engine.options import GenerationOptions
from jambacli.hub.demo import demo_model_path
from tests.support.repository import REPO

#: What the tests of clients ask; the fixture ``said`` is the answer.
QUESTION = "How many herons were counted?"


@dataclass
class Running:
    """``url``: its address, without a slash at the end. ``client``: asks it. ``worker``: its worker."""

    url: str
    client: httpx.Client
    worker: Any


@contextlib.contextmanager
def serving(
    model: Jamba,
    *,
    access: Any = None,
    name: str = "jamba:tiny",
    defaults: GenerationOptions | None = None,
    most_connections: int | None = None,
    page: Any = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve ``model``; ``page``: with it; ``options`` are the worker's."""
    from jambacli.server.models import Models
    from jambacli.server.worker import Worker

    worker = Worker(model, **{"parallel": 4, "store": False, **options})
    served = Models.of(worker, name)
    more = {"access": access, "defaults": defaults, "most_connections": most_connections, "page": page}
    with serving_models(served, **more) as running:
        yield Running(running.url, running.client, worker)


@contextlib.contextmanager
def serving_models(
    models: Any,
    *,
    access: Any = None,
    defaults: GenerationOptions | None = None,
    most_connections: int | None = None,
    page: Any = None,
) -> Iterator[Running]:
    """Serve ``Models`` or ``Upstream``; they are closed at the end, as is ``page``."""
    from jambacli.server.app import make_app
    from jambacli.server.context import Server

    try:
        app = make_app(Server(models, defaults or GenerationOptions(), page=page), access)
        with serving_app(app, most_connections=most_connections) as running:
            yield running
    finally:
        models.close()
        if page is not None:
            page.close()


@contextlib.contextmanager
def serving_app(app: Any, *, most_connections: int | None = None) -> Iterator[Running]:
    """Serve an application."""
    import uvicorn

    from jambacli.server.connections import server_config

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        runner = uvicorn.Server(server_config(app, grace=1, most=most_connections))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
                yield Running(url, client, None)
        finally:
            runner.should_exit = True
            thread.join()


@contextlib.contextmanager
def serve_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """``jamba serve`` with the demo model or, with ``--upstream``, none, in a process of its own, and a client of it; killed at
    the end."""
    model = [] if "--upstream" in options else [str(demo_model_path())]
    command = [sys.executable, "-m", "jambacli", "serve", *model, "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("serving "))
        url = next(word for word in line.split() if word.startswith("http"))
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            yield server, client
    finally:
        server.kill()
        server.communicate()


def events(response: httpx.Response) -> list[str]:
    """The data of a stream of server-sent events, of which every line must begin with ``data: ``."""
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines), lines
    return [line.removeprefix("data: ") for line in lines]
