"""``jamba serve``: the APIs of OpenAI, Anthropic, Ollama, AI21 and Bedrock on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from jambacli import ui
from jambacli.commands import options as o
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing

#: Where the key is looked for besides ``--api-key``: other users of the machine see command lines.
KEY_VARIABLE = "JAMBA_API_KEY"
# Seconds that replies have to finish after the first Ctrl-C; a second one ends them.
_GRACE = 10


@o.quiet_option
@o.generation_options
def serve(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name or a .gguf; default: the last used.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0: any free one.")] = 8080,
    unix: Annotated[Path | None, typer.Option("--unix", help="Listen on this socket instead.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=KEY_VARIABLE, help="Key that every request needs; required beyond loopback."),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Requests at once; default: as many as fit, at most 8.")
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait.")] = 64,
    alias: Annotated[str | None, typer.Option("--alias", help="The model's name in answers.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", help="Another name of this machine in requests; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="A web page's origin that may ask; repeatable.")
    ] = None,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Answer programs over HTTP. Text that is known from any client, chat or ask is not computed again."""
    generation, options = arguments.generation(), arguments.session()
    try:
        with importing():
            import uvicorn

            from jambacli.server.app import make_app
            from jambacli.server.context import Server
            from jambacli.server.files import FileStore
            from jambacli.server.http import Access, is_loopback
            from jambacli.server.worker import Worker
    except ImportError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise JambaError("the server needs: pip install 'jambacli[serve]'") from error
    local = unix is not None or is_loopback(host)
    if not local and not api_key:
        raise UsageError(f"--host {host} is reached from other machines: set --api-key or {KEY_VARIABLE}")
    hosts = None if unix is not None or not local else tuple(allowed_host or ())
    if any(origin == "*" for origin in cors_origin or ()) and not api_key:
        raise UsageError("--cors-origin '*' lets every web page ask: set --api-key too")

    listener = _listen_unix(unix) if unix is not None else _listen(host, port)
    model = arguments.load_model(name)
    worker = Worker(
        model,
        ctx=options.ctx,
        kv_type=options.kv_type,
        parallel=parallel,
        queue=queue,
        store=options.store,
        stats=arguments.stats,
    )
    access = Access(key=api_key or None, hosts=hosts, origins=tuple(cors_origin or ()))
    files = FileStore(keep=options.store)
    app = make_app(Server(worker, alias or name or model.name, generation, files=files), access)
    config = uvicorn.Config(
        app,
        log_level="critical",  # errors of requests are logged where they are answered
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
        backlog=256,
    )
    try:
        # Ctrl-C and SIGTERM stop the server, which raises them again when it has stopped: that is the regular end.
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            _server(config, model.name, worker, listener).run(sockets=[listener])
    finally:
        worker.close()
        files.close()
        if unix is not None:
            with contextlib.suppress(OSError):
                unix.unlink()
    ui.note("stopped")


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises JambaError when that is not possible, such as when the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise JambaError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """A socket at that path, which only this user can open. A file of a server that has ended is replaced."""
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("--unix does not work on this system; use --host and --port")
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as other:
                if other.connect_ex(str(path)) == 0:
                    raise JambaError(f"cannot listen on {path}: another server does")
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        raise JambaError(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    return listener


def _server(config: Any, model: str, worker: Any, listener: socket.socket) -> Any:
    """A uvicorn server that says where it listens once it does."""
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            at_once = f"{worker.engine.parallel} at once" if worker.engine.parallel > 1 else "one at a time"
            ui.note(
                f"serving {model} at {_address(listener.getsockname())} (up to {worker.ctx:,} tokens, {at_once}); "
                "Ctrl-C stops it"
            )

    return Announced(config)


def _address(name: Any) -> str:
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
