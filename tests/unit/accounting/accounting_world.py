"""What the tests of accounting share: facts, records, and a clock whose hands the test turns."""

import asyncio
from decimal import Decimal

from faregate.accounting.figures import with_cost
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import AlreadySettled, LedgerAway, Settled, ShapesChanged
from faregate.records import Facts, Source, Status, UsageRecord, altered
from faregate.store.errors import StoreUnavailable

NOON = 1_800_014_400.0
"""2027-01-15 12:00 UTC, a Friday."""


def facts_of(request_id="r1", *, at=NOON, user="ada", groups=("staff",), model="openai/gpt-4o", **more):
    return Facts(
        request_id=request_id,
        admitted_at=at,
        connection="main",
        user_id=user,
        email=f"{user}@example.org",
        groups=groups,
        policy_id="default",
        model=model,
        **{"cap": 100, "prompt_bound": 50, "fixed_nano": 5_000, "nano_per_output_token": 20, **more},
    )


def record_of(request_id="r1", *, cost="0.001", tokens=30, status=Status.COMPLETED, served=None, **more):
    record = UsageRecord(
        facts=facts_of(request_id, **more),
        status=status,
        served_model=served,
        prompt_tokens=tokens // 3,
        completion_tokens=tokens - tokens // 3,
        total_tokens=tokens,
    )
    return with_cost(record, Decimal(cost), Source.USAGE)


def unknown_of(request_id="r1", *, status=Status.ABORTED, generation_id="gen-1", reason=None, **more):
    """A record as the gateway parks it: over, without tokens or cost."""
    facts = facts_of(request_id, **more)
    return UsageRecord(facts=facts, status=status, cost=None, generation_id=generation_id, reason=reason)


def with_id(record, request_id):
    return altered(record, facts=altered(record.facts, request_id=request_id))


async def others_run():
    """Let every task that can go on do so, until all of them wait for something."""
    for _ in range(50):
        await asyncio.sleep(0)


class HandClock:
    """A clock that stands still until the test turns it."""

    def __init__(self, now=NOON):
        self.now = now
        self._sleepers = []

    def time(self):
        return self.now

    def monotonic(self):
        return self.now

    async def wait(self, event, seconds):
        passed = asyncio.Event()
        if seconds is not None:
            if seconds <= 0:
                return
            self._sleepers.append((self.now + seconds, passed))
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(passed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[1] is not passed]

    async def advance(self, seconds):
        """Let `seconds` pass, waking each sleeper at its moment."""
        until = self.now + seconds
        await others_run()
        while due := [sleeper for sleeper in self._sleepers if sleeper[0] <= until]:
            moment, passed = min(due, key=lambda sleeper: sleeper[0])
            self.now = max(self.now, moment)
            passed.set()
            await others_run()
        self.now = until
        await others_run()


class FarStore:
    """A database far away: `away` and it cannot be reached; rows whose id is in `refuses` make it fail. While there is
    a `silence` it says nothing at all.

    Records that are charged in an era before its own, `era`, are late.
    """

    def __init__(self):
        self.away = False
        self.refuses = set()
        self.era = 0
        self.people = []
        self.records = []
        self.batches = []
        self.tries = []
        self.clock = None
        self.silence = None

    async def write(self, people, records):
        await asyncio.sleep(0)
        if self.silence is not None:
            await self.silence.wait()
        if self.clock is not None:
            self.tries.append(self.clock.now)
        if self.away:
            raise StoreUnavailable("the database is away")
        ids = [user.id for user in people] + [record.facts.request_id for record in records]
        if self.refuses.intersection(ids):
            raise OverflowError("a number is too large")
        late = [record for record in records if 0 < record.era < self.era and record.status is not Status.PENDING]
        self.batches.append(ids)
        self.people += people
        self.records += [record for record in records if record not in late]
        return late

    async def settled(self, ids):
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("the database is away")
        final = {record.facts.request_id for record in self.records if record.status is not Status.PENDING}
        return final.intersection(ids)


class SharedLedger(MemoryLedger):
    """A ledger as one node of several sees it: it can be away, be taught by others, and begin anew.

    `loses_answers`: what it is told takes place, and the answer does not arrive. Its counters start from `baseline`.
    """

    def __init__(self, baseline):
        super().__init__(baseline)
        self.away = False
        self.loses_answers = False
        self.era = 1
        self.owed = []
        self.tries = 0
        self._mine = set()
        self._by_others = set()
        self._lapsed = set()
        self._known = self._taught = []

    def lapsed(self, request_id):
        return request_id in self._lapsed

    def lapse(self, request_id):
        """This node is taken for dead while it holds this request."""
        self._lapsed.add(request_id)

    @property
    def shapes(self):
        return self._known

    def teach(self, *shapes):
        """Another node learns `shapes`; this one finds out when it settles."""
        self._taught = [*self._taught, *shapes]

    def settled_elsewhere(self, request_id):
        """Another node settles this request."""
        self._by_others.add(request_id)

    def begin_anew(self, baseline):
        """All is lost, and built from `baseline`, in a new era."""
        MemoryLedger.__init__(self, baseline)
        self.era += 1
        self._mine.clear()
        self._by_others.clear()
        # Another object than before, even if it has nothing in it.
        self._known = self._taught = [*self._taught]

    async def settle(self, request_id, charges, record):
        self._reach()
        self.tries += 1
        if self._known is not self._taught:
            self._known = self._taught
            raise ShapesChanged
        if request_id in self._by_others:
            return AlreadySettled()
        if request_id not in self._mine:
            await super().settle(request_id, charges, record)
            self._mine.add(request_id)
        if self.loses_answers:
            raise LedgerAway("Redis did not answer")
        return Settled(self.era)

    async def park(self, request_id):
        if self.away:
            self.owed.append(request_id)
        else:
            await super().park(request_id)

    def _reach(self):
        if self.away:
            raise LedgerAway("Redis is away")
