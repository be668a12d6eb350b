"""``jamba serve``: the APIs of OpenAI, Anthropic, Ollama, AI21 and Bedrock on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from jambacli import ui
from jambacli.commands import option_types as t
from jambacli.commands import options as o
from jambacli.commands.load import is_path, one_model
from jambacli.errors import JambaError, UsageError
from jambacli.startup import importing
from jambacli.units import parse_duration

if TYPE_CHECKING:
    from jambacli.engine.batch_worker import Turn
    from jambacli.server.models import Models
    from jambacli.server.page.page import Page
    from jambacli.server.served_model import ServedModel
    from jambacli.server.upstream import Upstream
    from jambacli.server.worker import Worker

#: Where the keys are looked for besides the options: other users of the machine see command lines.
KEY_VARIABLE, UPSTREAM_KEY_VARIABLE = "JAMBA_API_KEY", "JAMBA_UPSTREAM_KEY"
# Seconds that replies have to finish after the first Ctrl-C; a second one ends them.
_GRACE = 10
# How long a model of several stays loaded without requests, as in Ollama.
_KEEP_ALIVE = "5m"


@o.generation_options
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Names or .gguf files; default: the last used. Several load on demand."
        ),
    ] = None,
    model_name: t.Model = None,
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
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", help="A model's name in requests and answers; repeatable, in the models' order."),
    ] = None,
    pulled: Annotated[bool, typer.Option("--pulled", help="Serve every pulled model too, loaded on demand.")] = False,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            help=f"Unload a model of several after this time without requests; default: {_KEEP_ALIVE}; or: forever.",
        ),
    ] = None,
    max_loaded: Annotated[
        int | None,
        typer.Option("--max-loaded", min=1, help="Models loaded at once; default: as many as fit into memory."),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", metavar="URL", help="Let this OpenAI-compatible server answer; no model is loaded."),
    ] = None,
    upstream_key: Annotated[
        str | None, typer.Option("--upstream-key", envvar=UPSTREAM_KEY_VARIABLE, help="Key for that server.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", help="Another name of this machine in requests; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="A web page's origin that may ask; repeatable.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Leave out the page for browsers.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the address as soon as it listens.")
    ] = False,
    *,
    arguments: o.GenerationArguments,
) -> None:
    """Answer programs over HTTP. Text that is known from any client, chat or ask is not computed again."""
    names = models or []
    first = one_model(next(iter(names), None), model_name)
    names = names or ([] if first is None else [first])
    generation = replace(arguments.generation(), schema=arguments.schema(None))
    system = arguments.system_message(None)
    try:
        with importing():
            from jambacli.server.app import make_app
            from jambacli.server.connections import server_config
            from jambacli.server.context import Server
            from jambacli.server.files import FileStore
            from jambacli.server.http import Access, is_loopback
            from jambacli.server.page.page import Page
    except ImportError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise JambaError("the server needs: pip install 'jambacli[serve]'") from error
    key, origins = (api_key or "").strip(), tuple(cors_origin or ())  # a file's last line end is no part of a key
    if "*" in origins and not key:
        raise UsageError("--cors-origin '*' lets every web page ask: set --api-key too")
    aliases = alias or []
    if len(aliases) > max(1, len(names)):
        raise UsageError("there are more of them than models", field="alias")
    several = len(names) > 1 or pulled
    if not several and (keep_alive is not None or max_loaded is not None):
        raise UsageError("needs several models", field="max_loaded" if keep_alive is None else "keep_alive")
    if upstream is not None and several | bool(names):
        raise UsageError("another server answers: name no models", field="upstream")
    if arguments.chat_template is not None and (several or upstream is not None):
        raise UsageError("goes with one model, served alone", field="chat_template")

    if arguments.lora and (several or upstream is not None):
        raise UsageError("goes with one model, served alone", field="lora")
    if open_page and (no_page or unix is not None):
        raise UsageError("a browser cannot open that", field="no_page" if no_page else "unix")

    with _listening(host, port, unix) as listener:
        local = unix is not None or (is_loopback(host) and is_loopback(str(listener.getsockname()[0])))
        if not local and not key:
            raise UsageError(f"--host {host} is reached from other machines: set --api-key or {KEY_VARIABLE}")
        hosts = None if unix is not None or not local else tuple(allowed_host or ())
        workers = _Workers(arguments, parallel, queue)
        served: Models | Upstream
        if upstream is not None:
            served, what = _upstream(upstream, upstream_key)
        elif several:
            seconds = parse_duration(keep_alive or _KEEP_ALIVE, "--keep-alive")
            served, what = _several(workers, names, aliases, pulled, seconds, max_loaded)
        else:
            served, what = _one(workers, *names[:1], alias=next(iter(aliases), None))
        files = FileStore(keep=not arguments.no_store)
        page = None if no_page else Page(keep=not arguments.no_store)
        try:
            access = Access(key=key or None, hosts=hosts, origins=origins)
            app = make_app(Server(served, generation, files=files, page=page, system=system), access)
            _reuse_later(listener)
            # Ctrl-C and SIGTERM stop the server, which raises them again when it has stopped: that is the regular end.
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                config = server_config(app, grace=_GRACE)
                browser_key = key if open_page else None
                _server(config, what, listener, served, page, browser_key, as_json).run(sockets=[listener])
        finally:
            served.close()
            files.close()
            if page is not None:
                page.close()
    ui.note("stopped")


@dataclass(frozen=True)
class _Workers:
    """Loads models with the options of the command line."""

    arguments: o.GenerationArguments
    parallel: int | None
    queue: int

    def load(self, name: str | None, turn: Turn | None = None) -> Worker:
        """The worker of a model. With a ``turn`` there are several, and those with a shorter context than asked for have
        their own."""
        from jambacli.server.worker import Worker

        options = self.arguments.session()
        # Several models need not all think: each does as far as it can.
        arguments = self.arguments if turn is None else replace(self.arguments, think=None)
        model = arguments.load_model(name)
        _ = model.template  # one that does not work is reported now, not by the first request
        ctx = options.ctx
        if turn is not None and ctx is not None:
            ctx = min(ctx, model.config.context_length)
        return Worker(
            model,
            ctx=ctx,
            kv_type=options.kv_type,
            parallel=self.parallel,
            queue=self.queue,
            store=options.store,
            stats=self.arguments.stats,
            turn=turn,
        )


def _one(workers: _Workers, name: str | None = None, *, alias: str | None) -> tuple[Models, str]:
    """The one model, loaded now, and what is served in words."""
    from jambacli.server.models import Models

    worker = workers.load(name)
    model = worker.model.name
    at_once = f"{worker.engine.parallel} at once" if worker.engine.parallel > 1 else "one at a time"
    what = f"serving {model} at {{address}} (up to {worker.ctx:,} tokens, {at_once})"
    return Models.of(worker, alias or name or model), what


def _several(
    workers: _Workers,
    names: Sequence[str],
    aliases: Sequence[str],
    pulled: bool,
    keep_alive: float | None,
    most: int | None,
) -> tuple[Models, str]:
    """Models that are loaded on demand, and what is served in words. Raises JambaError for names that mean none."""
    from jambacli.engine.batch_worker import Turn
    from jambacli.hub.resolve import resolve_model
    from jambacli.hub.store import Store
    from jambacli.server.memory import DeviceMemory
    from jambacli.server.models import Models
    from jambacli.server.served_model import ServedModel

    turn, arguments = Turn(), workers.arguments
    known: dict[str, ServedModel] = {}

    def add(shown: str, name: str, path: Path) -> None:
        if shown in known:
            raise UsageError(f"two models are called {shown}; give each an --alias")
        known[shown] = ServedModel(shown, lambda: workers.load(name, turn), path, keep_alive)

    for index, name in enumerate(names):
        path = resolve_model(name)
        plain = path.stem if is_path(name) else name
        add(aliases[index] if index < len(aliases) else plain, name, path)

    def more() -> list[ServedModel]:
        store = Store()
        for entry in store.entries():
            if entry.name not in known and store.is_complete(entry):
                add(entry.name, entry.name, store.paths(entry)[0])
        return list(known.values())

    if pulled and not more():
        raise JambaError("no models have been pulled; get one with: jamba pull jamba:3b")
    memory = DeviceMemory(arguments.device_options(), arguments.session().ctx, arguments.kv_type)
    served = list(known.values())
    models = Models(served, memory=memory, most=most, more=more if pulled else None, queue=workers.queue)
    what = f"serving {', '.join(known)} at {{address}} (each is loaded when it is asked for)"
    return models, what


def _upstream(url: str, key: str | None) -> tuple[Upstream, str]:
    """Another server, and what is served in words."""
    from jambacli.server.upstream import Upstream
    from jambacli.server.upstream_client import UpstreamClient

    client = UpstreamClient(url, key)
    return Upstream(client), f"serving at {{address}} what {client.root} answers"


@contextlib.contextmanager
def _listening(host: str, port: int, unix: Path | None) -> Iterator[socket.socket]:
    """A bound socket, which is removed at the end. Raises JambaError."""
    with _listen(host, port) if unix is None else _listen_unix(unix) as listener:
        try:
            yield listener
        finally:
            if unix is not None:
                with contextlib.suppress(OSError):
                    unix.unlink()


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises JambaError when that is not possible, such as when the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if os.name == "posix":  # while the model is loaded, Linux would let another server take the port too
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise JambaError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return listener


def _reuse_later(listener: socket.socket) -> None:
    """Let the next server have the port at once: the connections inherit that from the socket when it listens."""
    if os.name == "posix" and listener.family != getattr(socket, "AF_UNIX", None):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


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


def _server(
    config: Any,
    what: str,
    listener: socket.socket,
    served: Models | Upstream,
    page: Page | None,
    browser_key: str | None = None,
    as_json: bool = False,
) -> Any:
    """A uvicorn server that says what it serves and where once it listens. ``browser_key``: then open a browser too, which gets
    the key, if it is not empty; None: do not."""
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            address = _address(listener.getsockname())
            if as_json:
                print(json.dumps({"address": address}), flush=True)
            ui.note(f"{what.replace('{address}', address)}; Ctrl-C stops it")
            if browser_key is not None:
                threading.Thread(target=_open_browser, args=(address, browser_key), daemon=True).start()

        async def shutdown(self, sockets: Any = None) -> None:
            served.stop_soon()
            if page is not None:
                page.stop()
            await super().shutdown(sockets)

    return Announced(config)


def _open_browser(address: str, key: str) -> None:
    """Open the page. The key is in the fragment of the address, which browsers send nowhere and the page removes."""
    import webbrowser

    address = address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    page = f"{address}/#key={quote(key, safe='')}" if key else f"{address}/"
    try:
        opened = webbrowser.open(page)
    except Exception as error:  # whatever the user has set as a browser
        opened = False
        ui.warn(f"no browser could be opened: {error}")
    if not opened:
        ui.note(f"open the page yourself: {address}/")


def _address(name: Any) -> str:
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
