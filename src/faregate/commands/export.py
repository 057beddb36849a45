"""`faregate usage export`: every usage record of a span of time, as a file or to stdout."""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol

import typer

from faregate.admin.formats import seconds_of
from faregate.app import open_store
from faregate.commands import console
from faregate.export.output import standard_output, whole_file
from faregate.export.progress import progress
from faregate.export.text import Csv, JsonLines
from faregate.settings import Settings
from faregate.store.errors import StoreError
from faregate.store.store import Store, UsageRow

usage = typer.Typer(no_args_is_help=True, help="What was used.")


class Format(StrEnum):
    """What the records are written as."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class ExportFailed(Exception):
    """The export is not there. The message is a sentence that says why, and what to do."""


class _Writer(Protocol):
    def write(self, rows: list[UsageRow]) -> None: ...

    def finish(self) -> None: ...


def _moment(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@usage.command()
def export(
    format_: Annotated[Format, typer.Option("--format", help="CSV, JSON lines or Parquet.")],
    since: Annotated[
        float,
        typer.Option(
            parser=_moment,
            metavar="TIME",
            help="From this time on, such as 2026-11-30 or 2026-11-30T08:00:00Z; UTC without a zone.",
            show_default="the oldest record",
        ),
    ] = 0.0,
    until: Annotated[
        float | None,
        typer.Option(parser=_moment, metavar="TIME", help="Up to but without this time.", show_default="now"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; it is there only when it is whole.", show_default="stdout, not for Parquet"
        ),
    ] = None,
) -> None:
    """Write all usage records from --since up to --until, oldest first. docs/accounting.md has the columns."""
    settings = console.settings()
    end = time.time() if until is None else until
    if format_ is Format.PARQUET and output is None:
        console.stop(ExportFailed("Parquet is not written to stdout: name a file with --output"))
    if since >= end:
        console.stop(ExportFailed("--since is not before --until, so nothing is between them: correct one"))
    try:
        console.run(_export(settings, format_, since, end, output))
    except (StoreError, ExportFailed) as error:
        console.stop(error)
    except OSError as error:
        what = "stdout" if output is None else output
        console.stop(
            ExportFailed(f"{what} could not be written ({error.strerror or error}): check its folder, and the space")
        )


async def _export(settings: Settings, wanted: Format, since: float, until: float, output: Path | None) -> None:
    store = await open_store(settings)
    try:
        target: AbstractContextManager[BinaryIO] = standard_output() if output is None else whole_file(output)
        with target as file, progress(until, to_stdout=output is None) as advance:
            writer = _writer(wanted, file)
            async for rows in _pages(store, since, until):
                writer.write(rows)
                advance(rows)
            writer.finish()
    finally:
        await store.close()


async def _pages(store: Store, since: float, until: float) -> AsyncIterator[list[UsageRow]]:
    after: UsageRow | None = None
    while rows := await store.export_page(since, until, after):
        yield rows
        after = rows[-1]


def _writer(wanted: Format, file: BinaryIO) -> _Writer:
    match wanted:
        case Format.CSV:
            return Csv(file)
        case Format.JSONL:
            return JsonLines(file)
        case Format.PARQUET:
            # Not on top: its library takes as long to import as all else.
            from faregate.export.parquet import Parquet

            return Parquet(file)
