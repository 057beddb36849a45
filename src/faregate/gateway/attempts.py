"""How a request gets to an answer: on which key, on another one if that is not taken, and after whom.

It is sent again only after an answer that is an error: nothing of it was relayed, and nothing billed (contract with
OpenRouter, section 5.2). Its hold stays as it is meanwhile.
"""

import asyncio
import logging

import msgspec

from faregate.gateway.backpressure import Call, Line, Turn
from faregate.gateway.client import Client
from faregate.gateway.http1 import Exchange, UpstreamFailure
from faregate.gateway.refusals import Refusal, Then, busy, refusal_of
from faregate.gateway.settlement import Outcome
from faregate.gateway.sse import decode_object
from faregate.gateway.upstream import Upstream
from faregate.gateway.upstream_keys import Key

MOST_ERROR_BYTES = 1024 * 1024
ERROR_SECONDS = 30.0
"""How long the body of an error may take to arrive: its status says most of it."""

_log = logging.getLogger("faregate.upstream")


class LeftInLine(Exception):
    """The client left while its request waited: nothing of it is under way."""


class Declined(Exception):
    """The last word is an error, with the `fields` of its body, and the id that OpenRouter gave it."""

    def __init__(
        self, refusal: Refusal, fields: dict[str, msgspec.Raw] | None = None, generation_id: str | None = None
    ) -> None:
        super().__init__(refusal.status)
        self.refusal = refusal
        self.fields = fields or {}
        self.generation_id = generation_id


class Attempts:
    """The way to an answer, for one upstream."""

    def __init__(self, upstream: Upstream, queue_seconds: float, contact: str) -> None:
        """`queue_seconds`: how long a request waits while OpenRouter has no room for it."""
        self._upstream = upstream
        self._line = Line(queue_seconds)
        self._contact = contact
        self._loop = asyncio.get_running_loop()

    async def answer(self, outcome: Outcome, body: bytes, client: Client) -> Exchange:
        """Send the request and wait for the headers of an answer that is not an error.

        Raises `Declined` and `LeftInLine`, and what `Upstream.post` raises.
        """
        person, line = outcome.facts.user_id, self._line
        turn = line.join(person) if line.busy else None
        try:
            while True:
                if turn is not None:
                    await self._come(turn, client)
                try:
                    exchange = await self._over_keys(outcome, body, client)
                except Declined as declined:
                    if declined.refusal.then is not Then.WAIT or "usage" in declined.fields or not client.waiting:
                        raise
                    if turn is None:
                        line.close(declined.refusal.delay)
                        turn = line.join(person)
                    else:
                        turn.refused(declined.refusal.delay)
                else:
                    if turn is not None:
                        turn.let_in()
                    return exchange
        finally:
            if turn is not None:
                turn.over()

    async def declined(self, exchange: Exchange) -> Declined:
        """Read the error that `exchange` is, to its end."""
        try:
            async with asyncio.timeout(ERROR_SECONDS):
                body = await self._upstream.read_all(exchange, MOST_ERROR_BYTES)
        except (TimeoutError, UpstreamFailure):
            body = b""
        packed = (exchange.header(b"content-encoding") or b"identity").strip().lower() != b"identity"
        fields = {} if packed else decode_object(body) or {}
        retry_after, generation_id = exchange.header(b"retry-after"), exchange.header(b"x-generation-id")
        refusal = refusal_of(
            exchange.status if exchange.status >= 400 else 502,
            fields.get("error"),
            body,
            None if retry_after is None else retry_after.decode("latin-1"),
            self._contact,
        )
        return Declined(refusal, fields, None if generation_id is None else generation_id.decode("latin-1"))

    async def _come(self, turn: Turn, client: Client) -> None:
        client.on_gone(turn.leave)
        call = await turn.come()
        if call is Call.LEFT:
            raise LeftInLine
        if call is Call.LATE:
            reason = f"upstream had no room in flight for this account within {self._line.seconds:g} s"
            raise Declined(busy(self._line.retry_after, reason))

    async def _over_keys(self, outcome: Outcome, body: bytes, client: Client) -> Exchange:
        """The answer on the first key that is taken. Raises `Declined` when none is."""
        keys = self._upstream.keys
        tried: list[Key] = []
        kept: Declined | None = None
        asked_at = self._loop.time()
        key = keys.choose(asked_at)
        while key is not None:
            outcome.under_way = True
            exchange = await self._upstream.post(b"/chat/completions", body, stream=outcome.facts.stream, key=key)
            if 200 <= exchange.status < 300:
                if keys.worked(key, asked_at):
                    _log.warning("OpenRouter takes the key %s again.", key.name)
                return exchange
            try:
                declined = await self.declined(exchange)
            finally:
                self._upstream.done(exchange)
            outcome.under_way = False
            self._note(key, exchange.status, declined.refusal, asked_at)
            # Of several the one that passes by itself is the better news.
            if kept is None or kept.refusal.then is not Then.REST:
                kept = declined
            if declined.refusal.then not in (Then.OUT, Then.REST) or "usage" in declined.fields or not client.waiting:
                raise declined
            tried.append(key)
            asked_at = self._loop.time()
            key = keys.choose(asked_at, tried)
        assert kept is not None  # noqa: S101 - there is a key for the first try always
        raise kept

    def _note(self, key: Key, status: int, refusal: Refusal, asked_at: float) -> None:
        now, keys = self._loop.time(), self._upstream.keys
        if refusal.then is Then.OUT:
            if keys.refused(key, asked_at, now, f"HTTP {status}"):
                _log.error("OpenRouter does not take the key %s: %s", key.name, refusal.reason)
        elif refusal.then is Then.REST and refusal.delay is not None:
            keys.rest(key, now, refusal.delay)
