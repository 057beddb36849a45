"""The schema's version and the secret of this deployment, in the table `meta`."""

import secrets

from sqlalchemy import func, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.errors import StoreError
from faregate.store.tables import SCHEMA_VERSION, meta, metadata
from faregate.store.upsert import insert_missing

_VERSION = "schema_version"
_SALT = "salt"
_SALT_BYTES = 32

_PREPARING = 0x66617265
"""The advisory lock of PostgreSQL under which the schema is made; any number that nobody else uses."""


async def prepare(connection: AsyncConnection) -> None:
    """Create what is missing. Raises `StoreError` when a newer Faregate has been here."""
    if connection.dialect.name == "postgresql":
        # Two nodes that create one table at once: IF NOT EXISTS does not keep the second from failing.
        await connection.execute(select(func.pg_advisory_xact_lock(_PREPARING)))
    if await connection.run_sync(lambda sync: inspect(sync).has_table(meta.name)):
        stored = await _read(connection, _VERSION)
        if stored is not None and int(stored) > SCHEMA_VERSION:
            raise StoreError(
                f"the database has schema version {stored}, but this Faregate knows versions up to {SCHEMA_VERSION}: "
                "a newer one has used it; start that one, or restore a backup"
            )
    await connection.run_sync(metadata.create_all)
    await _keep(connection, _VERSION, str(SCHEMA_VERSION))


async def salt(connection: AsyncConnection) -> bytes:
    """32 random bytes, made by whoever asks first, the same for everybody ever after."""
    if (stored := await _read(connection, _SALT)) is None:
        await _keep(connection, _SALT, secrets.token_hex(_SALT_BYTES))
        # Another node may have been first: what counts is what is stored.
        stored = await _read(connection, _SALT)
    if stored is None:
        raise StoreError("the database did not keep the salt for pseudonyms: check the table meta")
    return bytes.fromhex(stored)


async def _read(connection: AsyncConnection, key: str) -> str | None:
    value: str | None = await connection.scalar(select(meta.c.value).where(meta.c.key == key))
    return value


async def _keep(connection: AsyncConnection, key: str, value: str) -> None:
    await connection.execute(insert_missing(connection, meta), [{"key": key, "value": value}])
