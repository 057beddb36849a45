"""PostgreSQL: how it is reached, and whose fault its errors are."""

from typing import Any

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


async def connect(url: str) -> Any:
    """A connection of the driver. Raises `StoreError` if the URL cannot work.

    The driver reads the URL itself: it knows what libpq knows, `sslmode` and several hosts among it.
    """
    # Not on top: importing it takes as long as all else, and a node with SQLite has no use for it.
    import asyncpg

    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, command_timeout=COMMAND_TIMEOUT)
    except (asyncpg.exceptions.ClientConfigurationError, UnicodeError) as error:
        raise StoreError(f"DATABASE_URL cannot be used ({error}): correct it") from error


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
