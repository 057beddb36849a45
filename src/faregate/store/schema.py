"""The schema's version and the secret of this deployment, in the table `meta`."""

import secrets

from sqlalchemy import inspect, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store import eras
from faregate.store.errors import StoreError
from faregate.store.locks import Lock, take
from faregate.store.tables import SCHEMA_VERSION, meta, metadata
from faregate.store.upsert import insert_missing

_VERSION = "schema_version"
_SALT = "salt"
_SALT_BYTES = 32

_ADDED_IN_2 = ("era BIGINT DEFAULT 0 NOT NULL", "node TEXT")
"""The columns of usage_records that version 1 did not have."""


async def prepare(connection: AsyncConnection) -> None:
    """Create what is missing. Raises `StoreError` when a newer Faregate has been here."""
    # Two nodes that create one table at once: IF NOT EXISTS does not keep the second from failing.
    await take(connection, Lock.SCHEMA)
    if await connection.run_sync(lambda sync: inspect(sync).has_table(meta.name)):
        stored = await _read(connection, _VERSION)
        if stored is not None and int(stored) > SCHEMA_VERSION:
            raise StoreError(
                f"the database has schema version {stored}, but this Faregate knows versions up to {SCHEMA_VERSION}: "
                "a newer one has used it; start that one, or restore a backup"
            )
        if stored == "1":
            await _bring_to_2(connection)
    await connection.run_sync(metadata.create_all)
    await _keep(connection, _VERSION, str(SCHEMA_VERSION))
    await _keep(connection, eras.KEY, str(eras.FIRST))


async def salt(connection: AsyncConnection) -> bytes:
    """32 random bytes, made by whoever asks first, the same for everybody ever after."""
    if (stored := await _read(connection, _SALT)) is None:
        await _keep(connection, _SALT, secrets.token_hex(_SALT_BYTES))
        # Another node may have been first: what counts is what is stored.
        stored = await _read(connection, _SALT)
    if stored is None:
        raise StoreError("the database did not keep the salt for pseudonyms: check the table meta")
    return bytes.fromhex(stored)


async def _bring_to_2(connection: AsyncConnection) -> None:
    for column in _ADDED_IN_2:
        await connection.execute(text(f"ALTER TABLE usage_records ADD COLUMN {column}"))
    await connection.execute(update(meta).where(meta.c.key == _VERSION).values(value="2"))


async def _read(connection: AsyncConnection, key: str) -> str | None:
    value: str | None = await connection.scalar(select(meta.c.value).where(meta.c.key == key))
    return value


async def _keep(connection: AsyncConnection, key: str, value: str) -> None:
    await connection.execute(insert_missing(connection, meta), [{"key": key, "value": value}])
