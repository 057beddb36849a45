"""PostgreSQL: how it is reached and left, and whose fault its errors are."""

import asyncio
from typing import Any
from weakref import WeakSet

from faregate.store.errors import StoreError

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection."""

COMMAND_TIMEOUT = 30.0
"""Seconds to wait for the answer to one statement: a server that was cut off does not say so."""

# SQLSTATE classes, https://www.postgresql.org/docs/current/errcodes-appendix.html: a feature that is not there, data or
# a statement that cannot be right, a broken constraint, a row that is too large. Trying again does not change these.
_OUR_FAULT = frozenset({"0A", "21", "22", "23", "42", "54"})
# In class 42 too, but granting it mends it.
_NOT_PERMITTED = "42501"


class Lines:
    """The connections to one server, all of which can be broken off: a silent one lets go of none by itself."""

    def __init__(self) -> None:
        self._connections: WeakSet[Any] = WeakSet()
        self._dialing: set[asyncio.Task[Any]] = set()
        self._broken_off = False

    async def connect(self, url: str) -> Any:
        """A connection of the driver. Raises `StoreError` if the URL cannot work, OSError once all is broken off.

        The driver reads the URL itself: it knows what libpq knows, `sslmode` and several hosts among it.
        """
        if self._broken_off:
            raise _broken_off()
        dialing = asyncio.create_task(self._dial(url))
        self._dialing.add(dialing)
        try:
            await asyncio.wait({dialing})
        finally:
            dialing.cancel()
            self._dialing.discard(dialing)
        if dialing.cancelled():
            raise _broken_off()
        return dialing.result()

    def break_off(self) -> None:
        """End all connections at once: who waits for an answer gets the driver's error. There will be no others."""
        self._broken_off = True
        for dialing in self._dialing:
            dialing.cancel()
        for connection in list(self._connections):
            connection.terminate()

    async def _dial(self, url: str) -> Any:
        connection = await _connect(url)
        self._connections.add(connection)
        return connection


async def _connect(url: str) -> Any:
    # Not on top: importing it takes as long as all else, and a node with SQLite has no use for it.
    import asyncpg

    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, command_timeout=COMMAND_TIMEOUT)
    except (asyncpg.exceptions.ClientConfigurationError, UnicodeError) as error:
        raise StoreError(f"DATABASE_URL cannot be used ({error}): correct it") from error


def _broken_off() -> OSError:
    return ConnectionAbortedError("it was silent, and its connections were broken off")


def driver_errors() -> tuple[type[Exception], ...]:
    """What the driver itself raises; beside these there are OSError and TimeoutError."""
    # Not on top, as above.
    import asyncpg

    return asyncpg.PostgresError, asyncpg.InterfaceError


def is_our_fault(error: Exception) -> bool:
    """Whether a statement or a value was wrong, so that the server would refuse it again. `error` is the driver's."""
    sqlstate: str | None = getattr(error, "sqlstate", None)
    if sqlstate is None:
        # A value that does not fit its column is a ValueError to the driver, and not sent.
        return isinstance(error, ValueError)
    return sqlstate[:2] in _OUR_FAULT and sqlstate != _NOT_PERMITTED
