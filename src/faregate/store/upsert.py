"""INSERT ... ON CONFLICT, which both dialects speak alike and SQLAlchemy spells per dialect."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnCollection

type_of_excluded = ColumnCollection[str, ColumnElement[Any]]


def upsert(
    connection: AsyncConnection,
    table: Table,
    *,
    key: Sequence[str],
    update: Sequence[str],
    where: Callable[[type_of_excluded], ColumnElement[bool]] | None = None,
) -> Insert:
    """Insert a row; where `key` is taken, set the columns `update` of the row that is there, if `where` holds.

    `where` is given the row that was to be inserted. Without `update` the row that is there stays.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    if not update:
        return statement.on_conflict_do_nothing(index_elements=key)
    return statement.on_conflict_do_update(
        index_elements=key,
        set_={name: statement.excluded[name] for name in update},
        where=None if where is None else where(statement.excluded),
    )
