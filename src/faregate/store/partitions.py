"""Usage records by month (UTC): on PostgreSQL each month is a partition `usage_records_YYYY_MM` of its own.

There is no partition for the rest: a record of a month that has none makes it. On SQLite there are no partitions, and
nothing to make.

Making a month locks no row and keeps nobody from reading or writing the others; in the order of the locks (see
`locks`) it comes after the rows of people and before those of records. Dropping months is done in a transaction of its
own: for a moment it has the whole table alone.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from sqlalchemy import ColumnElement, CursorResult, delete, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.tables import usage_records
from faregate.store.types import microseconds_of

AHEAD = 3
"""Months that are made ahead, after the one that it is."""

ROWS_AT_ONCE = 5_000
"""SQLite: rows that one transaction deletes, so that no writer waits for long."""

LOCK_SECONDS = 2
"""PostgreSQL: the longest wait for a moment without readers. Who comes after waits behind the one who waits for it."""

Dropping = Callable[[ColumnElement[bool]], Awaitable[None]]
"""Does what is to be done before the records are dropped that a condition is true of, in the same transaction."""

_ts = usage_records.c.ts
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PREFIX = "usage_records_"
# https://www.postgresql.org/docs/current/errcodes-appendix.html: check_violation, of no constraint that has a name.
_CHECK_VIOLATION = "23514"

# What an administrator may have attached under a name of their own is left alone.
_ATTACHED = text(
    "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid"
    " WHERE inhparent = 'usage_records'::regclass AND relname ~ '^usage_records_[0-9]{4}_[0-9]{2}$'"
)
_LOCK_OUT_MAKERS = text("LOCK TABLE usage_records IN SHARE UPDATE EXCLUSIVE MODE")
_LOCK_OUT_ALL = text("LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE")


class Month(NamedTuple):
    """A calendar month in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, instant: float) -> Self:
        """The month of `instant`, in seconds since the epoch."""
        moment = _EPOCH + timedelta(microseconds=microseconds_of(instant))
        return cls(moment.year, moment.month)

    @property
    def following(self) -> "Month":
        """The next month."""
        return Month(self.year + 1, 1) if self.month == 12 else Month(self.year, self.month + 1)

    @property
    def table(self) -> str:
        """The name of its partition."""
        return f"{_PREFIX}{self.year:04}_{self.month:02}"

    @property
    def start(self) -> str:
        """Its first instant, for SQL."""
        return f"{self.year:04}-{self.month:02}-01 00:00:00+00"

    @property
    def started_at(self) -> float:
        """Its first instant, in seconds since the epoch."""
        return datetime(self.year, self.month, 1, tzinfo=UTC).timestamp()


async def ensure(connection: AsyncConnection, instants: Iterable[float]) -> None:
    """Make the months of `instants` (seconds since the epoch) that are not there. Several nodes may do so at once."""
    await _make(connection, {Month.of(instant) for instant in instants})


async def ahead(connection: AsyncConnection, now: float, months: int = AHEAD) -> None:
    """Make the month of `now` (seconds since the epoch) and the `months` after it, as far as they are not there."""
    wanted = [Month.of(now)]
    for _ in range(months):
        wanted.append(wanted[-1].following)
    await _make(connection, set(wanted))


async def drop_before(connection: AsyncConnection, instant: float, dropping: Dropping) -> list[str]:
    """Drop the records of the months that ended by `instant` (seconds since the epoch), as far as one call does.

    `dropping` is awaited with the condition that is true of the records that are about to be dropped.

    What was dropped, in words: the names of partitions, or a number of rows. To be called again, each time in a
    transaction of its own, until there is nothing. Raises what `reported` turns into `StoreUnavailable` while others
    read the table for longer than `LOCK_SECONDS`: nothing was dropped then.
    """
    first_kept = Month.of(instant)
    if connection.dialect.name != "postgresql":
        return await _delete_before(connection, first_kept, dropping)
    old = sorted(month for month in await _attached(connection) if month < first_kept)
    if not old:
        return []
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'"))
    for month in old:
        # Nobody writes there any more; reading it may take its time, as it keeps nobody from reading or writing others.
        await connection.execute(text(f"LOCK TABLE {month.table} IN SHARE MODE"))
        await dropping((_ts >= month.started_at) & (_ts < month.following.started_at))
    await connection.execute(_LOCK_OUT_ALL)
    for month in old:
        await connection.execute(text(f"DROP TABLE {month.table}"))
    return [month.table for month in old]


def is_missing(error: Exception) -> bool:
    """Whether `error` says that a record belongs to a month that is not there. It may be the driver's own."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, EmulatedDBAPIException):
        error = error.orig.driver_exception
    # By the code: the message is in the language of the server.
    return getattr(error, "sqlstate", None) == _CHECK_VIOLATION and getattr(error, "constraint_name", None) is None


async def _make(connection: AsyncConnection, wanted: set[Month]) -> None:
    if connection.dialect.name != "postgresql" or wanted <= await _attached(connection):
        return
    # One after the other; and in a statement of its own, so that the next one sees what was made meanwhile.
    await connection.execute(_LOCK_OUT_MAKERS)
    for month in sorted(wanted - await _attached(connection)):
        # CREATE TABLE ... PARTITION OF would lock out everybody else.
        await connection.execute(
            text(f"CREATE TABLE IF NOT EXISTS {month.table} (LIKE usage_records INCLUDING DEFAULTS)")
        )
        bounds = f"FROM ('{month.start}') TO ('{month.following.start}')"
        await connection.execute(text(f"ALTER TABLE usage_records ATTACH PARTITION {month.table} FOR VALUES {bounds}"))


async def _attached(connection: AsyncConnection) -> set[Month]:
    names = await connection.scalars(_ATTACHED)
    years_and_months = (name.removeprefix(_PREFIX).split("_") for name in names)
    return {Month(int(year), int(month)) for year, month in years_and_months}


async def _delete_before(connection: AsyncConnection, first_kept: Month, dropping: Dropping) -> list[str]:
    rowid: ColumnElement[int] = literal_column("rowid")
    is_old = _ts < first_kept.started_at
    some = select(rowid.label("id")).select_from(usage_records).where(is_old).order_by(rowid).limit(ROWS_AT_ONCE)
    last = await connection.scalar(select(func.max(some.subquery().c.id)))
    if last is None:
        return []
    condition = is_old & (rowid <= last)
    await dropping(condition)
    result: CursorResult[tuple[()]] = await connection.execute(delete(usage_records).where(condition))
    return [f"{result.rowcount} records"]
