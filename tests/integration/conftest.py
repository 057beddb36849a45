"""Databases, new for each test, and the server they need."""

from collections.abc import Iterator

import pytest
from databases import Database, NewDatabase, postgres_database, sqlite_database
from postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests. Who kills it starts it again."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewDatabase:
    """Makes databases: a test that asks for this runs once with each of the two."""
    if request.param == "sqlite":
        return lambda: sqlite_database(tmp_path_factory.mktemp("database") / "faregate.db")
    server = request.getfixturevalue("postgres")
    return lambda: postgres_database(server)


@pytest.fixture
def database(new_database: NewDatabase) -> Database:
    """One database."""
    return new_database()
