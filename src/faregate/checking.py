"""`faregate check`: reaches every dependency and says what is wrong."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from faregate.app import MOST_GENERATION_BYTES, database_url, prepare_data_dir, upstream_settings
from faregate.gateway.http1 import UpstreamFailure
from faregate.gateway.models import MOST_BYTES
from faregate.gateway.upstream import Upstream
from faregate.keys import load_keys
from faregate.pricing.catalogue import Catalogue, CatalogueError
from faregate.settings import Settings, SettingsError
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.store.store import Store


class Finding(NamedTuple):
    """One thing that was looked at."""

    ok: bool
    name: str
    detail: str


async def check(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the data directory, the keys, the database and upstream, one after the other."""
    yield _data_dir(settings)
    yield await _database(settings)
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
        store = await Store.open(database_url(settings))
        try:
            await store.ping()
        finally:
            await store.close()
    except (StoreError, StoreUnavailable) as error:
        return Finding(False, "DATABASE_URL", str(error))
    return Finding(True, "DATABASE_URL", "the database answers")


async def _upstream(settings: Settings) -> AsyncIterator[Finding]:
    if settings.openrouter_api_key is None:
        yield Finding(True, "OPENROUTER_API_KEY", "not set: the built-in simulator will answer")
        return
    base = settings.openrouter_base_url
    upstream = Upstream(upstream_settings(settings, base, settings.openrouter_api_key.get_secret_value()))
    try:
        status, body = await upstream.get_json(b"/models", MOST_BYTES)
        if status != 200:
            yield Finding(False, "OPENROUTER_BASE_URL", f"{base} answers HTTP {status} for the model list")
            return
        yield Finding(True, "OPENROUTER_BASE_URL", f"{base} lists {len(Catalogue.parse(body))} models")
        status, _ = await upstream.get_json(b"/key", MOST_GENERATION_BYTES)
        if status in (401, 403):
            yield Finding(False, "OPENROUTER_API_KEY", f"upstream refuses this key (HTTP {status}): create a new one")
        elif status == 200:
            yield Finding(True, "OPENROUTER_API_KEY", "upstream accepts this key")
        else:
            yield Finding(True, "OPENROUTER_API_KEY", f"upstream does not tell about this key (HTTP {status})")
    except (UpstreamFailure, CatalogueError) as error:
        yield Finding(False, "OPENROUTER_BASE_URL", f"{base}: {error}")
    finally:
        upstream.close()
