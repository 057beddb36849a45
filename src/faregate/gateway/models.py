"""OpenRouter's model list: fetched in the background, served from memory, its last good copy kept on disk.

Every caller gets the same whole list with status 200: Open WebUI keeps one list for all its people, and a
shorter one, or an error, takes the models away from everybody (contract with Open WebUI, section c).
"""

import asyncio
import contextlib
import gzip
import logging
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from faregate.accounting.background import background
from faregate.gateway.http1 import UpstreamFailure
from faregate.gateway.upstream import Upstream
from faregate.pricing.catalogue import Catalogue, CatalogueError

_log = logging.getLogger(__name__)

REFRESH_SECONDS = 300.0
RETRY_SECONDS = 10.0
START_SECONDS = 10.0
"""How long a start waits for the first list: without any, nobody can be admitted."""
MOST_BYTES = 64 * 1024 * 1024
_EMPTY = b'{"object":"list","data":[]}'


class ModelList:
    """The list as bytes to serve and as a catalogue of prices. `catalogue` is None until there is a first one."""

    def __init__(self, upstream: Upstream, keep: Path) -> None:
        self._upstream = upstream
        self._keep = keep
        self._task: asyncio.Task[None] | None = None
        self.catalogue: Catalogue | None = None
        self.body = _EMPTY
        self.packed = gzip.compress(_EMPTY)
        self.failure: str | None = None

    async def start(self) -> None:
        """Load the kept copy, fetch the list once, and go on refreshing it. Never fails: see `failure`."""
        with contextlib.suppress(OSError, CatalogueError):
            await self._take(await asyncio.to_thread(self._keep.read_bytes))
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.refresh()
        except TimeoutError:
            self.failure = f"upstream did not send its model list within {START_SECONDS:g} s"
        self._task = background(self._refresh_always(), "models")

    async def stop(self) -> None:
        """Stop refreshing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def refresh(self) -> bool:
        """Fetch the list now; whether that worked. What is there stays when it does not."""
        try:
            status, body = await self._upstream.get_json(b"/models", MOST_BYTES)
            if status != 200:
                self.failure = f"upstream answered {status} for its model list"
                return False
            await self._take(body)
        except (UpstreamFailure, CatalogueError) as error:
            self.failure = str(error)
            return False
        self.failure = None
        try:
            await asyncio.to_thread(self._save, body)
        except OSError as error:
            _log.warning("The model list could not be kept in %s: %s", self._keep, error)
        return True

    async def _take(self, body: bytes) -> None:
        catalogue, packed = await asyncio.to_thread(lambda: (Catalogue.parse(body), gzip.compress(body, 6)))
        self.catalogue, self.body, self.packed = catalogue, body, packed

    def _save(self, body: bytes) -> None:
        # Of several processes each writes a file of its own; the last one to finish wins, with a whole one.
        with NamedTemporaryFile(dir=self._keep.parent, prefix=f"{self._keep.name}.", delete=False) as new:
            try:
                new.write(body)
                new.flush()
                os.replace(new.name, self._keep)
            except BaseException:
                os.unlink(new.name)
                raise

    async def _refresh_always(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS if self.failure is None else RETRY_SECONDS)
            if not await self.refresh():
                _log.warning("The model list could not be refreshed: %s", self.failure)
