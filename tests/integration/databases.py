"""A database of a test: an SQLite file, or one in a real PostgreSQL."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from postgres import Postgres


@dataclass(frozen=True)
class Database:
    """A database, new and empty: its DATABASE_URL, and a way past the store that runs one statement."""

    url: str
    sql: Callable[[str], list[tuple[str | None, ...]]]


NewDatabase = Callable[[], Database]

DEADLINE = 120.0
"""Seconds that a test waits for what must come, on a machine however busy."""


async def until_waiting(database: Database, sessions: int) -> None:
    """Return once so many sessions of a PostgreSQL database wait for a lock."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND state = 'active'"
    )
    async with asyncio.timeout(DEADLINE):
        # The server is another process, which does not tell that somebody waits.
        while database.sql(waiting) != [(str(sessions),)]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def sqlite_database(path: Path) -> Database:
    def sql(statement: str) -> list[tuple[str | None, ...]]:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(statement).fetchall()

    return Database(f"sqlite:///{path}", sql)


def postgres_database(server: Postgres) -> Database:
    name = server.create_database()
    return Database(server.url(name), lambda statement: server.sql(name, statement))
