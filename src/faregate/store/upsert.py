"""INSERT ... ON CONFLICT, which both dialects speak alike and SQLAlchemy spells per dialect."""

from collections.abc import Sequence

from sqlalchemy import Insert, SelectBase, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


def insert_missing(connection: AsyncConnection, table: Table) -> Insert:
    """Insert a row, unless any of its unique keys is taken: then the row that is there stays."""
    return _insert(connection, table).on_conflict_do_nothing()


def upsert(
    connection: AsyncConnection,
    table: Table,
    *,
    key: Sequence[str],
    update: Sequence[str],
) -> Insert:
    """Insert a row; where `key` is taken, set the columns `update` of the row that is there.

    The table should have no other unique key: two that insert at once would break that one.
    """
    statement = _insert(connection, table)
    return statement.on_conflict_do_update(
        index_elements=key,
        set_={name: statement.excluded[name] for name in update},
    )


def add_up(
    connection: AsyncConnection, table: Table, names: Sequence[str], rows: SelectBase, *, key: Sequence[str]
) -> Insert:
    """Insert `rows`, which have the columns `names`; where `key` is taken, add all else to the row that is there."""
    statement = _insert(connection, table)
    statement = statement.on_conflict_do_update(
        index_elements=key,
        set_={name: table.c[name] + statement.excluded[name] for name in names if name not in key},
    )
    return statement.from_select(list(names), rows)


def _insert(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
