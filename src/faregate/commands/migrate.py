"""`faregate migrate`: the schema of the database, brought to another revision or shown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.app import database_url
from faregate.commands import console
from faregate.settings import Settings
from faregate.store import schema
from faregate.store.engine import WRITES, open_engine, reported
from faregate.store.errors import StoreError


def migrate(
    to: Annotated[
        int,
        typer.Option(
            metavar="REVISION", min=schema.FIRST, max=schema.NEWEST, help="The revision to go to, also an older one."
        ),
    ] = schema.NEWEST,
    show: Annotated[bool, typer.Option("--show", help="Only show the revisions, and which one it is at.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Lose what the older revision has no place for.")] = False,
) -> None:
    """Bring the database of DATABASE_URL to the newest schema. Stop all that uses it, and back it up, first."""
    settings = console.settings()
    try:
        for line in console.run(_show(settings) if show else _move(settings, to, lose=yes)):
            typer.echo(line)
    except schema.WouldLose as error:
        console.stop(StoreError(f"{error}: back it up, then say --yes; nothing was changed"))
    except StoreError as error:
        console.stop(error)


async def _move(settings: Settings, to: int, *, lose: bool) -> list[str]:
    async with _transaction(settings) as connection:
        start = await schema.move(connection, to, lose=lose)
    if start == to:
        return [f"nothing to do: the database is at {_name(to)}"]
    return [f"the database went from {_name(start)} to {_name(to)}"]


async def _show(settings: Settings) -> list[str]:
    async with _transaction(settings) as connection:
        here = await schema.version(connection)
    lines = [
        f"{'->' if version == here else '  '} {_name(version)}  {title}" for version, title in schema.titles().items()
    ]
    return lines if here else ["the database has no schema yet", *lines]


@asynccontextmanager
async def _transaction(settings: Settings) -> AsyncIterator[AsyncConnection]:
    engine = open_engine(database_url(settings))
    try:
        with reported():
            async with engine.execution_options(**{WRITES: True}).begin() as connection:
                yield connection
    finally:
        await engine.dispose()


def _name(version: int) -> str:
    return f"{version:04}" if version else "nothing"
