"""`faregate serve`: one node, its server, and, without an OpenRouter key, the simulator beside it."""

import asyncio
import logging
import secrets
import signal
import socket
from typing import Any

from faregate.app import Faregate, database_url, prepare_data_dir, upstream_settings
from faregate.banner import banner
from faregate.keys import load_keys
from faregate.server import Server, listen
from faregate.settings import Settings, SettingsError
from faregate.simulator.app import Options, create_app

SIMULATOR_PORT = 9999
_log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then let requests finish, settle, write, return.

    Raises `SettingsError`, or one of the start's errors of `Faregate.start`.
    """
    try:
        prepare_data_dir(settings.data_dir)
        keys = load_keys(settings)
    except OSError as error:
        raise SettingsError(f"DATA_DIR should be a directory that can be written: {error}.") from None
    sock = _listen(settings)
    simulator: Server | None = None
    mounts: dict[str, Any] = {}
    if settings.openrouter_api_key is None:
        app = create_app(Options())
        mounts["_simulator"] = _only_bills(app)
        simulator = Server(app, _listen_for_simulator(), settings.shutdown_grace)
        await simulator.start()
        url, key = f"http://127.0.0.1:{simulator.port}/api/v1", f"sk-or-v1-{secrets.token_hex(16)}"
    else:
        url, key = settings.openrouter_base_url, settings.openrouter_api_key.get_secret_value()
    node = Faregate(settings, keys, upstream_settings(settings, url, key), mounts)
    stopping = asyncio.Event()
    server = Server(node, sock, settings.shutdown_grace)
    try:
        await node.start()
        _on_signals(stopping, server)
        await server.start()
        text = banner(
            settings,
            keys,
            port=server.port,
            database=database_url(settings),
            upstream=url,
            simulated=simulator is not None,
            models=node.model_count,
            models_failure=node.models_failure,
            unlimited=node.unlimited,
        )
        print(text, flush=True)  # noqa: T201 - the start's own output
        await stopping.wait()
        await server.stop()
    finally:
        await node.stop()
        if simulator is not None:
            await simulator.stop()


def _only_bills(simulator: Any) -> Any:
    """What of the simulator may be seen on the gateway's own port, which others can reach: nobody's prompts."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["method"] != "GET" or scope["path"] not in ("/_simulator/bills", "/_simulator/stats"):
            scope = {**scope, "method": "GET", "path": "/nowhere"}
        await simulator(scope, receive, send)

    return app


def _on_signals(stopping: asyncio.Event, server: Server) -> None:
    def stop(name: str) -> None:
        if stopping.is_set():
            _log.warning("%s again: what still runs is cut; nothing that was settled is lost.", name)
            server.hurry()
        else:
            _log.info("%s: no new requests; those that run may finish.", name)
            stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)


def _listen(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
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
