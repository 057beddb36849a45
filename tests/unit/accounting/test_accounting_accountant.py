"""Settling, refusing, parking: each request comes to one record, and is charged once on everything it touches."""

from zoneinfo import ZoneInfo

import pytest
from accounting_world import NOON, FarStore, HandClock, facts_of, others_run, record_of, unknown_of

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import pending_row
from faregate.accounting.lease import LEASE_SECONDS, RENEW_SECONDS, Leases
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.spend import Spend
from faregate.ledger.counters import counters_for
from faregate.ledger.journal import JournalError
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Balance, Claim
from faregate.policy.model import Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook
from faregate.policy.windows import Calendar
from faregate.records import Source, Status, UsageRecord, altered

DAILY = Limit(Meter.USD, Window.DAY, 10**9)
HOURLY = Limit(Meter.REQUESTS, Window.HOUR, 100)
GROUP = Limit(Meter.TOKENS, Window.MONTH, 10**6, Scope.GROUP)
PARALLEL = Limit(Meter.CONCURRENT, None, 3)
CLAUDE = Limit(Meter.USD, Window.DAY, 10**8, models=("anthropic/*",))


def rules(*limits):
    return Rulebook([Policy("default", "Default", limits)], [])


class FullJournal:
    """A journal on a disk that is full, when the test says so."""

    def __init__(self):
        self.full = False

    def held(self, hold): ...

    def noted(self, request_id, generation_id): ...

    def parked(self, request_id): ...

    def released(self, request_id): ...

    def settled(self, record):
        if self.full:
            raise JournalError("the disk is full")


class World:
    """The real parts, over a store that is not written to and an OpenRouter that never knows anything."""

    def __init__(self):
        self.clock = HandClock()
        self.asked = set()
        self.calendar = Calendar(ZoneInfo("UTC"))
        self.rulebook = rules(DAILY, HOURLY, GROUP, PARALLEL, CLAUDE)
        self.far = FarStore()
        self.outbox = Outbox(self.far, clock=self.clock)
        self.spend = Spend(self.calendar, NOON)
        self.journal = FullJournal()
        self.ledger = MemoryLedger(self.spend, self.journal)
        self.reconciler = Reconciler(self.never, clock=self.clock)
        self.begin()

    def begin(self):
        self.accountant = Accountant(
            self.ledger,
            self.spend,
            self.outbox,
            self.reconciler,
            self.calendar,
            lambda: self.rulebook,
            clock=self.clock,
        )

    async def never(self, generation_id):
        self.asked.add(generation_id)

    def counters(self, facts):
        return counters_for(
            self.rulebook.shapes,
            self.calendar,
            user_id=facts.user_id,
            groups=facts.groups,
            models=facts.candidates or (facts.model,),
            at=facts.admitted_at,
        )

    async def hold(self, request_id="r1", node="node-1", **more):
        facts = facts_of(request_id, **more)
        fixed = {Meter.REQUESTS: 1, Meter.TOKENS: 50, Meter.USD: 5_000, Meter.CONCURRENT: 1}
        claims = [Claim(counter, fixed[counter.meter]) for counter in self.counters(facts)]
        await self.ledger.reserve(
            facts, node=node, lease=LEASE_SECONDS, claims=claims, cap_wanted=100, cap_min=1, now=self.clock.now
        )
        return facts

    async def balances(self, facts):
        counters = self.counters(facts)
        balances = await self.ledger.peek(counters, self.clock.now)
        return {
            (counter.meter.value, counter.models): balance for counter, balance in zip(counters, balances, strict=True)
        }

    async def written(self):
        await self.outbox.flush()
        return self.far.records


@pytest.fixture
def world():
    return World()


async def test_settling_charges_every_counter_it_concerns_and_emits_the_record(world):
    facts = await world.hold()
    record = record_of(cost="0.001", tokens=30)

    assert await world.accountant.settle(record)
    assert await world.balances(facts) == {
        ("usd", ()): Balance(1_000_000, 0),
        ("requests", ()): Balance(1, 0),
        ("tokens", ()): Balance(30, 0),
        ("concurrent", ()): Balance(0, 0),
    }
    assert await world.written() == [record]


async def test_settling_twice_charges_once_and_writes_once(world):
    facts = await world.hold()

    assert await world.accountant.settle(record_of())
    assert not await world.accountant.settle(record_of(cost="5"))
    assert (await world.balances(facts))["usd", ()] == Balance(1_000_000, 0)
    assert await world.written() == [record_of()]


async def test_a_model_that_did_not_serve_is_not_charged_for_the_one_that_did(world):
    candidates = ("openai/gpt-4o", "anthropic/claude")
    facts = await world.hold(candidates=candidates)
    assert (await world.balances(facts))["usd", ("anthropic/*",)].held == 5_000

    await world.accountant.settle(record_of(candidates=candidates, served="openai/gpt-4o"))

    assert (await world.balances(facts))["usd", ("anthropic/*",)] == Balance(0, 0)


async def test_a_late_settlement_charges_the_windows_of_admission(world):
    facts = await world.hold()
    world.clock.now += 7200
    await world.accountant.settle(record_of())

    assert (await world.balances(facts))["requests", ()] == Balance(1, 0)
    [now] = await world.ledger.peek([c for c in world.counters(facts_of(at=world.clock.now)) if c.window == "hour"], 0)
    assert now == Balance(0, 0)


async def test_a_limit_that_is_added_counts_what_was_spent_before_it(world):
    world.rulebook = rules()
    await world.accountant.settle(record_of("a"))
    world.rulebook = rules(DAILY, GROUP)
    await world.accountant.settle(record_of("b"))

    assert await world.balances(facts_of()) == {
        ("usd", ()): Balance(2_000_000, 0),
        ("tokens", ()): Balance(60, 0),
    }


async def test_a_limit_that_was_away_for_a_while_counts_what_was_spent_meanwhile(world):
    await world.hold("a")
    await world.accountant.settle(record_of("a"))
    world.rulebook = rules()
    await world.accountant.settle(record_of("b"))
    world.rulebook = rules(DAILY)

    assert (await world.balances(facts_of()))["usd", ()] == Balance(2_000_000, 0)


async def test_a_limit_that_goes_before_anything_is_charged_counts_it_when_it_comes_back(world):
    facts = await world.hold()
    world.rulebook = rules()
    await world.accountant.settle(record_of())
    world.rulebook = rules(DAILY)

    assert (await world.balances(facts))["usd", ()] == Balance(1_000_000, 0)


async def test_a_limit_that_was_away_over_a_restart_counts_the_requests_that_were_under_way(world):
    facts = await world.hold()
    world.rulebook = rules()
    world.begin()
    await world.accountant.recover(world.ledger.live(), [])
    await world.accountant.settle(record_of())
    world.rulebook = rules(DAILY)

    assert (await world.balances(facts))["usd", ()] == Balance(1_000_000, 0)


@pytest.mark.parametrize("record", [unknown_of(), pending_row(record_of()), altered(record_of(), cost=None)])
async def test_what_has_no_final_figures_cannot_be_charged(world, record):
    with pytest.raises(ValueError, match="no final figures"):
        await world.accountant.settle(record)


async def test_a_refusal_is_recorded_and_charges_nothing(world):
    refusal = UsageRecord(facts=facts_of(), status=Status.REFUSED, requests=0)
    world.accountant.refuse(refusal)

    assert set((await world.balances(facts_of())).values()) == {Balance(0, 0)}
    assert await world.written() == [refusal]


async def test_a_parked_hold_knows_what_to_ask_for_also_when_its_answer_came_at_once(world):
    await world.hold()
    # An answer that is all here is not noted before it is settled; this one did not say what it cost.
    await world.accountant.park(unknown_of(generation_id="gen-9"))
    assert [hold.generation_id for hold in world.ledger.live()] == ["gen-9"]


async def test_parking_frees_the_parallel_slot_keeps_the_rest_and_writes_a_pending_row(world):
    facts = await world.hold()
    await world.accountant.park(unknown_of())

    balances = await world.balances(facts)
    assert balances["concurrent", ()] == Balance(0, 0)
    assert balances["usd", ()] == Balance(0, 5_000)
    assert [(row.status, row.cost) for row in await world.written()] == [(Status.PENDING, None)]
    assert "r1" in world.reconciler


async def test_what_is_never_found_out_is_charged_at_its_bound_and_keeps_its_outcome(world):
    facts = await world.hold()
    await world.accountant.park(unknown_of(status=Status.ABORTED))
    world.reconciler.start(world.accountant.charge)
    await world.clock.advance(10_000)
    await world.reconciler.stop()

    assert (await world.balances(facts))["usd", ()] == Balance(facts.bound_nano(), 0)
    [final] = await world.written()
    assert (final.status, final.source, final.reason) == (Status.ABORTED, Source.ESTIMATE, None)


async def test_a_full_disk_keeps_the_hold_and_the_charge_follows_when_there_is_room(world):
    facts = await world.hold()
    world.reconciler.start(world.accountant.charge)
    world.journal.full = True
    assert not await world.accountant.settle(record_of())
    await world.clock.advance(60)
    assert (await world.balances(facts))["usd", ()] == Balance(0, 5_000)

    world.journal.full = False
    await world.clock.advance(10)
    await world.reconciler.stop()

    assert (await world.balances(facts))["usd", ()] == Balance(1_000_000, 0)
    assert await world.written() == [record_of()]


async def test_a_node_that_renews_keeps_its_holds_however_long_they_run(world):
    await world.hold()
    leases = Leases(world.ledger, world.accountant, "node-1", clock=world.clock)
    leases.start()
    await world.clock.advance(20 * LEASE_SECONDS)
    await leases.stop()

    assert await world.ledger.expired(world.clock.now, 10) == []
    assert len(world.reconciler) == 0


async def test_a_machine_that_slept_keeps_its_own_holds(world):
    await world.hold()
    leases = Leases(world.ledger, world.accountant, "node-1", clock=world.clock)
    leases.start()
    await others_run()
    world.clock.now += 3600
    await world.clock.advance(RENEW_SECONDS)
    await leases.stop()

    assert len(world.reconciler) == 0


async def test_the_hold_of_a_dead_node_is_taken_over_once_after_its_lease(world):
    facts = await world.hold("dead", node="node-2")
    await world.ledger.note("dead", "gen-7")
    leases = Leases(world.ledger, world.accountant, "node-1", clock=world.clock)
    leases.start()
    await world.clock.advance(LEASE_SECONDS - 1)
    assert "dead" not in world.reconciler

    for _ in range(5):
        await world.clock.advance(2 * LEASE_SECONDS)
        await world.outbox.flush()
    await leases.stop()

    assert "dead" in world.reconciler
    assert (await world.balances(facts))["concurrent", ()] == Balance(0, 0)
    assert [(row.status, row.generation_id) for row in await world.written()] == [(Status.PENDING, "gen-7")]


async def test_what_is_being_looked_after_does_not_hide_other_dead_holds(world, monkeypatch):
    monkeypatch.setattr("faregate.accounting.accountant.TAKEN_OVER_AT_ONCE", 2)
    for number in range(5):
        await world.hold(f"r{number}", node="node-2")
    for _ in range(3):
        await world.accountant.take_over("node-1", LEASE_SECONDS, NOON + 60)

    assert all(f"r{number}" in world.reconciler for number in range(5))


async def test_what_a_process_left_is_taken_over_with_the_facts_of_its_hold_and_the_outcome_of_its_row(world):
    for request_id in ("noted", "unnoted", "parked"):
        await world.hold(request_id)
    await world.ledger.note("noted", "gen-1")
    await world.ledger.note("parked", "gen-2")
    parked = pending_row(unknown_of("parked", status=Status.COMPLETED, generation_id=None, cap=0))
    rowed = pending_row(unknown_of("rowed", status=Status.ABORTED, generation_id="gen-3"))
    await world.accountant.recover(world.ledger.live(), [parked, rowed])
    world.reconciler.start(world.accountant.charge)
    await world.clock.advance(10_000)
    await world.reconciler.stop()

    final = {record.facts.request_id: record for record in await world.written()}
    assert {request_id: record.status for request_id, record in final.items()} == {
        "noted": Status.FAILED,
        "unnoted": Status.FAILED,
        "parked": Status.COMPLETED,
        "rowed": Status.ABORTED,
    }
    assert all(record.cost_nano == 7_000 and record.source is Source.ESTIMATE for record in final.values())
    assert world.asked == {"gen-1", "gen-2", "gen-3"}
    assert world.ledger.live() == []
