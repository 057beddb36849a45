"""The books of a node that shares its ledger with others: charged once, whoever settles, whatever is away."""

import asyncio
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from accounting_world import NOON, FarStore, HandClock, SharedLedger, facts_of, others_run, record_of, unknown_of

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import pending_row, unsettled_row
from faregate.accounting.finals import Finals
from faregate.accounting.lease import LEASE_SECONDS
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import DELAYS, MOST_PATIENCE, Reconciler
from faregate.accounting.spend import NoSpend, Spend
from faregate.ledger.counters import counters_for
from faregate.ledger.port import Balance, Claim
from faregate.policy.model import Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook, Shape
from faregate.policy.windows import Calendar
from faregate.records import Source, Status, UsageRecord, altered
from faregate.store.errors import StoreUnavailable

DAILY = Shape(Scope.USER, Meter.USD, Window.DAY)
HOURLY = Shape(Scope.USER, Meter.REQUESTS, Window.HOUR)
SLOTS = Shape(Scope.USER, Meter.CONCURRENT, None)
LIMITS = (Limit(Meter.USD, Window.DAY, 10**9), Limit(Meter.CONCURRENT, None, 3))


class NotingKeeper:
    """Notes what need not be kept any more."""

    def __init__(self):
        self.gone = []

    def refused(self, record): ...

    def met(self, user): ...

    async def written(self, people, records):
        self.gone += [record.facts.request_id for record in records]


class World:
    """The real parts of one node, over a shared ledger and a database that the test takes away and gives back."""

    def __init__(self):
        self.clock = HandClock()
        self.calendar = Calendar(ZoneInfo("UTC"))
        self.rulebook = Rulebook([Policy("default", "Default", LIMITS)], [])
        self.far = FarStore()
        self.keeper = NotingKeeper()
        self.ledger = SharedLedger(Spend(self.calendar, NOON))
        self.reconciler = Reconciler(self.never, clock=self.clock)
        self.outbox = Outbox(self.far, self.keeper, late=self.recharge, clock=self.clock)
        self.accountant = Accountant(
            self.ledger,
            NoSpend(),
            self.outbox,
            self.reconciler,
            self.calendar,
            lambda: self.rulebook,
            finals=Finals(self.far),
            clock=self.clock,
        )
        self.settle = self.accountant.settle
        self.charge_late = self.accountant.charge_late

    async def never(self, generation_id):
        return None

    def recharge(self, record):
        self.accountant.recharge(record)

    def counters(self, *shapes, request_id="r1"):
        facts = facts_of(request_id)
        return counters_for(
            shapes, self.calendar, user_id="ada", groups=facts.groups, models=(facts.model,), at=facts.admitted_at
        )

    async def hold(self, request_id="r1", node="node-1"):
        claims = [Claim(counter, 1) for counter in self.counters(DAILY, SLOTS)]
        await self.ledger.reserve(
            facts_of(request_id),
            node=node,
            lease=LEASE_SECONDS,
            claims=claims,
            cap_wanted=100,
            cap_min=1,
            now=self.clock.now,
        )

    async def balance(self, shape=DAILY):
        [balance] = await self.ledger.peek(self.counters(shape), self.clock.now)
        return balance

    async def rows(self):
        await self.outbox.flush()
        return [(row.facts.request_id, row.status, row.era) for row in self.far.records]

    async def final_rows(self):
        return [row for row in await self.rows() if row[1] is not Status.PENDING]

    def flush_ledger(self):
        """The ledger is emptied, and built anew from what the database has."""
        self.far.era = self.ledger.era + 1
        spend = Spend(self.calendar, NOON)
        for record in self.far.records:
            if record.status is not Status.PENDING:
                spend.add(record, NOON)
        self.ledger.begin_anew(spend)


@pytest.fixture
async def world():
    world = World()
    world.reconciler.start(world.charge_late)
    yield world
    await world.reconciler.stop()


async def test_a_record_keeps_the_era_in_which_it_was_charged(world):
    assert await world.settle(record_of())

    assert await world.rows() == [("r1", Status.COMPLETED, 1)]


async def test_a_request_is_charged_on_the_shapes_that_other_nodes_have_taught_the_ledger(world):
    world.ledger.teach(HOURLY)
    assert await world.settle(record_of())

    assert (await world.balance(HOURLY), await world.balance(DAILY)) == (Balance(1), Balance(1_000_000))
    assert set(world.accountant.shapes()) == {DAILY, SLOTS, HOURLY}
    assert world.ledger.tries == 2


async def test_shapes_cost_nothing_while_nothing_changes(world):
    taught = world.ledger.shapes
    assert world.accountant.shapes() is world.accountant.shapes()
    assert world.ledger.shapes is taught

    world.ledger.teach(HOURLY)
    await world.settle(record_of())
    world.rulebook = Rulebook([], [])
    assert set(world.accountant.shapes()) == {DAILY, SLOTS, HOURLY}


async def test_a_settlement_waits_in_the_node_and_in_the_database_while_the_ledger_is_away(world):
    await world.hold()
    world.ledger.away = True
    assert not await world.settle(record_of(cost="0.001"))
    await world.clock.advance(60)
    await world.outbox.flush()
    assert "r1" in world.reconciler
    assert world.far.records == [unsettled_row(record_of(cost="0.001"))]

    world.ledger.away = False
    world.reconciler.hurry()
    await others_run()

    assert await world.balance() == Balance(1_000_000)
    assert (await world.rows())[1:] == [("r1", Status.COMPLETED, 1)]
    assert len(world.reconciler) == 0


async def test_what_cost_nothing_waits_as_what_cost_nothing(world):
    free = UsageRecord(facts_of(), Status.FAILED, reason="upstream said no")
    world.ledger.away = True
    await world.settle(free)
    await world.outbox.flush()
    [row] = world.far.records
    assert (row.status, row.outcome, row.cost) == (Status.PENDING, Status.FAILED, Decimal(0))

    world.ledger.away = False
    world.reconciler.hurry()
    await others_run()
    await world.outbox.flush()

    assert world.far.records[1:] == [altered(free, era=1)]


async def test_a_settlement_whose_answer_was_lost_is_charged_once_and_written_once(world):
    await world.hold()
    world.ledger.loses_answers = True
    assert not await world.settle(record_of())
    world.ledger.loses_answers = False
    await world.clock.advance(MOST_PATIENCE)

    assert await world.balance() == Balance(1_000_000)
    assert await world.rows() == [("r1", Status.COMPLETED, 1)]


async def test_what_somebody_else_settled_under_an_earlier_ledger_is_not_charged_again_and_holds_nothing(world):
    await world.far.write([], [altered(record_of(cost="0.002"), era=1)])
    world.flush_ledger()
    await world.hold()
    assert await world.balance() == Balance(2_000_000, 1)

    assert not await world.charge_late(record_of())

    assert await world.balance() == Balance(2_000_000)
    assert world.keeper.gone == ["r1"]
    assert await world.rows() == [("r1", Status.COMPLETED, 1)]


async def test_a_node_that_was_taken_for_dead_does_not_charge_again_what_its_heir_settled_and_redis_then_lost(world):
    await world.hold()
    world.ledger.lapse("r1")
    await world.far.write([], [altered(record_of(cost="0.002"), era=1)])
    world.flush_ledger()

    assert not await world.settle(record_of())
    await others_run()

    assert await world.balance() == Balance(2_000_000)
    assert await world.final_rows() == [("r1", Status.COMPLETED, 1)]


async def test_a_node_that_was_taken_for_dead_charges_what_nobody_settled(world):
    await world.hold()
    world.ledger.lapse("r1")

    assert not await world.settle(record_of())
    await others_run()

    assert await world.balance() == Balance(1_000_000)
    assert await world.final_rows() == [("r1", Status.COMPLETED, 1)]


async def test_a_ledger_that_begins_anew_while_the_database_is_asked_does_not_charge_what_it_began_with(world):
    asking = asyncio.ensure_future(world.charge_late(record_of()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # The question is under way, and will be answered with no.
    await world.far.write([], [altered(record_of(), era=1)])
    world.flush_ledger()

    assert not await asking
    assert await world.balance() == Balance(1_000_000)


async def test_a_final_record_that_appears_while_the_shapes_change_is_found(world):
    class Slow(SharedLedger):
        async def settle(self, request_id, charges, record):
            if self._known is not self._taught:
                await world.far.write([], [altered(record_of(cost="0.002"), era=1)])
            return await super().settle(request_id, charges, record)

    world.ledger.__class__ = Slow
    world.ledger.teach(HOURLY)

    assert not await world.charge_late(record_of())
    assert world.ledger.tries == 1
    assert await world.balance() == Balance()


async def test_without_the_database_nothing_is_charged_late_and_nothing_is_lost(world):
    await world.hold()
    world.far.away = True
    with pytest.raises(StoreUnavailable):
        await world.charge_late(record_of())
    world.reconciler.settle_now(record_of())
    await world.clock.advance(60)
    assert await world.balance() == Balance(0, 1)

    world.far.away = False
    await world.clock.advance(MOST_PATIENCE)

    assert await world.rows() == [("r1", Status.COMPLETED, 1)]


async def test_a_record_whose_era_ended_before_it_was_written_is_charged_again_and_written_once(world):
    await world.settle(record_of())
    world.flush_ledger()
    assert await world.balance() == Balance()
    assert await world.rows() == []
    await others_run()

    assert await world.balance() == Balance(1_000_000)
    assert await world.rows() == [("r1", Status.COMPLETED, 2)]
    assert world.keeper.gone == ["r1"]


async def test_a_record_that_came_too_late_is_not_lost_while_the_ledger_is_away(world):
    await world.settle(record_of())
    world.flush_ledger()
    world.ledger.away = True
    await world.outbox.flush()
    await world.clock.advance(600)
    assert "r1" in world.reconciler

    world.ledger.away = False
    world.reconciler.hurry()
    await others_run()

    assert await world.rows() == [("r1", Status.COMPLETED, 2)]


async def test_a_late_record_that_somebody_else_charged_is_kept_until_the_database_has_theirs(world):
    await world.settle(record_of())
    world.flush_ledger()
    world.ledger.settled_elsewhere("r1")
    await world.outbox.flush()
    await world.clock.advance(60)
    assert "r1" in world.reconciler
    assert world.keeper.gone == []

    await world.far.write([], [altered(record_of(), era=2)])
    await world.clock.advance(MOST_PATIENCE)

    assert "r1" not in world.reconciler
    assert world.keeper.gone == ["r1"]
    assert await world.rows() == [("r1", Status.COMPLETED, 2)]


async def test_parking_while_the_ledger_is_away_is_owed_and_keeps_the_row(world):
    world.ledger.away = True
    await world.accountant.park(unknown_of())

    assert world.ledger.owed == ["r1"]
    assert "r1" in world.reconciler
    assert await world.rows() == [("r1", Status.PENDING, 0)]


async def test_a_hold_of_a_dead_node_is_this_nodes_after_it_was_taken_over_and_its_row_is_left_as_it_is(world):
    await world.hold("dead", node="node-2")
    for _ in range(3):
        world.clock.now += 2 * LEASE_SECONDS
        await world.ledger.renew("node-1", LEASE_SECONDS, world.clock.now)
        await world.accountant.take_over("node-1", LEASE_SECONDS, world.clock.now)

    assert [(hold.node, hold.parked) for hold in world.ledger.live()] == [("node-1", True)]
    assert len(world.reconciler) == 1
    assert await world.rows() == []


async def test_what_is_known_of_a_dead_nodes_request_is_not_forgotten_for_its_hold(world):
    await world.hold("dead", node="node-2")
    world.accountant.look_after(unsettled_row(record_of("dead", cost="0.002")))
    await world.accountant.take_over("node-1", LEASE_SECONDS, NOON + 60)
    await others_run()
    await world.outbox.flush()

    [record] = world.far.records
    assert (record.cost, record.source, record.status) == (Decimal("0.002"), Source.USAGE, Status.COMPLETED)
    assert world.ledger.live() == []


async def test_a_hold_that_was_taken_over_is_settled_on_its_bound_when_nobody_knows_better(world):
    await world.hold("dead", node="node-2")
    await world.accountant.take_over("node-1", LEASE_SECONDS, NOON + 60)
    await others_run()
    assert len(world.ledger.live()) == 1

    await world.clock.advance(DELAYS[0])
    await world.outbox.flush()

    [record] = world.far.records
    assert (record.cost_nano, record.source, record.status) == (7_000, Source.ESTIMATE, Status.FAILED)
    assert world.ledger.live() == []


async def test_a_pending_row_with_figures_is_settled_on_them_and_one_without_is_asked_about(world):
    await world.accountant.recover(
        [], [unsettled_row(record_of("known")), pending_row(unknown_of("unknown", generation_id="gen-1"))]
    )
    await others_run()

    assert await world.rows() == [("known", Status.COMPLETED, 1)]
    assert "unknown" in world.reconciler
