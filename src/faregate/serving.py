"""`faregate serve`: one node, or a supervisor of several, and, without an OpenRouter key, the simulator beside them."""

import asyncio
import gc
import logging
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from faregate.app import Faregate, database_url, prepare_data_dir, upstream_settings
from faregate.banner import banner
from faregate.gateway.upstream import UpstreamSettings
from faregate.keys import Keys, load_keys
from faregate.ledger.port import LedgerAway
from faregate.server import Server, listen, on_signals, reserve
from faregate.settings import Settings, SettingsError
from faregate.simulator.app import Options, create_app
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.workers import Link, run_workers

SIMULATOR_PORT = 9999
START_ERRORS = (SettingsError, StoreError, StoreUnavailable, LedgerAway)
"""What a start may raise. The message of each is a sentence for people."""

Asgi = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Target:
    """What answers: OpenRouter, or the simulator of this process."""

    settings: UpstreamSettings = field(repr=False)
    simulator: Asgi | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """What every worker has in common."""

    settings: Settings
    keys: Keys
    port: int
    upstream: UpstreamSettings = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Start:
    """What a node that serves tells about itself."""

    models: int
    models_failure: str | None
    unlimited: bool


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then let requests finish, settle, write, return.

    Raises one of `START_ERRORS`, or, where several processes serve, `WorkerFailed`.
    """
    try:
        prepare_data_dir(settings.data_dir)
        keys = load_keys(settings)
    except OSError as error:
        raise SettingsError(f"DATA_DIR should be a directory that can be written: {error}.") from None
    if settings.workers == 1:
        await _serve_alone(settings, keys)
    else:
        await _serve_together(settings, keys)


def write_logs(settings: Settings) -> None:
    """Write logs to stderr; where several processes do, each line says which one wrote it."""
    process = " [%(process)d]" if settings.workers > 1 else ""
    logging.basicConfig(
        level=settings.log_level.value.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s{process} %(levelname)s %(name)s: %(message)s",
    )
    # What they tell of the schema, and of starting and stopping, we say ourselves; what goes wrong they may say.
    for name in ("alembic", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


async def _serve_alone(settings: Settings, keys: Keys) -> None:
    # Before anything is begun: if the address is taken, nothing else needs to be tried.
    with _address_of(settings):
        sock = listen(settings.host, settings.port)
    async with _target(settings) as target:
        mounts = {} if target.simulator is None else {"_simulator": _only_bills(target.simulator)}
        await _serve_node(
            Faregate(settings, keys, target.settings, mounts),
            lambda: sock,
            settings.shutdown_grace,
            obey=on_signals,
            serving=lambda start: _tell(settings, keys, sock, target, start),
        )


async def _serve_together(settings: Settings, keys: Keys) -> None:
    with _address_of(settings):
        sock = reserve(settings.host, settings.port)
    async with _target(settings) as target:
        port: int = sock.getsockname()[1]
        await run_workers(
            _work,
            _Job(settings, keys, port, target.settings),
            settings.workers,
            serving=lambda starts: _tell(settings, keys, sock, target, starts[0]),
        )


def _work(job: _Job, link: Link) -> None:
    """What a worker does: it is one node, and takes its orders from the supervisor."""
    write_logs(job.settings)
    try:
        uvloop.run(_serve_with_others(job, link))
    except START_ERRORS as error:
        link.failed(str(error))
        sys.exit(2)


async def _serve_with_others(job: _Job, link: Link) -> None:
    settings = job.settings

    def end() -> None:
        # Like a process that is told before it serves: nothing was accepted, and there is nothing to wait for.
        signal.raise_signal(signal.SIGTERM)

    def open_socket() -> socket.socket:
        with _address_of(settings):
            return listen(settings.host, job.port, shared=True)

    def obey(stop: Callable[[], None], hurry: Callable[[], None]) -> None:
        link.obey(stop, hurry)
        # Who signals all processes of a service gets here on two ways: what comes as a signal never means haste.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)

    link.obey(end, end)
    node = Faregate(settings, job.keys, job.upstream, {})
    await _serve_node(node, open_socket, settings.shutdown_grace, obey=obey, serving=link.serving)


async def _serve_node(
    node: Faregate,
    open_socket: Callable[[], socket.socket],
    grace: float,
    *,
    obey: Callable[[Callable[[], None], Callable[[], None]], None],
    serving: Callable[[_Start], None],
) -> None:
    """One node, from its start to its stop.

    Its socket is asked for when it can answer; `obey` is given what to call for a stop and for haste with it.
    """
    stopping = asyncio.Event()
    try:
        await node.start()
        _leave_what_stays()
        server = Server(node, open_socket(), grace)
        obey(stopping.set, server.hurry)
        await server.start()
        serving(_Start(node.model_count, node.models_failure, node.unlimited))
        await stopping.wait()
        await server.stop()
    finally:
        await node.stop()


def _leave_what_stays() -> None:
    """Tune the garbage collector for a process that answers requests.

    What a start has made (modules, prices, people, rules) stays to the end: it is never looked at again. A request
    leaves no cycles behind, so what is counted against the threshold is only what is still in use; the rare cycles of
    libraries may wait for ten times the default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(7_000, 10, 10)


@asynccontextmanager
async def _target(settings: Settings) -> AsyncIterator[_Target]:
    """What answers; the simulator serves until the end of the context."""
    if keys := settings.upstream_keys():
        yield _Target(upstream_settings(settings, settings.openrouter_base_url, keys[0].key.get_secret_value(), keys))
        return
    app = create_app(Options())
    simulator = Server(app, _listen_for_simulator(), settings.shutdown_grace)
    await simulator.start()
    try:
        url = f"http://127.0.0.1:{simulator.port}/api/v1"
        yield _Target(upstream_settings(settings, url, f"sk-or-v1-{secrets.token_hex(16)}"), app)
    finally:
        await simulator.stop()


def _only_bills(simulator: Asgi) -> Asgi:
    """What of the simulator may be seen on the gateway's own port, which others can reach: nobody's prompts."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["method"] != "GET" or scope["path"] not in ("/_simulator/bills", "/_simulator/stats"):
            scope = {**scope, "method": "GET", "path": "/nowhere"}
        await simulator(scope, receive, send)

    return app


def _tell(settings: Settings, keys: Keys, sock: socket.socket, target: _Target, start: _Start) -> None:
    text = banner(
        settings,
        keys,
        port=sock.getsockname()[1],
        database=database_url(settings),
        upstream=target.settings.base_url,
        simulated=target.simulator is not None,
        models=start.models,
        models_failure=start.models_failure,
        unlimited=start.unlimited,
    )
    print(text, flush=True)  # noqa: T201 - the start's own output


@contextmanager
def _address_of(settings: Settings) -> Iterator[None]:
    """Where that HOST and PORT cannot be had is said."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"PORT (with HOST) should be an address that is free here: {settings.host}:{settings.port} is not "
            f"({error.strerror or error})."
        ) from None


def _listen_for_simulator() -> socket.socket:
    try:
        return listen("127.0.0.1", SIMULATOR_PORT)
    except OSError:
        # Its own port is taken, perhaps by another simulator; any other does as well.
        return listen("127.0.0.1", 0)
