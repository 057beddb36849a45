"""From DATABASE_URL to an engine, and from the driver's errors to ours."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    EmulatedDBAPIException,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from faregate.store import postgresql
from faregate.store.errors import StoreError, StoreUnavailable

POOL_SIZE = 5
POOL_TIMEOUT = 5.0
"""Seconds to wait for a connection of the pool, and for a lock of SQLite."""

WAL_AGAIN_SECONDS = 0.02

WRITES = "faregate_writes"
"""The execution option of a connection that is going to write."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_OUR_FAULT = (IntegrityError, DataError, ProgrammingError, NotSupportedError)


def open_engine(url: str, lines: postgresql.Lines | None = None) -> AsyncEngine:
    """An engine for `url`; nothing is connected yet, but an SQLite file exists and is its owner's alone.

    What it connects to PostgreSQL is one of `lines`. Raises `StoreError` for a URL that cannot work.
    """
    parsed = _parse(url)
    if parsed.drivername.startswith("sqlite"):
        _own(parsed)
        engine = _create(parsed)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    connect = partial((lines or postgresql.Lines()).connect, plain)
    return _create(parsed, async_creator=connect, pool_pre_ping=True)


@contextmanager
def reported() -> Iterator[None]:
    """Turn what the driver raises when the database is away, locked or full into `StoreUnavailable`."""
    try:
        yield
    except DBAPIError as error:
        if _is_our_fault(error):
            raise
        raise StoreUnavailable(f"the database did not do its work ({_said(error)}); try again") from error
    except PoolTimeout as error:
        raise StoreUnavailable("all connections to the database are busy; try again") from error
    except TimeoutError as error:
        raise StoreUnavailable("the database did not answer in time; try again") from error
    except OSError as error:
        raise StoreUnavailable(f"the database cannot be reached ({error}); try again") from error


def _create(url: URL, **options: Any) -> AsyncEngine:
    # Parameters are hidden: names and e-mails do not belong in error messages.
    return create_async_engine(
        url, hide_parameters=True, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=POOL_TIMEOUT, **options
    )


def _is_our_fault(error: DBAPIError) -> bool:
    if isinstance(error.orig, EmulatedDBAPIException):
        return postgresql.is_our_fault(error.orig.driver_exception)
    return isinstance(error, _OUR_FAULT)


def _said(error: DBAPIError) -> object:
    # Without PostgreSQL's DETAIL, which quotes data.
    return error.orig.args[0] if error.orig is not None and error.orig.args else error.orig


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    driver = None if parsed is None else _DRIVERS.get(parsed.drivername)
    if parsed is None or driver is None:
        raise StoreError(
            "DATABASE_URL is not the URL of a database that Faregate knows: it should begin with "
            "sqlite:/// or postgresql://"
        )
    if driver.startswith("sqlite") and parsed.database in {None, "", ":memory:"}:
        raise StoreError("DATABASE_URL names no file: it should be like sqlite:///data/faregate.db")
    return parsed.set(drivername=driver)


def _own(url: URL) -> None:
    # SQLite gives the -wal and -shm files the mode of the database file.
    path = Path(url.database or "")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"the database file {path} cannot be opened ({error.strerror}): "
            "DATABASE_URL should name a file in a directory that Faregate may write to"
        ) from error


def _prepare_sqlite(connection: Any, record: object) -> None:
    # The driver's own BEGIN comes too late (at the first write): we say it ourselves, see `_begin_sqlite`.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(POOL_TIMEOUT * 1000)}")
    # The very first switch to WAL is refused at once, whatever busy_timeout says, while another start makes it.
    until = time.monotonic() + POOL_TIMEOUT
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            connection.run_async(lambda _: asyncio.sleep(WAL_AGAIN_SECONDS))
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns into a writer fails at once when another one wrote meanwhile; who begins as a writer waits.
    immediate = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
