"""The command `faregate`."""

import asyncio
import logging
import signal
import sys
from typing import Annotated

import typer

from faregate import __version__
from faregate.checking import check as check_all
from faregate.commands import console
from faregate.commands.export import usage
from faregate.commands.migrate import migrate
from faregate.commands.reconcile import reconcile
from faregate.server import Server, listen
from faregate.serving import SIMULATOR_PORT, START_ERRORS, write_logs
from faregate.serving import serve as serve_nodes
from faregate.settings import SettingsError
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
app.command()(migrate)
app.command()(reconcile)
app.add_typer(usage, name="usage")


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
    settings = console.settings(write_logs)
    try:
        console.run(serve_nodes(settings))
    except (*START_ERRORS, WorkerFailed) as error:
        console.stop(error)


@app.command()
def check() -> None:
    """Validate the settings, reach every dependency, and say what is wrong."""
    settings = console.settings(write_logs)

    async def look() -> bool:
        good = True
        async for finding in check_all(settings):
            print(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.detail}", flush=True)
            good = good and finding.ok
        return good

    if not console.run(look()):
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
        why = error.strerror or error
        console.stop(SettingsError(f"--port should be free on --host: {host}:{port} is not ({why})."))
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

    console.run(run())


def main() -> None:
    """Entry point of the console script."""
    app()
