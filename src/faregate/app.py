"""The composition root: builds each part, wires them, owns the order in which they start and stop."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from faregate import __version__
from faregate.accounting.generation import AskFailed, Generation, parse_generation
from faregate.accounting.upkeep import Upkeep
from faregate.admin.app import create_admin
from faregate.admin.services import AdminServices
from faregate.books import embedded, shared
from faregate.gateway.admission import Admitter
from faregate.gateway.http1 import UpstreamFailure
from faregate.gateway.identity import Gatekeeper
from faregate.gateway.models import ModelList
from faregate.gateway.relay import Relay
from faregate.gateway.routes import PREFIXES, Gateway
from faregate.gateway.settlement import Settler
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.health import Check, Health
from faregate.keys import Keys
from faregate.policy.model import DEFAULT_POLICY_ID
from faregate.policy.windows import Calendar
from faregate.reconciling import daily
from faregate.settings import DatabaseMigrate, LogMode, Settings, UpstreamKey
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store
from faregate.telemetry.metrics import Metrics, Sources

CATALOGUE = "catalogue.json"
DATABASE = "faregate.db"
MOST_GENERATION_BYTES = 1024 * 1024

Asgi = Callable[..., Any]


def database_url(settings: Settings) -> str:
    """Where users, rules and usage are kept: configured, or SQLite in DATA_DIR."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return f"sqlite:///{settings.data_dir / DATABASE}"


async def open_store(settings: Settings, node: str = "") -> Store:
    """The database of the settings, for `node`, brought up to date if it may be.

    Raises `StoreError` and `StoreUnavailable`, each with a sentence.
    """
    return await Store.open(database_url(settings), node, settings.database_migrate is DatabaseMigrate.AUTO)


def upstream_settings(
    settings: Settings, base_url: str, api_key: str, keys: tuple[UpstreamKey, ...] = ()
) -> UpstreamSettings:
    """How to reach OpenRouter, or what stands in for it, with the one key or the `keys` that share its work."""
    return UpstreamSettings(
        base_url=base_url,
        api_key=api_key,
        http_referer=settings.openrouter_http_referer,
        title=settings.openrouter_x_title,
        connect_timeout=settings.upstream_connect_timeout,
        first_byte_timeout=settings.upstream_first_byte_timeout,
        idle_timeout=settings.upstream_idle_timeout,
        keys=keys,
        proxy=settings.proxy_for(base_url),
    )


def management(settings: Settings) -> UpstreamSettings | None:
    """How to ask OpenRouter what the account was charged; None without a management key."""
    key = settings.openrouter_management_key
    return None if key is None else upstream_settings(settings, settings.openrouter_base_url, key.get_secret_value())


class Faregate:
    """One node: an ASGI application with a beginning and an end."""

    def __init__(self, settings: Settings, keys: Keys, upstream: UpstreamSettings, mounts: dict[str, Asgi]) -> None:
        """`mounts` are further applications by the first segment of their paths."""
        self._settings = settings
        self._keys = keys
        self._upstream_settings = upstream
        self._mounts = mounts
        self._health = Health(self._checks)
        self._node = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._parts = AsyncExitStack()

    async def start(self) -> None:
        """Bring every part up, what an earlier process left included.

        Raises `StoreError`, `StoreUnavailable` or `JournalError`, each with a sentence, when that cannot be done.
        """
        settings = self._settings
        calendar = Calendar(settings.zone())
        parts = self._parts
        self._store = store = await open_store(settings, self._node)
        parts.push_async_callback(store.close)
        self._upstream = upstream = Upstream(self._upstream_settings)
        parts.callback(upstream.close)
        if settings.redis_url is None:
            books = await embedded(settings, store, calendar, self._node, self._ask, parts)
        else:
            url = settings.redis_url.get_secret_value()
            books = await shared(settings, url, store, calendar, self._node, self._ask, parts)
        self._books = books
        self._models = models = ModelList(upstream, settings.data_dir / CATALOGUE)
        await models.start()
        parts.push_async_callback(models.stop)
        openrouter = management(settings)
        compare = None if openrouter is None else daily(store, openrouter)
        upkeep = Upkeep(store, self._node, kept_since=settings.kept_since, compare=compare)
        upkeep.start()
        parts.push_async_callback(upkeep.stop)
        admitter = Admitter(
            directory=books.directory,
            catalogue=lambda: models.catalogue,
            ledger=books.ledger,
            accountant=books.accountant,
            calendar=calendar,
            clock=time.time,
            node=self._node,
            salt=await store.salt(),
            contact=settings.support_contact,
            on_outage=settings.ledger_on_outage,
        )
        self._gateway = Gateway(
            Gatekeeper(settings, self._keys.connections),
            admitter,
            Relay(
                upstream,
                books.ledger,
                Settler(books.accountant),
                settings.support_contact,
                settings.client_left,
                settings.upstream_queue_seconds,
            ),
            models,
            new_id=_ids(),
            ledger_away=books.away,
            log_requests=settings.log_mode is LogMode.METADATA,
            max_in_flight=settings.max_in_flight,
        )
        self._admin = create_admin(
            AdminServices(
                store=store,
                directory=books.directory,
                ledger=books.ledger,
                calendar=calendar,
                admin_key=self._keys.admin.get_secret_value(),
                flush=books.outbox.flush,
                follow=books.follow,
                changed=books.changed,
                prepare=books.prepare,
                clock=time.time,
                jobs=upkeep.plan,
            )
        )
        self._metrics = Metrics(
            Sources(
                ledger=books.numbers,
                outbox=lambda: books.outbox.lag,
                requests=lambda: asdict(admitter.outcomes),
                settlements=lambda: len(books.reconciler),
                holds=books.holds,
                jobs=lambda: upkeep.last_runs,
                keys=lambda: upstream.keys.up(asyncio.get_running_loop().time()),
            ),
            version=__version__,
            worker=str(os.getpid()) if settings.workers > 1 else "0",
        )
        # Before any part is stopped: together they would wait for a silent database for longer than a node has.
        parts.push_async_callback(store.break_off_if_silent)

    async def stop(self) -> None:
        """Settle, write, close, in the reverse order of the start. Requests have ended by now."""
        await self._parts.aclose()

    def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> Awaitable[None]:
        """Serve a request with its plane."""
        path = scope["path"]
        plane = self._gateway if path.startswith(PREFIXES) else self._plane(path)
        return plane(scope, receive, send)

    def _plane(self, path: str) -> Callable[..., Awaitable[None]]:
        """What no other plane has is the data plane's 404."""
        segment = path[1:].partition("/")[0]
        if segment == "admin":
            return self._admin
        if path in Health.paths:
            return self._health
        if path == Metrics.path:
            return self._metrics
        return self._mounts.get(segment, self._gateway)

    @property
    def unlimited(self) -> bool:
        """Whether the default policy limits nothing and nobody."""
        policy = self._books.directory.rulebook.policies[DEFAULT_POLICY_ID]
        return not (policy.limits or policy.allow or policy.deny)

    @property
    def model_count(self) -> int:
        """How many models the price list has."""
        catalogue = self._models.catalogue
        return 0 if catalogue is None else len(catalogue)

    @property
    def models_failure(self) -> str | None:
        """Why the model list could not be fetched the last time, None if it could."""
        return self._models.failure

    async def _ask(self, generation_id: str) -> Generation | None:
        path = b"/generation?id=" + _quoted(generation_id)
        unknown, failure = False, ""
        # Whether every key of an account is told about all of its generations is not documented: one of them is.
        for key in self._upstream.keys.by_standing():
            try:
                status, body = await self._upstream.get_json(path, MOST_GENERATION_BYTES, key)
            except UpstreamFailure as failed:
                raise AskFailed(str(failed)) from failed
            if status == 200:
                return parse_generation(body)
            if status == 404:
                unknown = True
            else:
                failure = f"upstream answered {status}"
        if unknown:
            return None
        raise AskFailed(failure)

    async def _checks(self) -> list[Check]:
        lag = self._books.outbox.lag
        try:
            await self._store.ping()
        except StoreUnavailable as error:
            database = Check("database", False, False, f"away, {lag.waiting} rows wait for it: {error}")
        else:
            said = f"{lag.waiting} rows wait for it: {lag.error}" if lag.error else "reachable"
            if lag.dead:
                said += f"; it refuses {len(lag.dead)} rows, the log says which"
            database = Check("database", lag.error is None and not lag.dead, False, said)
        failure = self._models.failure
        known = self._models.catalogue is not None
        return [
            database,
            self._books.check(),
            self._keys_check(),
            # The price list may be old, but without any nobody can be admitted.
            Check("catalogue", known and failure is None, not known, failure or f"{self.model_count} models"),
        ]

    def _keys_check(self) -> Check:
        keys = self._upstream.keys
        out = keys.out()
        said = "; ".join(f"OpenRouter does not take {name} ({why})" for name, why in out.items())
        return Check("upstream_keys", not out, False, said or f"{len(keys)} of {len(keys)} are taken")


def prepare_data_dir(path: Path) -> None:
    """Make DATA_DIR, for the owner alone. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)


def _ids() -> Callable[[], str]:
    """A source of ids that no other process has."""
    source, number = secrets.token_hex(5), count()

    def new_id() -> str:
        # Begins with the time, so that ids sort as the requests came.
        return f"req-{time.time_ns() // 1_000_000:012x}{source}{next(number) & 0xFFFFFF:06x}"

    return new_id


def _quoted(text: str) -> bytes:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_.~" else f"%{ord(c):02X}" for c in text).encode(
        "latin-1"
    )
