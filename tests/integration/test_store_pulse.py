"""Is the database there? Whoever asks has an answer soon, also when the database says nothing."""

import asyncio

import pytest
from databases import postgres_database
from postgres import Postgres

from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store

MANY = 30
"""More than there are connections in the pool."""


async def test_a_silent_database_is_told_soon_and_asked_once(postgres: Postgres):
    database = postgres_database(postgres)
    store = await Store.open(database.url)
    await store.ping()
    postgres.pause()
    try:
        # Far less than its driver waits for an answer.
        async with asyncio.timeout(15):
            told = await asyncio.gather(*(store.ping(0.2) for _ in range(MANY)), return_exceptions=True)
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s; try again"):
                await store.ping(0.2)
        assert [type(error) for error in told] == [StoreUnavailable] * MANY
    finally:
        postgres.resume()
    async with asyncio.timeout(15):
        await store.ping(15)
    [(sessions,)] = database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    )
    assert sessions == "1"
    await store.close()


async def test_a_database_that_is_gone_is_told_at_once(postgres: Postgres):
    store = await Store.open(postgres_database(postgres).url)
    postgres.kill()
    try:
        with pytest.raises(StoreUnavailable, match="try again"):
            await store.ping(30)
    finally:
        postgres.start()
    await store.ping(30)
    await store.close()
