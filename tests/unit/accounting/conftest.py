"""The real store, on a file of its own."""

import pytest

from faregate.store.store import Store


@pytest.fixture
async def store(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    yield store
    await store.close()
