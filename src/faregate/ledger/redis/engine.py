"""The engine of the ledger that many nodes share through Redis.

Each method is one script call, so one atomic step; the calls of one tick of the event loop leave in one write. The node
keeps its own live holds in memory as well, so that it can bring them back should Redis lose them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from faregate.directory import User
from faregate.ledger.forms import Charges, Claims
from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Counter,
    Held,
    Hold,
    Ledger,
    LedgerAway,
    Refused,
    Released,
    Settled,
)
from faregate.ledger.redis.calls import Calls
from faregate.ledger.redis.clock import LedgerClock
from faregate.ledger.redis.forms import packed_claims
from faregate.ledger.redis.holds import KeptHold, NodeHolds, encode_facts, hold_of
from faregate.ledger.redis.link import Link, NotSent
from faregate.ledger.redis.names import MOST, Keys, counters_of, known_as, micros, packed_list, seconds, ticks
from faregate.ledger.redis.outbox import SCRIPTS as OUTBOX_SCRIPTS
from faregate.ledger.redis.outbox import NodeOutbox
from faregate.ledger.redis.owed import Owed
from faregate.ledger.redis.scripts import load
from faregate.ledger.redis.settling import SCRIPTS as SETTLING_SCRIPTS
from faregate.ledger.redis.settling import Settling
from faregate.ledger.redis.standing import SCRIPTS as STANDING_SCRIPTS
from faregate.ledger.redis.standing import Standing
from faregate.ledger.redis.strays import Strays
from faregate.ledger.seeds import Records
from faregate.policy.rulebook import Shape
from faregate.records import Facts, UsageRecord

TOMBSTONE_SECONDS = 3600
"""How long a released id is known: longer than a call can be on its way, even on a connection that hangs."""

LEAVE_PATIENCE = 2.0
"""Seconds that a node which stops gives to what it still owes to Redis."""

RESERVE, RELEASE, NOTE, PARK, RENEW, EXPIRED, MINE, PEEK, ENTER = map(
    load, ("reserve", "release", "note", "park", "renew", "expired", "mine", "peek", "enter")
)
_OWN_SCRIPTS = (RESERVE, RELEASE, NOTE, PARK, RENEW, EXPIRED, MINE, PEEK, ENTER)
SCRIPTS = (*_OWN_SCRIPTS, *SETTLING_SCRIPTS, *OUTBOX_SCRIPTS, *STANDING_SCRIPTS)

log = logging.getLogger(__name__)


class RedisLedger(Ledger):
    """Reservations and charges in Redis, for one node of many."""

    def __init__(
        self, link: Link, records: Records, node: str, *, prefix: str = "faregate", clock_by_hand: bool = False
    ) -> None:
        """`prefix` is the namespace of the deployment. With `clock_by_hand` the times are the caller's, not those of
        Redis: for tests that turn the clock."""
        self._link = link
        self._node = node
        self._keys = Keys(prefix)
        self._clock = LedgerClock(by_hand=clock_by_hand)
        self._holds = NodeHolds()
        self._stray_holds = Strays()
        self._renewed_at: float | None = None
        self._entering: list[Callable[[], Any]] = []
        self._lease = 15.0
        self._standing = Standing(
            link,
            records,
            self._keys,
            node,
            now=self._clock.time,
            moment=self._clock.here,
            bring=self._bring,
            follow=self._follow,
        )
        self._calls = Calls(link, self._standing, self._keys)
        self._reserving = self._calls.opened(RESERVE, [self._keys.nodes])
        self._owed = Owed(link)
        self._outbox = NodeOutbox(link, self._calls, self._owed, self._standing, self._keys, node)
        self._settling = Settling(link, self._calls, self._standing, self._outbox, self._holds, self._clock, node)
        link.on_return(self._returned)

    # What the port promises

    @property
    def shapes(self) -> Iterable[Shape]:
        return self._standing.learned

    async def learn(self, shapes: Iterable[Shape]) -> None:
        await self._standing.learn(shapes)

    async def reserve(
        self,
        facts: Facts,
        *,
        node: str,
        lease: float,
        claims: Sequence[Claim],
        cap_wanted: int,
        cap_min: int,
        now: float,
    ) -> Held | Refused:
        """See `Ledger.reserve`. Sliding windows and leases go by the clock of Redis."""
        clock, request_id = self._clock, facts.request_id
        clock.now = now
        if cap_wanted < 0:
            raise ValueError(f"Request {request_id} wants a negative cap; it is zero or more.")
        claims = Claims.of(claims)
        own: list[str | int | bool] = [
            request_id,
            node,
            ticks(lease),
            clock.moment(facts.admitted_at).decode(),
            clock.moment(now).decode(),
            cap_wanted,
            min(cap_min, cap_wanted),
        ]
        for fixed, per_token in claims.named():
            if fixed < 0 or per_token < 0:
                raise ValueError(f"Request {request_id} claims a negative amount; amounts are zero or more.")
            if fixed + cap_wanted * per_token > MOST:
                raise ValueError(f"Request {request_id} claims more than can be counted, {MOST} at most.")
            own += (str(fixed), per_token)
        counters, names, lines = packed_claims(claims.form)
        arguments = lines, packed_list(own), encode_facts(facts)
        try:
            reply = await self._calls.insist(lambda: self._reserving.once(*arguments), counters, names)
        except NotSent:
            raise
        except BaseException:
            # It may have taken hold all the same, and nobody would settle it; so too if nobody waits for it any more.
            self._owed.owe("release", request_id, lambda: self._release(request_id))
            raise
        match reply[0]:
            case b"over":
                raise Released(f"Request {request_id} is over; it cannot be held again.")
            case b"refused":
                refusing = claims.form.lines[reply[1]]
                frees_at = seconds(reply[5]) if reply[5] else None
                return Refused(refusing.counter, reply[2], reply[3], refusing.limit or 0, reply[4], frees_at)
        _, cap, exceeded = reply
        self._holds.add(KeptHold(facts, node, cap, claims, exceeded))
        return Held(cap, counters_of(exceeded))

    async def note(self, request_id: str, generation_id: str) -> None:
        if (kept := self._holds.get(request_id)) is not None:
            if kept.generation_id == generation_id:
                return
            kept.generation_id = generation_id
        await self._owed.call("note", request_id, lambda: self._calls.repeat(NOTE, [], [request_id, generation_id]))

    async def park(self, request_id: str) -> None:
        if (kept := self._holds.get(request_id)) is not None:
            kept.parked = True
        await self._owed.call("park", request_id, lambda: self._calls.repeat(PARK, [], [request_id]))

    def settle(
        self, request_id: str, charges: Sequence[tuple[Counter, int]], record: UsageRecord
    ) -> Coroutine[Any, Any, Settled | AlreadySettled]:
        """See `Ledger.settle`. A record that has an era already was charged in it, and the database takes no more
        records of that era: counters that were built without it are charged, and it is of this era from then on."""
        return self._settling.settle(request_id, Charges.of(charges), record)

    async def release(self, request_id: str, now: float) -> None:
        self._clock.now = now
        await self._owed.call("release", request_id, lambda: self._release(request_id))

    async def renew(self, node: str, lease: float, now: float) -> None:
        if self._is_lapsed():
            self._holds.lapse()
        self._clock.now, self._lease = now, lease
        renewed_at, clock = self._renewed_at, time.monotonic()
        late = renewed_at is not None and clock - renewed_at > lease / 2 and not self._clock.by_hand
        keys = [self._keys.nodes, self._keys.grace]
        reply = await self._calls.repeat(
            RENEW, keys, [node, micros(lease), self._clock.moment(now), b"1" if late else b"0", self._keys.channel]
        )
        self._renewed_at = clock
        # Redis may have lost the nodes with everything else: a lease that was seen runs to its end all the same.
        known = {peer: ends for peer, ends in self._standing.peers.items() if int(ends) > int(reply[1])}
        self._standing.peers = known | dict(zip(reply[2::2], reply[3::2], strict=True))

    def lapsed(self, request_id: str) -> bool:
        return self._holds.has_lapsed(request_id) or (request_id in self._holds and self._is_lapsed())

    async def expired(self, now: float, limit: int) -> list[Hold]:
        return await self._expired(now, limit, b"", 0.0)

    async def adopt(self, node: str, lease: float, now: float, limit: int) -> list[Hold]:
        holds = await self._expired(now, limit, node.encode(), lease)
        if node == self._node:
            holds += await self._strays(now, lease)
            for hold in holds:
                self._holds.take_over(hold)
        return holds

    async def peek(self, counters: Sequence[Counter], now: float) -> list[Balance]:
        self._clock.now = now
        names = [known_as(counter).name for counter in counters]
        reply = await self._calls.repeat(PEEK, [], [self._clock.moment(now), *names], counters, names)
        return [Balance(used, held) for used, held in zip(reply[1::2], reply[2::2], strict=True)]

    # What a node of many does beyond it

    @property
    def failure(self) -> str | None:
        """Why nobody can be admitted, or nothing settled: None if that can be."""
        return self._link.failure or self._standing.trouble

    @property
    def alive(self) -> tuple[str, ...]:
        """The nodes whose lease ran at the last renewal, this one among them."""
        return (self._node, *(peer.decode() for peer in self._standing.peers if peer != self._node.encode()))

    @property
    def holds(self) -> int:
        """How many live holds are this node's."""
        return len(self._holds)

    @property
    def rebuilds(self) -> int:
        """How often this node began to build all counters anew."""
        return self._standing.rebuilds

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time Redis answers again after it was away."""
        self._link.on_return(callback)

    def on_epoch(self, callback: Callable[[], Any]) -> None:
        """Await `callback()` when the counters are built anew, before this node says that all its holds are back."""
        self._entering.append(callback)

    def on_abandoned(self, callback: Callable[[UsageRecord], None]) -> None:
        """Call `callback(record)` when who settles `record` is cancelled meanwhile: somebody else has to settle it."""
        self._settling.on_abandoned(callback)

    def look_again(self) -> None:
        """Somebody says that the ledger stands otherwise than before."""
        self._standing.look_soon()

    def refused(self, record: UsageRecord) -> None:
        """Keep a refusal in this node's outbox, if Redis is there; it is in memory in any case."""
        self._outbox.refused(record)

    def met(self, user: User) -> None:
        """Keep a person as they are now in this node's outbox, if Redis is there."""
        self._outbox.met(user)

    async def written(self, people: Sequence[User], records: Sequence[UsageRecord]) -> None:
        """The database has these now."""
        self._settling.written(records)
        await self._outbox.written(people, records)

    async def inherit(self, limit: int) -> list[User | UsageRecord]:
        """Rows that dead nodes did not write; they are this node's now."""
        return await self._outbox.inherit(limit, moment=self._clock.here(), now=self._clock.time(), lease=self._lease)

    async def announce(self) -> None:
        """Tell all nodes that rules or people have changed."""
        try:
            await self._link.command("PUBLISH", self._keys.channel, "rules")
        except LedgerAway as error:
            log.info("other nodes hear of the change later: %s", error)

    async def leave(self) -> None:
        """What this node still holds is for others at once: it will not renew again."""
        try:
            async with asyncio.timeout(LEAVE_PATIENCE):
                await self._owed.pay()
        except TimeoutError:
            log.warning("this node leaves while it owes %d calls to Redis", len(self._owed))
        try:
            await self._link.command("ZADD", self._keys.nodes, 0, self._node)
        except LedgerAway:
            log.info("this node leaves while Redis is away; what it holds is taken over when its lease is over")

    async def stop(self) -> None:
        """End what runs in the background."""
        await self._owed.stop()
        await self._outbox.stop()
        await self._standing.stop()

    def _is_lapsed(self) -> bool:
        since = self._renewed_at
        return since is not None and time.monotonic() - since > self._lease

    async def _expired(self, now: float, limit: int, heir: bytes, lease: float) -> list[Hold]:
        self._clock.now = now
        keys = [self._keys.nodes, self._keys.grace]
        reply = await self._calls.repeat(EXPIRED, keys, [self._clock.moment(now), limit, heir, micros(lease)])
        return [hold_of(flat, seconds(ended)) for ended, flat in zip(reply[2::3], reply[3::3], strict=True) if flat]

    async def _strays(self, now: float, lease: float) -> list[Hold]:
        """Holds that are this node's and that it does not know: the reply that told of them was lost."""
        known = {*self._holds, *self._owed.keys("release")}
        _, ids, _ = await self._calls.repeat(MINE, [], [self._node])
        unknown = [request_id for request_id in ids if request_id.decode() not in known]
        strays = self._stray_holds.among(unknown, now, lease)
        if not strays:
            return []
        _, _, holds = await self._calls.repeat(MINE, [], [self._node, *strays])
        return [hold_of(flat, now + lease) for flat in holds]

    async def _release(self, request_id: str) -> None:
        await self._calls.repeat(RELEASE, [], [request_id, TOMBSTONE_SECONDS])
        self._holds.forget(request_id)

    # Redis away, and back

    def _returned(self) -> None:
        self._standing.look_soon()
        self._owed.pay_soon()

    def _bring(self) -> list[asyncio.Future[Any]]:
        """Send this node's holds to a new epoch."""
        brought = self._holds.brought(micros(self._lease), self._clock.here())
        return [self._calls.once(ENTER, [self._keys.nodes], arguments) for arguments in brought]

    async def _follow(self) -> None:
        """Bring all else that this node has into a new epoch."""
        for callback in self._entering:
            await callback()
