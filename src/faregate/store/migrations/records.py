"""Revision 0003: usage records from one table to one with a partition for each month on PostgreSQL, and back."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    PrimaryKeyConstraint,
    String,
    TableClause,
    Text,
    column,
    func,
    insert,
    select,
    table,
    text,
)

from faregate.store.migrations.kinds import instant, money

_NOW = "usage_records"
_BEFORE = "usage_records_before"
_HOUR = timedelta(hours=1)
_HOUR_MICROSECONDS = 3_600_000_000
_INDEXES = {
    "ix_usage_records_ts_request_id": ["ts", "request_id"],
    "ix_usage_records_user_id_ts_request_id": ["user_id", "ts", "request_id"],
    "ix_usage_records_status_ts": ["status", "ts"],
}
_stale_hours = table("stale_hours", column("hour", instant()), column("touched"))


def rebuild(op: Operations, *, by_month: bool) -> list[Any]:
    """Copy all records to a new table, by month with a key that has the time in it, or without either.

    Returns the hours that have any.
    """
    connection = op.get_bind()
    is_postgresql = connection.dialect.name == "postgresql"
    _set_aside(op, is_postgresql)
    partitioned: dict[str, Any] = {"postgresql_partition_by": "RANGE (ts)"} if by_month else {}
    key = ["request_id", "ts"] if by_month else ["request_id"]
    op.create_table(_NOW, *_columns(), PrimaryKeyConstraint(*key, name="pk_usage_records"), **partitioned)
    # Before the rows: one statement that indexes them all could take longer than a statement may.
    for name, columns in _INDEXES.items():
        op.create_index(name, _NOW, columns)
    copy = _copy_by_hour if is_postgresql else _copy
    hours = list(copy(connection, by_month))
    op.drop_table(_BEFORE)
    return hours


def mark_stale(connection: Connection, hours: Iterable[Any]) -> None:
    """Let what is told of `hours` be added up anew."""
    if rows := [{"hour": hour, "touched": 1} for hour in hours]:
        connection.execute(insert(_stale_hours), rows)


def _set_aside(op: Operations, is_postgresql: bool) -> None:
    op.rename_table(_NOW, _BEFORE)
    for name in _INDEXES:
        # The names of indexes are those of the new table; only PostgreSQL can give them others.
        op.execute(f"ALTER INDEX {name} RENAME TO before_{name}" if is_postgresql else f"DROP INDEX {name}")
    if is_postgresql:
        op.execute("ALTER INDEX pk_usage_records RENAME TO before_pk_usage_records")


def _copy(connection: Connection, by_month: bool) -> Iterator[int]:
    """All at once, which SQLite may take its time for."""
    new, old = _records(_NOW), _records(_BEFORE)
    connection.execute(insert(new).from_select(list(new.c.keys()), select(old)))
    hour = old.c.ts - old.c.ts % _HOUR_MICROSECONDS
    yield from connection.scalars(select(hour).distinct().order_by(hour))


def _copy_by_hour(connection: Connection, by_month: bool) -> Iterator[datetime]:
    """An hour at a time: however many records there are, no statement takes long."""
    new, old = _records(_NOW), _records(_BEFORE)
    month = (0, 0)
    first = connection.scalar(select(func.min(old.c.ts)))
    while first is not None:
        hour = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if by_month and (hour.year, hour.month) != month:
            month = (hour.year, hour.month)
            connection.execute(text(_partition(hour)))
        those = select(old).where(old.c.ts >= hour, old.c.ts < hour + _HOUR)
        connection.execute(insert(new).from_select(list(new.c.keys()), those))
        yield hour
        first = connection.scalar(select(func.min(old.c.ts)).where(old.c.ts >= hour + _HOUR))


def _partition(hour: datetime) -> str:
    year, month = (hour.year, hour.month + 1) if hour.month < 12 else (hour.year + 1, 1)
    bounds = f"FROM ('{hour:%Y-%m}-01 00:00:00+00') TO ('{year:04}-{month:02}-01 00:00:00+00')"
    return f"CREATE TABLE usage_records_{hour:%Y_%m} PARTITION OF usage_records FOR VALUES {bounds}"


def _records(name: str) -> TableClause:
    return table(name, *(column(each.name, each.type) for each in _columns()))


def _columns() -> list[Column[Any]]:
    return [
        Column("request_id", Text, nullable=False),
        Column("ts", instant(), nullable=False),
        Column("user_id", Text, nullable=False),
        Column("email", Text),
        Column("connection", Text, nullable=False),
        Column("groups", Text, nullable=False),
        Column("policy_id", Text, nullable=False),
        Column("rules", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("models", Text, nullable=False),
        Column("served_model", Text),
        Column("provider", Text),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("total_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("reasoning_tokens", BigInteger, nullable=False),
        Column("cost", money()),
        Column("cost_nano", BigInteger, nullable=False),
        Column("requests", Integer, nullable=False),
        Column("status", String(16), nullable=False),
        Column("outcome", String(16)),
        Column("source", String(16)),
        Column("task", Text),
        Column("chat_id", Text),
        Column("stream", Boolean, nullable=False),
        Column("ttft_ms", BigInteger),
        Column("duration_ms", BigInteger),
        Column("generation_id", Text),
        Column("reason", Text),
        Column("facts", Text),
        Column("era", BigInteger, nullable=False, server_default=text("0")),
        Column("node", Text),
    ]
