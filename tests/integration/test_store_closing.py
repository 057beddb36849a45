"""A store is closed soon, whatever its database does: a node that is told to stop has not for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from databases import postgres_database
from postgres import Postgres
from rows import record

from faregate.store import postgresql
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store

SOON = 15
"""Seconds. Far less than the driver waits for an answer, of which there would be several."""

MANY = 5
"""As many as the pool has connections."""


async def test_a_silent_database_does_not_keep_its_idle_connections(postgres: Postgres):
    store = await _busy_once(postgres)
    async with silent(postgres):
        await store.close()


async def test_a_silent_database_does_not_keep_what_waits_for_its_answer(postgres: Postgres):
    store = await _busy_once(postgres)
    async with silent(postgres):
        waiting = _ask(store)
        await store.close()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * len(waiting)


async def test_a_store_that_is_broken_off_tells_all_who_wait_and_all_who_come(postgres: Postgres):
    store = await _busy_once(postgres)
    async with silent(postgres):
        # More than there are connections, so that some of them wait for one.
        waiting = [*_ask(store), *_ask(store)]
        with pytest.raises(StoreUnavailable):
            await store.ping(0.2)
        store.break_off()
        waiting += _ask(store)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * len(waiting)
        await store.close()


async def test_who_is_being_connected_is_told_too(postgres: Postgres, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT", 3600.0)
    store = await Store.open(postgres_database(postgres).url)
    await store.close()
    async with silent(postgres):
        waiting = _ask(store)
        with pytest.raises(StoreUnavailable):
            await store.ping(0.2)
        store.break_off()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * len(waiting)


@asynccontextmanager
async def silent(postgres: Postgres) -> AsyncIterator[None]:
    """While PostgreSQL says nothing; what is done meanwhile should be done soon."""
    postgres.pause()
    try:
        async with asyncio.timeout(SOON):
            yield
    finally:
        postgres.resume()


async def _busy_once(postgres: Postgres) -> Store:
    """A store that has used all of its connections, that of its writer among them."""
    store = await Store.open(postgres_database(postgres).url)
    await store.write([], [record("first")])
    await asyncio.gather(*(store.settled(["first"]) for _ in range(MANY)))
    return store


def _ask(store: Store) -> list[asyncio.Task[object]]:
    """Reads and writes, each of which waits for the database."""
    return [
        asyncio.create_task(store.write([], [record("second")])),
        *(asyncio.create_task(store.settled(["first"])) for _ in range(MANY)),
    ]
