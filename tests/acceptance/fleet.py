"""Gateways that share one Redis and one database: how tests start them, and what they ask of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Protocol, TypeVar

import httpx
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, UPSTREAM_KEY, Gateway, Simulator
from open_webui import Person, plain_headers, user_turn


class Server(Protocol):
    """What the gateways share: a Redis, a PostgreSQL."""

    def start(self) -> None: ...

    def remove(self) -> None: ...


S = TypeVar("S", bound=Server)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Start `server`; whatever happens, nothing of it is left."""
    try:
        server.start()
        yield server
    finally:
        server.remove()


def defaults(simulator: Simulator) -> dict[str, str]:
    """The settings of a gateway of the tests: keys that they know, upstream, and patience for a test."""
    return {
        "OPENROUTER_API_KEY": UPSTREAM_KEY,
        "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1",
        "ADMIN_API_KEY": ADMIN_KEY,
        "GATEWAY_API_KEYS": f"tests:{CONNECTION_KEY}",
        "RECONCILE_DELAYS": "0.3,0.3,0.5,1",
        "SHUTDOWN_GRACE": "5",
        "UPSTREAM_QUEUE_SECONDS": "1",
    }


def sharing(redis_url: str, folder: Path) -> dict[str, str]:
    """The settings of gateways that share the Redis at `redis_url`, and a database in `folder`."""
    return {"REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{folder / 'faregate.db'}"}


def start_all(start: Callable[[int], Gateway], count: int, **policy: object) -> list[Gateway]:
    """So many gateways, which `start` starts by their numbers, and the default policy of all of them."""
    # The first one makes the database and knows the policy: whoever comes later finds both, in whatever order.
    first = start(0)
    first.set_policy(**policy)
    with ThreadPoolExecutor(count) as starting:
        return [first, *starting.map(start, range(1, count))]


def ask(gateway: Gateway, person: Person, text: str = "Hello", **more: object) -> httpx.Response:
    """Ask for an answer in one piece, on a connection of its own: of several workers the system chooses one anew."""
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY),
        json=user_turn(text, **{"stream": False, "tools": []} | more),
        timeout=DEADLINE,
    )


def stream(gateway: Gateway, person: Person, text: str) -> AbstractContextManager[httpx.Response]:
    """Ask for a stream, and be there while it comes."""
    return httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY),
        json=user_turn(text, tools=[]),
        timeout=DEADLINE,
    )


def bills_of(simulator: Simulator) -> list[Decimal]:
    """What OpenRouter would have charged, in dollars, least first."""
    return sorted(Decimal(str(bill["total"])) for bill in simulator.bills())
