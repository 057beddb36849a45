"""Accounting over its real parts: the ledger, its journal, the database, and a process that may be killed.

Whatever happens in between, each request comes to one record, and the counters are the sum of the records.
"""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import with_cost
from faregate.accounting.finals import Finals
from faregate.accounting.generation import Generation
from faregate.accounting.janitor import Janitor
from faregate.accounting.keeping import JournalKeeper
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.recovery import recover_spend
from faregate.accounting.seeding import StoredRecords
from faregate.accounting.spend import NoSpend, Spend
from faregate.ledger.counters import counters_for
from faregate.ledger.journal import Journal
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Claim, Held, LedgerAway, Settled
from faregate.policy.model import Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook
from faregate.policy.windows import Calendar
from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store
from faregate.store.usage import UsageQuery

NOON = 1_800_014_400.0
ZONE = ZoneInfo("Asia/Bangkok")
PEOPLE = {"ada": ("staff", "physics"), "bob": ("physics",), "eve": ()}
MODELS = ("openai/gpt-4o", "anthropic/claude")
LIMITS = (
    Limit(Meter.REQUESTS, Window.HOUR, 10**6),
    Limit(Meter.USD, Window.DAY, 10**15),
    Limit(Meter.TOKENS, Window.WEEK, 10**12),
    Limit(Meter.USD, Window.MONTH, 10**15, Scope.GROUP),
    Limit(Meter.REQUESTS, Window.TOTAL, 10**6, Scope.EVERYONE),
    Limit(Meter.USD, Window.DAY, 10**15, models=("anthropic/*",)),
    Limit(Meter.CONCURRENT, None, 100),
    Limit(Meter.REQUESTS, Window.MINUTE, 10**6),
)
BOUND = Decimal("0.000007")


class Switch:
    """The real store behind a line that can be cut."""

    def __init__(self, store):
        self._store = store
        self.away = False

    async def write(self, people, records):
        if self.away:
            raise StoreUnavailable("the line to the database is cut")
        return await self._store.write(people, records)


class Node:
    """One gateway process as far as its books go, composed as the application composes it."""

    def __init__(self, folder, now=NOON, limits=LIMITS):
        self.folder = folder
        self.now = now
        self.told = {}
        self.set_limits(limits)
        self.calendar = Calendar(ZONE)

    def set_limits(self, limits):
        self.rulebook = Rulebook([Policy("default", "Default", tuple(limits))], [])

    def time(self):
        return self.now

    async def ask(self, generation_id):
        return self.told.get(generation_id)

    async def start(self):
        self.store = await Store.open(f"sqlite:///{self.folder / 'faregate.db'}")
        self.line = Switch(self.store)
        self.journal = Journal.open(self.folder / "journal")
        replay = self.journal.replay()
        self.keeper = JournalKeeper(self.journal, compact_bytes=4096)
        self.outbox = Outbox(self.line, self.keeper)
        self.spend = await recover_spend(self.store, self.outbox, replay, self.calendar, self.now)
        self.ledger = MemoryLedger(self.spend, self.journal)
        self.ledger.restore(replay.holds)
        self.keeper.watch(self.ledger.live, self.outbox)
        self.reconciler = Reconciler(self.ask, delays=(0.0, 0.0))
        self.accountant = Accountant(
            self.ledger, self.spend, self.outbox, self.reconciler, self.calendar, lambda: self.rulebook, clock=self
        )
        await self.accountant.recover(replay.holds, await self.store.pending())
        self.charged = asyncio.Event()
        self.reconciler.start(self.charge)
        return self

    async def charge(self, record):
        try:
            return await self.accountant.charge(record)
        finally:
            self.charged.set()

    async def kill(self):
        """End as kill -9 does: what is only in memory is gone."""
        await self.reconciler.stop()
        self.journal.close()
        await self.store.close()

    async def stop(self):
        await self.reconciler.stop()
        await self.outbox.stop()
        self.journal.close()
        await self.store.close()

    async def reconciled(self):
        while len(self.reconciler):
            await self.charged.wait()
            self.charged.clear()

    def counters(self, user, models=MODELS):
        return counters_for(
            self.rulebook.shapes,
            self.calendar,
            user_id=user,
            groups=PEOPLE[user],
            models=models,
            at=self.now,
        )

    async def admit(self, request_id, user="ada", model=MODELS[0]):
        facts = Facts(
            request_id=request_id,
            admitted_at=self.now,
            connection="main",
            user_id=user,
            email=None,
            groups=PEOPLE[user],
            policy_id="default",
            model=model,
            candidates=(model,),
            cap=100,
            prompt_bound=50,
            fixed_nano=5_000,
            nano_per_output_token=20,
        )
        asks = {Meter.REQUESTS: (1, 0), Meter.TOKENS: (50, 1), Meter.USD: (5_000, 20), Meter.CONCURRENT: (1, 0)}
        claims = [Claim(counter, *asks[counter.meter], 10**15) for counter in self.counters(user, (model,))]
        held = await self.ledger.reserve(
            facts, node="node", lease=15.0, claims=claims, cap_wanted=100, cap_min=1, now=self.now
        )
        assert isinstance(held, Held)
        return facts

    async def rows(self):
        await self.outbox.flush()
        return await self.store.usage(UsageQuery(limit=1000))

    async def counters_are_the_sum_of_the_rows(self):
        """Demand of each counter of each person that it is what the rows in the database add up to."""
        rows = [row for row in await self.rows() if row.status not in {Status.PENDING, Status.REFUSED}]
        for user in PEOPLE:
            counters = [counter for counter in self.counters(user) if counter.window is not None]
            for counter, balance in zip(counters, await self.ledger.peek(counters, self.now), strict=True):
                assert balance.used == sum(amount(row, counter.meter) for row in rows if self.on(row, counter))

    def on(self, row, counter):
        if counter.window is Window.MINUTE:
            in_time = self.now - 60 < row.ts <= self.now + 60
        else:
            in_time = counter.ends == 0 or counter.starts <= row.ts < counter.ends
        concerned = {
            Scope.USER: row.user_id == counter.scope_id,
            Scope.GROUP: counter.scope_id in row.groups,
            Scope.EVERYONE: True,
        }
        return in_time and concerned[counter.scope] and (not counter.models or row.model.startswith("anthropic/"))


def amount(row, meter):
    # One request costs a whole number of nano-dollars in these histories, so that rows tell the exact charge.
    return {Meter.REQUESTS: 1, Meter.TOKENS: row.total_tokens, Meter.USD: int(row.cost * 10**9)}[meter]


def final_of(facts, nano=1_000, tokens=30):
    record = UsageRecord(
        facts=facts,
        status=Status.COMPLETED,
        served_model=facts.model,
        prompt_tokens=10,
        completion_tokens=tokens - 10,
        total_tokens=tokens,
    )
    return with_cost(record, Decimal(nano) / 10**9, Source.USAGE)


def parked_of(facts, generation_id=None):
    return UsageRecord(facts=facts, status=Status.ABORTED, cost=None, generation_id=generation_id)


@pytest.fixture
async def nodes(tmp_path):
    """Starts nodes over one folder, one after the other; the last one is stopped at the end."""
    async with AsyncExitStack() as stack:
        running = []

        async def start(**more):
            node = await Node(tmp_path, **more).start()
            running[:] = [node]
            return node

        async def stop():
            await running[0].stop()

        stack.push_async_callback(stop)
        yield start


async def test_a_killed_process_leaves_nothing_uncharged_and_nothing_charged_twice(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("in the database")))
    await node.rows()
    await node.accountant.settle(final_of(await node.admit("in the journal")))
    await node.admit("unnamed")
    await node.admit("named")
    await node.ledger.note("named", "gen-named")
    await node.accountant.park(parked_of(await node.admit("parked"), "gen-parked"))
    await node.rows()
    await node.ledger.release((await node.admit("released")).request_id, node.now)
    await node.kill()

    node = await nodes()
    node.told = {"gen-named": Generation(cost=Decimal("0.002"), prompt_tokens=7, completion_tokens=3)}
    await node.reconciled()

    rows = {row.request_id: (row.status, row.source, row.cost) for row in await node.rows()}
    assert rows == {
        "in the database": (Status.COMPLETED, Source.USAGE, Decimal("0.000001")),
        "in the journal": (Status.COMPLETED, Source.USAGE, Decimal("0.000001")),
        "unnamed": (Status.FAILED, Source.ESTIMATE, BOUND),
        "named": (Status.FAILED, Source.GENERATION, Decimal("0.002")),
        "parked": (Status.ABORTED, Source.ESTIMATE, BOUND),
    }
    assert node.ledger.live() == []
    await node.counters_are_the_sum_of_the_rows()


async def test_a_process_killed_again_and_again_charges_once(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("a")))
    for _ in range(3):
        await node.kill()
        node = await nodes()
        await node.accountant.settle(final_of(await node.admit(f"after {len(await node.rows())}")))

    assert len(await node.rows()) == 4
    await node.counters_are_the_sum_of_the_rows()


async def test_a_database_that_goes_away_and_comes_back_has_every_record_once(nodes):
    node = await nodes()
    node.outbox.start()
    node.line.away = True
    for number in range(700):
        await node.accountant.settle(final_of(await node.admit(f"r{number:03}")))
    with pytest.raises(StoreUnavailable):
        await node.outbox.flush()
    assert node.outbox.lag.waiting == 700
    assert await node.store.usage(UsageQuery()) == []

    node.line.away = False

    assert sorted(row.request_id for row in await node.rows()) == [f"r{number:03}" for number in range(700)]
    assert node.outbox.lag.waiting == 0
    await node.counters_are_the_sum_of_the_rows()


async def test_a_process_killed_while_the_database_is_away_loses_nothing(nodes):
    node = await nodes()
    node.line.away = True
    for number in range(20):
        await node.accountant.settle(final_of(await node.admit(f"r{number}")))
    node.accountant.refuse(UsageRecord(facts=await node.admit("no"), status=Status.REFUSED, requests=0))
    await node.kill()

    node = await nodes()

    assert {row.request_id for row in await node.rows()} == {"no", *(f"r{number}" for number in range(20))}
    await node.counters_are_the_sum_of_the_rows()


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_clock_that_was_ahead_for_a_moment_gives_nobody_their_windows_again(nodes, is_restarted):
    node = await nodes()
    for number in range(3):
        await node.accountant.settle(final_of(await node.admit(f"before {number}")))
    parked = await node.admit("running")
    await node.accountant.park(parked_of(parked))
    node.now += 2 * 86_400
    for number in range(20):
        await node.accountant.settle(final_of(await node.admit(f"ahead {number}", "bob")))
    await node.counters_are_the_sum_of_the_rows()
    # The minute is a rate, not a budget: one that the clock has jumped out of is not waited for.
    node.now -= 2 * 86_400 - 120
    if is_restarted:
        await node.kill()
        node = await nodes(now=node.now)
    await node.accountant.settle(final_of(await node.admit("after", "bob")))
    await node.reconciled()

    await node.counters_are_the_sum_of_the_rows()
    node.now += 2 * 86_400
    await node.counters_are_the_sum_of_the_rows()


async def test_a_record_that_the_database_refuses_is_charged_also_after_a_restart(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("huge"), tokens=2**70))
    await node.kill()
    node = await nodes()

    assert await node.rows() == []
    assert node.outbox.lag.dead == ("huge",)
    [tokens] = [counter for counter in node.counters("ada") if counter.meter is Meter.TOKENS]
    assert [balance.used for balance in await node.ledger.peek([tokens], node.now)] == [2**70]


async def test_the_journal_of_a_busy_node_stays_small(nodes):
    node = await nodes()
    node.outbox.start()
    await node.admit("still running")
    for number in range(200):
        await node.accountant.settle(final_of(await node.admit(f"r{number}")))
        if number % 20 == 0:
            await node.outbox.flush()
    await node.outbox.flush()

    assert node.journal.size < 50_000
    assert [hold.facts.request_id for hold in node.journal.replay().holds] == ["still running"]


class SharedLedger(MemoryLedger):
    """One ledger for several nodes, in `era`; it can be away from all of them."""

    def __init__(self, baseline):
        super().__init__(baseline)
        self.era = 1
        self.away = False
        self.nothing_held = asyncio.Event()

    async def settle(self, request_id, charges, record):
        if self.away:
            raise LedgerAway("the line to the ledger is cut")
        settled = await super().settle(request_id, charges, record)
        if not self.live():
            self.nothing_held.set()
        return Settled(self.era) if isinstance(settled, Settled) else settled


class Neighbour:
    """One of several gateway processes over one ledger and one database, as far as its books go."""

    alive = ("ann", "ben")

    def __init__(self, name, url, ledger):
        self.name = name
        self.url = url
        self.ledger = ledger
        self.calendar = Calendar(ZONE)
        self.rulebook = Rulebook([Policy("default", "Default", LIMITS)], [])

    async def inherit(self, limit):
        return []

    async def ask(self, generation_id):
        return None

    async def start(self):
        self.store = await Store.open(self.url, self.name)
        self.outbox = Outbox(self.store, late=lambda record: self.accountant.recharge(record))
        # What has to be asked about is none of these tests' business.
        self.reconciler = Reconciler(self.ask, delays=(3600.0,))
        self.accountant = Accountant(
            self.ledger,
            NoSpend(),
            self.outbox,
            self.reconciler,
            self.calendar,
            lambda: self.rulebook,
            finals=Finals(self.store),
        )
        self.janitor = Janitor(self, self.store, self.outbox, self.accountant)
        self.charged = asyncio.Event()
        self.reconciler.start(self.charge)
        return self

    async def charge(self, record):
        try:
            return await self.accountant.charge_late(record)
        finally:
            self.charged.set()

    async def stop(self):
        await self.reconciler.stop()
        await self.store.close()

    async def reconciled(self):
        while len(self.reconciler):
            await self.charged.wait()
            self.charged.clear()
        await self.outbox.flush()

    async def hold(self, request_id):
        facts = Facts(request_id, NOON, "main", "ada", None, PEOPLE["ada"], "default", MODELS[0])
        claims = [Claim(counter, 1) for counter in self.counters()]
        await self.ledger.reserve(facts, node=self.name, lease=15.0, claims=claims, cap_wanted=100, cap_min=1, now=NOON)
        return facts

    def counters(self):
        return counters_for(
            self.rulebook.shapes, self.calendar, user_id="ada", groups=PEOPLE["ada"], models=MODELS[:1], at=NOON
        )

    async def requests_used(self):
        [counter] = [counter for counter in self.counters() if counter.window is Window.HOUR]
        return (await self.ledger.peek([counter], NOON))[0].used


@pytest.fixture
async def neighbours(database):
    """Two nodes and a third that is about to die, over one database and one ledger."""
    ledger = SharedLedger(Spend(Calendar(ZONE), NOON))
    async with AsyncExitStack() as stack:
        nodes = []
        for name in ("ann", "ben", "cid"):
            nodes.append(await Neighbour(name, database.url, ledger).start())
            stack.push_async_callback(nodes[-1].stop)
        await nodes[0].store.next_era()
        yield ledger, *nodes


async def test_what_a_node_could_not_settle_before_it_died_is_settled_once_by_those_who_live(neighbours):
    ledger, ann, ben, cid = neighbours
    facts = [await cid.hold(f"r{number}") for number in range(30)]
    ledger.away = True
    for each in facts:
        assert not await cid.accountant.settle(final_of(each, nano=1_234))
    await cid.outbox.flush()
    await cid.reconciler.stop()
    ledger.away = False

    await asyncio.gather(ann.janitor.sweep(), ben.janitor.sweep())
    await asyncio.gather(
        ann.accountant.take_over("ann", 15.0, NOON + 60), ben.accountant.take_over("ben", 15.0, NOON + 60)
    )
    await ledger.nothing_held.wait()
    await asyncio.gather(ann.outbox.flush(), ben.outbox.flush())

    rows = await ann.store.usage(UsageQuery(limit=1000))
    assert sorted(row.request_id for row in rows) == sorted(each.request_id for each in facts)
    assert {(row.status, row.source, row.cost) for row in rows} == {
        (Status.COMPLETED, Source.USAGE, Decimal("0.000001234"))
    }
    assert await ann.requests_used() == 30
    assert await ann.store.pending() == []


async def test_exact_figures_of_a_dead_node_win_over_the_bound_of_its_hold(neighbours):
    ledger, ann, _, cid = neighbours
    facts = await cid.hold("r1")
    ledger.away = True
    await cid.accountant.settle(final_of(facts, nano=1_234))
    await cid.outbox.flush()
    await cid.reconciler.stop()
    ledger.away = False

    await ann.janitor.sweep()
    await ann.accountant.take_over("ann", 15.0, NOON + 60)
    await ann.reconciled()

    [row] = await ann.store.usage(UsageQuery())
    assert (row.status, row.source, row.cost) == (Status.COMPLETED, Source.USAGE, Decimal("0.000001234"))


async def test_a_record_that_missed_its_era_is_charged_in_the_next_and_written_once(neighbours):
    ledger, ann, _, _ = neighbours
    await ann.accountant.settle(final_of(await ann.hold("r1")))
    begun = ledger.era = await ann.store.next_era()
    # Built from a database that does not have the record yet: this ledger knows nothing of it.
    ledger.__init__(Spend(Calendar(ZONE), NOON))
    ledger.era = begun
    await ann.outbox.flush()
    await ann.reconciled()

    assert await ann.requests_used() == 1
    [row] = await ann.store.usage(UsageQuery())
    assert row.request_id == "r1"
    seeds = await StoredRecords(ann.store, ann.calendar).charged(ann.rulebook.shapes, begun + 1, NOON)
    assert [seed.amount for seed in seeds if seed.counter.window is Window.HOUR] == [1]
    assert await StoredRecords(ann.store, ann.calendar).charged(ann.rulebook.shapes, begun, NOON) == []


STEPS = st.one_of(
    st.tuples(st.just("admit"), st.sampled_from(sorted(PEOPLE)), st.sampled_from(MODELS)),
    st.tuples(st.sampled_from(["settle", "again"]), st.integers(0, 50_000), st.integers(10, 500)),
    st.tuples(st.sampled_from(["park", "park unnamed"]), st.integers(0, 50_000)),
    st.tuples(st.sampled_from(["release", "reconcile", "flush", "kill", "stop"])),
    st.tuples(st.just("wait"), st.sampled_from([1, 59, 61, 3600, 86_400, 40 * 86_400])),
    st.tuples(st.just("rules"), st.sets(st.sampled_from(LIMITS))),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(STEPS, max_size=25))
def test_after_any_history_the_counters_are_the_sum_of_the_records(history):
    async def live(folder):
        node = await Node(folder).start()
        open_, over = [], []
        for number, (step, *details) in enumerate(history):
            if step == "admit":
                open_.append(await node.admit(f"r{number}", *details))
            elif step == "settle" and open_:
                over.append(open_.pop(0))
                await node.accountant.settle(final_of(over[-1], *details))
            elif step == "again" and over:
                await node.accountant.settle(final_of(over[-1], *details))
            elif step in {"park", "park unnamed"} and open_:
                facts = open_.pop()
                name = f"gen-{facts.request_id}" if step == "park" else None
                node.told[f"gen-{facts.request_id}"] = Generation(cost=Decimal(details[0]) / 10**9)
                await node.accountant.park(parked_of(facts, name))
            elif step == "release" and open_:
                await node.ledger.release(open_.pop().request_id, node.now)
            elif step == "reconcile":
                await node.reconciled()
            elif step == "flush":
                await node.outbox.flush()
            elif step in {"kill", "stop"}:
                await (node.kill() if step == "kill" else node.stop())
                told, rulebook = node.told, node.rulebook
                node = Node(folder, node.now)
                node.told, node.rulebook = told, rulebook
                await node.start()
                # A request does not outlive its process: nobody is left who could settle it again.
                open_.clear()
                over.clear()
            elif step == "wait":
                node.now += details[0]
                await node.ledger.renew("node", 15.0, node.now)
            elif step == "rules":
                node.set_limits(sorted(details[0], key=LIMITS.index))
                node.accountant.shapes()
            await node.counters_are_the_sum_of_the_rows()
        await node.reconciled()
        assert {hold.facts.request_id for hold in node.ledger.live()} == {facts.request_id for facts in open_}
        await node.counters_are_the_sum_of_the_rows()
        await node.stop()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder)))
