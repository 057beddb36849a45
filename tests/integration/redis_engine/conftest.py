"""A Redis for each test, and nodes on it."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis_nodes import Database, Node
from redis_proxy import RedisProxy
from redis_server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    running.start()
    yield running
    running.remove()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[RedisProxy]:
    running = RedisProxy(server.port)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def node(server: RedisServer, database: Database) -> Any:
    """Opens nodes."""
    async with AsyncExitStack() as opened:

        def open_node(name: str = "a", *, url: str = "", by_hand: bool = False, timeout: float = 2) -> Node:
            new = Node(url or server.url, database, name, by_hand=by_hand, timeout=timeout)
            opened.push_async_callback(new.close)
            return new

        yield open_node
