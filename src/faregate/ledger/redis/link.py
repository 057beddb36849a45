"""The link to Redis: one connection for the whole process, on which all calls are pipelined.

The calls of one turn of the event loop leave in one write, and replies come back in their order. A connection on which
a reply is overdue is given up, as nobody could tell later which reply belongs to which call.
"""

import asyncio
import re
from asyncio import Future, Task
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.dialer import Dialer, within
from faregate.ledger.redis.pipe import Call, Opening, Part, Pipe, fail, packed
from faregate.ledger.redis.refusals import CallTimeout, ConnectionLost, NotSent, Silent, said
from faregate.ledger.redis.scripts import Script

__all__ = ["MOST_WAITING", "CallTimeout", "ConnectionLost", "Link", "NotSent", "Opening", "Part"]

MOST_WAITING = 50_000
"""Calls that may wait for Redis at the same time."""

_STRIKES = 3
"""Silences in a row, of calls or while we connect, that are an outage: one is a server that was busy for a moment."""

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_REPLICA = re.compile(rb"^role:slave", re.MULTILINE)


class Link:
    """See the module. All methods belong to the event loop that `start` was called on."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        call_timeout: float,
        connect_timeout: float,
        probe_every: float = 0.25,
        load: Iterable[Script] = (),
    ) -> None:
        """`load` are scripts that each server learns when we connect. Times are seconds."""
        self.failure: str | None = "The connection to Redis is not open yet."
        self.calls = 0
        self.writes = 0
        self.timeouts = 0
        self.outages = 0
        self.losses = 0
        self.connects = 0
        self._call_timeout = call_timeout
        self.where = dialer.describe
        self._dialer = dialer
        self._connect_timeout = connect_timeout
        self._probe_every = probe_every
        self._load = tuple(load)
        self._on_connect: list[Callable[[str], None]] = []
        self._on_return: list[Callable[[], None]] = []
        self._unsent: list[Call] = []
        self._pipe: Pipe | None = None
        self._pipes: set[Pipe] = set()
        self._dialing: Task[None] | None = None
        self._probing: Task[None] | None = None
        self._strikes = 0
        self._run_id: str | None = None
        self._loop: asyncio.AbstractEventLoop

    def on_connect(self, callback: Callable[[str], None]) -> None:
        """Have `callback(run_id)` called for each new connection, before any call is sent on it.

        `run_id` names the run of the server; '' where we may not ask. If it is not that of the connection before,
        the calls that wait were meant for another server, or another state: they fail with NotSent.
        """
        self._on_connect.append(callback)

    def on_return(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called each time Redis answers again after `failure` had been set."""
        self._on_return.append(callback)

    def start(self) -> None:
        """Open the first connection in the background. Calls may be made at once."""
        self._loop = asyncio.get_running_loop()
        self.failure = None
        self._dialing = self._loop.create_task(self._dial())

    async def close(self) -> None:
        """Give up what waits, and the connection. No call is sent any more."""
        self.failure = "Faregate has closed its connection to Redis."
        tasks = {task for task in (self._dialing, self._probing) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._pipe = self._dialing = self._probing = None
        self._give_up_unsent(self.failure)
        for pipe in tuple(self._pipes):
            pipe.end(ConnectionLost, self.failure)
            await pipe.closed()

    def call(self, script: Script, keys: Sequence[bytes | str], args: Sequence[Part]) -> "Future[Any]":
        """What the script will have returned. It is sent with all other calls of this turn of the loop.

        The future raises CallTimeout or ConnectionLost (the outcome is unknown), NotSent (nothing was done), LedgerAway
        (the server cannot serve) or redis.ResponseError (a mistake of ours).
        """
        command = packed("EVALSHA", script.sha, len(keys), *keys, *args)
        return self._enqueue(Call(self._loop.create_future(), command, script))

    def send(self, opening: Opening, first: bytes, second: bytes, third: bytes) -> "Future[Any]":
        """Like `call`, for one that was opened before: with the last three of its arguments."""
        return self._enqueue(Call(self._loop.create_future(), opening.closed(first, second, third), opening.script))

    def command(self, *parts: Part) -> "Future[Any]":
        """Like `call`, for a plain command."""
        return self._enqueue(Call(self._loop.create_future(), packed(*parts), None))

    def take_unsent(self) -> list[Call]:
        """For the connection: the calls to send now."""
        calls, self._unsent = self._unsent, []
        return [call for call in calls if not call.future.done()]

    def again(self, call: Call) -> None:
        """For the connection: `call` was not done; send it again."""
        self._enqueue(call)

    def ended(self, pipe: "Pipe", why: str, kind: type[LedgerAway], *, in_use: bool) -> None:
        """For the connection: it must not be used any more. `in_use` if calls were under way on it."""
        self.timeouts += kind is CallTimeout
        self.losses += kind is ConnectionLost
        if pipe is not self._pipe:
            return
        self._pipe = None
        # What a server refused was nothing to it: what waits may be sent to the next one.
        if kind is not NotSent:
            self._give_up_unsent(why)
        if pipe.answered:
            self._strikes = 0
        self._strikes += in_use
        if self._strikes >= _STRIKES:
            self._break(why)
        elif self._unsent:
            self._dialing = self._loop.create_task(self._dial())

    def forget(self, pipe: "Pipe") -> None:
        """For the connection: it is closed."""
        self._pipes.discard(pipe)

    def _enqueue(self, call: Call) -> "Future[Any]":
        if self.failure is not None:
            fail((call,), NotSent, self.failure)
        elif len(self._unsent) + (0 if self._pipe is None else self._pipe.under_way) >= MOST_WAITING:
            fail((call,), NotSent, f"{MOST_WAITING} calls wait for {self.where}: it cannot keep up.")
        else:
            self.calls += 1
            self._unsent.append(call)
            if self._pipe is not None:
                self._pipe.ring()
            elif self._dialing is None:
                self._dialing = self._loop.create_task(self._dial())
        return call.future

    async def _dial(self) -> None:
        try:
            connection, run_id = await self._connect_at_last()
        except LedgerAway as away:
            self._dialing = None
            self._break(str(away))
        else:
            self._dialing = None
            self._adopt(connection, run_id)

    async def _connect_at_last(self) -> tuple[AbstractConnection, str]:
        """As `_connect`, but a silence is no more, and no less, than one of a call."""
        while True:
            try:
                return await self._connect()
            except Silent:
                self._strikes += 1
                if self._strikes >= _STRIKES:
                    raise

    def _break(self, why: str) -> None:
        self.outages += 1
        self.failure = why
        self._give_up_unsent(why)
        self._probing = self._loop.create_task(self._probe())

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._probe_every)
            try:
                connection, run_id = await self._connect()
                break
            except LedgerAway as away:
                self.failure = str(away)
        self._probing = None
        self._adopt(connection, run_id)
        for callback in self._on_return:
            callback()

    async def _connect(self) -> tuple[AbstractConnection, str]:
        """A connection to a master that knows our scripts, and the id of its run."""
        connection = await self._dialer.dial()
        try:
            try:
                return connection, await within(self._connect_timeout, self._greet(connection))
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        except TimeoutError:
            raise Silent(f"{self.where} lets us connect but does not answer. Check how busy it is.") from None
        except (RedisError, OSError) as failed:
            raise LedgerAway(f"{self.where} cannot serve: {said(failed)}. Check its state and its log.") from None

    async def _greet(self, connection: AbstractConnection) -> str:
        asked = [("INFO", "server"), ("INFO", "replication"), ("PING",)]
        asked += [("SCRIPT", "LOAD", script.source) for script in self._load]
        await connection.send_packed_command([packed(*parts) for parts in asked], check_health=False)
        told: list[Any] = []
        for parts in asked:
            try:
                told.append(await connection.read_response())
            except ResponseError as refused:
                # Managed servers may not tell about themselves; a script is learned by its first call, too.
                if parts[0] != "INFO" and not isinstance(refused, NoPermissionError):
                    raise
                told.append(b"")
        if _REPLICA.search(told[1]):
            raise LedgerAway(f"{self.where} is a replica. REDIS_URL should lead to the master.")
        if await connection.can_read():
            raise LedgerAway(f"{self.where} hung up, or said what nobody had asked for. Check its state and its log.")
        run_id = _RUN_ID.search(told[0])
        return run_id[1].decode() if run_id else ""

    def _adopt(self, connection: AbstractConnection, run_id: str) -> None:
        self.connects += 1
        self.failure = None
        self._pipe = Pipe(self, connection, self.where, self._call_timeout)
        self._pipes.add(self._pipe)
        before, self._run_id = self._run_id, run_id
        if before not in (None, run_id):
            self._give_up_unsent(f"{self.where} was restarted or replaced.")
        for callback in self._on_connect:
            callback(run_id)

    def _give_up_unsent(self, why: str) -> None:
        calls, self._unsent = self._unsent, []
        fail(calls, NotSent, why)
