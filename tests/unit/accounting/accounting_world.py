"""What the tests of accounting share: facts, records, and a clock whose hands the test turns."""

import asyncio
from dataclasses import replace
from decimal import Decimal

from faregate.accounting.figures import with_cost
from faregate.records import Facts, Source, Status, UsageRecord
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
    return replace(record, facts=replace(record.facts, request_id=request_id))


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
    """A database far away: `away` and it cannot be reached; rows whose id is in `refuses` make it fail."""

    def __init__(self):
        self.away = False
        self.refuses = set()
        self.people = []
        self.records = []
        self.batches = []
        self.tries = []
        self.clock = None

    async def write(self, people, records):
        await asyncio.sleep(0)
        if self.clock is not None:
            self.tries.append(self.clock.now)
        if self.away:
            raise StoreUnavailable("the database is away")
        ids = [user.id for user in people] + [record.facts.request_id for record in records]
        if self.refuses.intersection(ids):
            raise OverflowError("a number is too large")
        self.batches.append(ids)
        self.people += people
        self.records += records
