"""A database of a test: an SQLite file, or one in a real PostgreSQL."""

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


def sqlite_database(path: Path) -> Database:
    def sql(statement: str) -> list[tuple[str | None, ...]]:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(statement).fetchall()

    return Database(f"sqlite:///{path}", sql)


def postgres_database(server: Postgres) -> Database:
    name = server.create_database()
    return Database(server.url(name), lambda statement: server.sql(name, statement))
