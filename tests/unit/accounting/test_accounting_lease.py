"""The leases of this node are renewed, whatever goes wrong once."""

import asyncio

from accounting_world import NOON, HandClock, others_run

from faregate.accounting.lease import (
    CALM_ROUNDS,
    LEASE_SECONDS,
    RENEW_SECONDS,
    RENEW_SHARED_SECONDS,
    Leases,
)
from faregate.ledger.port import LedgerAway


class Books:
    """A ledger, an accountant and a janitor that note when they are called, and fail at the moments in `fails`."""

    def __init__(self, fails=(), clock=None):
        self.fails = fails
        self.clock = clock
        self.away = False
        self.silence = None
        self.renewed = []
        self.taken_over = []
        self.swept = []

    async def renew(self, _node, _lease, now):
        if self.away:
            raise LedgerAway("Redis is away")
        self.renewed.append(now)
        if now in self.fails:
            raise OSError("no file descriptor is left")

    async def sweep(self):
        self.swept.append(self.clock.now)
        if self.silence is not None:
            await self.silence.wait()

    async def take_over(self, node, lease, now):
        assert (node, lease) == ("node", LEASE_SECONDS)
        self.taken_over.append(now)
        if now in self.fails:
            raise ValueError("a hold that cannot be read")


async def renewing(ledger, accountant, rounds):
    clock = HandClock()
    leases = Leases(ledger, accountant, "node", clock=clock)
    leases.start()
    await others_run()
    for _ in range(rounds - 1):
        await clock.advance(RENEW_SECONDS)
    await leases.stop()


async def test_a_renewal_that_fails_is_logged_and_tried_again(caplog):
    ledger, accountant = Books(fails={NOON}), Books()
    await renewing(ledger, accountant, rounds=3)

    assert ledger.renewed == [NOON, NOON + RENEW_SECONDS, NOON + 2 * RENEW_SECONDS]
    assert accountant.taken_over == ledger.renewed[1:]
    assert "leases could not be renewed" in caplog.text


async def test_holds_that_cannot_be_taken_over_do_not_end_the_renewing(caplog):
    ledger, accountant = Books(), Books(fails={NOON, NOON + RENEW_SECONDS})
    await renewing(ledger, accountant, rounds=3)

    assert len(ledger.renewed) == len(accountant.taken_over) == 3
    assert caplog.text.count("what dead nodes left could not be taken over") == 2


class Shared:
    """A node that has just started beside others, over a ledger that they share."""

    def __init__(self):
        self.clock = HandClock()
        self.books = Books(clock=self.clock)
        self.leases = Leases(self.books, self.books, "node", janitor=self.books, clock=self.clock)

    async def __aenter__(self):
        self.leases.start()
        await others_run()
        return self

    async def __aexit__(self, *_):
        await self.leases.stop()


CALM_SECONDS = CALM_ROUNDS * RENEW_SHARED_SECONDS


async def test_a_new_node_takes_nothing_before_the_others_had_the_time_to_renew():
    async with Shared() as shared:
        await shared.clock.advance(CALM_SECONDS - 1)
        assert len(shared.books.renewed) == CALM_ROUNDS
        assert shared.books.swept == shared.books.taken_over == []

        await shared.clock.advance(1)

        assert shared.books.swept == shared.books.taken_over == [NOON + CALM_SECONDS]


async def test_a_node_whose_shared_ledger_was_away_for_long_takes_nothing_before_the_others_had_the_time_to_renew():
    async with Shared() as shared:
        await shared.clock.advance(60)
        shared.books.away = True
        await shared.clock.advance(LEASE_SECONDS)
        shared.books.away = False
        taken = len(shared.books.taken_over)
        shared.leases.hurry()
        await shared.clock.advance(CALM_SECONDS - 0.5)
        assert len(shared.books.taken_over) == len(shared.books.swept) == taken

        await shared.clock.advance(1)

        assert len(shared.books.taken_over) == len(shared.books.swept) == taken + 1


async def test_a_machine_that_slept_takes_nothing_of_the_nodes_that_slept_with_it():
    async with Shared() as shared:
        await shared.clock.advance(60)
        taken = len(shared.books.taken_over)
        shared.clock.now += 3600
        await shared.clock.advance(CALM_SECONDS - 0.5)

        assert len(shared.books.taken_over) == taken


async def test_a_clock_that_is_set_back_does_not_keep_a_node_from_taking_over():
    async with Shared() as shared:
        await shared.clock.advance(60)
        shared.books.taken_over.clear()
        shared.clock.now -= 3600
        shared.leases.hurry()
        await shared.clock.advance(2 * CALM_SECONDS)

        assert shared.books.taken_over != []


async def test_a_database_that_says_nothing_keeps_nobody_from_renewing():
    async with Shared() as shared:
        await shared.clock.advance(60)
        swept, taken, renewed = len(shared.books.swept), len(shared.books.taken_over), len(shared.books.renewed)
        shared.books.silence = asyncio.Event()

        await shared.clock.advance(4 * LEASE_SECONDS)

        assert len(shared.books.renewed) - renewed == 4 * LEASE_SECONDS / RENEW_SHARED_SECONDS
        # One question waits, not one for each round.
        assert len(shared.books.swept) - swept == 1
        assert len(shared.books.taken_over) == taken

        shared.books.silence.set()
        await shared.clock.advance(RENEW_SHARED_SECONDS)
        assert len(shared.books.swept) - swept == 2
        assert len(shared.books.taken_over) - taken == 2


async def test_what_a_silent_database_delayed_is_not_taken_from_nodes_that_slept_meanwhile():
    async with Shared() as shared:
        await shared.clock.advance(60)
        shared.books.silence = asyncio.Event()
        await shared.clock.advance(RENEW_SHARED_SECONDS)
        taken = len(shared.books.taken_over)

        shared.clock.now += 3600
        shared.books.silence.set()
        await others_run()

        assert len(shared.books.taken_over) == taken


async def test_a_node_stops_though_the_database_says_nothing():
    async with Shared() as shared:
        await shared.clock.advance(60)
        shared.books.silence = asyncio.Event()
        await shared.clock.advance(RENEW_SHARED_SECONDS)
        async with asyncio.timeout(10):
            await shared.leases.stop()


async def test_a_ledger_that_is_back_is_renewed_with_at_once():
    async with Shared() as shared:
        shared.books.away = True
        await shared.clock.advance(7)
        shared.books.away = False
        renewed = len(shared.books.renewed)
        shared.leases.hurry()
        await others_run()

        assert len(shared.books.renewed) == renewed + 1


async def test_a_ledger_that_is_away_is_told_in_one_line_for_each_outage(caplog):
    async with Shared() as shared:
        for _ in range(2):
            shared.books.away = True
            await shared.clock.advance(60)
            shared.books.away = False
            await shared.clock.advance(60)

    assert [record.message for record in caplog.records] == [
        "leases are renewed when the ledger is back: Redis is away"
    ] * 2
    assert all(record.exc_info is None for record in caplog.records)
