"""What is measured: Faregate with everything on, and nginx beside it, each in front of the same upstream."""

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import answers
import httpx
import machine

sys.path.insert(0, str(machine.ROOT / "tests" / "integration"))
sys.path.insert(0, str(machine.ROOT / "tests" / "acceptance"))

from commands import ADMIN_KEY, CONNECTION_KEY, UPSTREAM_KEY, Gateway
from postgres import Postgres
from redis_server import RedisServer

STAFF = "staff"
"""The group of those who are admitted."""

SPENT = "spent"
"""The group of those who have used up what they may."""

MUCH = 10**12
LIMITS: list[dict[str, Any]] = [
    {"meter": "requests", "window": "minute", "amount": 10**9},
    {"meter": "tokens", "window": "day", "amount": MUCH},
    {"meter": "usd", "window": "day", "amount": "1000000"},
    {"meter": "usd", "window": "month", "amount": "1000000", "scope": "group"},
    {"meter": "usd", "window": "month", "amount": "1000000", "scope": "everyone"},
    {"meter": "concurrent", "amount": 100_000},
]
"""Six limits, of three scopes, so high that nobody meets them."""

NOTHING_LEFT = [limit | {"amount": 0} if limit["meter"] == "tokens" else limit for limit in LIMITS]
QUIET_DEADLINE = 120.0
"""Seconds that the last records may take to the database."""


class System(Protocol):
    """Something that passes requests on to upstream."""

    @property
    def name(self) -> str:
        """What its figures are found under."""
        ...

    @property
    def url(self) -> str:
        """Where it listens."""
        ...

    def settle(self) -> None:
        """Return when it has done all that the load so far gave it to do."""
        ...

    def cpu(self) -> float:
        """Seconds of CPU that it has used so far."""
        ...


@dataclass(frozen=True, slots=True)
class Proxy:
    """nginx in front of an upstream: it is done when the answer is."""

    url: str
    pids: list[int]
    name: str = "nginx"

    def settle(self) -> None:
        pass

    def cpu(self) -> float:
        return machine.cpu(self.pids)


class Stores:
    """A Redis and a PostgreSQL, and what they use."""

    def __init__(self) -> None:
        try:
            self._redis = RedisServer()
            self._postgres = Postgres(fsync="on")
        except AssertionError as missing:
            raise machine.CannotMeasure(str(missing)) from None

    def start(self) -> None:
        """Start both."""
        self._redis.start()
        self._postgres.start()
        with self._redis.client() as client:
            self._redis_pid = int(client.info("server")["process_id"])
        writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        self._postgres_pid = machine.parent(int(self._postgres.sql("postgres", writer)[0][0]))

    def remove(self) -> None:
        """Stop both, and leave nothing behind."""
        self._redis.remove()
        self._postgres.remove()

    def settings(self, prefix: str) -> dict[str, str]:
        """The settings of a gateway with a database and counters of its own."""
        return {
            "REDIS_URL": self._redis.url,
            "REDIS_PREFIX": prefix,
            "DATABASE_URL": self._postgres.url(self._postgres.create_database()),
        }

    def version(self) -> dict[str, str]:
        """What they are."""
        with self._redis.client() as client:
            redis = client.info("server")["redis_version"]
        return {
            "redis": redis,
            "postgresql": str(self._postgres.sql("postgres", "SHOW server_version")[0][0]).split()[0],
        }

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU that each has used so far."""
        return {
            "Redis": machine.cpu(machine.tree(self._redis_pid)),
            "PostgreSQL": machine.cpu(machine.tree(self._postgres_pid)),
        }


class Faregate:
    """A gateway in front of the upstream at `base_url`."""

    name = "faregate"

    def __init__(self, folder: Path, stores: Stores, base_url: str, authority: Path) -> None:
        folder.mkdir()
        settings = stores.settings(folder.name) | {
            "OPENROUTER_API_KEY": UPSTREAM_KEY,
            "OPENROUTER_BASE_URL": base_url,
            "SSL_CERT_FILE": str(authority),
            "ADMIN_API_KEY": ADMIN_KEY,
            "GATEWAY_API_KEYS": f"bench:{CONNECTION_KEY}",
            "IDENTITY": "jwt",
            "OPENWEBUI_JWT_SECRETS": answers.JWT_SECRET,
            "LOG_MODE": "off",
            "MAX_IN_FLIGHT": "10000",
        }
        if "PYTHONPATH" in os.environ:
            settings["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self._gateway = Gateway.start(folder, settings, state=None)
        self.url = self._gateway.url
        self.pid = self._gateway.process.pid
        try:
            self._gateway.set_policy(limits=LIMITS)
            self._gateway.set_policy("nothing-left", limits=NOTHING_LEFT)
            self._gateway.admin("POST", "/group-policies", json={"group_name": SPENT, "policy_id": "nothing-left"})
        except BaseException:
            self.end()
            raise

    def settle(self) -> None:
        """Wait until every request is settled and the database has every record."""
        deadline = time.monotonic() + QUIET_DEADLINE
        while any(self._waiting()):
            if time.monotonic() > deadline:
                raise machine.CannotMeasure(f"Records do not get to the database:\n{self._gateway.process.output}")
            time.sleep(0.25)

    def cpu(self) -> float:
        return machine.cpu(machine.tree(self.pid))

    def resident(self) -> int:
        """Bytes of memory that it has now."""
        return machine.resident(self.pid)

    def end(self) -> None:
        """Stop it."""
        self._gateway.process.end()

    def _waiting(self) -> list[float]:
        text = httpx.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        return [float(n) for n in re.findall(r"^faregate_(?:outbox|settlements)_waiting (\S+)$", text, re.MULTILINE)]
