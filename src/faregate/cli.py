"""The command `faregate`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn

import typer
import uvloop

from faregate import __version__
from faregate.checking import check as check_all
from faregate.server import Server, listen
from faregate.serving import SIMULATOR_PORT, START_ERRORS, write_logs
from faregate.serving import serve as serve_nodes
from faregate.settings import Settings, SettingsError, load_settings
from faregate.simulator.app import Options, create_app
from faregate.simulator.guide import GUIDE
from faregate.workers import WorkerFailed

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="An AI control plane between Open WebUI and the OpenRouter API.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"faregate {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve() -> None:
    """Run the gateway. Settings come from the environment and from .env; see docs/settings.md."""
    settings = _settings()
    try:
        _run(serve_nodes(settings))
    except (*START_ERRORS, WorkerFailed) as error:
        _stop(error)


@app.command()
def check() -> None:
    """Validate the settings, reach every dependency, and say what is wrong."""
    settings = _settings()

    async def look() -> bool:
        good = True
        async for finding in check_all(settings):
            print(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.detail}", flush=True)
            good = good and finding.ok
        return good

    if not _run(look()):
        raise typer.Exit(1)


# `\b` keeps the lines of a paragraph as they are: the guide is tables.
@app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in GUIDE.split("\n\n")))
def simulator(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = SIMULATOR_PORT,
    seed: Annotated[int, typer.Option(help="Answers and costs follow from it.")] = 1,
    pace: Annotated[float, typer.Option(min=0, help="Seconds between the events of a stream.")] = 0.0,
    generation_delay: Annotated[
        float, typer.Option(min=0, help="Seconds until /generation knows an answer that has ended.")
    ] = 1.0,
) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        sock = listen(host, port)
    except OSError as error:
        _stop(SettingsError(f"--port should be free on --host: {host}:{port} is not ({error.strerror or error})."))
    server = Server(create_app(Options(seed=seed, pace=pace, generation_delay=generation_delay)), sock, grace=1)

    async def run() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await server.start()
        shown = f"[{host}]" if ":" in host else host
        print(f"OpenRouter simulator on http://{shown}:{server.port}/api/v1, bills on /_simulator/bills", flush=True)
        await stopping.wait()
        await server.stop()

    _run(run())


def main() -> None:
    """Entry point of the console script."""
    app()


def _settings() -> Settings:
    try:
        settings = load_settings()
    except SettingsError as error:
        _stop(error)
    write_logs(settings)
    return settings


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(work)


def _stop(error: Exception) -> NoReturn:
    print(f"faregate: {error}", file=sys.stderr)
    sys.exit(2)
