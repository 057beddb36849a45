"""News from other nodes: a connection of its own that listens to one pub/sub channel for as long as it runs."""

import asyncio
import math
from asyncio import Task
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.dialer import Dialer, within

_PAUSE = 0.1
"""Seconds between two tries: a node with no requests learns from this connection that Redis was restarted, and those
that rebuild the counters wait for the holds that it has."""
_PING_EVERY = 3.0
_ANSWER_WITHIN = 2.0


class Channel:
    """Calls `on_message(payload)` for each message, and `on_message(b"")` once after each subscription.

    Redis forgets messages that nobody listens to: what was said while we were away has to be looked up then.
    """

    def __init__(self, dialer: Dialer, name: bytes, on_message: Callable[[bytes], None]) -> None:
        self._dialer = dialer
        self._name = name
        self._on_message = on_message
        self._task: Task[None] | None = None

    def start(self) -> None:
        """Listen, from now until `stop`, through any number of failures."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Nothing is called any more when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._dialer.dial()
                await self._listen(connection)
            except LedgerAway:
                # The link says what is wrong with Redis; this connection has nothing to add.
                pass
            await asyncio.sleep(_PAUSE)

    async def _listen(self, connection: AbstractConnection) -> None:
        """Until the connection is lost, or falls silent."""
        try:
            await connection.send_command("SUBSCRIBE", self._name)
            self._receive(await within(_ANSWER_WITHIN, connection.read_response(timeout=math.inf)))
            while True:
                # Its time-out leaves the connection usable: None says that nothing came.
                message = await connection.read_response(timeout=_PING_EVERY, disconnect_on_error=False)
                if message is None:
                    await connection.send_command("PING")
                    message = await within(_ANSWER_WITHIN, connection.read_response(timeout=math.inf))
                self._receive(message)
        except (RedisError, OSError):
            return
        finally:
            await connection.disconnect(nowait=True)

    def _receive(self, message: Any) -> None:
        kind = message[0]
        if kind == b"message":
            self._on_message(message[2])
        elif kind == b"subscribe":
            self._on_message(b"")
