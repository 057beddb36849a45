"""Upstream's answer to the client, as it arrives; and the end of every exchange, however it comes.

Once a request is admitted, this is where its hold is brought to an end: settled on the usage of the answer,
or parked for the reconciler. That happens before the last bytes leave, so that who reads an answer to its end
finds it accounted for; and it happens when the client has long gone.
"""

import asyncio
import time

import msgspec

from faregate.gateway.attempts import Attempts, Declined, LeftInLine
from faregate.gateway.cancellation import stops_billing
from faregate.gateway.client import Client
from faregate.gateway.errors import ApiError, cut_short, upstream_unavailable
from faregate.gateway.http1 import Exchange, Flow, NotReached, TooSlow, UpstreamFailure
from faregate.gateway.refusals import refusal_of
from faregate.gateway.settlement import Outcome, Settler
from faregate.gateway.sse import Reader, Splitter, decode_object, encode_object, text_of
from faregate.gateway.upstream import Upstream
from faregate.gateway.usage_reader import read_usage
from faregate.ledger.port import Ledger
from faregate.records import Facts, Status
from faregate.settings import OnClientLeft

MOST_JSON_BYTES = 256 * 1024 * 1024
CLIENT_LEFT = "the client left before the end of its answer"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment of SSE: readers skip it. It says to whoever stands between us and the client that the stream is alive."""
SILENCE_SECONDS = 15.0
"""How long upstream may be silent before a client is told that somebody is there."""
LONGEST_DRAIN = 900.0
"""Seconds for which an answer is read for its usage after its client has gone."""


class Relay:
    """Sends admitted requests upstream and their answers back."""

    def __init__(
        self,
        upstream: Upstream,
        ledger: Ledger,
        settler: Settler,
        contact: str,
        on_client_left: OnClientLeft = OnClientLeft.AUTO,
        queue_seconds: float = 10.0,
    ) -> None:
        """`queue_seconds`: how long a request waits while OpenRouter has no room for it."""
        self._upstream = upstream
        self._attempts = Attempts(upstream, queue_seconds, contact)
        self._ledger = ledger
        self._settler = settler
        self._contact = contact
        self._on_client_left = on_client_left

    async def chat(self, facts: Facts, body: bytes, client: Client) -> None:
        """Relay one chat completion. Raises `ApiError` while nothing was sent to the client yet."""
        outcome = Outcome(facts, began_at=time.monotonic())
        try:
            await self._exchange(outcome, body, client)
        finally:
            if not outcome.settled:
                await self._broken_off(outcome)

    async def _broken_off(self, outcome: Outcome) -> None:
        """Only the gateway itself leaves an exchange open: what it cost will be asked for, or estimated."""
        reason = "cut short by the gateway itself"
        if outcome.under_way:
            await self._settler.finish(outcome, Status.ABORTED, time.monotonic(), reason)
        else:
            await self._settler.free(outcome, time.monotonic(), reason, Status.ABORTED)

    async def _exchange(self, outcome: Outcome, body: bytes, client: Client) -> None:
        try:
            exchange = await self._attempts.answer(outcome, body, client)
        except LeftInLine:
            await self._settler.free(outcome, time.monotonic(), CLIENT_LEFT, Status.ABORTED)
            return
        except Declined as declined:
            raise await self._refused(outcome, declined) from None
        except TooSlow as slow:
            # It may be at work, and then it bills: the client hears of it now, the answer is waited for.
            outcome.told = str(slow)
            await client.fail(upstream_unavailable(outcome.told, self._contact, 504))
            if slow.exchange is not None:
                await self._late(outcome, slow.exchange, client)
            return
        except NotReached as broken:
            await self._settler.free(outcome, time.monotonic(), str(broken))
            raise upstream_unavailable(str(broken), self._contact) from None
        except UpstreamFailure as broken:
            # It was sent, and may have cost something, even where nobody can be asked because it was never named.
            if broken.exchange is not None:
                await self._note_header(outcome, broken.exchange)
            await self._settler.finish(outcome, Status.FAILED, time.monotonic(), str(broken))
            raise upstream_unavailable(str(broken), self._contact) from None
        await self._answer(outcome, exchange, client)

    async def _late(self, outcome: Outcome, exchange: Exchange, client: Client) -> None:
        try:
            await exchange.answered(LONGEST_DRAIN)
        except UpstreamFailure as failure:
            exchange.abort()
            await self._settler.finish(outcome, Status.FAILED, time.monotonic(), str(failure))
            return
        await self._answer(outcome, exchange, client)

    async def _answer(self, outcome: Outcome, exchange: Exchange, client: Client) -> None:
        drain = _Drain(exchange)
        client.on_gone(drain.begin)
        if not client.waiting:
            drain.begin()
        try:
            await self._note_header(outcome, exchange)
            if (exchange.header(b"content-encoding") or b"identity").strip().lower() != b"identity":
                reason = "upstream packed its answer, which was not asked for"
                await self._settler.finish(outcome, Status.FAILED, time.monotonic(), reason)
                raise upstream_unavailable(reason, self._contact)
            if not 200 <= exchange.status < 300:
                raise await self._refused(outcome, await self._attempts.declined(exchange))
            if _is_stream(exchange, outcome.facts.stream):
                await _Stream(self, outcome, exchange, client, drain).run()
            else:
                await self._json(outcome, exchange, client)
        finally:
            drain.end()
            self._upstream.done(exchange)

    async def _refused(self, outcome: Outcome, declined: Declined) -> ApiError:
        """Settle what ended in an error; the error to raise."""
        refusal = declined.refusal
        outcome.generation_id = declined.generation_id or outcome.generation_id
        learn(outcome, declined.fields)
        await self._settler.free(outcome, time.monotonic(), refusal.reason or refusal.message)
        return refusal

    async def _json(self, outcome: Outcome, exchange: Exchange, client: Client) -> None:
        # Read on without the client too: a JSON answer is billed in full, whether or not somebody waits for it.
        try:
            body = await self._upstream.read_all(exchange, MOST_JSON_BYTES)
        except UpstreamFailure as broken:
            status, reason = (Status.FAILED, str(broken)) if client.waiting else (Status.ABORTED, CLIENT_LEFT)
            await self._settler.finish(outcome, status, time.monotonic(), reason)
            raise upstream_unavailable(
                str(broken), self._contact, 504 if isinstance(broken, TooSlow) else 502
            ) from None
        fields = decode_object(body)
        if fields is None:
            reason = f"upstream answered 200 with {len(body)} bytes that are not a JSON object"
            await self._settler.finish(outcome, Status.FAILED, time.monotonic(), reason)
            raise upstream_unavailable(reason, self._contact)
        learn(outcome, fields)
        outcome.first_byte_at = time.monotonic()
        error = fields.get("error")
        if error is not None and bytes(error) != b"null":
            # A late failure arrives inside a success (contract, section 3); nobody looks for it there.
            refusal = refusal_of(200, error, body, None, self._contact)
            await self._settler.free(outcome, time.monotonic(), refusal.reason or refusal.message)
            raise refusal
        if "event" in fields or "user_id" in fields:
            fields.pop("event", None)
            fields.pop("user_id", None)
            body = encode_object(fields)
        status, left = (Status.COMPLETED, None) if client.waiting else (Status.ABORTED, CLIENT_LEFT)
        answered = client.answer_behind(200, b"application/json", body)
        await self._settler.finish(outcome, status, time.monotonic(), left)
        if not answered:
            await client.answer(200, b"application/json", body)

    async def _note_header(self, outcome: Outcome, exchange: Exchange) -> None:
        generation_id = exchange.header(b"x-generation-id")
        if generation_id is None:
            return
        outcome.generation_id = generation_id.decode("latin-1")
        if not exchange.complete:
            await self.note(outcome, outcome.generation_id)

    async def note(self, outcome: Outcome, generation_id: str) -> None:
        """Keep OpenRouter's id before the first byte is relayed: from here on any node can ask what this cost.

        Not needed for an answer that is all here: the ledger hears of it in the very next call, which settles it.
        """
        await self._ledger.note(outcome.facts.request_id, generation_id)

    async def settle(self, outcome: Outcome, status: Status, reason: str | None = None) -> None:
        """Settle an exchange that is over, or park it when its cost is not known."""
        await self._settler.finish(outcome, status, time.monotonic(), reason)

    async def settle_free(self, outcome: Outcome, reason: str) -> None:
        """Settle an exchange that ended in an error."""
        await self._settler.free(outcome, time.monotonic(), reason)

    def leaves(self, provider: str | None) -> bool:
        """Whether a stream of `provider` is left when its client has gone, rather than read to its usage."""
        return self._on_client_left is OnClientLeft.AUTO and stops_billing(provider)

    @property
    def contact(self) -> str:
        """Whom people should ask."""
        return self._contact

    @property
    def patience(self) -> float:
        """Seconds that upstream may be silent in mid-stream."""
        return self._upstream.idle_timeout


class _Stream:
    """One stream on its way through."""

    def __init__(self, relay: Relay, outcome: Outcome, exchange: Exchange, client: Client, drain: "_Drain") -> None:
        self._relay = relay
        self._outcome = outcome
        self._exchange = exchange
        self._client = client
        self._splitter = Splitter()
        self._reader = Reader()
        self._drain = drain
        self._silent = 0.0
        self._unread = b""
        """Events that have to be looked at."""
        self._unsent = b""
        """Events that need not, of a client that does not keep up."""
        self._error: ApiError | None = None
        """What the stream has ended on, as far as its client is concerned."""

    async def run(self) -> None:
        """Relay to the end of the stream; read on without the client if it leaves."""
        client, exchange = self._client, self._exchange
        await client.start(200, b"text/event-stream", [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])
        if not exchange.has_more:
            client.flush()
        client.on_gone(self._left)
        failure: UpstreamFailure | None = None
        while True:
            try:
                flow = await exchange.flow(self._take, min(SILENCE_SECONDS, self._relay.patience - self._silent))
                if flow is Flow.SILENT:
                    await self._keep_alive()
            except UpstreamFailure as broken:
                failure = broken
                exchange.abort()
                break
            if flow is Flow.ENDED:
                break
            if self._unsent:
                unsent, self._unsent = self._unsent, b""
                await client.send(unsent)
            if self._unread:
                unread, self._unread = self._unread, b""
                await self._pass(unread)
            if client.gone:
                self._left()
        if rest := self._splitter.rest():
            await self._pass(rest)
        if not self._outcome.settled:
            await self._conclude(failure)
        await client.end()

    def _take(self, data: bytes) -> bool:
        """What upstream has just sent: pass on whole events where nobody has to look at them or wait for the client."""
        self._silent = 0.0
        block = self._splitter.feed(data)
        if not block:
            # The head need not wait for the rest of the first event.
            self._client.flush()
            return True
        if self._error is not None or not self._reader.skips(block):
            self._unread = block
            return False
        if not self._client.write(block):
            self._unsent = block
            return False
        return True

    async def _keep_alive(self) -> None:
        """Upstream is silent: tell a client that has not read the end that it is awaited. Raises `TooSlow` some day.

        The client has whole events alone, so a comment is between two of them whenever it comes.
        """
        self._silent += SILENCE_SECONDS
        if self._silent >= self._relay.patience:
            raise self._exchange.silent(self._relay.patience)
        if self._error is None and not self._reader.done:
            await self._client.send(KEEP_ALIVE)

    async def _pass(self, block: bytes) -> None:
        """Read a block of whole events, and pass it on unless an error has ended the stream for its client."""
        outcome, reader = self._outcome, self._reader
        passed = reader.read(block)
        if outcome.first_byte_at is None and reader.named:
            outcome.first_byte_at = time.monotonic()
        await self._learn()
        if self._error is not None:
            # Nothing may follow an error event; but fees may still be told.
            return
        if passed.error is not None:
            self._error = refusal_of(200, passed.error.get("error"), block, None, self._relay.contact)
            await self._client.send(passed.data + self._error.event())
            return
        if not reader.done or outcome.usage is None:
            await self._client.send(passed.data)
            return
        status, reason = self._status(), None if self._client.waiting else CLIENT_LEFT
        sent = self._client.send_behind(passed.data, last=self._has_all())
        # The end of the stream mostly comes a moment later, and need not wait for the ledger either.
        self._exchange.on_end = self._finish if sent else None
        try:
            await self._relay.settle(outcome, status, reason)
        finally:
            self._exchange.on_end = None
        if not sent:
            await self._client.send(passed.data)

    def _has_all(self) -> bool:
        """Whether the client has, or is about to be sent, all that upstream has ever to say."""
        return self._exchange.complete and not self._exchange.has_more and not self._splitter.has_rest

    def _finish(self) -> None:
        if self._has_all():
            self._client.finish()

    async def _learn(self) -> None:
        outcome, reader = self._outcome, self._reader
        outcome.provider, outcome.served_model = reader.provider, reader.model
        if reader.usage is not None:
            # The last figures count, also where they are nonsense: those before them were not final.
            outcome.usage = read_usage(reader.usage)
            reader.usage = None
        if outcome.generation_id is None and reader.generation_id is not None:
            outcome.generation_id = reader.generation_id
            if not reader.done or outcome.usage is None:
                await self._relay.note(outcome, reader.generation_id)

    async def _conclude(self, failure: UpstreamFailure | None) -> None:
        """The stream is over, and was not settled with its last event."""
        outcome, error = self._outcome, self._error
        if not self._reader.done and not self._reader.usage_was_last:
            # The stream was cut, and more was generated after these figures: they are not the whole cost.
            outcome.usage = None
        if error is not None:
            await self._relay.settle_free(outcome, error.reason or error.message)
        elif self._reader.done or outcome.usage is not None or not self._client.waiting:
            reason = None if failure is None else str(failure)
            await self._relay.settle(outcome, self._status(), reason if self._client.waiting else CLIENT_LEFT)
        else:
            reason = "upstream ended the stream without [DONE] and without usage" if failure is None else str(failure)
            await self._relay.settle(outcome, Status.FAILED, reason)
            await self._client.send(cut_short(reason).event())

    def _status(self) -> Status:
        return Status.COMPLETED if self._client.waiting else Status.ABORTED

    def _left(self) -> None:
        """The client has gone: leave too where that stops the bill, else read on to the usage, for a while."""
        self._drain.begin()
        outcome = self._outcome
        if outcome.usage is None and outcome.generation_id is not None and self._relay.leaves(self._reader.provider):
            self._exchange.abort()


class _Drain:
    """Gives an answer that nobody waits for `LONGEST_DRAIN` seconds: upstream may trickle for hours."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on nobody waits. Repeating changes nothing."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LONGEST_DRAIN, self._exchange.abort)

    def end(self) -> None:
        """The answer is over."""
        if self._timer is not None:
            self._timer.cancel()


def _is_stream(exchange: Exchange, wanted: bool) -> bool:
    content_type = (exchange.header(b"content-type") or b"").lower()
    return content_type.startswith(b"text/event-stream") or (wanted and b"json" not in content_type)


def learn(outcome: Outcome, fields: dict[str, msgspec.Raw]) -> None:
    """Take from the top level of a JSON answer who served it and what it used."""
    outcome.provider = text_of(fields.get("provider")) or outcome.provider
    outcome.served_model = text_of(fields.get("model")) or outcome.served_model
    outcome.generation_id = outcome.generation_id or text_of(fields.get("id"))
    usage = fields.get("usage")
    if usage is not None:
        outcome.usage = read_usage(usage)
