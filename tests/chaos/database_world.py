"""Two gateways over one Redis and one PostgreSQL, and everything that may happen to the database."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import httpx
from chaos_world import World
from commands import ADMIN_KEY, Gateway
from fleet import running
from postgres import MAX_CONNECTIONS, Postgres

SILENCE = 15.0
"""Seconds after which an answer that does not come is one that never will."""

WAITING = re.compile(r"^faregate_outbox_waiting\{.*\} (?P<rows>[\d.]+)$", re.MULTILINE)
OLDEST = re.compile(r"^faregate_outbox_oldest_seconds\{.*\} (?P<seconds>[\d.e+-]+)$", re.MULTILINE)


class DatabaseWorld(World):
    """Use it in a `with`: whatever happens, no process of it is left."""

    def __init__(self, folder: Path, chance: random.Random, policy: dict[str, object]) -> None:
        super().__init__(folder, chance, policy, nodes=2, killed_at_once=1)

    def __enter__(self) -> "DatabaseWorld":
        self.postgres = self._ends.enter_context(running(Postgres()))
        self.database = self.postgres.url(self.postgres.create_database())
        super().__enter__()
        return self

    # What happens

    def lose_postgres(self) -> None:
        """PostgreSQL is killed, and comes back a moment later with what it had."""
        self._note("postgres")
        self.postgres.kill()
        time.sleep(self._chance.uniform(0.0, 1.0))
        self.postgres.start()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """PostgreSQL has been killed."""
        self.postgres.kill()
        yield
        self.postgres.start()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """PostgreSQL is connected, and says nothing."""
        self.postgres.pause()
        yield
        self.postgres.resume()

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """Somebody else has all connections that PostgreSQL accepts."""
        crowd = asyncio.Runner()
        taken = crowd.run(self._take_all_connections())
        try:
            yield
        finally:
            for connection in taken:
                connection.terminate()
            crowd.close()

    # What is waited for

    def recovered(self) -> None:
        """Return when everything is as if nothing had happened: whatever fails next is the only thing that has."""
        since = time.monotonic()
        self._until(self._everybody_is_in, "the nodes do not bring their holds into the counters")
        self._until(self.nothing_is_left_behind, "nobody takes over what is left")
        # What was under way when it happened is written.
        self._until(
            lambda: all(oldest(gateway) < time.monotonic() - since for gateway in self.gateways),
            "the database does not get what it missed",
        )
        for gateway in self.gateways:
            self._until(lambda asked=gateway: readiness(asked) == (200, "ready"), "a node does not become ready")

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for what happens in another process."""
        self._until(condition, otherwise)

    def _shared(self, number: int) -> dict[str, str]:
        # A machine that is busy with all this is not to be taken for a Redis that is away.
        patience = {"REDIS_CONNECT_TIMEOUT": "2", "REDIS_CALL_TIMEOUT": "2"}
        return {"REDIS_URL": self.redis.url, "DATABASE_URL": self.database} | patience

    async def _take_all_connections(self) -> list[asyncpg.Connection]:
        taken: list[asyncpg.Connection] = []
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while True:
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(self.database))
            own = ",".join(str(connection.get_server_pid()) for connection in taken)
            if not await taken[0].fetch(f"{others} AND pid NOT IN ({own})") and len(taken) == MAX_CONNECTIONS:
                return taken


def readiness(gateway: Gateway) -> tuple[int, str]:
    """What an orchestrator is told."""
    answer = httpx.get(f"{gateway.url}/readyz", timeout=SILENCE)
    return answer.status_code, answer.json()["status"]


def try_admin(gateway: Gateway, method: str, path: str, **more: object) -> httpx.Response:
    """Ask the admin API for something that may not work now."""
    url = f"{gateway.url}/admin{path}"
    return httpx.request(method, url, headers={"x-admin-key": ADMIN_KEY}, timeout=SILENCE, **more)


def waiting(gateway: Gateway) -> int:
    """How many rows wait for the database, by the metric."""
    return int(float(_metric(gateway, WAITING)["rows"]))


def oldest(gateway: Gateway) -> float:
    """How many seconds the oldest of them has waited, by the metric."""
    return float(_metric(gateway, OLDEST)["seconds"])


def _metric(gateway: Gateway, pattern: re.Pattern[str]) -> re.Match[str]:
    found = pattern.search(httpx.get(f"{gateway.url}/metrics", timeout=SILENCE).text)
    assert found is not None
    return found
