"""`faregate check`: reaches every dependency and says what is wrong."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from faregate.app import MOST_GENERATION_BYTES, open_store, prepare_data_dir, upstream_settings
from faregate.gateway.http1 import UpstreamFailure
from faregate.gateway.models import MOST_BYTES
from faregate.gateway.upstream import Upstream
from faregate.keys import load_keys
from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.names import Keys
from faregate.pricing.catalogue import Catalogue, CatalogueError
from faregate.settings import Settings, SettingsError
from faregate.store.errors import StoreError, StoreUnavailable

REDIS_PATIENCE = 5.0
"""Seconds until a Redis that says nothing is given up: longer than a request waits, to tell slow from silent."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    ok: bool
    name: str
    detail: str


async def check(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the data directory, the keys, the database, Redis and upstream, one after the other."""
    yield _data_dir(settings)
    yield await _database(settings)
    async for finding in _redis(settings):
        yield finding
    async for finding in _upstream(settings):
        yield finding


def _data_dir(settings: Settings) -> Finding:
    try:
        prepare_data_dir(settings.data_dir)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
        keys = load_keys(settings)
    except (OSError, SettingsError) as error:
        return Finding(False, "DATA_DIR", f"{Path(settings.data_dir).resolve()}: {error}")
    names = ", ".join(connection.name for connection in keys.connections)
    return Finding(True, "DATA_DIR", f"{Path(settings.data_dir).resolve()} can be written; connections: {names}")


async def _database(settings: Settings) -> Finding:
    try:
        store = await open_store(settings)
        try:
            await store.ping()
        finally:
            await store.close()
    except (StoreError, StoreUnavailable) as error:
        return Finding(False, "DATABASE_URL", str(error))
    return Finding(True, "DATABASE_URL", "the database answers")


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    if settings.redis_url is None:
        yield Finding(True, "REDIS_URL", "not set: limits are counted in one process")
        return
    try:
        dialer = dialer_for(
            settings.redis_url.get_secret_value(),
            slot_key=Keys(settings.redis_prefix).state,
            connect_timeout=settings.redis_connect_timeout,
            name="faregate-check",
        )
        connection = await dialer.dial()
    except (ValueError, LedgerAway) as error:
        yield Finding(False, "REDIS_URL", str(error))
        return
    try:
        async with asyncio.timeout(REDIS_PATIENCE):
            took = await _ping(connection)
            server = await _info(connection, "server")
            policy = (await _info(connection, "memory")).get("maxmemory_policy")
    except TimeoutError:
        yield Finding(False, "REDIS_URL", f"{dialer.describe} says nothing within {REDIS_PATIENCE:g} s")
        return
    except (RedisError, OSError) as error:
        yield Finding(False, "REDIS_URL", f"{dialer.describe} does not answer: {error}")
        return
    finally:
        await connection.disconnect(nowait=True)
    valkey = server.get("valkey_version")
    version = f"Valkey {valkey}" if valkey else f"version {server.get('redis_version', 'unknown')}"
    yield Finding(True, "REDIS_URL", f"{dialer.describe} answers ({version})")
    if took > settings.redis_call_timeout:
        yield Finding(False, "REDIS_CALL_TIMEOUT", f"a PING took {took * 1000:.1f} ms just now, which is longer")
    if policy not in (None, "noeviction"):
        yield Finding(
            False, "REDIS_URL", f"maxmemory-policy of this server should be noeviction: {policy} may drop counters"
        )


async def _ping(connection: AbstractConnection) -> float:
    """How long the server takes to answer (seconds)."""
    began = time.perf_counter()
    await connection.send_command("PING")
    await connection.read_response()
    return time.perf_counter() - began


async def _info(connection: AbstractConnection, section: str) -> dict[str, str]:
    """What the server tells about itself: nothing, where it keeps that from our user."""
    await connection.send_command("INFO", section)
    try:
        answer = await connection.read_response()
    except NoPermissionError:
        return {}
    lines = answer.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def _upstream(settings: Settings) -> AsyncIterator[Finding]:
    keys = settings.upstream_keys()
    if not keys:
        yield Finding(True, "OPENROUTER_API_KEY", "not set: the built-in simulator will answer")
        return
    base = settings.openrouter_base_url
    proxy = settings.proxy_for(base)
    way = "" if proxy is None else f", through the proxy {proxy}"
    upstream = Upstream(upstream_settings(settings, base, keys[0].key.get_secret_value(), keys))
    try:
        status, body = await upstream.get_json(b"/models", MOST_BYTES)
        if status != 200:
            yield Finding(False, "OPENROUTER_BASE_URL", f"{base} answers HTTP {status} for the model list{way}")
            return
        yield Finding(True, "OPENROUTER_BASE_URL", f"{base} lists {len(Catalogue.parse(body))} models{way}")
        variable = "OPENROUTER_API_KEY" if settings.openrouter_api_keys is None else "OPENROUTER_API_KEYS"
        for key in upstream.keys.by_standing():
            which = "this key" if settings.openrouter_api_keys is None else f"the key {key.name}"
            status, _ = await upstream.get_json(b"/key", MOST_GENERATION_BYTES, key)
            if status in (401, 403):
                yield Finding(False, variable, f"upstream refuses {which} (HTTP {status}): create a new one")
            elif status == 200:
                yield Finding(True, variable, f"upstream accepts {which}")
            else:
                yield Finding(True, variable, f"upstream does not tell about {which} (HTTP {status})")
    except (UpstreamFailure, CatalogueError) as error:
        yield Finding(False, "OPENROUTER_BASE_URL", f"{base}: {error}")
    finally:
        upstream.close()
