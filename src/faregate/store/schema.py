"""The version of the schema, how a database comes to it, and the secret of this deployment in the table `meta`.

The row `schema_version` of `meta` says what the schema is: every Faregate that ever was reads it, so that an older one
leaves a newer database alone. Version N is made by revision N of `migrations`.
"""

import asyncio
import logging
import secrets

from sqlalchemy import func, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store import rollups
from faregate.store.errors import StoreError
from faregate.store.locks import Lock
from faregate.store.tables import audit_log, carried_charges, meta, reconciliations, usage_sums
from faregate.store.upsert import insert_missing, upsert

NEWEST = 3
"""The version that `tables` describes."""

FIRST = 1

_REPORTS = 3
"""The version that brought what no older one has a place for and nothing could bring back."""

_VERSION = "schema_version"
_SALT = "salt"
_SALT_BYTES = 32

_LOCK_AGAIN_SECONDS = 0.1

log = logging.getLogger(__name__)


class WouldLose(StoreError):
    """Going back to an older schema would lose what that has no place for. The message says what."""


async def prepare(connection: AsyncConnection, *, migrate: bool = True) -> None:
    """Bring the database to the newest schema; nothing is done or locked where it is there.

    Raises `StoreError` when a newer Faregate has been here, and, unless it may `migrate`, when an older one has.
    """
    stored = await version(connection)
    if stored == NEWEST:
        return
    if not migrate:
        state = f"the database has schema version {stored}" if stored else "the database has no schema yet"
        raise StoreError(
            f"{state}, this Faregate needs version {NEWEST}, and DATABASE_MIGRATE is manual: "
            "stop what still uses the database, then run `faregate migrate`"
        )
    await move(connection, NEWEST)


async def version(connection: AsyncConnection) -> int:
    """The version of the database's schema, 0 if it has none. Raises `StoreError` if it is newer than this Faregate."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(meta.name)):
        return 0
    stored = await _read(connection, _VERSION)
    if stored is None:
        raise StoreError("the database has lost the version of its schema: restore the table meta from a backup")
    if int(stored) > NEWEST:
        raise StoreError(
            f"the database has schema version {stored}, but this Faregate knows versions up to {NEWEST}: "
            "a newer one has used it; start that one, or restore a backup"
        )
    return int(stored)


async def move(connection: AsyncConnection, to: int, *, lose: bool = False) -> int:
    """Bring the database to version `to` of the schema, up or down, all or nothing; the version that it had.

    Raises `WouldLose` if rows would be lost for good by that, unless they may be: `lose`.
    """
    await _alone(connection)
    # Again, in a statement after the wait: another node may have done it meanwhile.
    start = await version(connection)
    if start == to:
        return start
    if not lose and (what := await _losses(connection, start, to)):
        raise WouldLose(f"version {to} of the schema has no place for {' and '.join(what)}, which would be lost")
    # Not on top: Alembic takes its time to be imported, and a start that finds all in place has no use for it.
    from faregate.store.migrations.run import run

    await connection.run_sync(run, start, to)
    # In the same transaction, so that the two never tell different things.
    statement = upsert(connection, meta, key=["key"], update=["value"])
    await connection.execute(statement, [{"key": _VERSION, "value": str(to)}])
    log.info("the schema of the database is version %s now; it was %s", to, start)
    return start


def titles() -> dict[int, str]:
    """What each version of the schema brought, in their order."""
    from faregate.store.migrations import run

    return run.titles()


async def salt(connection: AsyncConnection) -> bytes:
    """32 random bytes, made by whoever asks first, the same for everybody ever after."""
    if (stored := await _read(connection, _SALT)) is None:
        await connection.execute(
            insert_missing(connection, meta), [{"key": _SALT, "value": secrets.token_hex(_SALT_BYTES)}]
        )
        # Another node may have been first: what counts is what is stored.
        stored = await _read(connection, _SALT)
    if stored is None:
        raise StoreError("the database did not keep the salt for pseudonyms: check the table meta")
    return bytes.fromhex(stored)


async def _losses(connection: AsyncConnection, start: int, to: int) -> list[str]:
    if not to < _REPORTS <= start:
        return []
    # All other sums can be made of the records again.
    of_deleted = usage_sums.c.start < await rollups.records_since(connection)
    lost = {
        "the audit log": select(func.count()).select_from(audit_log),
        "the results of reconciliations": select(func.count()).select_from(reconciliations),
        "what deleted records had charged": select(func.count()).select_from(carried_charges),
        "the sums of deleted records": select(func.count()).select_from(usage_sums).where(of_deleted),
    }
    return [f"{what} (rows: {count})" for what, rows in lost.items() if (count := await connection.scalar(rows))]


async def _alone(connection: AsyncConnection) -> None:
    """Wait until no other node is at work on the schema, and keep them from it until the transaction has ended."""
    if connection.dialect.name != "postgresql":
        return
    # Asked again and again: one statement may not wait for as long as much data takes to be copied.
    attempt = select(func.pg_try_advisory_xact_lock(Lock.SCHEMA.value))
    if await connection.scalar(attempt):
        return
    log.warning("another node is at work on the schema of the database: waiting until it has finished")
    # The server does not tell when it is free.
    while not await connection.scalar(attempt):  # noqa: ASYNC110
        await asyncio.sleep(_LOCK_AGAIN_SECONDS)


async def _read(connection: AsyncConnection, key: str) -> str | None:
    value: str | None = await connection.scalar(select(meta.c.value).where(meta.c.key == key))
    return value
